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
    from collections.abc import Callable
    from typing import Literal

    from unifs.mounts.base import ContentReader
    from unifs.mounts.blocking import Blocking

    Checksum = Literal["none", "crc32c", "sha256"]

PIECE_BYTES: Final = 1 << 20
#: Hashing more than this on the event loop would be felt: 64 KiB take about 40 µs.
INLINE_BYTES: Final = 64 << 10


class BytesPayload:
    """A body in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()
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
        self.sha256 = ""
        self.crc32c = 0

    async def hash(self, blocking: Blocking, checksum: Checksum) -> None:
        """Read it and compute what it is signed with, and the checksum that is sent along."""
        sha256 = hashlib.sha256()

        def update(piece: bytes) -> None:
            sha256.update(piece)
            if checksum == "crc32c":
                self.crc32c = google_crc32c.extend(self.crc32c, piece)

        await self._each(update, blocking, keeps=True)
        self.sha256 = sha256.hexdigest()

    async def md5(self, blocking: Blocking) -> str:
        """The MD5 in hexadecimal, which most services' ETags are; twice the price of sha256."""
        md5 = hashlib.md5(usedforsecurity=False)
        await self._each(md5.update, blocking)
        return md5.hexdigest()

    async def _each(
        self, update: Callable[[bytes], None], blocking: Blocking, keeps: bool = False
    ) -> None:
        offset = 0
        while offset < self.size_bytes:
            piece = await self.piece(offset)
            if len(piece) <= INLINE_BYTES:
                update(piece)
            else:
                await blocking.change(update, piece)
            if keeps and self.size_bytes <= PIECE_BYTES:
                self._whole = piece
            offset += len(piece)

    async def piece(self, offset: int) -> bytes:
        if self._whole is not None:
            return self._whole[offset:]
        size = min(PIECE_BYTES, self.size_bytes - offset)
        piece = await self._content.read(self._offset + offset, size)
        if len(piece) != size:
            raise Corrupt("the content ended before its size")
        return piece


async def hashed(
    content: ContentReader, span: tuple[int, int], blocking: Blocking, checksum: Checksum
) -> ContentPayload:
    """A range (offset, size) of a content, ready to be sent. Corrupt where it is shorter."""
    payload = ContentPayload(content, *span)
    await payload.hash(blocking, checksum)
    return payload


def checksum_text(kind: Checksum, payload: BytesPayload | ContentPayload) -> str:
    """The checksum as requests carry it; "" for none."""
    if kind == "sha256":
        return base64.b64encode(bytes.fromhex(payload.sha256)).decode()
    if kind == "crc32c":
        return base64.b64encode(payload.crc32c.to_bytes(4, "big")).decode()
    return ""


def checksum_headers(kind: Checksum, payload: BytesPayload | ContentPayload) -> dict[str, str]:
    """The checksum that the service stores with an object, by the mount's option."""
    return {f"x-amz-checksum-{kind}": checksum_text(kind, payload)} if kind != "none" else {}
