"""A remote volume over an in-memory mount, with everything that the daemon puts around it.

``RemoteSystem`` is ``tests.vfs.harness.FileSystem`` whose volume is a RemoteVolume: the same
calls by path, through Vfs, with writeback running. Wall-clock time follows trio's clock. ``told``
records what the kernel would be told to forget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import trio
import trio.testing

from tests.vfs.harness import FileSystem
from unifs.cache.reads import ReadCache
from unifs.types import PlainAttributes
from unifs.vfs.remotevolume import RemoteVolume
from unifs.vfs.storage import Storage
from unifs.vfs.treevolume import TreeLoader
from unifs.vfs.upkeep import Upkeep
from unifs.vfs.vfs import DOT_DOT, Vfs
from unifs.vfs.writer import Writer
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.journal.writeback_due import WritebackLimits
    from unifs.mounts.base import Mount
    from unifs.types import Attributes

FRESH_S = 30.0
START_NS = 1_700_000_000_000_000_000


class Told:
    """An Invalidator that remembers."""

    def __init__(self) -> None:
        self.inodes: list[int] = []
        self.entries: list[bytes] = []

    def inode(self, ino: int, attributes_only: bool = False) -> None:
        self.inodes.append(ino)

    def entry(self, parent: int, name: bytes) -> None:
        self.entries.append(name)


class RemoteSystem(FileSystem):
    """A mounted remote volume; see the module's text."""

    volume: RemoteVolume
    #: What is mounted.
    volume_type: type[RemoteVolume] = RemoteVolume

    def __init__(
        self,
        path: Path,
        mount: Mount,
        *,
        limits: WritebackLimits | None = None,
        conflicts: str = "keep-both",
        fresh_s: float = FRESH_S,
    ) -> None:
        super().__init__(path, upkeep=False)
        self.mount = mount
        self.limits = limits
        self.conflicts = conflicts
        self.fresh_s = fresh_s
        self.told = Told()

    async def start(self, boot: str | None = None) -> None:
        self.boot = boot or self.boot
        with mock.patch("unifs.state.directory.boot_id", return_value=self.boot):
            self.storage = Storage(self.path)
        self.receipt = self.storage.receipt
        self.vfs = Vfs(self.path)
        self.writer = Writer(self.storage, self.vfs.inodes)
        self.loader = TreeLoader(self.writer, PlainAttributes)
        volume = self.loader.add("remote", "remote", self.volume_type)
        assert isinstance(volume, RemoteVolume)
        self.volume = volume
        self.cache = ReadCache(None)
        volume.now_ns = lambda: START_NS + int(trio.current_time() * 1e9)
        volume.connect(self.mount, self.cache, self.fresh_s, self.limits, self.conflicts)
        volume.invalidator = self.told
        self.vfs.namespace.add(self.vfs.namespace.root, b"remote", volume.root)
        self.upkeep = Upkeep(self.writer)
        self._ended = trio.Event()
        await self._nursery.start(self._session)

    async def _session(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with trio.CancelScope() as self._scope:
                async with self.storage.serve(), self.cache.serve(), self.volume.serve():
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended.set()

    async def _end_session(self) -> None:
        await super()._end_session()
        # The last flush round reports to the loop; a killed process has no loop any more.
        await trio.testing.wait_all_tasks_blocked()

    async def _names(self, ino: int) -> list[bytes]:
        """As the kernel: readdir is called again until it emits nothing."""
        fh = self.vfs.opendir(ino, self.caller)
        names: list[bytes] = []
        seen: list[tuple[int, int]] = []
        offset = DOT_DOT

        def emit(name: bytes, attributes: Attributes, next_offset: int) -> bool:
            nonlocal offset
            names.append(name)
            seen.append((attributes.st_ino, 1))
            offset = next_offset
            return True

        try:
            while True:
                before = len(names)
                await complete(self.vfs.readdir, fh, offset, emit)
                if len(names) == before:
                    return names
        finally:
            self.vfs.releasedir(fh)
            self.vfs.forget(seen)

    async def sync(self) -> None:
        """Everything reaches the backend; fails after a virtual hour."""
        with trio.fail_after(3600):
            await self.volume.writeback.sync()
