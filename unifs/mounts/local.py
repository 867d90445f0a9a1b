"""A host directory as a mount, for where it is to be journaled and cached like a remote.

/local itself is write-through and does not pass here (``vfs.host``). How a host directory is read
and changed stands in ``hosttree``; what a version is and how far a change is conditional, in
``hostobject``. Here every call runs in a thread of the mount's own, and OSError becomes a failure
with a name.
"""

from __future__ import annotations

import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unifs.errors import Corrupt, DiskFailed, InvalidArgument, UnifsError, from_os_error
from unifs.mounts.base import Mount
from unifs.mounts.blocking import Blocking
from unifs.mounts.hosttree import HostTree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unifs.mounts.base import ContentReader
    from unifs.types import Node, Page, SetAttributes, Version

THREADS_MAX: Final = 8
#: What one thread writes to the host while putting.
COPY_BYTES: Final = 1 << 20


class LocalMount(Mount):
    """The tree below a host directory."""

    kind = "local"

    def __init__(self, directory: Path) -> None:
        self._tree = HostTree(directory)
        self._blocking = Blocking(THREADS_MAX)

    async def stat(self, path: str) -> Node:
        with _named_errors():
            return await self._blocking.read(self._tree.stat, path)

    async def scan(self, path: str, after: str | None) -> Page:
        with _named_errors():
            return await self._blocking.read(self._tree.scan, path, after)

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        with _named_errors():
            return await self._blocking.read(self._tree.read, path, version, offset, size)

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        with _named_errors():
            upload = await self._blocking.change(self._tree.begin, path, token)
            try:
                offset = 0
                while offset < content.size_bytes:
                    data = await content.read(offset, min(COPY_BYTES, content.size_bytes - offset))
                    if not data:
                        raise Corrupt("the content ended before its size")
                    await self._blocking.change(upload.append, data)
                    offset += len(data)
                return await self._blocking.change(self._tree.finish, upload, base, token)
            finally:
                upload.close()

    async def make(self, path: str, node: Node, token: str) -> Node:
        if stat.S_ISREG(node.mode):
            raise InvalidArgument("files are put, not made")
        with _named_errors():
            return await self._blocking.change(self._tree.make, path, node, token)

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        with _named_errors():
            await self._blocking.change(self._tree.remove, path, base, token)

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        with _named_errors():
            await self._blocking.change(self._tree.rename, path, new_path, token)

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        if changes.size_bytes is not None:
            raise InvalidArgument("a size is changed by putting a content")
        with _named_errors():
            await self._blocking.change(self._tree.set_attributes, path, changes)


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = from_os_error(error)
        raise named if isinstance(named, UnifsError) else DiskFailed(str(error)) from error
