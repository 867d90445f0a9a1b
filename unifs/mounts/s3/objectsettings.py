"""What is set on single objects beside their bytes: tags, and the storage class.

For control operations only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unifs.errors import NotFound, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unifs.mounts.s3.control import Control
    from unifs.mounts.s3.objects import Objects

STORAGE_CLASS: Final = "x-amz-storage-class"
#: Services say nothing of this one.
DEFAULT_CLASS: Final = "STANDARD"


def storage_class_in(headers: Mapping[str, str]) -> str:
    """The storage class that the answer to HEAD tells."""
    return headers.get(STORAGE_CLASS, "") or DEFAULT_CLASS


class ObjectSettings:
    """Tags and storage classes of a service's objects. A place is a bucket and a key."""

    def __init__(self, control: Control, objects: Objects) -> None:
        self._control = control
        self._objects = objects

    async def tags(self, place: tuple[str, str]) -> dict[str, str]:
        """The tags of an object."""
        bucket, key = place
        answer = await self._control.call("get_object_tagging", Bucket=bucket, Key=key)
        return {str(each["Key"]): str(each["Value"]) for each in answer.get("TagSet", [])}

    async def put_tags(self, place: tuple[str, str], tags: Mapping[str, str]) -> None:
        """These are an object's tags from now on, and no others."""
        bucket, key = place
        if tags:
            told = {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}
            await self._control.call("put_object_tagging", Bucket=bucket, Key=key, Tagging=told)
        else:
            await self._control.call("delete_object_tagging", Bucket=bucket, Key=key)
        if await self.tags(place) != dict(tags):
            raise Unsupported("the service took the tags and does not keep them")

    async def stat(self, place: tuple[str, str]) -> dict[str, str]:
        """What HEAD says of an object; NotFound where there is none."""
        headers = await self._objects.head(*place)
        if headers is None:
            raise NotFound(f"there is no object {place[1]!r}")
        return headers

    async def check_class(self, place: tuple[str, str], wanted: str) -> None:
        """Unsupported where the service took another storage class and keeps its own."""
        found = storage_class_in(await self.stat(place))
        if found != wanted:
            raise Unsupported(f"the service keeps the object as {found}, not as {wanted}")
