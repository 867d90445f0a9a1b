"""Removing objects and empty directories, one by one and many at once.

A file is removed with ``If-Match``: what somebody changed stays, and is a conflict. Many files of a
bucket go in one DeleteObjects with each one's ETag, where a look at an object of our own has shown
that the service heeds them there. A directory that loses its last file stays: it gets a marker
first.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Final

from unifs.errors import (
    Conflict,
    InvalidArgument,
    NotEmpty,
    NotFound,
    PermissionDenied,
    UnifsError,
    Unsupported,
)
from unifs.mounts.s3.attributes import version_in, was
from unifs.mounts.s3.conditions import NEVER
from unifs.mounts.s3.errors import Refusal
from unifs.mounts.s3.listing import escaped, quoted_etag, records
from unifs.mounts.s3.objects import if_match
from unifs.mounts.s3.parallel import all_of
from unifs.mounts.s3.payload import BytesPayload
from unifs.mounts.s3.service import Request
from unifs.mounts.s3.versions import version_page
from unifs.types import Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unifs.mounts.s3.conditions import Conditions
    from unifs.mounts.s3.reading import Reading
    from unifs.mounts.s3.writing import Place


log = logging.getLogger(__name__)

#: Fewer than this are removed one by one: finding out costs three requests.
BATCH_MIN: Final = 16
BATCH_MAX: Final = 1000
PARALLEL_MAX: Final = 32
#: What XML 1.0 cannot say, not even by reference.
_UNSAYABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Removing:
    """remove for one mount."""

    def __init__(self, reading: Reading, conditions: Conditions) -> None:
        self.reading = reading
        self.objects = reading.objects
        self.service = reading.objects.service
        self.directories = reading.directories
        self.conditions = conditions
        #: Bucket -> whether DeleteObjects heeds ETags.
        self._batches: dict[str, bool] = {}

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        """Remove a file of that version, or (``base`` None) an empty directory."""
        place = self.reading.places.maybe_object_at(path)
        if base is not None:
            if place is not None:
                await self._remove_file(path, place, base)
            return
        if place is not None:
            headers = await self.objects.head(*place)
            is_marker = place[1].endswith("/") and headers is not None
            if headers is not None and not (is_marker and headers["content-length"] == "0"):
                raise Conflict(f"{path!r} is a file")
        await self._remove_directory(path)

    async def _remove_file(self, path: str, place: Place, base: Version) -> None:
        await self.directories.keep_above(path)
        honoured = await self.conditions.of(place[0])
        try:
            if honoured.removing:
                await self._delete(place, base)
                return
        except NotFound:
            return
        except Conflict:
            pass
        headers = await self.objects.head(*place)
        if headers is None:
            return
        version = version_in(headers)
        if base != version and base not in was(headers):
            raise Conflict(f"{path!r} was changed by somebody")
        try:
            await self._delete(place, version if honoured.removing else None)
        except NotFound:
            return

    async def delete_version(self, place: Place, version: Version) -> bool:
        """Delete an object if it is still that version; False: somebody changed it, it stays."""
        try:
            honoured = await self.conditions.of(place[0])
            await self._delete(place, version if honoured.removing else None)
        except Conflict:
            return False
        except NotFound:
            return True
        return True

    async def _delete(self, place: Place, base: Version | None) -> None:
        headers = {} if base is None else {"if-match": if_match(base)}
        await self.service.call(Request("DELETE", *place, headers=headers))

    async def _remove_directory(self, path: str) -> None:
        bucket, prefix = self.reading.places.prefix_at(path)
        found = (await self.objects.page(bucket, {"prefix": prefix, "max-keys": "2"})).objects
        if any(one.key != prefix or one.size_bytes for one in found):
            raise NotEmpty(f"{path!r} is not empty")
        if found:
            await self.directories.keep_above(path)
            is_gone = await self.delete_version((bucket, prefix), Version(found[0].etag))
            # A refused DELETE may be the second of two that were delivered.
            if not is_gone and await self.objects.first_keys(bucket, prefix, 1):
                raise NotEmpty(f"{path!r} is not empty: somebody has stored something in it")
        await self.directories.clear(bucket, prefix.removesuffix("/"))
        self.directories.gone(path)

    async def need_empty(self, bucket: str) -> None:
        """NotEmpty where a bucket holds anything, earlier versions too.

        Services refuse that themselves, but not all: SeaweedFS, unless it is told otherwise,
        deletes a bucket with all that is in it.
        """
        if await self.objects.first_keys(bucket, "", 1):
            raise NotEmpty(f"the bucket {bucket!r} is not empty")
        try:
            page = await version_page(self.service, (bucket, ""), limit=1)
        except (Unsupported, InvalidArgument, PermissionDenied) as error:
            log.debug("no versions to be had: bucket=%s error=%s", bucket, error)
            return
        if page.versions:
            raise NotEmpty(f"the bucket {bucket!r} keeps earlier versions of what was in it")

    # --- many at once -----------------------------------------------------------------------------

    async def remove_many(
        self, removals: Sequence[tuple[str, Version | None, str]]
    ) -> list[UnifsError | None]:
        """Remove many (path, base, token); one outcome each, in order."""
        outcomes: list[UnifsError | None] = [None] * len(removals)
        batches: dict[str, list[tuple[int, str, str, Version]]] = {}
        single: list[int] = []
        for number, (path, base, _) in enumerate(removals):
            try:
                place = self.reading.places.object_at(path)
            except UnifsError:
                place = ("", "")
            if base is None or not place[1] or _UNSAYABLE.search(place[1]):
                single.append(number)
            else:
                batches.setdefault(place[0], []).append((number, path, place[1], base))
        for bucket, batch in batches.items():
            if len(batch) < BATCH_MIN or not await self._heeds_etags(bucket):
                single += [number for number, *_ in batch]
                continue
            for start in range(0, len(batch), BATCH_MAX):
                part = batch[start : start + BATCH_MAX]
                single += await self._remove_batch(bucket, part, outcomes)

        async def remove(number: int) -> None:
            try:
                await self.remove(*removals[number])
            except UnifsError as error:
                outcomes[number] = error

        await all_of(PARALLEL_MAX, [partial(remove, number) for number in sorted(single)])
        return outcomes

    async def _remove_batch(
        self,
        bucket: str,
        batch: list[tuple[int, str, str, Version]],
        outcomes: list[UnifsError | None],
    ) -> list[int]:
        """One DeleteObjects; the numbers of those to be looked at one by one."""
        for path in {path.rpartition("/")[0]: path for _, path, _, _ in batch}.values():
            await self.directories.keep_above(path)
        try:
            refused = await self._delete_objects(bucket, [(key, base) for _, _, key, base in batch])
        except UnifsError as error:
            for number, *_ in batch:
                outcomes[number] = error
            return []
        again: list[int] = []
        for number, _, key, _ in batch:
            refusal = refused.get(key)
            if refusal is None or refusal.code == "NoSuchKey":
                continue
            if refusal.code == "PreconditionFailed":
                again.append(number)
            else:
                outcomes[number] = refusal.error(f"DELETE {bucket}/{key}")
        return again

    async def _delete_objects(
        self, bucket: str, keys: Sequence[tuple[str, str]]
    ) -> dict[str, Refusal]:
        """DeleteObjects of keys with their versions; what was refused."""
        objects = "".join(
            f"<Object><Key>{escaped(key)}</Key><ETag>{escaped(quoted_etag(version))}</ETag></Object>"
            for key, version in keys
        )
        body = f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        headers = {
            "content-md5": base64.b64encode(digest).decode(),
            "content-type": "application/xml",
        }
        request = Request(
            "POST", bucket, query=(("delete", ""),), headers=headers, body=BytesPayload(body)
        )
        answer = await self.service.call(request)
        return {
            fields.get("Key", ""): Refusal(
                answer.status, fields.get("Code", ""), fields.get("Message", ""), {}
            )
            for fields in records(answer.body, "Error").found
        }

    async def _heeds_etags(self, bucket: str) -> bool:
        """Whether DeleteObjects spares an object (our own, made for this) of another ETag."""
        try:
            return await self.conditions.tried(self._batches, bucket, self._is_spared)
        except UnifsError as error:
            log.debug("no deletes in batches: bucket=%s error=%s", bucket, error)
            return False

    async def _is_spared(self, bucket: str, key: str) -> bool:
        return key in await self._delete_objects(bucket, [(key, NEVER.strip('"'))])
