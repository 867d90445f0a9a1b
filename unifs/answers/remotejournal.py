"""The journal of mounts with a backend: what waits there, why, and what can be done about it."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import trio

from unifs.control.daemon_protocol import JournalRecord
from unifs.journal.log import Op
from unifs.vfs.namespace import ROOT_INO
from unifs.vfs.remotegiveup import give_up
from unifs.vfs.remotestatus import Counts
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.control.daemon_protocol import ChangeState, JournalStatus
    from unifs.journal.log import Marked, Record
    from unifs.journal.writeback_due import Due
    from unifs.remotes import Remote, Remotes
    from unifs.vfs.remotestatus import Waiting
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Tree
    from unifs.vfs.volume import Inode
    from unifs.vfs.writer import Writer


MIB: Final = 1 << 20


class RemoteJournal:
    """Changes on their way to backends. ``top``: at and below this inode; None: everywhere."""

    def __init__(self, remotes: Remotes, writer: Writer) -> None:
        self._remotes = remotes
        self._writer = writer

    def volumes(self, top: Inode | None) -> list[tuple[RemoteVolume, int | None]]:
        """The volumes at and below ``top``, each with the inode below which to look."""
        if top is None or top.ino == ROOT_INO:
            return [(remote.volume, None) for remote in self._remotes]
        remote = self._remotes.of(top.volume)
        if remote is None:
            return []
        volume = remote.volume
        return [(volume, None if top.ino == volume.root else top.ino)]

    def volume_of(self, mount_id: int | None) -> RemoteVolume | None:
        """The remote volume of a mount's number."""
        volumes = (remote.volume for remote in self._remotes)
        return next((volume for volume in volumes if volume.mount_id == mount_id), None)

    # --- counting ---------------------------------------------------------------------------------

    def counting(self, top: Inode | None, counts: JournalStatus) -> Iterator[None]:
        """Add what waits, and what is not even committed; with pauses, for whoever has the time."""
        for volume, below in self.volumes(top):
            found = Counts()
            yield from volume.status.counting(found, below)
            for state in ("open", "closed", "sealed", "quarantined"):
                setattr(counts, state, getattr(counts, state) + getattr(found, state))
            if found.oldest_s is not None:
                oldest = counts.oldest_unsynced_s
                counts.oldest_unsynced_s = min(found.oldest_s, oldest or found.oldest_s)
            dues = volume.writeback.dues
            counts.open += sum(ino not in dues for ino in self._uncommitted(volume, below))
            counts.unsynced_bytes += found.size_bytes
            counts.sent_bytes += found.sent_bytes

    def count(self, volume: RemoteVolume) -> int:
        """How many objects of one volume wait, what is not even committed included."""
        waiting, dues = volume.status.count(), volume.writeback.dues
        return waiting + sum(ino not in dues for ino in self._uncommitted(volume, None))

    def _uncommitted(self, volume: RemoteVolume, below: int | None) -> Iterator[int]:
        for inode in {*self._writer.open.values(), *self._writer.pending.values()}:
            if inode.volume is volume and inode.is_dirty():
                parent = inode.pending[0] if inode.pending else inode.ino
                if volume.tree.is_below(parent, below):
                    yield inode.ino

    # --- listing ----------------------------------------------------------------------------------

    def record(self, marked: Marked, volume: RemoteVolume) -> JournalRecord:
        """A record of a remote mount with what writeback knows of its inode."""
        record = marked.record
        due = None if marked.state is None else volume.writeback.dues.get(record.ino)
        inode = volume.hot_or_row(record.ino)
        state: ChangeState = "synced"
        if marked.state is not None:
            state = "quarantined" if marked.state else "closed"
            if inode is not None and not marked.state:
                state = cast("ChangeState", volume.state_of(inode))
        return JournalRecord(
            sequence=record.seq,
            time_s=record.time_ns / 1e9,
            operation=record.op.name.lower(),
            state=state,
            size_bytes=None if inode is None else inode.attributes.st_size,
            path=_path(volume, record.ino, path_of(volume.tree, record)),
            reason=_reason(volume, due),
            tries=0 if due is None else due.attempts,
            next_try_s=None if due is None else _next_try_s(due),
        )

    def quarantined(self, top: Inode | None) -> Iterator[JournalRecord]:
        """What was given up, one for each object; the newest first."""
        for volume, below in self.volumes(top):
            for each in reversed(volume.status.quarantined(below)):
                yield self._given_up(volume, each)

    def _given_up(self, volume: RemoteVolume, waiting: Waiting) -> JournalRecord:
        query = "select op from journal where seq=?"
        row = volume.tree.database.one(query, (waiting.sequence,))
        due = volume.writeback.dues.get(waiting.ino)
        return JournalRecord(
            sequence=waiting.sequence,
            time_s=waiting.time_s,
            operation="change" if row is None else Op(row[0]).name.lower(),
            state="quarantined",
            size_bytes=waiting.size_bytes,
            path=_path(volume, waiting.ino, waiting.path),
            reason=waiting.reason or None,
            tries=0 if due is None else due.attempts,
        )

    # --- doing ------------------------------------------------------------------------------------

    async def sync(self, top: Inode | None) -> None:
        """Return when the backends have everything. Raises the error of what was given up."""
        async with trio.open_nursery() as nursery:
            for volume, below in self.volumes(top):
                for ino in [*self._uncommitted(volume, below)]:
                    inode = self._writer.inodes.hot.get(ino)
                    if inode is not None:
                        await complete(self._writer.commit, inode)
                inos = None if below is None else volume.status.inos(below)
                nursery.start_soon(partial(volume.writeback.sync, inos))

    def retry(self, top: Inode | None) -> int:
        """Try what was given up again; how many."""
        count = 0
        for volume, below in self.volumes(top):
            for each in volume.status.quarantined(below):
                volume.writeback.retry(each.ino)
                count += 1
        return count

    async def drop(self, top: Inode | None) -> list[JournalRecord]:
        """What was given up gives way to what the backend has; which changes they were.

        ReadOnly, and nothing is dropped, where the settings of one of the mounts say so.
        """
        for volume, below in self.volumes(top):
            if volume.refuses_changes and any(volume.status.quarantined(below)):
                raise volume.refused()
        dropped: list[JournalRecord] = []
        for volume, below in self.volumes(top):
            for each in volume.status.quarantined(below):
                dropped.append(self._given_up(volume, each))
                await complete(give_up, volume, each.ino)
        return dropped

    def oldest(self, top: Inode | None) -> list[str]:
        """For each volume a sentence about the oldest change that its backend does not have."""
        return [
            _sentence(volume, each)
            for volume, below in self.volumes(top)
            for each in volume.status.waiting(below, 1)
        ]

    def unsynced_of(self, remote: Remote, below: int | None, limit: int) -> list[str]:
        """Sentences about what the backend does not have, at most ``limit`` and how many more."""
        volume = remote.volume
        told = [_sentence(volume, each) for each in volume.status.waiting(below, limit)]
        more = len(volume.status.inos(below)) - limit
        if more > 0:
            told.append(f"and {more} more")
        return told


def _sentence(volume: RemoteVolume, waiting: Waiting) -> str:
    due = volume.writeback.dues.get(waiting.ino)
    text = f"{_path(volume, waiting.ino, waiting.path)} is {waiting.state}"
    if waiting.path is None:
        text = f"a removal is {waiting.state}"
    moving = _moving(volume, due)
    if moving:
        text += f"; {moving}"
    elif waiting.reason:
        text += f"; tried {due.attempts if due else 0} times: {waiting.reason}"
    elif due is not None and due.step is not None:
        text += f"; {volume.name} has not answered yet"
    return text


def _reason(volume: RemoteVolume, due: Due | None) -> str | None:
    """Why the backend does not have it yet, where there is more to say than that it is its turn."""
    if due is None:
        return None
    return _moving(volume, due) or (None if due.error is None else str(due.error))


def _moving(volume: RemoteVolume, due: Due | None) -> str:
    """How far the rename of a directory or a large file in parts is; "" where none is moving."""
    if due is None or due.step is None:
        return ""
    if due.step.verb == "rename":
        moved = volume.mount.moved(due.step.path)
        return "" if moved is None else f"{moved:,} objects of it are moved so far"
    sent = volume.status.sent(due)
    if sent is None:
        return ""
    inode = volume.hot_or_row(due.ino)
    size = 0 if inode is None else inode.attributes.st_size
    return f"{sent / MIB:,.0f} of {size / MIB:,.0f} MiB are sent so far"


def path_of(tree: Tree, record: Record) -> bytes | None:
    """The path of what a record is about, below its volume's root; None where nobody can tell.

    Of a name that was removed, and of what has none any more, the one that the record gave or took.
    """
    path = None if record.op in (Op.UNLINK, Op.RMDIR) else tree.path(record.ino)
    if path is None and record.place is not None:
        directory, name = record.place
        above = tree.path(directory)
        path = None if above is None else above.rstrip(b"/") + b"/" + name
    return path


def _path(volume: RemoteVolume, ino: int, path: bytes | None) -> str:
    return f"inode {ino}" if path is None else f"/{volume.name}{os.fsdecode(path)}".rstrip("/")


def _next_try_s(due: Due) -> float | None:
    if due.is_quarantined or due.step is not None or not due.attempts:
        return None
    return time.time() + max(0.0, due.retry_at - trio.current_time())
