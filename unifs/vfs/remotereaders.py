"""Readers of contents on their way to a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.errors import Corrupt
from unifs.ipfs.cid import Cid
from unifs.journal.content import LargeContent, SmallContent
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.journal.content import Content, Contents
    from unifs.mounts.base import Mount
    from unifs.types import SetAttributes, Version

#: As much as one read from the page cache gives.
PIECE_BYTES = 1 << 20


class _FileReader:
    """A content that knows whose it is."""

    attributes: SetAttributes | None = None


class BytesReader(_FileReader):
    """A content that is in memory."""

    def __init__(self, data: bytes, cid: str = "") -> None:
        self._data = data
        self.size_bytes = len(data)
        self.cid = cid

    async def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class LargeReader(_FileReader):
    """A large content; whoever made it keeps its row alive."""

    def __init__(self, contents: Contents, content: LargeContent) -> None:
        self._contents = contents
        self._extents = content.extents.copy()
        self.size_bytes = content.size
        self.cid = "" if content.cid is None else str(Cid.decode(content.cid[8:]))

    async def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size_bytes)
        parts: list[bytes] = []
        while offset < end:
            stop = min(offset + PIECE_BYTES, end)
            parts.append(bytes(await complete(self._piece, offset, stop)))
            offset = stop
        return b"".join(parts)

    def _piece(self, offset: int, end: int) -> bytes | memoryview:
        return self._contents.read_extents(self._extents, offset, end)


class MountReader(_FileReader):
    """Bytes that only the backend has, on their way to another path of it."""

    def __init__(self, mount: Mount, path: str, version: Version, size: int) -> None:
        self._mount = mount
        self._path = path
        self._version = version
        self.size_bytes = size

    async def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size_bytes)
        parts: list[bytes] = []
        while offset < end:
            length = min(PIECE_BYTES, end - offset)
            part = await self._mount.read(self._path, self._version, offset, length)
            if len(part) != length:
                raise Corrupt(f"the backend sent {len(part)} bytes of {length}")
            parts.append(part)
            offset += length
        return b"".join(parts)


async def reader_of(contents: Contents, content: Content | None) -> BytesReader | LargeReader:
    """A reader of a committed content; None is the empty file."""
    if isinstance(content, SmallContent):
        whole = await complete(contents.read_small, content, 0, content.length)
        has_raw_leaves = contents.profile.has_raw_leaves
        return BytesReader(bytes(whole), str(Cid.raw(content.digest)) if has_raw_leaves else "")
    if isinstance(content, LargeContent):
        return LargeReader(contents, content)
    return BytesReader(b"")
