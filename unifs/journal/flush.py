"""Flush rounds: what fsync waits for.

One round makes durable, in this order: the data descriptors that callers asked for, the open
segment (so that every small content closed so far is sealed), then the WAL. All who wait when a
round starts share it; those who come while it runs share the next. One thread does the syncing,
because a thread from a pool costs 57 µs and an fdatasync here 150.

Where nobody else asks for anything and the disk is quick, the loop pauses for the round
(``flush_nowait``) instead of going through trio's scheduler twice: never longer than ``PAUSE_S``,
and not again for a while once that was too short or somebody had to wait. Where requests queue up,
a round begins when the loop has heard them all, at the latest after ``GATHER_S``: the others may
want to be in it.

Failures are never forgotten and never retried on the same pages (the kernel reports a write-back
error once): a descriptor's error goes to everyone who waited for that descriptor, the segment's and
the WAL's to everyone, and the WAL's makes the tree read-only until a restart has checked it.

``sealed_seq``: small contents of records up to it have durable bytes. ``durable_seq``: records up
to it survive a power cut. Both trail the log's ``seq``. ``durable_commits``: so many of the
database's transactions survive one; those that remove rows need not have a record.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import DiskFailed, UnifsError, from_os_error
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    #: Called in the loop when a round is over, with the errors of its data descriptors.
    Ended = Callable[[Mapping[int, OSError]], None]

    from unifs.ipfs.embedded.segments import Segments, SyncTarget
    from unifs.journal.log import Log
    from unifs.state.database import Database

log = logging.getLogger(__name__)
_LIBC = ctypes.CDLL(None, use_errno=True)
#: SYNC_FILE_RANGE_WRITE: begin, do not wait.
_WRITE = 2
#: To sync blocks that are written already takes 126 µs on ext4, 212 where the file grows: its own
#: journal has to commit too. So while one fsync follows another, the WAL grows ahead of its use.
WAL_AHEAD = bytes(256 << 10)
#: Rounds at most so far apart, each with less than the margin, are one after another.
AHEAD_NS = 50_000_000
AHEAD_MARGIN_BYTES = 64 << 10
#: How long the loop may pause for a round: a few times what a quick disk takes, and no more than
#: what a large commit holds it up.
PAUSE_S = 0.000_5
#: How long a round waits for requests that the loop has not read yet.
GATHER_S = 0.002
#: After a pause that was too short, or that kept another request waiting, so many rounds go by
#: without one.
NO_PAUSE_ROUNDS = 32


class Round:
    """One flush on its way, and what came of it."""

    __slots__ = (
        "commits",
        "descriptors",
        "done",
        "ended",
        "errors",
        "failure",
        "is_due",
        "is_paused_for",
        "over",
        "seq",
        "target",
    )

    def __init__(self) -> None:
        self.descriptors: set[int] = set()
        #: It has waited for others long enough.
        self.is_due = False
        self.done = trio.Event()
        self.ended: list[Ended] = []
        self.errors: dict[int, OSError] = {}
        self.failure: OSError | UnifsError | None = None
        self.seq = self.commits = 0
        self.target: SyncTarget | None = None
        #: The loop pauses until ``over`` is released; otherwise it is told by a callback.
        self.is_paused_for = False
        self.over = threading.Lock()


class Flusher:
    """Runs flush rounds. All methods belong to the event loop's thread."""

    def __init__(self, database: Database, segments: Segments, log_: Log) -> None:
        self._database = database
        self._segments = segments
        self._log = log_
        self.sealed_seq: int = database.get_meta("sealed_seq", 0)
        self.durable_seq = self.sealed_seq
        self.durable_commits = 0
        self.rounds = 0
        self.waited = 0
        self._running: Round | None = None
        self._next: Round | None = None
        self._work: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
        #: Told how long each round took, in nanoseconds.
        self.on_round: Callable[[int], None] = lambda _elapsed_ns: None
        #: Whether no request waits for the loop; who serves requests puts itself here, and calls
        #: ``loop_is_idle``. Without, there are neither pauses nor gathering.
        self.is_loop_idle: Callable[[], bool] | None = None
        #: How often the loop has paused for a round.
        self.pauses = 0
        self._no_pause_for = 0
        self._handover = threading.Lock()
        self._started_ns = 0
        self._wal_used = 0
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        """Start the syncing thread; from inside the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._sync_loop, name="flush", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the round that runs."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    async def flush(self, descriptors: Iterable[int] = (), ended: Ended | None = None) -> None:
        """Return when everything committed before this call, and the descriptors' data, is durable.

        Raises DiskFailed (or NoSpace) where the disk reported an error for what was asked.
        Cancellable; the round goes on. The descriptors must stay open until ``ended`` is called.
        """
        if self._database.failed is not None:
            if ended is not None:
                ended({})
            raise self._database.refusal()
        turn = self._next
        is_first = turn is None
        if turn is None:
            turn = self._next = Round()
        wanted = set(descriptors)
        turn.descriptors |= wanted
        if ended is not None:
            turn.ended.append(ended)
        self.waited += 1
        if not self._begin_next() and is_first:
            await self._gather(turn)
        await self._over(turn, wanted)

    async def _gather(self, turn: Round) -> None:
        """Begin a round once everybody had the time to join, whatever happens to who began it."""
        try:
            with trio.move_on_after(GATHER_S):
                await turn.done.wait()
        finally:
            turn.is_due = True
            if self._next is turn:
                self._begin_next()

    def _begin_next(self) -> bool:
        """Begin the next round, if there is one and nothing speaks against it."""
        turn, is_idle = self._next, self.is_loop_idle
        if turn is None or self._running is not None:
            return False
        if not turn.is_due and is_idle is not None and not is_idle():
            return False
        self._begin()
        return True

    def loop_is_idle(self) -> None:
        """Every request has been read: nobody else will join the next round soon."""
        if self._next is not None and self._running is None:
            self._begin()

    def flush_nowait(self) -> None:
        """As ``flush`` without descriptors; WouldBlock where that takes more than a short pause.

        What WouldBlock waits for is the answer: the round is on its way.
        """
        is_idle, is_alone = self.is_loop_idle, self._running is None and self._next is None
        if is_idle is None or not is_alone or self._no_pause_for or not is_idle():
            raise WouldBlock(self.flush)
        if self._database.failed is not None:
            raise self._database.refusal()
        turn = self._next = Round()
        turn.is_paused_for = True
        turn.over.acquire()
        self.waited += 1
        self._begin()
        if self._running is turn and not self._pause(turn, is_idle):
            raise WouldBlock(partial(self._over, turn, ()))
        _tell(turn, ())

    def _pause(self, turn: Round, is_idle: Callable[[], bool]) -> bool:
        """Wait for a round in the loop; False where it will be told by a callback."""
        self.pauses += 1
        is_over = turn.over.acquire(timeout=PAUSE_S)
        if not is_over:
            self._no_pause_for = NO_PAUSE_ROUNDS
            with self._handover:
                is_over = turn.over.acquire(blocking=False)
                turn.is_paused_for = False
        elif not is_idle():
            self._no_pause_for = NO_PAUSE_ROUNDS
        if is_over:
            self._finished(turn)
        return is_over

    @staticmethod
    async def _over(turn: Round, wanted: Collection[int]) -> None:
        await turn.done.wait()
        _tell(turn, wanted)

    def _begin(self) -> None:
        turn = self._next
        assert turn is not None
        self._next = None
        self._running = turn
        self._database.settle()
        if self._database.failed is not None:
            turn.failure = self._database.refusal()
            self._finished(turn)
            return
        turn.seq, turn.commits = self._log.seq, self._database.commits
        before_ns, self._started_ns = self._started_ns, time.perf_counter_ns()
        self._grow_wal(self._started_ns - before_ns < AHEAD_NS)
        try:
            turn.target = self._segments.sync_target()
        except UnifsError as error:
            # A segment failed before: nothing of it may ever be called durable.
            turn.failure = error
            self._finished(turn)
            return
        self._work.put(turn)

    def _grow_wal(self, is_busy: bool) -> None:
        """Have the WAL grow where one round follows another; without, a round only takes longer."""
        used, before = self._database.wal_bytes, self._wal_used
        self._wal_used = used
        if is_busy and 0 <= used - before < AHEAD_MARGIN_BYTES:
            self._database.make_wal_room(AHEAD_MARGIN_BYTES, WAL_AHEAD)

    def _sync_loop(self) -> None:
        while (turn := self._work.get()) is not None:
            self._sync(turn)
            with self._handover:
                if turn.is_paused_for:
                    turn.over.release()
                    continue
            token = self._token
            assert token is not None
            try:
                token.run_sync_soon(self._finished, turn)
            except trio.RunFinishedError:
                return

    def _sync(self, turn: Round) -> None:
        if turn.descriptors:
            _start_write_out(self._database.wal)
        for descriptor in turn.descriptors:
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                turn.errors[descriptor] = error
        try:
            if turn.target is not None:
                turn.target.run()
            os.fdatasync(self._database.wal)
        except (OSError, UnifsError) as error:
            turn.failure = error

    def _finished(self, turn: Round) -> None:
        self._running = None
        self.rounds += 1
        self._no_pause_for = max(0, self._no_pause_for - 1)
        self.on_round(time.perf_counter_ns() - self._started_ns)
        if turn.failure is not None:
            self._database.fail(f"fdatasync: {turn.failure}")
        else:
            self.durable_seq = max(self.durable_seq, turn.seq)
            self.durable_commits = max(self.durable_commits, turn.commits)
            self.sealed_seq = self.durable_seq
        for descriptor, error in turn.errors.items():
            log.error("data sync failed: descriptor=%d error=%s", descriptor, error.strerror)
        for ended in turn.ended:
            ended(turn.errors)
        turn.done.set()
        self._begin_next()


def _tell(turn: Round, wanted: Collection[int]) -> None:
    """Raise what a round that is over brought to those who asked for these descriptors."""
    if turn.failure is not None:
        raise DiskFailed(f"flush failed: {turn.failure}") from turn.failure
    for descriptor in wanted:
        if descriptor in turn.errors:
            error = turn.errors[descriptor]
            raise from_os_error(error) from error


def _start_write_out(descriptor: int) -> None:
    """Let the kernel begin to write a file, so that its blocks join the data's transaction.

    The file system then commits once for both: two syncs take 285 instead of 350 µs on ext4. Which
    of the two arrives first does not matter: recovery believes hashes. Errors
    are the sync's to tell.
    """
    _LIBC.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)
