"""``unifs ctl journal``: how far changes have come."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from unifs.answers.remotejournal import path_of
from unifs.control.checks_protocol import FileDamage, Verified
from unifs.control.daemon_protocol import JournalRecord, JournalStatus
from unifs.errors import Corrupt, DeadlineExceeded, InvalidArgument
from unifs.journal.content import CLOSED, LargeContent
from unifs.journal.log import Op
from unifs.vfs.namespace import ROOT_INO
from unifs.vfs.readback import read_back
from unifs.vfs.treeinode import TreeInode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from unifs.answers.remotejournal import RemoteJournal
    from unifs.answers.verifying import FileVerifier
    from unifs.control.daemon_protocol import ChangeState
    from unifs.journal.log import Marked, Record
    from unifs.vfs.paths import Paths
    from unifs.vfs.roots import MfsRoots
    from unifs.vfs.sealing import Sealer
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Inode
    from unifs.vfs.writer import Writer

#: Records between two looks at other tasks.
PAGE = 256


@dataclass(frozen=True, slots=True)
class Waiting:
    """Changes of one mount that are not where they belong yet: on the disk, at the backend."""

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
        remotes: RemoteJournal,
    ) -> None:
        self._writer = writer
        self._volumes = volumes
        self._sealer = sealer
        self._roots = roots
        self._paths = paths
        self._remotes = remotes
        #: Reads the files of /mfs again; set where there is one.
        self.verifier: FileVerifier | None = None

    @property
    def remotes(self) -> RemoteJournal:
        """The part of it that waits for backends."""
        return self._remotes

    def waiting(self, mount: str) -> Waiting:
        """What a power cut could take of /mfs; of others what their backend does not have."""
        size = self.unsynced_bytes().get(mount, 0)
        if mount == self._roots.volume.name:
            return Waiting(self._exposed(), size)
        for volume, _ in self._remotes.volumes(None):
            if volume.name == mount:
                return Waiting(self._remotes.count(volume), size)
        return Waiting(0, size)

    def _exposed(self) -> int:
        """Changes of /mfs without a record, or whose record or bytes the disk may not have."""
        writer, volume = self._writer, self._roots.volume
        sealed_seq = writer.storage.flusher.sealed_seq
        held = {*writer.open.values(), *writer.pending.values()}
        uncommitted = sum(inode.is_dirty() for inode in held if inode.volume is volume)
        # Their record is on the disk, and of no use there before their bytes are.
        unsealed = sum(
            writer.unsealed_since[ino] < sealed_seq
            for ino, inode in writer.unsealed.items()
            if inode.volume is volume
        )
        return uncommitted + unsealed + writer.log.count_of(volume.mount_id, sealed_seq)

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
        """A sentence for each mount whose writers wait, or soon will; what of /mfs was missing."""
        return [
            f"{each.name}: {each.unsynced.size_bytes} bytes are not stored yet; at"
            f" {each.unsynced.max_bytes} its writers wait (journal.dirty_bytes_max)"
            for each in self._volumes.values()
            if each.unsynced.is_pressed()
        ] + self._roots.holes

    async def status(self, path: str | None) -> JournalStatus:
        """Count changes by how far they are. Others are answered meanwhile."""
        counts = JournalStatus()
        for _ in self._counting(await self._top(path), counts):
            await trio.lowlevel.checkpoint()
        return counts

    async def quarantined(self) -> int:
        """How many objects their backends have refused. Others are answered meanwhile."""
        counts = JournalStatus()
        for _ in self._remotes.counting(None, counts):
            await trio.lowlevel.checkpoint()
        return counts.quarantined

    async def _top(self, path: str | None) -> Inode | None:
        return None if path is None else await self._paths.find(path)

    def count(self, top: Inode | None = None) -> JournalStatus:
        """Count changes by how far they are; at and below one inode, or all."""
        counts = JournalStatus()
        for _ in self._counting(top, counts):
            continue
        return counts

    def _counting(self, top: Inode | None, counts: JournalStatus) -> Iterator[None]:
        """Count, with pauses in which the event loop may turn."""
        yield from self._remotes.counting(top, counts)
        if self._has_mfs(top):
            below = None if top is None or top.ino == ROOT_INO else top.ino
            yield from self._counting_mfs(below, counts)

    def _has_mfs(self, top: Inode | None) -> bool:
        return top is None or top.ino == ROOT_INO or top.volume is self._roots.volume

    def _counting_mfs(self, below: int | None, counts: JournalStatus) -> Iterator[None]:
        writer, volume = self._writer, self._roots.volume
        pending = {held.ino: held for held in writer.pending.values()}
        for inode in {**writer.unsealed, **writer.open, **pending}.values():
            if inode.volume is volume and writer.tree.is_below(inode.ino, below):
                counts.open += inode.is_dirty()
                if below is not None:
                    counts.unsynced_bytes += inode.unsynced_bytes
        if below is None:
            counts.unsynced_bytes += self.unsynced_bytes()[volume.name]
        sealed_seq, built = writer.storage.flusher.sealed_seq, self._roots.built_seq()
        # Where nothing changed, records that no root contains do not concern the root (xattrs).
        after = min(sealed_seq, built) if self._roots.changed() else sealed_seq
        for number, record in enumerate(writer.log.records_of(volume.mount_id, after), 1):
            if number % PAGE == 0:
                yield
            if record.op in (Op.SEAL, Op.SYNC) or not writer.tree.is_below(record.ino, below):
                continue
            state = self._state(record, sealed_seq, built)
            setattr(counts, state, getattr(counts, state) + 1)
            if state in ("closed", "sealed"):
                made_s = record.time_ns / 1e9
                oldest = counts.oldest_unsynced_s
                counts.oldest_unsynced_s = made_s if oldest is None else min(oldest, made_s)

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
        top = await self._top(path)
        if state == "quarantined":
            # Only backends give up, and what they gave up may be old: not looked for by scanning.
            for number, found in enumerate(self._remotes.quarantined(top)):
                if number < limit:
                    yield found
            return
        below = None if top is None or top.ino == ROOT_INO else top.ino
        sent = 0
        for marked in self._writer.log.newest():
            record = marked.record
            if marked.record.seq % PAGE == 0:
                await trio.lowlevel.checkpoint()
            is_note = record.op in (Op.SEAL, Op.SYNC)
            is_remote = self._remotes.volume_of(marked.mount_id) is not None
            if is_note and (is_remote or not record.ino):
                # What this machine's disk has; how far the change itself is, its own record says.
                continue
            if not self._writer.tree.is_below(record.ino, below):
                continue
            found = self._record(marked)
            if state is not None and found.state != state:
                continue
            yield found
            sent += 1
            if sent >= limit:
                return

    def _record(self, marked: Marked) -> JournalRecord:
        volume = self._remotes.volume_of(marked.mount_id)
        if volume is not None:
            return self._remotes.record(marked, volume)
        record = marked.record
        sealed_seq = self._writer.storage.flusher.sealed_seq
        return JournalRecord(
            sequence=record.seq,
            time_s=record.time_ns / 1e9,
            operation=record.op.name.lower(),
            state=self._state(record, sealed_seq, self._roots.built_seq()),
            size_bytes=self._size(record.ino),
            path=self._path(record),
        )

    def _size(self, ino: int) -> int | None:
        row = self._writer.tree.inode_row(ino)
        if row is None or stat.S_IFMT(int.from_bytes(row[4][:4], "little")) != stat.S_IFREG:
            return None
        return int.from_bytes(row[4][16:24], "little")

    def _path(self, record: Record) -> str:
        path = path_of(self._writer.tree, record)
        # The root's own path is a slash.
        return f"inode {record.ino}" if path is None else f"/mfs{os.fsdecode(path)}".rstrip("/")

    async def sync(self, path: str | None, until: str, timeout_s: float | None) -> JournalStatus:
        """Commit, seal and build what is on its way; DeadlineExceeded after ``timeout_s``."""
        if timeout_s is not None and timeout_s <= 0:
            raise InvalidArgument("the time has to be more than 0 seconds")
        top = await self._top(path)
        verified = 0
        with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")) as scope:
            await self._sync(until, top)
            if until == "verified":
                verified = await self._verify(path, top)
        if scope.cancelled_caught:
            first = "".join(f": {each}" for each in self._remotes.oldest(top)[:1])
            raise DeadlineExceeded(f"not everything was {until} after {timeout_s:g} seconds{first}")
        counts = await self.status(path)
        counts.verified = verified
        return counts

    async def _sync(self, until: str, top: Inode | None) -> None:
        for inode in [*self._writer.unsealed.values(), *self._writer.open.values()]:
            await self._sealer.seal(inode)
        await self._writer.storage.flusher.flush()
        if until == "sealed":
            return
        if self._has_mfs(top):
            await self._roots.build()
            await self._writer.storage.flusher.flush()
        try:
            await self._remotes.sync(top)
        except ExceptionGroup as group:
            raise next(_leaves(group)) from group

    async def _verify(self, path: str | None, top: Inode | None) -> int:
        """Read everything again, /mfs from the disk and the others from their backends; how many
        files. Corrupt, naming one, where a file is not what was written.
        """
        count = 0
        if self._has_mfs(top) and self.verifier is not None:
            is_all = top is None or top.ino == ROOT_INO
            below = f"/{self._roots.volume.name}" if is_all else path
            async for event in self.verifier.verify(below, None, 0):
                if isinstance(event, FileDamage):
                    raise Corrupt(f"{event.path} at {event.offset}: {event.reason}")
                if isinstance(event, Verified):
                    count += event.files
        for volume, inode in self._remotes.volumes(top):
            count += await read_back(volume, inode)
        return count

    async def retry(self, path: str | None) -> int:
        """Try what was given up again, at and below a path; how many changes."""
        return self._remotes.retry(await self._top(path))

    async def drop(self, path: str | None, is_meant: bool) -> Sequence[JournalRecord]:
        """Let go of what was given up, at and below a path, if that ``is_meant``; which changes."""
        top = await self._top(path)
        return await self._remotes.drop(top) if is_meant else [*self._remotes.quarantined(top)]


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
