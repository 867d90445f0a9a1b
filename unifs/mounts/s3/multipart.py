"""Large objects: stored in parts, in parallel, and taken up again after a crash.

An upload is known by what it holds. Part 10,000, never part of the object, is 64 bytes made of the
change's token: so ListParts tells after a crash, without anything kept here, which upload was this
change's, and the other parts are compared by their MD5 with what is to be stored. An upload that
fails for good is aborted at once; one that was cut off waits for the same change to come again.
Those that nobody comes for are aborted when they are a day old (``sweep``).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import NotFound, PermissionDenied, UnifsError, Unsupported
from unifs.mounts.s3.attributes import size_in, version_in, was
from unifs.mounts.s3.encryption import source_key_headers
from unifs.mounts.s3.fingerprint import PARTS, Fingerprint
from unifs.mounts.s3.listing import escaped, plain_etag, quoted_etag, records
from unifs.mounts.s3.objects import if_match
from unifs.mounts.s3.parallel import all_of
from unifs.mounts.s3.payload import BytesPayload, checksum_headers, checksum_text, hashed
from unifs.mounts.s3.service import Request
from unifs.mounts.s3.sigv4 import encoded
from unifs.types import Node, Version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from unifs.mounts.base import ContentReader
    from unifs.mounts.s3.options import S3Options
    from unifs.mounts.s3.payload import ContentPayload
    from unifs.mounts.s3.writing import Place, Writing

log = logging.getLogger(__name__)

PART_BYTES: Final = 8 << 20
#: Of the 10,000 that services take, with room for the mark.
PARTS_MAX: Final = 9_000
MARK_PART: Final = 10_000
MARK_BYTES: Final = 64
#: Parts of one object on their way at a time.
PARALLEL_MAX: Final = 8
#: Parts that are read and hashed at a time, before the first is sent.
HASHING_MAX: Final = 2
COPY_PART_BYTES: Final = 1 << 30
ORPHAN_S: Final = 24 * 3600.0
ABORT_S: Final = 10.0


@dataclass(slots=True)
class Upload:
    """A multipart upload; ``parts`` is number -> (ETag, size) of what the service holds."""

    place: Place
    id: str
    parts: dict[int, tuple[str, int]] = field(default_factory=dict)

    def query(self, **more: str) -> tuple[tuple[str, str], ...]:
        return (("uploadId", self.id), *more.items())


@dataclass(frozen=True, slots=True)
class Copying:
    """What a copy says of the new object, and the headers of the condition that it is made on.

    ``version_id`` is the service's name for an earlier version, where the source is one.
    """

    said: dict[str, str]
    condition: dict[str, str] = field(default_factory=dict)
    version_id: str = ""


def source_headers(
    options: S3Options, place: Place, version: Version, version_id: str = ""
) -> dict[str, str]:
    """Headers that name the source of a copy, of exactly that version."""
    query = f"?versionId={encoded(version_id)}" if version_id else ""
    return {
        "x-amz-copy-source": f"/{place[0]}/{encoded(place[1], '/')}{query}",
        "x-amz-copy-source-if-match": if_match(version),
        **source_key_headers(options),
    }


def part_bytes(size_bytes: int) -> int:
    """The size of all parts but the last."""
    least = -(-size_bytes // PARTS_MAX)
    return max(PART_BYTES, -(-least // (1 << 20)) << 20)


def mark_of(token: str) -> bytes:
    """What part 10,000 of a change's upload holds."""
    return hashlib.sha256(b"unifs upload\0" + token.encode()).hexdigest().encode()


class Multipart:
    """Uploads in parts for one mount."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._objects = writing.objects
        self._service = writing.service
        self._checksum = writing.options.checksum
        #: What is on its way now, as far as it has come.
        self._under_way: dict[Place, Upload] = {}

    # --- put --------------------------------------------------------------------------------------

    async def put(
        self, place: Place, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        """Store a content in parts, conditional on ``base``."""
        there = await self._writing.there(place, base, token)
        if isinstance(there, Node):
            return there
        self._under_way[place] = Upload(place, "")
        try:
            return await self._put(place, content, base, token)
        finally:
            self._under_way.pop(place, None)

    def sent(self, place: Place) -> int | None:
        """How many bytes of what is being stored at ``place`` the service has; None: nothing is."""
        upload = self._under_way.get(place)
        if upload is None:
            return None
        return sum(size for number, (_, size) in upload.parts.items() if number != MARK_PART)

    async def _put(
        self, place: Place, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        payloads = await self._hashed(content)
        step = part_bytes(content.size_bytes)
        mark = Fingerprint.of(step, [payload.sha256 for payload in payloads])
        headers = self._writing.content_headers(place[1], content, token)
        headers[PARTS] = mark.text()
        if self._checksum != "none":
            headers["x-amz-checksum-algorithm"] = self._checksum.upper()
        upload = await self._begun(place, token)
        if upload is None:
            upload = await self._begin(place, headers)
            await self._put_part(upload, MARK_PART, BytesPayload(mark_of(token)))
        self._under_way[place] = upload
        try:
            await self._put_parts(upload, payloads, base)
            checksums = [checksum_text(self._checksum, payload) for payload in payloads]
            send = partial(self._completed, upload, checksums)
            version = await self._writing.stored(place, base, token, send)
        except UnifsError as error:
            if not error.is_transient:
                await self.abort(upload)
            raise
        if isinstance(version, Node):
            await self.abort(upload)
            return version
        return self._writing.new_node(content.size_bytes, version, headers)

    async def _hashed(self, content: ContentReader) -> list[ContentPayload]:
        """The parts of a content with their hashes, which the upload begins with."""
        size, step = content.size_bytes, part_bytes(content.size_bytes)
        found: dict[int, ContentPayload] = {}

        async def take(offset: int) -> None:
            length = min(step, size - offset)
            span = (offset, length)
            found[offset] = await hashed(content, span, self._writing.blocking, self._checksum)

        offsets = range(0, size, step)
        await all_of(HASHING_MAX, [partial(take, offset) for offset in offsets])
        return [found[offset] for offset in offsets]

    async def _put_parts(
        self, upload: Upload, payloads: list[ContentPayload], base: Version | None
    ) -> None:
        step = payloads[0].size_bytes
        unchanged, source = await self._unchanged(upload.place, payloads, base)

        async def put(number: int, payload: ContentPayload) -> None:
            etag, size = upload.parts.get(number, ("", 0))
            is_sized = size == payload.size_bytes
            if is_sized and etag == await payload.md5(self._writing.blocking):
                return
            if number in unchanged:
                span = ((number - 1) * step, payload.size_bytes)
                await self._copy_part(upload, number, source, span)
            else:
                await self._put_part(upload, number, payload)

        calls = [partial(put, number, payload) for number, payload in enumerate(payloads, 1)]
        await all_of(PARALLEL_MAX, calls)

    async def _unchanged(
        self, place: Place, payloads: list[ContentPayload], base: Version | None
    ) -> tuple[set[int], dict[str, str]]:
        """The parts that the version to be replaced has too, and how to copy from it."""
        there = None if base is None else await self._objects.head(*place)
        known = None if there is None else Fingerprint.read(there)
        if there is None or known is None or base not in (version_in(there), *was(there)):
            return set(), {}
        digests = [payload.sha256 for payload in payloads]
        source = source_headers(self._service.options, place, version_in(there))
        return known.unchanged(payloads[0].size_bytes, digests), source

    async def _put_part(
        self, upload: Upload, number: int, payload: BytesPayload | ContentPayload
    ) -> None:
        request = Request(
            "PUT",
            *upload.place,
            query=upload.query(partNumber=str(number)),
            headers={**self._objects.key_headers, **checksum_headers(self._checksum, payload)},
            body=payload,
        )
        answer = await self._service.call(request)
        upload.parts[number] = (version_in(answer.headers), payload.size_bytes)

    # --- an upload's life -------------------------------------------------------------------------

    async def _begin(self, place: Place, headers: Mapping[str, str]) -> Upload:
        request = Request("POST", *place, query=(("uploads", ""),), headers=dict(headers))
        answer = await self._service.call(request)
        upload_id = records(answer.body, "InitiateMultipartUploadResult").last.get("UploadId", "")
        if not upload_id:
            raise Unsupported(f"{request}: the service begins no upload in parts")
        return Upload(place, upload_id)

    async def _completed(
        self, upload: Upload, checksums: Sequence[str], condition: dict[str, str]
    ) -> Version:
        """Make the object of its parts, one for each of ``checksums`` ("": none)."""
        element = f"Checksum{self._checksum.upper()}"
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber>"
            f"<ETag>{escaped(quoted_etag(upload.parts[number][0]))}</ETag>"
            + (f"<{element}>{checksum}</{element}>" if checksum else "")
            + "</Part>"
            for number, checksum in enumerate(checksums, 1)
        )
        text = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
        request = Request(
            "POST",
            *upload.place,
            query=upload.query(),
            headers={"content-type": "application/xml", **condition},
            body=BytesPayload(text.encode()),
        )
        answer = await self._service.call(request)
        said = records(answer.body, "CompleteMultipartUploadResult").last.get("ETag", "")
        return Version(plain_etag(said))

    async def abort(self, upload: Upload) -> None:
        """Give an upload up; also when the caller is cancelled."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_S):
            try:
                await self._service.call(Request("DELETE", *upload.place, query=upload.query()))
            except NotFound:
                return
            except UnifsError as error:
                log.warning("an upload was not aborted: key=%r error=%s", upload.place[1], error)

    # --- uploads of the past ----------------------------------------------------------------------

    async def _begun(self, place: Place, token: str) -> Upload | None:
        """The upload that an earlier attempt of this change began, with the parts it brought."""
        expected = (hashlib.md5(mark_of(token), usedforsecurity=False).hexdigest(), MARK_BYTES)
        try:
            for upload, _ in await self._uploads(place[0], place[1]):
                if upload.place == place and await self._mark(upload) == expected:
                    upload.parts = await self._parts(upload)
                    return upload
        except (PermissionDenied, Unsupported, NotFound) as error:
            log.debug("uploads are not listed: bucket=%s error=%s", place[0], error)
        return None

    async def _uploads(self, bucket: str, prefix: str) -> list[tuple[Upload, float]]:
        """Uploads under way, and when they began."""
        query = (("uploads", ""), ("prefix", prefix), ("max-uploads", "1000"))
        answer = await self._service.call(Request("GET", bucket, query=query))
        return [
            (Upload((bucket, fields["Key"]), fields["UploadId"]), _moment_s(fields))
            for fields in records(answer.body, "Upload").found
            if "Key" in fields and "UploadId" in fields
        ]

    async def _mark(self, upload: Upload) -> tuple[str, int] | None:
        found = await self._parts_after(upload, MARK_PART - 1)
        if MARK_PART not in found:
            # Some services count parts where others compare numbers.
            found = await self._parts(upload)
        return found.get(MARK_PART)

    async def _parts(self, upload: Upload) -> dict[int, tuple[str, int]]:
        parts: dict[int, tuple[str, int]] = {}
        after = 0
        while found := await self._parts_after(upload, after):
            parts |= found
            after = max(found)
        return parts

    async def _parts_after(self, upload: Upload, after: int) -> dict[int, tuple[str, int]]:
        query = upload.query(**{"part-number-marker": str(after), "max-parts": "1000"})
        answer = await self._service.call(Request("GET", *upload.place, query=query))
        return {
            int(part["PartNumber"]): (plain_etag(part.get("ETag", "")), int(part["Size"]))
            for part in records(answer.body, "Part").found
            if int(part["PartNumber"]) > after
        }

    async def sweep(self, bucket: str, prefix: str, now_s: float) -> int:
        """Abort unifs's uploads in which nothing has moved for a day; how many there were."""
        count = 0
        for upload, began_s in await self._uploads(bucket, prefix):
            if now_s - began_s < ORPHAN_S:
                continue
            mark = await self._mark(upload)
            if mark is not None and mark[1] == MARK_BYTES:
                await self.abort(upload)
                count += 1
        return count

    # --- copies -----------------------------------------------------------------------------------

    async def copy(
        self, source: Place, headers: dict[str, str], target: Place, how: Copying
    ) -> Version:
        """Copy an object too large for one CopyObject, range by range at the service."""
        size = size_in(headers)
        upload = await self._begin(target, {**how.said, **self._objects.key_headers})
        options = self._service.options
        from_ = source_headers(options, source, version_in(headers), how.version_id)
        try:
            calls = [
                partial(self._copy_part, upload, number, from_, span)
                for number, span in enumerate(_spans(size, COPY_PART_BYTES), 1)
            ]
            await all_of(PARALLEL_MAX, calls)
            return await self._completed(upload, [""] * len(calls), how.condition)
        except BaseException:
            await self.abort(upload)
            raise

    async def _copy_part(
        self, upload: Upload, number: int, source: dict[str, str], span: tuple[int, int]
    ) -> None:
        first, length = span
        headers = {
            **source,
            "x-amz-copy-source-range": f"bytes={first}-{first + length - 1}",
            **self._objects.key_headers,
        }
        query = upload.query(partNumber=str(number))
        answer = await self._service.call(
            Request("PUT", *upload.place, query=query, headers=headers)
        )
        etag = records(answer.body, "CopyPartResult").last.get("ETag", "")
        upload.parts[number] = (plain_etag(etag), length)


def _spans(size_bytes: int, step: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, size_bytes, step):
        yield offset, min(step, size_bytes - offset)


def _moment_s(fields: Mapping[str, str]) -> float:
    try:
        return datetime.fromisoformat(fields.get("Initiated", "")).timestamp()
    except ValueError:
        return float("inf")
