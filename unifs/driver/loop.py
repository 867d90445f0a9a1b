"""The request loop: stock pyfuse3 under trio, without a task switch per request.

pyfuse3's own loop takes a ``trio.Lock`` and re-arms epoll for every request: two reschedules,
26–32 µs of CPU for a request whose handler needs 3. pyfuse3 looks ``Lock``, ``open_nursery`` and
``lowlevel.wait_readable`` up in its module global ``trio`` (its asyncio back end relies on that),
so an object put there changes the loop without touching the extension:

* the read lock is taken without a checkpoint and wakes nobody when it is left: whoever has
  answered a request reads the next one;
* ``wait_readable`` asks poll(2) first. Only when nothing is queued, and a few ``sched_yield``
  calls have not brought anything, does the task go to trio's epoll;
* a handler that is about to suspend says so (``about_to_suspend``), and only then does the standby
  reader wake up.

From one request to the next no other task runs, then, unless ``Waits.on_leave`` was called: before
each checkpoint, each sleep, and when a handler suspends or a worker ends. ``on_return`` says that
requests are served again. A reader that waits for its turn finds the lock held by one that left.

Measured (fstat, one request each): 7–9 µs of CPU when the next request is already queued, 16–20
when it is not. After ``BURST`` requests without a pause, more where they are quick, there is one
real checkpoint, so that downloads, the control socket and cancellation get their turn.

Owned and called by ``session.py``; at most one is installed per process, because pyfuse3 has one
session per process. It must never decide what a request means. Where pyfuse3 is not what this file
was written against, ``install`` says why and the stock loop serves.
"""

from __future__ import annotations

import logging
import select
from contextlib import asynccontextmanager, contextmanager
from os import sched_yield
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from unifs.driver.waits import Waits

log = logging.getLogger(__name__)

#: Requests served without a checkpoint, and more of them as long as they take no longer than this
#: together. A checkpoint costs 3.6 µs, and the commit of what is held with it 15: 300 files are
#: made in 121 instead of 125 µs each, and unpacked in 189 instead of 197.
BURST: Final = 64
BURST_NS: Final = 4_000_000
#: How often to give the CPU away and look again before sleeping: at most about 20 µs. A client that
#: waits for one answer before it asks again has its next request ready within that time.
SPINS: Final = 20
#: The share of spins that must have paid off lately; below it they stop, except for a trial.
HIT_RATE_MIN: Final = 0.05
#: Weight of the newest spin in the hit rate.
HIT_WEIGHT: Final = 0.02
#: Sleeps between two trials, and the rate that one begins at: five spins in vain end it, one that
#: pays off makes it last.
TRIAL_EVERY: Final = 64
TRIAL_RATE: Final = 1.1 * HIT_RATE_MIN

#: The versions whose loop this file was written against and is tested with.
KNOWN_VERSIONS: Final = ("3.5.",)
_NEEDED: Final = ("_wait_fuse_readable", "_session_loop", "main", "terminate", "trio")


class _ReadLock:
    """Held by the task that waits for a request; the others stand by."""

    __slots__ = ("hands_over", "is_held", "standby")

    def __init__(self) -> None:
        self.is_held = False
        #: Leaving wakes the next one, as an ordinary lock does: for the stock loop only.
        self.hands_over = False
        self.standby = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self.is_held:
            await self.standby.park()
        self.is_held = True

    async def __aexit__(self, *exc_info: object) -> None:
        self.is_held = False
        if self.hands_over:
            self.standby.unpark()

    def wake(self) -> None:
        """Let a standby reader take over, if nobody reads."""
        if not self.is_held and self.standby:
            self.standby.unpark()


class _Workers:
    """trio's nursery, where a worker that ends wakes the standby so that it may end as well."""

    __slots__ = ("_loop", "_nursery")

    def __init__(self, loop: FastLoop, nursery: trio.Nursery) -> None:
        self._loop = loop
        self._nursery = nursery

    def start_soon(
        self, function: Callable[..., Awaitable[None]], *args: object, name: object = None
    ) -> None:
        loop = self._loop

        async def work() -> None:
            try:
                await function(*args)
            finally:
                loop.worker_ended()

        # The new worker stands by only after a checkpoint. Without one, each further request of a
        # burst would find no reader waiting and start another worker.
        loop.pause_soon()
        self._nursery.start_soon(work, name=name)


class FastLoop:
    """What pyfuse3 finds under the name ``trio`` while this loop is installed."""

    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self.lowlevel = self
        self.current_trio_token = trio.lowlevel.current_trio_token
        self.current_task = trio.lowlevel.current_task
        self.notify_closing = trio.lowlevel.notify_closing
        self._lock: _ReadLock | None = None
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._burst_left = BURST
        #: When the next checkpoint is due, by ``perf_counter_ns``.
        self._pause_at = 0
        self._hit_rate = 1.0
        self._sleeps = 0
        self._is_probing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)

    def statistics(self) -> dict[str, float]:
        """How well the spinning pays off, and how often the loop slept."""
        return {"spin_hit_rate": self._hit_rate, "sleeps": self._sleeps}

    # --- what pyfuse3 calls ----------------------------------------------------------------------

    def Lock(self) -> _ReadLock:
        self._lock = _ReadLock()
        return self._lock

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Workers]:
        async with trio.open_nursery() as nursery:
            yield _Workers(self, nursery)

    async def wait_readable(self, fd: int) -> None:
        if self._is_probing:
            return
        poll = self._poll
        if poll is None:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poll = self._poll = poller.poll
        if self._burst_left <= 0:
            self._burst_left = BURST
            if perf_counter_ns() >= self._pause_at:
                self._waits.on_leave()
                await trio.lowlevel.checkpoint()
                self._returned()
        if poll(0):
            self._burst_left -= 1
            return
        self._waits.on_idle()
        if self._hit_rate > HIT_RATE_MIN and self._spin(poll):
            self._burst_left -= 1
            return
        self._burst_left = BURST
        self._sleeps += 1
        if self._hit_rate <= HIT_RATE_MIN and self._sleeps % TRIAL_EVERY == 0:
            self._hit_rate = TRIAL_RATE
        self._waits.on_leave()
        await trio.lowlevel.wait_readable(fd)
        self._returned()

    def _returned(self) -> None:
        self._pause_at = perf_counter_ns() + BURST_NS
        self._waits.on_return()

    def _spin(self, poll: Callable[[int], list[tuple[int, int]]]) -> bool:
        """Whether a request came while the CPU was given away."""
        for _ in range(SPINS):
            sched_yield()
            if poll(0):
                self._hit_rate += (1.0 - self._hit_rate) * HIT_WEIGHT
                return True
        self._hit_rate -= self._hit_rate * HIT_WEIGHT
        return False

    # --- what the driver calls -------------------------------------------------------------------

    def about_to_suspend(self) -> None:
        """The calling handler is going to wait: somebody else must read the next request."""
        self._waits.on_leave()
        if self._lock is not None:
            self._lock.wake()

    def is_idle(self) -> bool:
        """Whether no request waits to be read."""
        return self._poll is not None and not self._poll(0)

    def worker_ended(self) -> None:
        """Let the others end as well where the session is over."""
        if self._poll is not None and any(events & select.POLLERR for _, events in self._poll(0)):
            # The kernel has ended the connection: no answer would reach anybody.
            self._waits.end_all()
        self.about_to_suspend()

    def pause_soon(self) -> None:
        """The next look for a request is preceded by a checkpoint."""
        self._burst_left = self._pause_at = 0

    # --- is pyfuse3 what it was? -----------------------------------------------------------------

    def probe(self) -> str:
        """Drive pyfuse3's waiting once by hand; why this loop cannot serve it, or "".

        Needs an initialised session, reads nothing from it. If the answer is not "", the lock that
        pyfuse3 now holds behaves as an ordinary one.
        """
        self._is_probing = True
        waiting = pyfuse3._wait_fuse_readable()  # type: ignore[attr-defined]
        try:
            waiting.send(None)
        except StopIteration as stop:
            if stop.value is not True:
                return self._refuse("its wait for a request ends otherwise")
        else:
            waiting.close()
            return self._refuse("its wait for a request suspends elsewhere")
        finally:
            self._is_probing = False
        if self._lock is None or self._lock.is_held:
            return self._refuse("its read lock is taken elsewhere")
        return ""

    def _refuse(self, reason: str) -> str:
        if self._lock is not None:
            self._lock.hands_over = True
        return reason


def incompatibility() -> str:
    """Why the fast loop cannot serve this pyfuse3, as far as it shows without a session, or ""."""
    version = str(pyfuse3.__version__)
    if not version.startswith(KNOWN_VERSIONS):
        return f"pyfuse3 {version} is not one of {', '.join(v + 'x' for v in KNOWN_VERSIONS)}"
    missing = [name for name in _NEEDED if not hasattr(pyfuse3, name)]
    if missing:
        return f"pyfuse3 {version} has no {', '.join(missing)}"
    if pyfuse3.trio is not trio:  # type: ignore[attr-defined]
        return "pyfuse3 runs on another event loop than trio"
    return ""


@contextmanager
def installed(is_wanted: bool, waits: Waits) -> Iterator[bool]:
    """Serve the initialised session with the fast loop, or with the stock one where it cannot.

    Yields whether the fast loop serves; ``waits`` then tells it before a request suspends. Which
    loop serves, and why, is logged once.
    """
    reason = incompatibility() if is_wanted else "it is switched off"
    loop = FastLoop(waits)
    if not reason:
        pyfuse3.trio = loop  # type: ignore[attr-defined]
        reason = loop.probe()
        if reason:
            pyfuse3.trio = trio  # type: ignore[attr-defined]
    if reason:
        level = logging.WARNING if is_wanted else logging.INFO
        log.log(level, "request loop=stock reason=%r", reason)
        yield False
        return
    log.debug("request loop=fast")
    waits.about_to_suspend = loop.about_to_suspend
    waits.on_fast_loop(loop.is_idle)
    try:
        yield True
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]
