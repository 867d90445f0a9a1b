"""How far ahead of a reader bytes are fetched: a window for each open file.

The law. A file that is read from its start, or a second time where the last read ended, is read in
sequence: it gets a window of one extent. Whenever at most half a window is still unread, the
window doubles (to ``WINDOW_BYTES_MAX``) and is filled, if it is large up to where a run ends
(``flights``). Reads may be up to ``SEEK_BYTES`` early or late: the kernel sends its own readahead
in any order. Any other read is a random one: the window collapses, what is still on its way for it
is cancelled, and reads fetch pieces instead of extents. So does closing, and a fetch that failed:
its error is not told to a reader who does not come there.

All windows together have at most ``bytes_max`` unread, each an equal share. Where nothing is left
for a reader, a window whose reader has paused for ``PAUSE_S`` gives its share up.

``ReadCache`` owns the one ``Readahead``, each handle one ``Window``. Nothing here waits; it belongs
to the event loop's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from unifs.cache.flights import RUN_BYTES_MAX, run_end
from unifs.cache.memory import EXTENT_BYTES, ExtentKey
from unifs.errors import TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.cache.flights import Flight, Flights
    from unifs.cache.source import Source

#: Three requests of 16 MiB: at 20 ms per round trip four of 8 give 0.36 GB/s, 16 of 1 MiB 0.22.
WINDOW_BYTES_MAX: Final = 48 << 20
#: Two requests of the kernel, 1 MiB each, may change places.
SEEK_BYTES: Final = 2 << 20
PAUSE_S: Final = 1.0


class Window:
    """One handle's: where it reads, and what was fetched for it ahead of that."""

    __slots__ = ("flights", "position", "reach", "read_at", "size_bytes")

    def __init__(self) -> None:
        #: 0: reads are random.
        self.size_bytes = 0
        #: Where the furthest read in sequence ended.
        self.position = 0
        #: Everything before it has been asked for.
        self.reach = 0
        self.read_at = 0.0
        self.flights: list[Flight] = []

    @property
    def unread_bytes(self) -> int:
        """What is ahead of the reader."""
        return max(self.reach - self.position, 0)

    @property
    def is_sequential(self) -> bool:
        return self.size_bytes > 0


class Readahead:
    """The windows that have something ahead of their readers."""

    def __init__(
        self, flights: Flights, is_near: Callable[[ExtentKey], bool], bytes_max: int
    ) -> None:
        self._flights = flights
        self._is_near = is_near
        self._bytes_max = bytes_max
        #: Those with unread bytes, the one that read last at the end.
        self._active: OrderedDict[Window, None] = OrderedDict()
        self._cancelled = self._ahead_bytes = 0

    def note(self, window: Window, source: Source, offset: int, end: int) -> None:
        """A handle reads ``offset`` to ``end``: judge, and fetch what it will want next."""
        # To ask again for what was waited for is no sequence.
        early = SEEK_BYTES if window.is_sequential else 0
        if not -early <= offset - window.position <= SEEK_BYTES:
            self.close(window)
            window.position = end
            return
        window.position = max(window.position, end)
        if not window.is_sequential:
            window.size_bytes = EXTENT_BYTES
            window.reach = _aligned(end)
        if window.flights:
            self._settle(window)
        if window.is_sequential:
            self._fill(window, source)

    def close(self, window: Window) -> None:
        """Nobody reads on there: what is on its way for it alone is cancelled."""
        flights, window.flights = window.flights, []
        self._cancelled += sum(not flight.done.is_set() for flight in flights)
        self._flights.leave(flights)
        window.size_bytes = window.reach = 0
        self._active.pop(window, None)

    def _settle(self, window: Window) -> None:
        """Let go what has arrived."""
        arrived = [flight for flight in window.flights if flight.done.is_set()]
        if not arrived:
            return
        window.flights = [flight for flight in window.flights if not flight.done.is_set()]
        self._flights.leave(arrived)
        if any(flight.error is not None for flight in arrived):
            self.close(window)

    def _fill(self, window: Window, source: Source) -> None:
        now = window.read_at = trio.current_time()
        if window.unread_bytes:
            self._active[window] = None
            self._active.move_to_end(window)
        else:
            self._active.pop(window, None)
        if window.unread_bytes * 2 > window.size_bytes or window.reach >= source.size_bytes:
            return
        share = self._bytes_max // (len(self._active) + (window not in self._active))
        size = max(min(window.size_bytes * 2, WINDOW_BYTES_MAX, share), EXTENT_BYTES)
        start = max(window.reach, _aligned(window.position))
        room = min(self._room(window, now), window.position + size - start)
        stop = min(start + room // EXTENT_BYTES * EXTENT_BYTES, _aligned(source.size_bytes))
        least = min(size // 4, RUN_BYTES_MAX)
        if stop - start < least and stop < source.size_bytes:
            # Many small requests cost more than a short wait.
            return
        if stop < source.size_bytes and run_end(stop) - start >= least:
            stop = run_end(stop)
        keys = [
            ExtentKey(source.mount, source.object, source.version, number)
            for number in range(start // EXTENT_BYTES, stop // EXTENT_BYTES)
        ]
        try:
            flights = self._flights.hold(source, [key for key in keys if not self._is_near(key)])
        except TryAgain:
            # Readers come first.
            return
        window.flights += flights
        window.size_bytes, window.reach = size, stop
        self._ahead_bytes += len(flights) * EXTENT_BYTES
        self._active[window] = None

    def _room(self, window: Window, now: float) -> int:
        """What may be fetched ahead now by all windows, after idle ones have made room."""
        while True:
            used = sum(active.unread_bytes for active in self._active)
            oldest = next(iter(self._active), window)
            if used < self._bytes_max or oldest is window or now - oldest.read_at < PAUSE_S:
                return self._bytes_max - used
            self.close(oldest)

    def statistics(self) -> dict[str, int]:
        """Windows and bytes ahead now and at most, and what readahead did since the start."""
        return {
            "windows": len(self._active),
            "unread_bytes": sum(window.unread_bytes for window in self._active),
            "unread_bytes_max": self._bytes_max,
            "ahead_bytes": self._ahead_bytes,
            "cancelled": self._cancelled,
        }


def _aligned(offset: int) -> int:
    """The end of the extent that the byte before ``offset`` lies in."""
    return -(-offset // EXTENT_BYTES) * EXTENT_BYTES
