"""Extents on their way from a backend, or from the disk: one fetch however many wait.

``ReadCache`` owns it. A *run* is one request for neighbouring extents, all of which the disk has or
none: of a backend, or of the disk tier (and of the backend if that fails). Each of them is a
*flight*, which lands by itself: its bytes are handed on when they are whole, while the rest of
the run still arrives. Whoever wants a flight holds it, readers and readahead alike; a run that
nobody holds any more is cancelled. An error goes to all flights of the run that have not landed,
and is then forgotten: only bytes are kept.

Bounds: ``fetches_max`` runs at once for each mount, ``waiting_max`` flights in all. Tasks live in
the nursery that ``serve`` gives. Belongs to the event loop's thread.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import Corrupt, TryAgain, UnifsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from unifs.cache.memory import Extent, ExtentKey, MemoryTier
    from unifs.cache.source import Source

    Landed = Sequence[tuple[ExtentKey, Extent]]

#: One request for neighbouring extents. SeaweedFS spends 3.0 CPU s on 1 GiB by requests of 1 MiB,
#: 1.9 by those of 4, 1.7 of 8 and 1.5 of these. Services keep large objects in pieces: a request
#: across their ends costs SeaweedFS 30 % more, so runs end where pieces do.
RUN_BYTES_MAX: Final = 16 << 20
#: With more waiting for the disk, large runs wait for it: what is not kept is fetched again later.
KEEPING_BYTES_MAX: Final = 32 << 20
KEEPING_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Flight:
    """One extent on its way, or what became of it."""

    key: ExtentKey
    run: Run
    holders: int = 0
    data: Extent | None = None
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class Run:
    """One request, of a backend or of the disk."""

    source: Source
    #: The disk has all of it.
    is_kept: bool
    flights: list[Flight] = field(default_factory=list)
    landed: list[tuple[ExtentKey, Extent]] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Flights:
    """What is fetched now."""

    def __init__(self, memory: MemoryTier, fetches_max: int, waiting_max: int) -> None:
        self._memory = memory
        self._fetches_max = fetches_max
        self.waiting_max = waiting_max
        self.nursery: trio.Nursery | None = None
        #: Keeps what a run brought; awaited by the run, waited for by nobody.
        self.keep: Callable[[Landed], Awaitable[object]] | None = None
        #: Whether the disk has an extent, and what fills buffers from there or says that it cannot.
        self.is_kept: Callable[[ExtentKey], bool] = _never
        self.load: Callable[[list[ExtentKey], list[memoryview]], Awaitable[bool]] | None = None
        self._flights: dict[ExtentKey, Flight] = {}
        self._slots: dict[str, trio.Semaphore] = {}
        self.runs = self.fetched_bytes = self.failures = self.joined = 0
        #: Bytes that have landed and are not kept yet.
        self.keeping_bytes = 0
        self._some_kept = trio.Event()

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: ExtentKey) -> bool:
        return key in self._flights

    # --- holding ----------------------------------------------------------------------------------

    def hold(self, source: Source, keys: Iterable[ExtentKey]) -> list[Flight]:
        """Flights for ``keys``, in their order: those under way, and new runs for the others.

        Each is to be left once. TryAgain where too many are under way already.
        """
        held: list[Flight] = []
        run: Run | None = None
        try:
            for key in keys:
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._add(source, key, run)
                    run = flight.run
                else:
                    self.joined += 1
                flight.holders += 1
                held.append(flight)
        except TryAgain:
            self.leave(held)
            raise
        return held

    def _add(self, source: Source, key: ExtentKey, run: Run | None) -> Flight:
        if self.nursery is None or len(self._flights) >= self.waiting_max:
            raise TryAgain("too many reads wait for their backends")
        is_kept = self.is_kept(key)
        if run is None or run.is_kept != is_kept or not _follows(run, key):
            run = Run(source, is_kept)
            self.nursery.start_soon(self._fetch, run)
        flight = Flight(key, run)
        run.flights.append(flight)
        self._flights[key] = flight
        return flight

    def leave(self, flights: Iterable[Flight]) -> None:
        """They are not wanted by this holder any more; a run that nobody wants ends."""
        for flight in flights:
            flight.holders -= 1
            left = [other for other in flight.run.flights if not other.done.is_set()]
            if left and not any(other.holders for other in left):
                flight.run.scope.cancel()
                self._forget(flight.run)

    async def bring(self, source: Source, keys: Sequence[ExtentKey]) -> list[Extent]:
        """The extents of ``keys``, in their order; the first error of those that bring one."""
        flights = self.hold(source, keys)
        try:
            for flight in flights:
                await flight.done.wait()
        finally:
            self.leave(flights)
        return [_outcome(flight) for flight in flights]

    # --- fetching ---------------------------------------------------------------------------------

    async def _fetch(self, run: Run) -> None:
        error: Exception = TryAgain("the read was given up")
        try:
            with run.scope:
                if not run.is_kept or not await self._load(run):
                    await self._request(run)
        except Exception as failure:
            # Whatever it is, it belongs to those who wait; a bug reaches the driver's guard there.
            error = failure
            self.failures += 1
        finally:
            self._forget(run)
            for flight in run.flights[len(run.landed) :]:
                flight.error = error
                flight.done.set()
            # A flight names its run: without this the bytes would wait for the garbage collector.
            run.flights.clear()
        if run.landed and self.keep is not None:
            await self._kept(self.keep, run.landed)

    async def _until_kept(self) -> None:
        """Wait for a disk that is behind, but not for one that stands still."""
        with trio.move_on_after(KEEPING_S):
            while self.keeping_bytes > KEEPING_BYTES_MAX:
                await self._some_kept.wait()

    async def _load(self, run: Run) -> bool:
        """Land a run from the disk; False where that does not have it whole and undamaged."""
        assert self.load is not None
        keys = [flight.key for flight in run.flights]
        buffers = [self._memory.buffers.take(key.length(run.source.size_bytes)) for key in keys]
        size = sum(map(len, buffers))
        self._memory.expect(size)
        try:
            is_loaded = await self.load(keys, buffers)
        finally:
            self._memory.expect(-size)
        if is_loaded:
            for flight, data in zip(run.flights, buffers, strict=True):
                self._arrived(flight, data)
            run.flights.clear()
        return is_loaded

    async def _request(self, run: Run) -> None:
        source = run.source
        if len(run.flights) > 1:
            await self._until_kept()
        slots = self._slots.get(source.mount)
        if slots is None:
            slots = self._slots[source.mount] = trio.Semaphore(self._fetches_max)
        async with slots:
            self.runs += 1
            lengths = [flight.key.length(source.size_bytes) for flight in run.flights]
            self._memory.expect(sum(lengths))
            try:
                await self._receive(run, lengths)
            finally:
                self._memory.expect(-sum(lengths[len(run.landed) :]))

    async def _receive(self, run: Run, lengths: list[int]) -> None:
        source, key = run.source, run.flights[0].key
        offset = key.number * key.grain_bytes
        if source.read_into is None:
            for length in lengths:
                self._landed(run, await source.read(offset, length))
                offset += length
            return
        buffers = [self._memory.buffers.take(length) for length in lengths]
        await source.read_into(offset, buffers, lambda: self._landed(run, buffers[len(run.landed)]))
        if len(run.landed) < len(buffers):
            raise Corrupt("the backend sent too few bytes", mount=source.mount, offset=offset)

    def _landed(self, run: Run, data: Extent) -> None:
        flight = run.flights[len(run.landed)]
        key, wanted = flight.key, flight.key.length(run.source.size_bytes)
        if len(data) != wanted:
            raise Corrupt(
                f"the backend sent {len(data)} bytes of {wanted}",
                mount=run.source.mount,
                offset=key.number * key.grain_bytes,
            )
        self.fetched_bytes += wanted
        run.landed.append((key, data))
        self._memory.expect(-wanted)
        self._arrived(flight, data)

    def _arrived(self, flight: Flight, data: Extent) -> None:
        self._memory.put(flight.key, data)
        flight.data = data
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        flight.done.set()

    async def _kept(self, keep: Callable[[Landed], Awaitable[object]], landed: Landed) -> None:
        size = sum(len(data) for _, data in landed)
        self.keeping_bytes += size
        try:
            await keep(landed)
        finally:
            self.keeping_bytes -= size
            self._some_kept.set()
            self._some_kept = trio.Event()

    def _forget(self, run: Run) -> None:
        for flight in run.flights:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]


def _never(_key: ExtentKey) -> bool:
    return False


def run_end(offset: int) -> int:
    """The last place up to ``offset`` where a run ends, whatever it began with."""
    return offset // RUN_BYTES_MAX * RUN_BYTES_MAX


def _follows(run: Run, key: ExtentKey) -> bool:
    """Whether one request can bring ``key`` behind what the run has already."""
    last, start = run.flights[-1].key, key.number * key.grain_bytes
    is_next = (key.grain_bytes, key.number) == (last.grain_bytes, last.number + 1)
    return is_next and run.source.read_into is not None and run_end(start) != start


def _outcome(flight: Flight) -> Extent:
    error = flight.error
    if isinstance(error, UnifsError):
        # Each waiter gets an exception of its own: a shared one would collect all tracebacks.
        raise copy.copy(error) from error
    if error is not None:
        raise error
    assert flight.data is not None
    return flight.data
