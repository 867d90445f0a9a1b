"""Copies at the service, of one object each, on conditions.

``moving`` makes renames and changes of attributes of them, ``mount`` other storage classes and
earlier versions the present ones. A copy is of exactly one version of its
source; with a condition it replaces nothing but what that allows, where the bucket heeds that
(``conditions.copying``).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from unifs.errors import Conflict, TryAgain
from unifs.mounts.s3.attributes import copied as kept
from unifs.mounts.s3.attributes import size_in, version_in, was, write_headers
from unifs.mounts.s3.encryption import key_headers
from unifs.mounts.s3.listing import plain_etag, records
from unifs.mounts.s3.multipart import Copying, source_headers
from unifs.mounts.s3.service import Request
from unifs.mounts.s3.writing import condition_of
from unifs.types import Version

if TYPE_CHECKING:
    from unifs.mounts.s3.multipart import Multipart
    from unifs.mounts.s3.writing import Place, Writing

log = logging.getLogger(__name__)

#: What is moved goes beside what somebody put there meanwhile: this and the start of its version.
CONFLICT: Final = ".conflict-"
#: One CopyObject takes no more; above it is UploadPartCopy.
COPY_MAX_BYTES: Final = 5 << 30


class Copies:
    """Copies for one mount."""

    def __init__(self, writing: Writing, multipart: Multipart) -> None:
        self._multipart = multipart
        self._objects = writing.objects
        self._service = writing.service
        self._conditions = writing.conditions
        self._options = writing.options

    async def copy(
        self, source: Place, headers: dict[str, str], target: Place, how: Copying
    ) -> Version:
        """Copy an object with new metadata; ``headers`` are what HEAD said of the source.

        TryAgain if somebody changed it meanwhile; Conflict, with a condition, if that or the
        condition does not hold. The new object's version.
        """
        version = version_in(headers)
        said = kept(headers)
        storage = headers.get("x-amz-storage-class")
        if storage:
            said["x-amz-storage-class"] = storage
        said |= write_headers(self._options) | how.said
        if size_in(headers) > COPY_MAX_BYTES:
            made = await self._multipart.copy(source, headers, target, replace(how, said=said))
        else:
            said["x-amz-metadata-directive"] = "REPLACE"
            made = await self.copy_version(source, version, target, replace(how, said=said))
        self._objects.remember(target, version, made)
        return made

    async def copy_version(
        self, source: Place, version: Version, target: Place, how: Copying
    ) -> Version:
        """Copy exactly ``version`` of an object; as ``copy`` otherwise, without a look."""
        request = Request(
            "PUT",
            *target,
            headers={
                **source_headers(self._options, source, version, how.version_id),
                **key_headers(self._options),
                **how.said,
                **how.condition,
            },
        )
        try:
            answer = await self._service.call(request)
        except Conflict as error:
            if how.condition:
                raise
            raise TryAgain(f"{source[1]!r} is being changed by somebody") from error
        return Version(plain_etag(records(answer.body, "CopyObjectResult").last.get("ETag", "")))

    async def onto_itself(
        self, place: Place, headers: dict[str, str], said: dict[str, str]
    ) -> Version:
        """Say other things of the object that HEAD has told of; its new version.

        TryAgain if somebody changes it meanwhile: what they stored stays, for in the last moment
        the service looks once more, where the bucket heeds conditions on copies.
        """
        is_honoured = await self._conditions.copying(place[0])
        condition = condition_of(version_in(headers)) if is_honoured else {}
        try:
            return await self.copy(place, headers, place, Copying(said, condition))
        except Conflict as error:
            raise TryAgain(f"{place[1]!r} is being changed by somebody") from error

    async def is_copied(self, new: Place, version: Version) -> bool:
        """Whether what stands at ``new`` is what an earlier try made of ``version``."""
        headers = await self._objects.head(*new)
        return headers is not None and version in (version_in(headers), *was(headers))


def beside(new: Place, version: Version) -> Place:
    """Where ours goes if somebody's object stands at ``new``."""
    key = f"{new[1]}{CONFLICT}{version[:8]}"
    log.warning("somebody's object stays: key=%r ours=%r", new[1], key)
    return (new[0], key)
