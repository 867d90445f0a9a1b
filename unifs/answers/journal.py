"""``unifs ctl journal``: how far changes have come."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from unifs.control.daemon_protocol import JournalRecord, JournalStatus
from unifs.errors import DeadlineExceeded, InvalidArgument
from unifs.journal.content import CLOSED, LargeContent
from unifs.journal.log import Op
from unifs.vfs.treeinode import TreeInode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from unifs.control.daemon_protocol import ChangeState
    from unifs.journal.log import Record
    from unifs.vfs.paths import Paths
    from unifs.vfs.roots import MfsRoots
    from unifs.vfs.sealing import Sealer
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.writer import Writer


@dataclass(frozen=True, slots=True)
class Waiting:
    """Changes of one mount that its backend does not have."""

    count: int
    size_bytes: int


class JournalAnswer:
    """The journal, for control operations."""

    def __init__(
        self,
        writer: Writer,
        sealer: Sealer,
        roots: MfsRoots,
        paths: Paths,
        volumes: Mapping[int, TreeVolume],
    ) -> None:
        self._writer = writer
        self._volumes = volumes
        self._sealer = sealer
        self._roots = roots
        self._paths = paths

    def waiting(self, mount: str) -> Waiting:
        """What the backend of a mount does not have. Of /mfs that is what no root contains."""
        size = self.unsynced_bytes().get(mount, 0)
        if mount != "mfs":
            return Waiting(0, size)
        seq, built = self._writer.log.seq, self._roots.built_seq()
        return Waiting(max(0, seq - built) if self._roots.changed() else 0, size)

    def unsynced_bytes(self) -> dict[str, int]:
        """For each mount of the tree, the bytes that exist only in overlays and page cache, or
        only here where it has a backend."""
        sealed_seq = self._writer.storage.flusher.sealed_seq
        for each in self._volumes.values():
            each.unsynced.flushed(sealed_seq)
        return {each.name: each.unsynced.size_bytes for each in self._volumes.values()}

    def unsynced_bytes_max(self) -> dict[str, int]:
        """For each mount of the tree, how many of these make its writers wait."""
        return {each.name: each.unsynced.max_bytes for each in self._volumes.values()}

    def warnings(self) -> list[str]:
        """A sentence for each mount whose writers wait, or soon will."""
        return [
            f"{each.name}: {each.unsynced.size_bytes} bytes are not stored yet; at"
            f" {each.unsynced.max_bytes} its writers wait (journal.dirty_bytes_max)"
            for each in self._volumes.values()
            if each.unsynced.is_pressed()
        ]

    async def status(self, path: str | None) -> JournalStatus:
        """Count changes by how far they are."""
        return self.count(None if path is None else (await self._paths.find(path)).ino)

    def count(self, below: int | None = None) -> JournalStatus:
        """Count changes by how far they are; at and below one inode, or all."""
        counts = JournalStatus()
        writer = self._writer
        pending = {held.ino: held for held in writer.pending.values()}
        for inode in {**writer.unsealed, **writer.open, **pending}.values():
            if self._writer.tree.is_below(inode.ino, below):
                counts.open += inode.is_dirty()
                counts.unsynced_bytes += inode.unsynced_bytes
        if below is None:
            counts.unsynced_bytes = sum(self.unsynced_bytes().values())
        sealed_seq, built = writer.storage.flusher.sealed_seq, self._roots.built_seq()
        for record in writer.log.records(min(sealed_seq, built)):
            if record.op in (Op.SEAL, Op.SYNC) or not self._writer.tree.is_below(record.ino, below):
                continue
            state = self._state(record, sealed_seq, built)
            setattr(counts, state, getattr(counts, state) + 1)
            if state in ("closed", "sealed") and counts.oldest_unsynced_s is None:
                counts.oldest_unsynced_s = record.time_ns / 1e9
        return counts

    def _state(self, record: Record, sealed_seq: int, built: int) -> ChangeState:
        if record.seq <= built:
            return "synced"
        inode = self._writer.inodes.hot.get(record.ino)
        if isinstance(inode, TreeInode):
            content = inode.content
            if isinstance(content, LargeContent) and content.state == CLOSED:
                return "closed"
        return "sealed" if record.seq <= sealed_seq else "closed"

    async def list(
        self, path: str | None, state: ChangeState | None, limit: int
    ) -> AsyncIterator[JournalRecord]:
        """The newest first, at most ``limit``."""
        below = None if path is None else (await self._paths.find(path)).ino
        sealed_seq, built = self._writer.storage.flusher.sealed_seq, self._roots.built_seq()
        sent = 0
        for record in self._writer.log.newest():
            found = self._state(record, sealed_seq, built)
            if (state is not None and found != state) or not self._writer.tree.is_below(
                record.ino, below
            ):
                continue
            yield JournalRecord(
                sequence=record.seq,
                time_s=record.time_ns / 1e9,
                operation=record.op.name.lower(),
                state=found,
                size_bytes=self._size(record.ino),
                path=self._path(record.ino),
            )
            sent += 1
            if sent >= limit:
                return

    def _size(self, ino: int) -> int | None:
        row = self._writer.tree.inode_row(ino)
        if row is None or stat.S_IFMT(int.from_bytes(row[4][:4], "little")) != stat.S_IFREG:
            return None
        return int.from_bytes(row[4][16:24], "little")

    def _path(self, ino: int) -> str:
        path = self._writer.tree.path(ino)
        return f"inode {ino}" if path is None else f"/mfs{os.fsdecode(path)}"

    async def sync(self, path: str | None, until: str, timeout_s: float | None) -> JournalStatus:
        """Commit, seal and build what is on its way; DeadlineExceeded after ``timeout_s``."""
        if timeout_s is not None and timeout_s <= 0:
            raise InvalidArgument("the time has to be more than 0 seconds")
        if path is not None:
            await self._paths.find(path)
        with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")) as scope:
            await self._sync(until)
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"not everything was {until} after {timeout_s:g} seconds")
        return await self.status(path)

    async def _sync(self, until: str) -> None:
        for inode in [*self._writer.unsealed.values(), *self._writer.open.values()]:
            await self._sealer.seal(inode)
        await self._writer.storage.flusher.flush()
        if until == "synced":
            await self._roots.build()
            await self._writer.storage.flusher.flush()
