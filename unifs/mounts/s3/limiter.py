"""How many requests one service gets at a time, and when none.

Each request holds one place. A service that asks for less (503, SlowDown, 429) gets half as many,
not more often than once a second, and none before the time that it asked for; each success gives a
fraction of a place back, until the most that the options allow. Belongs to the event loop's thread.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Refusals within so many seconds are one sign of load.
WINDOW_S: Final = 1.0
#: No request waits longer for the service's Retry-After than this; the answer then says it again.
PAUSE_MAX_S: Final = 20.0


class Limiter:
    """Places for requests, fewer while the service is overloaded."""

    def __init__(self, places_max: int) -> None:
        self._places = trio.CapacityLimiter(places_max)
        self._places_max = places_max
        self._allowed = float(places_max)
        self._shrunk_at = float("-inf")
        self._resume_at = float("-inf")
        self.refusals = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place for one request."""
        holder = object()
        await self._places.acquire_on_behalf_of(holder)
        try:
            if self._resume_at > trio.current_time():
                await trio.sleep_until(self._resume_at)
            yield
        finally:
            self._places.release_on_behalf_of(holder)

    def refused(self, retry_after_s: float | None) -> None:
        """The service asks for fewer requests."""
        now = trio.current_time()
        self.refusals += 1
        pause = min(retry_after_s or 0.0, PAUSE_MAX_S)
        self._resume_at = max(self._resume_at, now + pause)
        if now - self._shrunk_at >= WINDOW_S:
            self._shrunk_at = now
            self._allow(max(1.0, self._allowed / 2))

    def served(self) -> None:
        """A request was answered."""
        if self._allowed < self._places_max:
            self._allow(min(float(self._places_max), self._allowed + 1 / self._allowed))

    def _allow(self, places: float) -> None:
        self._allowed = places
        self._places.total_tokens = int(places)

    def statistics(self) -> dict[str, int]:
        """Places in use, allowed now and at most, requests that wait, and refusals so far."""
        now = self._places.statistics()
        return {
            "requests": now.borrowed_tokens,
            "requests_allowed": int(now.total_tokens),
            "requests_max": self._places_max,
            "waiting": now.tasks_waiting,
            "refusals": self.refusals,
        }
