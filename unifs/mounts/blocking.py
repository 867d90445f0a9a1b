"""The one bridge from a mount to calls that block: host system calls, SDKs without async.

Each mount owns a ``Blocking`` with its own limit of threads, so a backend that hangs uses up its
own and nobody else's. A thread cannot be cancelled; what a deadline does depends on the call:

``read``    changes nothing. A caller that is cancelled leaves at once and the result is dropped;
the
            thread ends by itself and keeps its place under the limit until then. The call must
            therefore have a bound of its own (a socket timeout below the deadline), and what it
            opens it must close itself.
``change``  changes something. A caller that is cancelled before the thread starts leaves, and
nothing
            was done. Once it has started the caller waits for its end, so an answer always says
            what happened.

Calls run with no lock held. Exceptions pass through; the mount maps them at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class BlockingStatistics:
    """Threads in use, their bound, and the calls that wait for one."""

    threads: int
    threads_max: int
    waiting: int


class Blocking:
    """Runs the blocking calls of one mount, at most ``threads_max`` at a time."""

    def __init__(self, threads_max: int) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)

    async def read(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a call that changes nothing; cancellation does not wait for it."""
        return await trio.to_thread.run_sync(
            call, *args, abandon_on_cancel=True, limiter=self._limiter
        )

    async def change(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a call that changes something; once started it is waited for."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)

    def statistics(self) -> BlockingStatistics:
        """What runs and waits now."""
        limiter = self._limiter.statistics()
        return BlockingStatistics(
            limiter.borrowed_tokens, int(limiter.total_tokens), limiter.tasks_waiting
        )
