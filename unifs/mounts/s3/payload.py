"""Bodies of uploads: a range of a content, hashed before it is sent.

A signature covers the sha256 of the body, so a content is read twice, piece by piece: from the page
cache that costs less than holding it (64 parts at a time stay below 100 MiB). Small ones are read
once. A content that is shorter than it says is Corrupt before a byte is sent.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final

import google_crc32c

from unifs.errors import Corrupt

if TYPE_CHECKING:
    from unifs.mounts.base import ContentReader
    from unifs.mounts.blocking import Blocking

PIECE_BYTES: Final = 1 << 20
#: Hashing more than this on the event loop would be felt: 64 KiB take about 40 µs.
INLINE_BYTES: Final = 64 << 10


class BytesPayload:
    """A body in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.crc32c: int = google_crc32c.value(data)

    async def piece(self, offset: int) -> bytes:
        return self._data[offset:]


class ContentPayload:
    """A range of a content. ``hashed`` makes one."""

    def __init__(self, content: ContentReader, offset: int, size_bytes: int) -> None:
        self._content = content
        self._offset = offset
        self.size_bytes = size_bytes
        self._whole: bytes | None = None
        self.sha256 = self.md5 = ""
        self.crc32c = 0

    async def hash(self, blocking: Blocking) -> None:
        """Read it and compute what it is signed with."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

        def update(piece: bytes) -> None:
            sha256.update(piece)
            md5.update(piece)
            self.crc32c = google_crc32c.extend(self.crc32c, piece)

        offset = 0
        while offset < self.size_bytes:
            piece = await self._read(offset)
            if len(piece) <= INLINE_BYTES:
                update(piece)
            else:
                await blocking.change(update, piece)
            if self.size_bytes <= PIECE_BYTES:
                self._whole = piece
            offset += len(piece)
        self.sha256, self.md5 = sha256.hexdigest(), md5.hexdigest()

    async def piece(self, offset: int) -> bytes:
        if self._whole is not None:
            return self._whole[offset:]
        return await self._read(offset)

    async def _read(self, offset: int) -> bytes:
        size = min(PIECE_BYTES, self.size_bytes - offset)
        piece = await self._content.read(self._offset + offset, size)
        if len(piece) != size:
            raise Corrupt("the content ended before its size")
        return piece


async def hashed(
    content: ContentReader, offset: int, size_bytes: int, blocking: Blocking
) -> ContentPayload:
    """A range of a content, ready to be sent. Corrupt where the content is shorter."""
    payload = ContentPayload(content, offset, size_bytes)
    await payload.hash(blocking)
    return payload


def checksum_headers(kind: str, payload: BytesPayload | ContentPayload) -> dict[str, str]:
    """The checksum that the service stores with an object, by the mount's option."""
    if kind == "sha256":
        digest = base64.b64encode(bytes.fromhex(payload.sha256)).decode()
        return {"x-amz-checksum-sha256": digest}
    if kind == "crc32c":
        digest = base64.b64encode(payload.crc32c.to_bytes(4, "big")).decode()
        return {"x-amz-checksum-crc32c": digest}
    return {}
