"""Requests that wait: how many per mount, how long, and how they all end.

A request that raised ``WouldBlock`` comes here. It takes one of its mount's places, tells the
request loop that it is going to suspend, and waits inside one cancel scope: its deadline. Nobody
waits for somebody else's backend: a mount that has used up its places refuses further requests at
once, while the places of all other mounts are free.

Owned by ``session.py``, called by ``operations.py`` from the event loop only. It must never wait
for a place: a queue of waiters would be what the bound is there to prevent.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from unifs.errors import DeadlineExceeded
from unifs.telemetry import REQUESTS_REFUSED, REQUESTS_SUSPENDED
from unifs.waiting import RETRY, WouldBlock, complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.telemetry import Metrics

log = logging.getLogger(__name__)

#: Suspended requests per mount.
PER_MOUNT_MAX: Final = 256


def places_per_mount(background: int, remote_mounts: int) -> int:
    """How many requests may wait for one mount so that the kernel still sends those of the others.

    ``background`` is what the kernel sends before earlier ones are answered; one share is left for
    what waits for nobody.
    """
    return min(PER_MOUNT_MAX, max(1, background // (remote_mounts + 1)))


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a request of each kind may wait, in seconds; then its caller gets ETIMEDOUT.

    Look-ups are short because the kernel serializes them: one that waits blocks its directory.
    fsync is long because it waits for a disk that is slow, not for one that is gone.
    """

    lookup_s: float = 5.0
    read_s: float = 30.0
    write_s: float = 30.0
    close_s: float = 60.0
    fsync_s: float = 300.0
    other_s: float = 10.0


class Waits:
    """The suspended requests of one session."""

    def __init__(self, metrics: Metrics, per_mount_max: int = PER_MOUNT_MAX) -> None:
        self.per_mount_max = per_mount_max
        self._metrics = metrics
        metrics.watch_all(REQUESTS_SUSPENDED, self._suspended)
        #: Called by a fast loop before other tasks may run, and when requests come again.
        self.on_leave: Callable[[], None] = _nothing
        self.on_return: Callable[[], None] = _nothing
        #: Called before a request suspends; the request loop puts itself here.
        self.about_to_suspend: Callable[[], None] = _nothing
        #: Told how to ask whether no request waits to be read, by a request loop that knows.
        self.on_fast_loop: Callable[[Callable[[], bool]], None] = _ignored
        #: Called by that loop when there is none, for what can be done meanwhile.
        self.on_idle: Callable[[], None] = _nothing
        self._by_mount: dict[str, int] = {}
        self._full: set[str] = set()
        self._scopes: set[trio.CancelScope] = set()
        self._has_ended = False
        self._timed_out = 0
        self._highest = 0

    def statistics(self) -> dict[str, int]:
        """Requests waiting now and at most, places per mount, and how many met their deadline."""
        return {
            "waiting": len(self._scopes),
            "waiting_highest": self._highest,
            "per_mount_max": self.per_mount_max,
            "timed_out": self._timed_out,
        }

    def waiting_by_mount(self) -> dict[str, int]:
        """How many requests wait for each mount now; "" is this machine's own disk."""
        return dict(self._by_mount)

    async def finish(
        self, block: WouldBlock, deadline_s: float, call: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """Wait for what ``block`` names, and answer as ``call(*args)`` then does.

        DeadlineExceeded after ``deadline_s`` or when the mount has no place left; OSError(ENOTCONN)
        when the session ends meanwhile; otherwise whatever the wait or the call raises. There is no
        checkpoint between the last call and the return. A block that names no mount waits for this
        machine's own disk and takes no place.
        """
        self._enter(block.mount)
        scope = trio.CancelScope(deadline=trio.current_time() + deadline_s)
        self._scopes.add(scope)
        self._highest = max(self._highest, len(self._scopes))
        self.about_to_suspend()
        try:
            with scope:
                answer = await block.wait()
                if answer is RETRY:
                    answer = await complete(call, *args)
                return answer
        finally:
            self._scopes.discard(scope)
            self._leave(block.mount)
        if self._has_ended:
            raise OSError(errno.ENOTCONN, "unmounted while the request was waiting")
        self._timed_out += 1
        raise DeadlineExceeded(f"no answer within {deadline_s:g} s", mount=block.mount)

    def end_all(self) -> None:
        """End every wait, now and later, with ENOTCONN. Idempotent."""
        self._has_ended = True
        for scope in list(self._scopes):
            scope.cancel()

    def _enter(self, mount: str) -> None:
        if self._has_ended:
            raise OSError(errno.ENOTCONN, "unmounted")
        count = self._by_mount.get(mount, 0)
        if mount and count >= self.per_mount_max:
            self._metrics.counter(REQUESTS_REFUSED, mount).value += 1
            if mount not in self._full:
                self._full.add(mount)
                log.warning(
                    "mount=%s does not answer, waiting=%d: further requests fail", mount, count
                )
            raise DeadlineExceeded(f"{count} requests wait for {mount} already", mount=mount)
        self._by_mount[mount] = count + 1

    def _leave(self, mount: str) -> None:
        count = self._by_mount[mount] = self._by_mount[mount] - 1
        if not count:
            del self._by_mount[mount]
        if mount in self._full and count <= self.per_mount_max // 2:
            self._full.discard(mount)
            log.warning("mount=%s answers again, waiting=%d", mount, count)

    def _suspended(self) -> dict[tuple[str, ...], float]:
        return {(mount or "disk",): count for mount, count in self._by_mount.items()}


def _nothing() -> None:
    pass


def _ignored(_is_idle: Callable[[], bool]) -> None:
    pass
