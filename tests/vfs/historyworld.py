"""A file system in this process with its past: /mfs, the node, retention and /.unifs/history."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from tests.vfs.harness import FileSystem
from tests.vfs.nodeworld import NodeSystem
from unifs.answers.history import HistoryAnswer
from unifs.vfs.history import History
from unifs.vfs.historyview import HistoryView
from unifs.vfs.paths import Paths
from unifs.vfs.reserved import Reserved
from unifs.vfs.retention import Limits, Retention
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.types import Attributes


@dataclass(frozen=True)
class Seen:
    """One object as a program sees it. ``same`` tells names of one file, by their order."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    rdev: int
    data: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    same: int


class Told:
    """What the kernel was told to forget."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, bytes]] = []
        self.inodes: list[int] = []

    def inode(self, ino: int, attributes_only: bool = False) -> None:
        self.inodes.append(ino)

    def entry(self, parent: int, name: bytes) -> None:
        self.entries.append((parent, name))


class HistorySystem(NodeSystem):
    """As ``NodeSystem``, with /.unifs/history."""

    async def start(self, boot: str | None = None) -> None:
        await super().start(boot)
        self.told = Told()
        self.history = History(self.writer)
        self.history.seal = self.sealer.seal
        self.reserved = Reserved(self.vfs.namespace, self.vfs.inodes)
        self.view = HistoryView(self.history, self.reserved, {"mfs": self.volume}, self.told)
        paths = Paths(self.vfs, self.told)
        self.answer = HistoryAnswer(paths, self.history, self.view, self.told)

    def retention(self, limits: Limits) -> Retention:
        made = Retention(self.writer, limits, self.roots.built_seq)
        made.in_use = self.history.in_use
        made.on_thinned = self.view.thinned
        return made

    def prune(self, limits: Limits, is_low: bool = False) -> None:
        """Thin and sweep as long as there is something to."""
        retention = self.retention(limits)
        with mock.patch.object(Retention, "is_low", return_value=is_low):
            while retention.prune():
                pass
        self.tick()

    async def hard_link(self, path: str, new_path: str) -> None:
        """As ``ln``; ``link`` links a CID."""
        await FileSystem.link(self, path, new_path)

    # --- seeing -----------------------------------------------------------------------------------

    async def at(self, path: str) -> int:
        """The inode number of an absolute path, looked up as the kernel does."""
        ino = self.vfs.namespace.root.ino
        for name in path.strip("/").split("/"):
            found = await complete(self.vfs.lookup, ino, os.fsencode(name), self.caller)
            ino = found.st_ino
        return ino

    async def names(self, ino: int, page: int = 1 << 30) -> list[bytes]:
        """A directory's names, ``page`` to a reply."""
        fh = await complete(self.vfs.opendir, ino, self.caller)
        names: list[bytes] = []
        at, count = 0, 0

        def emit(name: bytes, attributes: Attributes, offset: int) -> bool:
            nonlocal at, count
            if count >= page:
                return False
            count += 1
            at = offset
            if name not in (b".", b".."):
                names.append(name)
                found.append(attributes.st_ino)
            return True

        while True:
            found: list[int] = []
            count = 0
            await complete(self.vfs.readdir, fh, at, emit)
            self.vfs.forget([(ino, 1) for ino in found])
            if not count:
                break
        self.vfs.releasedir(fh)
        return names

    async def bytes_of(self, ino: int) -> bytes:
        handle = await complete(self.vfs.open, ino, os.O_RDONLY, self.caller)
        data = b""
        while part := bytes(await complete(self.vfs.read, handle.fh, len(data), 1 << 17)):
            data += part
        await complete(self.vfs.release, handle.fh)
        return data

    async def seen(self, top: int) -> dict[bytes, Seen]:
        """Everything at and below a directory, by path."""
        result: dict[bytes, Seen] = {}
        numbers: dict[int, int] = {}
        await self._see(top, b"", result, numbers)
        return result

    async def _see(
        self, ino: int, path: bytes, result: dict[bytes, Seen], numbers: dict[int, int]
    ) -> None:
        a = await complete(self.vfs.getattr, ino)
        names = [
            (name, await complete(self.vfs.getxattr, ino, name))
            for name in await complete(self.vfs.listxattr, ino)
        ]
        data = b""
        if stat.S_ISREG(a.st_mode):
            data = await self.bytes_of(ino)
            assert len(data) == a.st_size
        elif stat.S_ISLNK(a.st_mode):
            data = await complete(self.vfs.readlink, ino)
        same = numbers.setdefault(ino, len(numbers))
        size = 0 if stat.S_ISDIR(a.st_mode) else a.st_size
        result[path] = Seen(
            mode=a.st_mode,
            uid=a.st_uid,
            gid=a.st_gid,
            nlink=a.st_nlink,
            size=size,
            mtime_ns=a.st_mtime_ns,
            rdev=a.st_rdev,
            data=data,
            xattrs=tuple(sorted(names)),
            same=same,
        )
        if stat.S_ISDIR(a.st_mode):
            for name in sorted(await self.names(ino)):
                found = await complete(self.vfs.lookup, ino, name, self.caller)
                await self._see(found.st_ino, path + b"/" + name, result, numbers)
                self.vfs.forget([(found.st_ino, 1)])

    async def live(self) -> dict[bytes, Seen]:
        """/mfs as it is."""
        return await self.seen(self.volume.root)

    async def then(self, epoch: int | str) -> dict[bytes, Seen]:
        """/mfs as it was."""
        return await self.seen(await self.at(f"/.unifs/history/mfs/{epoch}"))
