"""Writeback: brings the changes of one mount to its backend.

It keeps a set of *due* inodes: those with journal records that wait for confirmation (state 0).
After a start they are read from the journal; later ones announce themselves through ``WaitingLog``.
What is to be done for one of them, and in which order, says ``writeback_order``; the calls and what
their outcomes mean stand in ``writeback_calls``; here is when: 2 s after the last change to a
closed file, at 30 s of age while it stays open, at once where somebody waits or too much is
unsynced, again with growing pauses after what may pass, never again after what cannot succeed
(state 1) until somebody asks. Independent steps run in parallel, up to ``parallel_max``; two steps
whose paths lie within each other never do.

Belongs to the event loop's thread. Nothing is sent before its record, and the bytes it speaks of,
survive a power cut. A task that is killed leaves an attempt in the rows; the next start goes on.
"""

from __future__ import annotations

import heapq
import logging
import random
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import NoSpace, TryAgain, UnifsError, from_os_error
from unifs.journal.writeback_due import BACKOFF_MAX_S, BACKOFF_S, GIVEN_UP, Due, WritebackLimits
from unifs.journal.writeback_order import Blocked, Order, Step, is_within
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from unifs.journal.log import WaitingLog
    from unifs.journal.writeback_calls import Call, Calls
    from unifs.journal.writeback_due import Journal

log = logging.getLogger(__name__)

#: A conflict takes two or three steps that confirm nothing.
TURNS_MAX = 4
#: How many independent changes one ``Mount.commit`` gets; each is compared with all others, 15 ms.
BATCH_MAX = 250


class Writeback:
    """The changes of one mount on their way."""

    def __init__(
        self,
        calls: Calls,
        journal: Journal,
        records: WaitingLog,
        flush: Callable[[int], Awaitable[None]],
        limits: WritebackLimits | None = None,
    ) -> None:
        """``flush(seq)`` returns when the records up to ``seq`` survive a power cut."""
        self.limits = limits or WritebackLimits()
        self.dues: dict[int, Due] = {}
        self.confirmed = 0
        self._calls = calls
        self._journal = journal
        self._records = records
        self._flush = flush
        self._order = Order(calls.local)
        self._queue: list[tuple[float, int, int]] = []
        self._queued = 0
        self._running: dict[int, Due] = {}
        self._tasks = 0
        self._given_up: set[int] = set()
        #: Callers that wait for everything: what comes meanwhile does not wait for its time.
        self._hurrying = 0
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._random = random.Random()
        records.on_fresh = self.wake

    # --- what is due ------------------------------------------------------------------------------

    def load(self) -> None:
        """After a start: what an earlier daemon did not bring to the backend."""
        now = trio.current_time()
        for ino, seq, state in self._journal.waiting():
            due = self.dues[ino] = Due(ino, seq, now, now - self.limits.delay_s)
            self._calls.load(ino)
            if state == 1:
                due.is_quarantined, due.error = True, self._journal.refusal(ino)
                self._given_up.add(ino)
            self._push(due)

    def collect(self) -> None:
        """Take up what was recorded since the last call."""
        if not self._records.fresh:
            return
        fresh, self._records.fresh = self._records.fresh, []
        now = trio.current_time()
        for seq, ino in fresh:
            due = self.dues.get(ino)
            if due is None:
                due = self.dues[ino] = Due(ino, seq, now, now)
                due.is_urgent = self._hurrying > 0
                self._push(due)
            else:
                due.seq, due.changed_at = seq, now
                if due.is_quarantined:
                    self._release(due)
                if self._is_pointless(due):
                    self._calls.stop(ino)

    def _is_pointless(self, due: Due) -> bool:
        """Whether the upload on its way is of a file that has no name any more."""
        step = due.step
        return step is not None and step.verb == "put" and not self._calls.local.wanted(due.ino)

    def is_due(self, ino: int) -> bool:
        """Whether the tree has something of this inode that the backend has not confirmed."""
        self.collect()
        return ino in self.dues

    def add(self, ino: int) -> Due:
        """Make an inode due, with a record so that a restart knows."""
        self.collect()
        if ino not in self.dues:
            self._journal.renew(ino)
            self.collect()
        return self.dues[ino]

    def closed(self, ino: int) -> None:
        """The last writer is gone."""
        due = self.dues.get(ino)
        if due is not None:
            due.changed_at = trio.current_time()
            self._push(due)
            self.wake()

    def hurry(self, inos: Iterable[int] | None = None) -> None:
        """Do not wait for these (None: all that are due)."""
        self.collect()
        for due in [self.dues[ino] for ino in inos] if inos is not None else self.dues.values():
            if not due.is_urgent:
                due.is_urgent = True
                self._push(due)
        self.wake()

    def wake(self) -> None:
        """There is something new to look at."""
        self._wake.set()

    # --- when -------------------------------------------------------------------------------------

    def _due_at(self, due: Due) -> float:
        limits = self.limits
        if due.is_urgent:
            return due.retry_at
        if self._journal.is_open(due.ino):
            return max(due.first_at + limits.age_max_s, due.retry_at)
        quiet = min(due.changed_at + limits.delay_s, due.first_at + limits.age_max_s)
        return max(quiet, due.retry_at)

    def _push(self, due: Due) -> None:
        self._queued += 1
        heapq.heappush(self._queue, (self._due_at(due), self._queued, due.ino))

    async def run(self) -> None:
        """Write back until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                # A new event first: what is recorded from here on wakes us again.
                self._wake = trio.Event()
                self.collect()
                until = self._start_due(nursery)
                with trio.move_on_at(until):
                    await self._wake.wait()

    def _start_due(self, nursery: trio.Nursery) -> float:
        """Start what is due and may start; when to look again."""
        batch: list[tuple[Due, Step]] = []
        mount = self._calls.mount
        batched = mount.batched if mount.supports("commit") else frozenset[str]()
        tasks_max = 1 if batched is None else self.limits.parallel_max
        now = trio.current_time()
        while self._queue and self._tasks < tasks_max and len(batch) < BATCH_MAX:
            at, _, ino = self._queue[0]
            if at > now:
                break
            heapq.heappop(self._queue)
            due = self.dues.get(ino)
            if due is None or due.is_quarantined or due.step is not None:
                continue
            if self._due_at(due) > now:
                self._push(due)
                continue
            try:
                step = self._plan(due)
            except (WouldBlock, UnifsError):
                # The log is being checkpointed, or has no room; this can wait.
                due.retry_at = now + BACKOFF_S
                self._push(due)
                continue
            if step is None:
                continue
            due.step, self._running[ino] = step, due
            if batched is not None and step.verb not in batched:
                self._start(nursery, [(due, step)])
            else:
                batch.append((due, step))
        if batch:
            self._start(nursery, batch)
        if self._tasks >= tasks_max or not self._queue:
            return float("inf")
        return self._queue[0][0]

    def _start(self, nursery: trio.Nursery, batch: list[tuple[Due, Step]]) -> None:
        self._tasks += 1
        nursery.start_soon(self._work, batch)

    def _plan(self, due: Due) -> Step | None:
        """The step to start now; None where it is done, or waits for another."""
        step = self._order.next_step(due.ino)
        if step is None:
            self._done(due)
            return None
        if isinstance(step, Blocked):
            ring = self._order.ring(due.ino, self.dues)
            moving = next((ino for ino in ring if ino in self._running), None)
            aside = self._order.aside(ring) if ring and moving is None else None
            if aside is None or aside[0] != due.ino:
                self._wait_for(moving or (aside[0] if aside else step.by), due)
                return None
            step = aside[1]
        other = self._conflicting(step)
        if other is not None:
            other.waiters.add(due.ino)
            return None
        return step

    def _wait_for(self, ino: int, due: Due) -> None:
        other = self.add(ino)
        is_new = due.ino not in other.waiters
        other.waiters.add(due.ino)
        if is_new and other.step is None and not other.is_quarantined:
            if due.is_urgent and not other.is_urgent:
                other.is_urgent = True
            self._push(other)

    def _conflicting(self, step: Step) -> Due | None:
        mine = [path for path in (step.path, step.new_path) if path]
        for due in self._running.values():
            assert due.step is not None
            for path in (due.step.path, due.step.new_path):
                if path and any(is_within(path, other) for other in mine):
                    return due
        return None

    # --- doing ------------------------------------------------------------------------------------

    async def _work(self, batch: list[tuple[Due, Step]]) -> None:
        """One call of the mount, and what came of it."""
        try:
            await self._call(batch)
        except Exception as error:
            # A bug, ours or the mount's, costs these changes their turn and not the tree its life.
            log.exception("writeback failed: inos=%r", [due.ino for due, _ in batch])
            for due, _ in batch:
                self._failed(due, UnifsError(f"{type(error).__name__}: {error}"))
        finally:
            self._tasks -= 1
            for due, _ in batch:
                due.step = None
                self._running.pop(due.ino, None)
                self._progress(due)
            self.wake()

    def _progress(self, due: Due) -> None:
        """Look again at this one and at who waited for it."""
        waiters, due.waiters = due.waiters, set()
        for ino in [due.ino, *waiters]:
            other = self.dues.get(ino)
            if other is not None and not other.is_quarantined:
                self._push(other)

    async def _call(self, batch: list[tuple[Due, Step]]) -> None:
        calls: list[tuple[Due, Call]] = []
        for due, step in batch:
            try:
                await self._flush(due.seq)
                call = await self._calls.prepare(due.ino, partial(self._seq, due), step)
            except UnifsError as error:
                self._failed(due, error)
            except OSError as error:
                named = from_os_error(error)
                if not isinstance(named, UnifsError):
                    raise
                self._failed(due, named)
            else:
                if call is not None:
                    calls.append((due, call))
                else:
                    self._turned(due)
        if not calls:
            return
        outcomes = await self._calls.send([call for _, call in calls])
        for (due, call), outcome in zip(calls, outcomes, strict=True):
            try:
                await self._calls.settle(call, outcome)
            except UnifsError as error:
                self._failed(due, error)
            else:
                due.attempts, due.retry_at, due.error = 0, 0.0, None
                if isinstance(outcome, UnifsError):
                    self._turned(due, outcome)
                else:
                    due.turns = 0

    def _turned(self, due: Due, refusal: UnifsError | None = None) -> None:
        """It goes on from another state; not for ever without a pause, and without saying why."""
        due.turns += 1
        if due.turns > TURNS_MAX:
            due.attempts, due.error = due.turns - TURNS_MAX, refusal or due.error
            pause = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(due.turns - TURNS_MAX, 16))
            due.retry_at = trio.current_time() + pause

    def _seq(self, due: Due) -> int:
        self.collect()
        return due.seq

    def _failed(self, due: Due, error: UnifsError) -> None:
        due.error = error
        if not (error.is_transient or isinstance(error, NoSpace)):
            due.is_quarantined = True
            self._given_up.add(due.ino)
            log.error("writeback gives up: ino=%d error=%s", due.ino, error)
            self._journal.set_quarantined(due.ino, error)
            self._tell()
            return
        pause = due.pause_s(error, self._random)
        level = logging.WARNING if due.attempts == 0 else logging.DEBUG
        log.log(level, "writeback tries again: ino=%d in_s=%.1f error=%s", due.ino, pause, error)
        due.attempts += 1
        due.retry_at = trio.current_time() + pause

    def _done(self, due: Due) -> None:
        try:
            self._journal.settle(due.ino, due.seq)
        except UnifsError as error:
            self._failed(due, error)
            self._push(due)
            return
        del self.dues[due.ino]
        self.confirmed += 1
        self._progress(due)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- for control operations -------------------------------------------------------------------

    async def sync(self, inos: Iterable[int] | None = None) -> None:
        """Return when the backend has all of these (None: everything, what comes meanwhile too).

        Raises the error of the first that is quarantined. The deadline is the caller's scope.
        """
        self.collect()
        wanted = None if inos is None else self.dues.keys() & set(inos)
        self.hurry(wanted)
        self._hurrying += wanted is None
        try:
            while left := self.dues.keys() if wanted is None else wanted & self.dues.keys():
                for ino in self._given_up & left:
                    raise self.dues[ino].error or TryAgain(GIVEN_UP)
                await self._changed.wait()
                self.collect()
        finally:
            self._hurrying -= wanted is None

    def retry(self, ino: int) -> None:
        """Try a quarantined change once more."""
        due = self.dues.get(ino)
        if due is not None and due.is_quarantined:
            self._release(due)
            self.wake()

    def _release(self, due: Due) -> None:
        due.is_quarantined, due.attempts, due.retry_at = False, 0, 0.0
        self._given_up.discard(due.ino)
        self._journal.set_quarantined(due.ino, None)
        self._push(due)

    def statistics(self) -> dict[str, int]:
        """What is due, on its way and given up now, and how much was confirmed since the start."""
        return {
            "waiting": len(self.dues) - len(self._given_up),
            "quarantined": len(self._given_up),
            "running": len(self._running),
            "running_max": self.limits.parallel_max,
            "confirmed": self.confirmed,
        }
