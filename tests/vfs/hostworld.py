"""A host directory and the volume that shows it, for the tests of /local."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unifs.types import Attributes, PlainAttributes, PlainCaller
from unifs.vfs.host import HostVolume
from unifs.vfs.hosthandles import HostHandle
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.vfs.volume import Inode

PREFIX = 7
ROOT = PlainCaller()


class Invalidations:
    """Records what the kernel would be told to forget."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, bytes]] = []

    def inode(self, ino: int, attributes_only: bool = False) -> None:
        raise AssertionError("a host volume forgets by name only")

    def entry(self, parent: int, name: bytes) -> None:
        self.entries.append((parent, name))


class World:
    """A host directory and the volume that shows it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.remembered: list[int] = []
        self.invalidations = Invalidations()
        self.volume = HostVolume(
            "local/test",
            PREFIX,
            directory,
            attributes_factory=PlainAttributes,
            remember=self.remembered.append,
            invalidator=self.invalidations,
        )
        self.root = self.volume.load(self.volume.root_ino)

    def find(self, path: bytes) -> Inode:
        inode = self.root
        for name in path.split(b"/"):
            inode = self.volume.lookup(inode, name)
        return inode

    def make(self, name: bytes, data: bytes = b"", mode: int = 0o644) -> Inode:
        inode, handle = self.volume.create(self.root, name, mode, os.O_RDWR, ROOT)
        handle.write(0, data)
        handle.release()
        return inode

    def names(self, inode: Inode | None = None) -> list[bytes]:
        return [name for name, _ in self.list(inode)]

    def list(self, inode: Inode | None = None) -> list[tuple[bytes, Attributes]]:
        found: list[tuple[bytes, Attributes]] = []

        def emit(name: bytes, attributes: Attributes, offset: int) -> bool:
            found.append((name, attributes))
            return True

        handle = self.volume.opendir(inode or self.root)
        handle.readdir(0, emit)
        handle.release()
        return sorted(found, key=lambda entry: entry[0])


async def read(handle: object, offset: int, size: int) -> bytes:
    assert isinstance(handle, HostHandle)
    return bytes(await complete(handle.read, offset, size))
