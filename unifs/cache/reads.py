"""The read path for remote bytes: memory tier, disk tier, mount.

``TreeVolume`` calls ``read_nowait`` for what a clean handle reads. It answers from memory or the
page cache without waiting; else it raises WouldBlock, whose wait brings the missing extents and
answers RETRY, so that a caller may lay its own dirty ranges over the result. The bytes that were
waited for are *carried* to the call that follows (no checkpoint lies between), so a read ends
even where no tier keeps anything.

An extent is fetched once however many wait for it (``flights``), and before anybody waits for it
where a reader goes on in sequence (``readahead``). A reader here and there gets *pieces*, small
extents with keys of their own; what is there as an extent is never fetched as a piece. What a mount
returns is taken only at exactly the length that was asked for. A key names a version, so other
bytes than that version's cannot come from here; Stale from the mount passes through. Deadlines are
the callers' scopes.

Bounds: those of flights, of readahead and of the tiers. No locks: everything but the disk tier's
threads runs on the event loop.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from unifs.cache.flights import Flights
from unifs.cache.memory import EXTENT_BYTES, PIECE_BYTES, ExtentKey, MemoryStatistics, MemoryTier
from unifs.cache.readahead import Readahead
from unifs.waiting import RETRY, Retry, WouldBlock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unifs.cache.disk import DiskStatistics, DiskTier
    from unifs.cache.memory import Extent
    from unifs.cache.readahead import Window
    from unifs.cache.source import Source


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds of the read path."""

    memory_bytes_max: int = 64 << 20
    fetches_max: int = 32
    waiting_max: int = 1024
    #: Fetched ahead of all readers together; never more than three quarters of the memory.
    ahead_bytes_max: int = 48 << 20


@dataclass(frozen=True, slots=True)
class ReadStatistics:
    """What the read path holds, and counts since the start."""

    memory: MemoryStatistics
    disk: DiskStatistics | None
    fetching: int
    fetching_max: int
    fetches: int
    fetched_bytes: int
    failures: int
    joined: int
    ahead: dict[str, int]


class _Missing(NamedTuple):
    """A range of one extent, or of one piece, that is not at hand."""

    key: ExtentKey
    start: int
    size: int


class ReadCache:
    """Extents of remote objects, each fetched once."""

    def __init__(self, disk: DiskTier | None, limits: ReadLimits | None = None) -> None:
        limits = limits or ReadLimits()
        self._memory = MemoryTier(limits.memory_bytes_max)
        self._disk = disk
        self._flights = Flights(self._memory, limits.fetches_max, limits.waiting_max)
        if disk is not None:
            self._flights.keep = disk.write_all
            self._flights.is_kept, self._flights.load = disk.holds, disk.load
        ahead_bytes_max = min(limits.ahead_bytes_max, limits.memory_bytes_max * 3 // 4)
        self._readahead = Readahead(self._flights, self._is_near, ahead_bytes_max)
        self._carried: dict[ExtentKey, tuple[int, Extent]] = {}

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Fetches run inside this context; leaving it ends them with TryAgain for whoever waits."""
        async with trio.open_nursery() as nursery:
            self._flights.nursery = nursery
            if self._disk is not None:
                nursery.start_soon(self._disk.scan)
            try:
                yield
            finally:
                self._flights.nursery = None
                nursery.cancel_scope.cancel()
        if self._disk is not None:
            self._disk.close()

    # --- reading --------------------------------------------------------------------------------

    def read_nowait(
        self, source: Source, offset: int, size: int, window: Window | None = None
    ) -> bytes | bytearray | memoryview:
        """``size`` bytes from ``offset``, fewer only at the end of the object.

        ``window`` is the reader's: with it bytes are fetched ahead, or in pieces where it reads
        here and there. A memoryview is valid until the next call. Raises WouldBlock, whose wait
        answers RETRY or raises what the mount raised: Stale, Unreachable, Corrupt and so on. Where
        the mount reads by itself, its WouldBlock passes through and may bring the answer along.
        """
        if source.read_nowait is not None:
            return source.read_nowait(offset, size)
        end = min(offset + size, source.size_bytes)
        if offset >= end:
            return b""
        if window is not None and source.size_bytes > EXTENT_BYTES:
            self._readahead.note(window, source, offset, end)
        if offset // EXTENT_BYTES == (end - 1) // EXTENT_BYTES:
            answer = self._part(source, offset, end)
            missing = [] if answer is not None else [(offset, end)]
        else:
            answer, missing = self._joined(source, offset, end)
        self._carried = {}
        if missing:
            is_random = window is not None and not window.is_sequential
            in_pieces = is_random and source.size_bytes > EXTENT_BYTES > end - offset
            wanted = [one for span in missing for one in self._wanted(source, span, in_pieces)]
            raise WouldBlock(partial(self._bring, source, wanted), source.mount)
        assert answer is not None
        return answer

    def close(self, window: Window) -> None:
        """A reader is gone: what is fetched for it alone is cancelled."""
        self._readahead.close(window)

    def _joined(
        self, source: Source, offset: int, end: int
    ) -> tuple[bytearray, list[tuple[int, int]]]:
        """A range over several extents, and those parts of it that are not here."""
        joined = bytearray(end - offset)
        missing: list[tuple[int, int]] = []
        low = offset
        while low < end:
            high = min(end, (low // EXTENT_BYTES + 1) * EXTENT_BYTES)
            part = self._part(source, low, high)
            if part is None:
                missing.append((low, high))
            else:
                joined[low - offset : high - offset] = part
            low = high
        return joined, missing

    def _part(self, source: Source, low: int, high: int) -> Extent | memoryview | None:
        """A range within one extent, from it or from its pieces."""
        (whole,) = _cut(source, low, high, EXTENT_BYTES)
        part = self._at_hand(whole)
        if part is not None or source.size_bytes <= EXTENT_BYTES:
            return part
        pieces = _cut(source, low, high, PIECE_BYTES)
        if len(pieces) == 1:
            return self._at_hand(pieces[0])
        joined = b""
        for piece in pieces:
            part = self._at_hand(piece)
            if part is None:
                return None
            joined += part
        return joined

    def _at_hand(self, wanted: _Missing) -> Extent | memoryview | None:
        key, start, size = wanted
        data = self._memory.get(key)
        if data is not None:
            return data if size == len(data) else memoryview(data)[start : start + size]
        carried = self._carried.get(key)
        if carried is not None:
            low, data = carried
            if low <= start and start + size <= low + len(data):
                return memoryview(data)[start - low : start - low + size]
        if self._disk is None:
            return None
        return self._disk.read_nowait(key, start, size)

    def _wanted(self, source: Source, span: tuple[int, int], in_pieces: bool) -> list[_Missing]:
        """What to wait for where a range within one extent is not at hand."""
        whole = _cut(source, *span, EXTENT_BYTES)
        key = whole[0].key
        if not in_pieces or key in self._flights or self._is_here(key):
            return whole
        return _cut(source, *span, PIECE_BYTES)

    def _is_here(self, key: ExtentKey) -> bool:
        """Whether an extent lies in a tier, as far as is known."""
        return self._memory.has(key) or (self._disk is not None and self._disk.has(key))

    def _is_near(self, key: ExtentKey) -> bool:
        """Whether nothing is to be done for a reader who comes to this extent."""
        return self._memory.has(key) or (self._disk is not None and self._disk.is_near(key))

    async def _bring(self, source: Source, wanted: list[_Missing]) -> Retry:
        carried: dict[ExtentKey, tuple[int, Extent]] = {}
        absent: list[ExtentKey] = []
        for key, start, size in wanted:
            data = None
            if self._disk is not None and key not in self._flights:
                data = await self._disk.read(key, start, size)
            if data is not None:
                carried[key] = (start, data)
            else:
                absent.append(key)
        for key, brought in zip(absent, await self._flights.bring(source, absent), strict=True):
            carried[key] = (0, brought)
        # No checkpoint from here until the caller has called read_nowait again.
        self._carried = carried
        return RETRY

    async def keep(self, source: Source, number: int, data: bytes) -> None:
        """Take an extent whose bytes are known here already, to be evicted like a fetched one."""
        if self._disk is not None:
            key = ExtentKey(source.mount, source.object, source.version, number)
            await self._disk.write(key, data)

    def statistics(self) -> ReadStatistics:
        """What is held and under way now, the bounds, and counts since the start."""
        flights = self._flights
        return ReadStatistics(
            memory=self._memory.statistics(),
            disk=self._disk.statistics() if self._disk is not None else None,
            fetching=len(flights),
            fetching_max=flights.waiting_max,
            fetches=flights.runs,
            fetched_bytes=flights.fetched_bytes,
            failures=flights.failures,
            joined=flights.joined,
            ahead=self._readahead.statistics(),
        )


def _cut(source: Source, low: int, high: int, grain: int) -> list[_Missing]:
    """A range as the ranges of the extents, or pieces, that it lies in."""
    cut: list[_Missing] = []
    while low < high:
        number, start = divmod(low, grain)
        size = min(high - low, grain - start)
        key = ExtentKey(source.mount, source.object, source.version, number, grain)
        cut.append(_Missing(key, start, size))
        low += size
    return cut
