"""Retention: which epochs are kept, and what becomes of the rows that only others needed.

A build of the MFS root ends an epoch. Where there is none for a while, because nobody can build
one (a full disk) or nothing of /mfs changed, the epoch is ended here, without a root.

What is kept (``Limits``): every epoch that was the present within the last hour; of each full hour
of the last day and each midnight (UTC) of the last 30 days, the epoch that was the present then;
checkpoints; and what somebody looks at. The others are *thinned*: first they are no longer shown,
in one transaction; then the rows that only they needed go, a bounded number at a time, then their
own. A kill in between leaves rows that nobody needs, and the first sweep after a start finds them.

On a disk with little space left, all goes at once but checkpoints and what is open: a user who
deletes files there does so to get the space.

Journal records are no history: they stay for ``Limits.all_s``, or as long as recovery needs them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from unifs.errors import UnifsError
from unifs.journal.content import large_id
from unifs.vfs.epochs import next_epoch
from unifs.vfs.tree import KEEP_XATTRS
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.vfs.tree import Batch
    from unifs.vfs.writer import Writer

log = logging.getLogger(__name__)

LOOK_S = 5.0
#: An epoch in which something changed ends after this; each costs a copy of every row that changes
#: in the next one.
EPOCH_S = 600.0
ROWS_MAX = 500
#: Ranges looked at for one transaction: 2 ms where nothing is found.
LOOKS_MAX = 100
#: Below this much free space nothing past is kept.
LOW_BYTES = 1 << 30
LOW_SHARE = 0.02
HOUR_S, DAY_S = 3600, 86_400

#: Epochs of which rows are there, and whether they are still shown.
EPOCHS = (
    "select e.epoch,e.time_ns,t.epoch is null from epoch e left join thinned t on t.epoch=e.epoch"
    " where t.is_swept is null or t.is_swept=0 order by e.epoch"
)
#: Rows that were the tree's in epochs of a range only: they came after its beginning and ended in
#: it. (last epoch before the range, …, its last epoch)
PAST_INODES = (
    "select ino,until,content from inode_past where until>? and until<=? and epoch>? limit ?"
)
PAST_NAMES = (
    "select parent,until,id from dentry_past where until>? and until<=? and epoch>? limit ?"
)
PAST_XATTRS = "select ino,until,name from xattr_past where until>? and until<=? and epoch>? limit ?"
GONE = "select ino,content from inode where gone>? and gone<=? and epoch>?"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the past is kept."""

    all_s: float = 3600.0
    hours: int = 24
    days: int = 30


@dataclass(frozen=True, slots=True)
class Ended:
    """An epoch that has ended: its number and when that was."""

    number: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Range:
    """Rows that may go: what came after epoch ``before`` and ended after ``start``, up to ``end``.

    ``thinned`` are the epochs that are done with once it is swept.
    """

    start: int
    end: int
    before: int
    thinned: tuple[int, ...]


@dataclass(slots=True)
class _Found:
    """What one transaction removes, and inodes without a name that were looked at for it."""

    batch: Batch
    contents: list[int]
    seen: set[int]
    #: Of these, what has to wait; and what upkeep has before it.
    late: set[int]
    waiting: set[int]


def kept(epochs: Sequence[Ended], now_ns: int, limits: Limits) -> set[int]:
    """Numbers of the epochs (in order) that the limits keep.

    An epoch was the present from its end to the end of the next one.
    """
    times = [epoch.time_ns for epoch in epochs]
    since_ns = now_ns - int(limits.all_s * 1e9)
    numbers = {
        epoch.number
        for epoch, until_ns in zip(epochs, [*times, now_ns][1:], strict=True)
        if until_ns > since_ns
    }
    now_s = now_ns // 1_000_000_000
    moments = [now_s // HOUR_S * HOUR_S - back * HOUR_S for back in range(limits.hours)]
    moments += [now_s // DAY_S * DAY_S - back * DAY_S for back in range(limits.days)]
    for moment in moments:
        before = bisect_right(times, moment * 1_000_000_000)
        if before:
            numbers.add(epochs[before - 1].number)
    return numbers


class Retention:
    """Thins the past. Belongs to the event loop's thread."""

    def __init__(
        self,
        writer: Writer,
        limits: Limits | None = None,
        built_seq: Callable[[], int] | None = None,
    ) -> None:
        """``built_seq``: the last record that a root contains; later ones say what is to be built.

        None where no roots are built.
        """
        self.writer = writer
        self.storage = writer.storage
        self.limits = limits or Limits()
        self._built_seq = built_seq
        self._started_ns = time.time_ns()
        #: What somebody looks at, and who is told what is shown no longer.
        self.in_use: Callable[[], set[int]] = set
        self.on_thinned: Callable[[list[int]], None] = _nothing
        #: What a start has to look through, the last first; None: that is not known yet.
        self._unknown: list[Range] | None = None
        #: Inodes without a name whose rows could go, but for the kernel that remembers them.
        self._late: set[int] = set()

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
        is_low = self.is_low()
        limits = Limits(0, 0, 0) if is_low else self.limits
        self._end_epoch(0 if is_low else int(EPOCH_S * 1e9))
        now_ns = time.time_ns()
        query = "select max(seq) from epoch where time_ns<=?"
        seq = self.storage.database.one(query, (now_ns - int(limits.all_s * 1e9),))[0]
        self._thin(now_ns, limits)
        has_more = self._sweep()
        return self._prune_journal(seq) or has_more

    # --- epochs -----------------------------------------------------------------------------------

    def _end_epoch(self, age_ns: int) -> None:
        """What was changed in an epoch can go only once it has ended."""
        now = time.time_ns()
        query = "select coalesce(max(seq),0),coalesce(max(time_ns),0) from epoch"
        seq, ended_ns = self.storage.database.one(query)
        last = self.storage.log.seq
        if last <= seq or now - max(ended_ns, self._started_ns) < age_ns:
            return
        next_epoch(self.writer, last, frees=True)

    def _thin(self, now_ns: int, limits: Limits) -> None:
        """Stop showing what the limits do not keep."""
        rows = self.storage.database.all(EPOCHS)
        shown = [Ended(number, time_ns) for number, time_ns, is_shown in rows if is_shown]
        keep = kept(shown, now_ns, limits) | self.in_use()
        keep.update(row[0] for row in self.storage.database.all("select epoch from checkpoint"))
        thinned = [epoch.number for epoch in shown if epoch.number not in keep]
        if thinned:
            statement = "insert or ignore into thinned select value,0 from json_each(?)"
            self.writer.tree.commit([(statement, (json.dumps(thinned),))], frees=True)
            self.on_thinned(thinned)

    def _thinned(self) -> list[Range]:
        """What was thinned and is not swept, the last first."""
        ranges: list[Range] = []
        before, run = -1, [-1]
        current = (self.writer.tree.epoch, 0, 1)
        for number, _, is_shown in [*self.storage.database.all(EPOCHS), current]:
            if not is_shown:
                run.append(number)
                continue
            if run[1:]:
                ranges.append(Range(run[1], number, before, tuple(run[1:])))
            before, run = number, [number]
        return ranges[::-1]

    def _everything(self) -> list[Range]:
        """All of the past: a kill may have left rows that nobody needs. The last first."""
        shown = [row[0] for row in self.storage.database.all(EPOCHS) if row[2]]
        starts = [-1, *shown]
        ends = [*shown, self.writer.tree.epoch]
        return [Range(start, end, start, ()) for start, end in zip(starts, ends, strict=True)][::-1]

    # --- rows -------------------------------------------------------------------------------------

    def _sweep(self) -> bool:
        """Remove rows of the next ranges; whether there may be more."""
        if self._unknown is None:
            self._unknown = self._everything()
        ranges = [*self._unknown] or self._thinned()
        found = _Found([], [], set(), set(), {held.ino for held in self.writer.forgotten})
        self._sweep_late(found)
        looks = 0
        while ranges and looks < LOOKS_MAX:
            looks += 1
            if self._sweep_range(ranges[-1], found):
                break
            self._swept(ranges.pop(), found.batch)
        if found.batch:
            self.writer.tree.commit(found.batch, frees=True)
        if self._unknown:
            self._unknown = ranges
        self._late = found.late
        self.writer.release(found.contents)
        return bool(ranges or self._thinned())

    def _sweep_range(self, part: Range, found: _Found) -> bool:
        """Statements for up to ``ROWS_MAX`` rows of each kind; whether there may be more."""
        all_ = self.storage.database.all
        bounds = (part.start, part.end, part.before, ROWS_MAX)
        inodes = all_(PAST_INODES, bounds)
        for ino, until, content in inodes:
            found.batch.append(("delete from inode_past where ino=? and until=?", (ino, until)))
            found.contents.append(large_id(content))
        names = all_(PAST_NAMES, bounds)
        statement = "delete from dentry_past where parent=? and until=? and id=?"
        found.batch.extend((statement, key) for key in names)
        xattrs = all_(PAST_XATTRS, bounds)
        statement = "delete from xattr_past where ino=? and until=? and name=?"
        found.batch.extend((statement, key) for key in xattrs)
        gone = [row for row in all_(GONE, bounds[:3]) if row[0] not in found.seen][:ROWS_MAX]
        for ino, content in gone:
            self._remove_gone(ino, content, found)
        return any(len(rows) >= ROWS_MAX for rows in (inodes, names, xattrs, gone))

    def _remove_gone(self, ino: int, content: bytes, found: _Found) -> None:
        """Statements for a row without a name; while somebody may need it, it is remembered."""
        found.seen.add(ino)
        inode = self.writer.inodes.hot.get(ino)
        # Upkeep removes these itself, once nobody may have to give them their name back.
        if ino in found.waiting or (inode is not None and inode.is_busy()):
            found.late.add(ino)
            return
        found.batch.append((KEEP_XATTRS, (ino,)))
        found.batch.append(("delete from xattr where ino=?", (ino,)))
        found.batch.append(("delete from inode where ino=?", (ino,)))
        found.contents.append(large_id(content))

    def _sweep_late(self, found: _Found) -> None:
        for ino in self._late:
            query = "select content from inode where ino=? and gone is not null"
            row = self.storage.database.one(query, (ino,))
            if row is not None:
                self._remove_gone(ino, row[0], found)

    def _swept(self, rows: Range, batch: Batch) -> None:
        """The rows of a range are gone: its thinned epochs go too.

        The newest root stays, however many epochs have ended without one.
        """
        if not rows.thinned:
            return
        numbers = (json.dumps(rows.thinned),)
        of_range = "epoch in (select value from json_each(?))"
        is_newest = "epoch is (select max(epoch) from epoch where root is not null)"
        batch.append((f"delete from epoch where {of_range} and not {is_newest}", numbers))
        batch.append((f"update thinned set is_swept=1 where {of_range}", numbers))
        # What was the newest root until now.
        old = f"select epoch from thinned where is_swept=1 and not {is_newest}"
        batch.append((f"delete from epoch where epoch in ({old})", ()))
        batch.append(("delete from thinned where epoch not in (select epoch from epoch)", ()))

    def _prune_journal(self, seq: int | None) -> bool:
        """Records that are past, sealed, and contained in a root; whether there may be more.

        Those of a large content stay until it is sealed: ``sealed_seq`` speaks of small ones.
        """
        if seq is None:
            return False
        last = min(seq, self.writer.needed_since())
        if self._built_seq is not None:
            last = min(last, self._built_seq())
        query = "select min(seq) from journal where state is null"
        first = self.storage.database.one(query)[0]
        if first is None or first >= last:
            return False
        upto = min(last, first + ROWS_MAX)
        batch: Batch = [("delete from journal where seq<? and state is null", (upto,))]
        batch.append(("insert or replace into meta values(?,?)", ("pruned_seq", upto)))
        self.writer.tree.commit(batch, frees=True)
        return bool(upto < last)


def _nothing(epochs: list[int]) -> None:
    """Nobody shows any."""
