"""Retention: how long rows of earlier epochs are kept.

A build of the MFS root ends an epoch. Where there is none for a while, because nobody can build
one (a full disk) or nothing of /mfs changed, the epoch is ended here, without a root.

Everything is kept for ``KEEP_S``; then past rows, rows without a name and journal records go, a
bounded number at a time. On a disk with little space left, what is past goes at once: a user who
deletes files there does so to get the space.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from unifs.errors import UnifsError
from unifs.journal.content import large_id
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.vfs.tree import Batch
    from unifs.vfs.writer import Writer

log = logging.getLogger(__name__)

KEEP_S = 3600.0
LOOK_S = 5.0
#: An epoch in which something changed ends after this; each costs a copy of every row that changes
#: in the next one.
EPOCH_S = 600.0
ROWS_MAX = 500
#: Below this much free space nothing past is kept.
LOW_BYTES = 1 << 30
LOW_SHARE = 0.02


class Retention:
    """Prunes what is older than is kept. Belongs to the event loop's thread."""

    def __init__(
        self,
        writer: Writer,
        keep_s: float = KEEP_S,
        built_seq: Callable[[], int] | None = None,
    ) -> None:
        """``built_seq``: the last record that a root contains; later ones say what is to be built.

        None where no roots are built.
        """
        self.writer = writer
        self.storage = writer.storage
        self.keep_s = keep_s
        self._built_seq = built_seq
        self._started_ns = time.time_ns()

    async def run(self) -> None:
        """Prune every ``LOOK_S`` until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                while await complete(self.prune):
                    await trio.lowlevel.checkpoint()
            except UnifsError as error:
                log.warning("pruning failed: error=%s", error)

    def is_low(self) -> bool:
        """Whether the disk has too little space to keep a past."""
        disk = os.statvfs(self.storage.state.path)
        free = disk.f_bavail * disk.f_frsize
        return free < LOW_BYTES or free < disk.f_blocks * disk.f_frsize * LOW_SHARE

    def prune(self) -> bool:
        """Remove up to ``ROWS_MAX`` rows of each kind; whether there may be more."""
        database = self.storage.database
        is_low = self.is_low()
        keep_ns = 0 if is_low else int(self.keep_s * 1e9)
        self._end_epoch(0 if is_low else int(EPOCH_S * 1e9))
        query = "select max(epoch),max(seq) from epoch where time_ns<=?"
        epoch, seq = database.one(query, (time.time_ns() - keep_ns,))
        if epoch is None:
            return False
        batch: Batch = []
        contents: list[int] = []
        query = "select ino,until,content from inode_past where until<=? limit ?"
        for ino, until, content in database.all(query, (epoch, ROWS_MAX)):
            batch.append(("delete from inode_past where ino=? and until=?", (ino, until)))
            contents.append(large_id(content))
        query = "select ino,content from inode where gone<=? limit ?"
        # Upkeep removes these itself, once nobody may have to give them their name back.
        waiting = {inode.ino for inode in self.writer.forgotten}
        for ino, content in database.all(query, (epoch, ROWS_MAX)):
            inode = self.writer.inodes.hot.get(ino)
            if ino in waiting or (inode is not None and inode.is_busy()):
                continue
            batch.append(("delete from xattr where ino=?", (ino,)))
            batch.append(("delete from inode where ino=?", (ino,)))
            contents.append(large_id(content))
        query = "select parent,until,id from dentry_past where until<=? limit ?"
        for key in database.all(query, (epoch, ROWS_MAX)):
            statement = "delete from dentry_past where parent=? and until=? and id=?"
            batch.append((statement, key))
        self._prune_journal(epoch, seq, batch)
        if not batch:
            return False
        self.writer.tree.commit(batch, frees=True)
        now = self.storage.log.seq
        self.writer.released.extend((now, content) for content in contents if content)
        return len(batch) >= ROWS_MAX

    def _end_epoch(self, age_ns: int) -> None:
        """What was changed in an epoch can go only once it has ended."""
        now = time.time_ns()
        query = "select coalesce(max(seq),0),coalesce(max(time_ns),0) from epoch"
        seq, ended_ns = self.storage.database.one(query)
        tree = self.writer.tree
        last = self.storage.log.seq
        if last <= seq or now - max(ended_ns, self._started_ns) < age_ns:
            return
        row = (tree.epoch, last, now)
        batch: Batch = [("insert or replace into epoch values(?,?,?,null)", row)]
        batch.append(("insert or replace into meta values(?,?)", ("epoch", tree.epoch + 1)))
        tree.commit(batch, frees=True)
        tree.epoch += 1

    def _prune_journal(self, epoch: int, seq: int, batch: Batch) -> None:
        """Records that are past, sealed, and contained in a root.

        Those of a large content stay until it is sealed: ``sealed_seq`` speaks of small ones.
        """
        last = min(seq, self.writer.needed_since())
        if self._built_seq is not None:
            last = min(last, self._built_seq())
        query = "select min(seq) from journal where state is null"
        first = self.storage.database.one(query)[0]
        if first is None or first >= last:
            return
        upto = min(last, first + ROWS_MAX)
        batch.append(("delete from journal where seq<? and state is null", (upto,)))
        meta = "insert or replace into meta values(?,?)"
        batch.append((meta, ("pruned_seq", upto)))
        # The newest root stays, however many epochs have ended without one.
        where = "epoch<? and epoch is not (select max(epoch) from epoch where root is not null)"
        batch.append((f"delete from epoch where {where}", (epoch,)))
