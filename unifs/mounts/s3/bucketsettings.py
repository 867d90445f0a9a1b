"""What is set on a bucket: its policy, versions kept or not, lifecycle, and uploads not completed.

For control operations only. Documents are JSON as ``aws s3api`` reads and writes it. Changes that a
service takes and does not keep are Unsupported: what was set is asked for again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from unifs.errors import Corrupt, InvalidArgument, NotFound, UnifsError, Unsupported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unifs.mounts.s3.control import Control

Versioning = Literal["off", "on", "suspended"]

_STATES: Final[dict[str, Versioning]] = {"": "off", "Enabled": "on", "Suspended": "suspended"}


@dataclass(frozen=True, slots=True)
class PartialUpload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    id: str
    began_s: float
    storage_class: str


class BucketSettings:
    """The settings of a service's buckets."""

    def __init__(self, control: Control) -> None:
        self._control = control

    # --- policy -----------------------------------------------------------------------------------

    async def policy(self, bucket: str) -> str:
        """The policy as JSON; NotFound where the bucket has none."""
        try:
            answer = await self._control.call("get_bucket_policy", Bucket=bucket)
        except NotFound as error:
            raise _lacking(error, "NoSuchBucketPolicy", f"{bucket} has no policy") from error
        return _pretty(_parsed(answer.get("Policy", ""), "policy", Corrupt))

    async def put_policy(self, bucket: str, document: bytes) -> None:
        """Set the policy; the service says what is wrong with it."""
        table = _table(document, "policy")
        await self._control.call("put_bucket_policy", Bucket=bucket, Policy=json.dumps(table))
        try:
            await self._control.call("get_bucket_policy", Bucket=bucket)
        except NotFound as error:
            raise Unsupported("the service took the policy and does not keep it") from error

    async def remove_policy(self, bucket: str) -> None:
        """No policy any more; success where there was none."""
        await self._control.call("delete_bucket_policy", Bucket=bucket)

    # --- versions ---------------------------------------------------------------------------------

    async def versioning(self, bucket: str) -> Versioning:
        """Whether replaced and deleted objects are kept."""
        answer = await self._control.call("get_bucket_versioning", Bucket=bucket)
        status = str(answer.get("Status", ""))
        if status not in _STATES:
            raise Corrupt(f"the service says that versions of {bucket} are {status!r}")
        return _STATES[status]

    async def set_versioning(self, bucket: str, is_on: bool) -> Versioning:
        """Keep versions from now on, or make no more; those that are there stay. What holds now."""
        wanted = {"Status": "Enabled" if is_on else "Suspended"}
        await self._control.call(
            "put_bucket_versioning", Bucket=bucket, VersioningConfiguration=wanted
        )
        found = await self.versioning(bucket)
        if (found == "on") is not is_on:
            raise Unsupported(f"the service took the change, and versions are still {found}")
        return found

    # --- lifecycle --------------------------------------------------------------------------------

    async def lifecycle(self, bucket: str) -> str:
        """The rules as JSON; NotFound where the bucket has none."""
        try:
            answer = await self._control.call("get_bucket_lifecycle_configuration", Bucket=bucket)
        except NotFound as error:
            code, text = "NoSuchLifecycleConfiguration", f"{bucket} has no lifecycle"
            raise _lacking(error, code, text) from error
        return _pretty({"Rules": answer.get("Rules", [])})

    async def put_lifecycle(self, bucket: str, document: bytes) -> None:
        """Replace all rules by those of ``{"Rules": [...]}``."""
        table = _table(document, "lifecycle")
        if not isinstance(table.get("Rules"), list) or not table["Rules"]:
            raise InvalidArgument('the lifecycle has no rules: it has to be {"Rules": [...]}')
        await self._control.call(
            "put_bucket_lifecycle_configuration", Bucket=bucket, LifecycleConfiguration=table
        )
        try:
            await self.lifecycle(bucket)
        except NotFound as error:
            raise Unsupported("the service took the lifecycle and does not keep it") from error

    async def remove_lifecycle(self, bucket: str) -> None:
        """No rules any more; success where there were none."""
        await self._control.call("delete_bucket_lifecycle", Bucket=bucket)

    # --- uploads ----------------------------------------------------------------------------------

    async def uploads(self, bucket: str, prefix: str) -> AsyncIterator[PartialUpload]:
        """Multipart uploads of keys that begin so, in the service's order."""
        markers: dict[str, str] = {}
        while True:
            answer = await self._control.call(
                "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers
            )
            for found in answer.get("Uploads", []):
                began_s = found["Initiated"].timestamp()
                storage_class = str(found.get("StorageClass", ""))
                yield PartialUpload(found["Key"], found["UploadId"], began_s, storage_class)
            after = (answer.get("NextKeyMarker", ""), answer.get("NextUploadIdMarker", ""))
            if not answer.get("IsTruncated") or not after[0]:
                return
            markers = {"KeyMarker": after[0], "UploadIdMarker": after[1]}

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload and free its parts; NotFound where the service knows none such."""
        try:
            await self._control.call(
                "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id
            )
        except NotFound as error:
            raise NotFound(f"{key!r} has no upload {upload_id!r}") from error


def _lacking(error: NotFound, code: str, sentence: str) -> NotFound:
    """The error in words, where it is what the code says and not a bucket that is not there."""
    return NotFound(sentence) if error.context.get("s3_code") == code else error


def _table(document: bytes, what: str) -> dict[str, Any]:
    table = _parsed(document, what, InvalidArgument)
    if not isinstance(table, dict):
        raise InvalidArgument(f"the {what} has to be a JSON object")
    return table


def _parsed(document: str | bytes, what: str, wrong: type[UnifsError]) -> Any:
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as error:
        raise wrong(f"the {what} is not JSON: {error}") from error


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, default=_text) + "\n"


def _text(value: Any) -> str:
    """A moment, the one thing in boto3's answers that JSON does not know."""
    return str(value.isoformat())
