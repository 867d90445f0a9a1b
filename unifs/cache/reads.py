"""The read path for remote bytes: memory tier, disk tier, mount.

``TreeVolume`` calls ``read_nowait`` for what a clean handle reads. It answers from memory or the
page cache without waiting; else it raises WouldBlock, whose wait brings the missing extents and
answers RETRY, so that a caller may lay its own dirty ranges over the result. The bytes that were
waited for are *carried* to the call that follows (no checkpoint lies between), so a read ends
even where no tier keeps anything.

An extent is fetched by one task however many wait for it. A waiter that is cancelled leaves; the
last one to leave cancels the fetch. An error goes to everybody who waits and is then forgotten:
only bytes are cached. Fetch tasks live in the nursery of ``serve``. What a mount returns is taken
only at exactly the length that was asked for. A key names a version, so other bytes than that
version's cannot come from here; Stale from the mount passes through. Deadlines are the callers'
scopes.

Bounds: ``fetches_max`` remote reads at once for each mount, ``waiting_max`` extents fetched or
queued in all, and the tiers' own. No locks: everything but the disk tier's threads runs on the
event loop.
"""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

import trio

from unifs.cache.memory import ExtentKey, MemoryStatistics, MemoryTier
from unifs.errors import Corrupt, TryAgain, UnifsError
from unifs.waiting import RETRY, Retry, WouldBlock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from unifs.cache.disk import DiskStatistics, DiskTier
    from unifs.mounts.base import Mount
    from unifs.types import Version

#: One remote request. At 20 ms per round trip 1 MiB is 50 MB/s for each fetch in flight.
EXTENT_BYTES: Final = 1 << 20


class ReadRange(Protocol):
    """Reads a range of one version of one object at its backend."""

    async def __call__(self, offset: int, size: int) -> bytes: ...


@runtime_checkable
class ReadsNowait(Protocol):
    """A mount whose bytes lie on this machine: it answers from the page cache itself."""

    def read_nowait(
        self, path: str, version: Version, offset: int, size: int
    ) -> bytes | memoryview: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One version of one remote object: what a clean handle reads from.

    ``mount`` is the mount's name in the namespace and ``object`` the object's path there ("" where
    the version alone names the bytes). With ``read_nowait`` the bytes lie on this machine already
    (the embedded node's): no tier keeps a second copy.
    """

    mount: str
    object: str
    version: Version
    size_bytes: int
    read: ReadRange
    read_nowait: Callable[[int, int], bytes | memoryview] | None = None

    @classmethod
    def of(cls, name: str, mount: Mount, path: str, version: Version, size_bytes: int) -> Source:
        """The source for the object at ``path`` of a mount called ``name``."""
        identity = "" if mount.is_immutable else path
        nowait = None
        if isinstance(mount, ReadsNowait):
            nowait = partial(mount.read_nowait, path, version)
        read = partial(mount.read, path, version)
        return cls(name, identity, version, size_bytes, read, nowait)


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds of the read path."""

    memory_bytes_max: int = 64 << 20
    fetches_max: int = 32
    waiting_max: int = 1024


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


class _Missing(NamedTuple):
    number: int
    start: int
    size: int


@dataclass(slots=True, eq=False)
class _Flight:
    waiters: int = 0
    data: bytes | None = None
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class ReadCache:
    """Extents of remote objects, each fetched once."""

    def __init__(self, disk: DiskTier | None, limits: ReadLimits | None = None) -> None:
        self._limits = limits or ReadLimits()
        self._memory = MemoryTier(self._limits.memory_bytes_max)
        self._disk = disk
        self._nursery: trio.Nursery | None = None
        self._flights: dict[ExtentKey, _Flight] = {}
        self._slots: dict[str, trio.Semaphore] = {}
        self._carried: dict[ExtentKey, tuple[int, bytes]] = {}
        self._fetches = self._fetched_bytes = self._failures = self._joined = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Fetches run inside this context; leaving it ends them with TryAgain for whoever waits."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._disk is not None:
                nursery.start_soon(self._disk.scan)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()
        if self._disk is not None:
            self._disk.close()

    # --- reading --------------------------------------------------------------------------------

    def read_nowait(self, source: Source, offset: int, size: int) -> bytes | memoryview:
        """``size`` bytes from ``offset``, fewer only at the end of the object.

        A memoryview is valid until the next call. Raises WouldBlock, whose wait answers RETRY or
        raises what the mount raised: Stale, Unreachable, Corrupt and so on. Where the mount reads
        by itself, its WouldBlock passes through and may bring the answer along.
        """
        if source.read_nowait is not None:
            return source.read_nowait(offset, size)
        end = min(offset + size, source.size_bytes)
        if offset >= end:
            return b""
        first, last = offset // EXTENT_BYTES, (end - 1) // EXTENT_BYTES
        parts: list[bytes] = []
        missing: list[_Missing] = []
        for number in range(first, last + 1):
            start = max(offset - number * EXTENT_BYTES, 0)
            length = min(end - number * EXTENT_BYTES, EXTENT_BYTES) - start
            part = self._part(source, number, start, length)
            if part is None:
                missing.append(_Missing(number, start, length))
            elif first == last:
                self._carried = {}
                return part
            else:
                parts.append(bytes(part))
        self._carried = {}
        if missing:
            raise WouldBlock(partial(self._bring, source, missing), source.mount)
        return b"".join(parts)

    def _part(
        self, source: Source, number: int, start: int, size: int
    ) -> bytes | memoryview | None:
        key = ExtentKey(source.mount, source.object, source.version, number)
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

    async def _bring(self, source: Source, missing: list[_Missing]) -> Retry:
        carried: dict[ExtentKey, tuple[int, bytes]] = {}
        for number, start, size in missing:
            key = ExtentKey(source.mount, source.object, source.version, number)
            data = None
            if self._disk is not None:
                data = await self._disk.read(key, start, size)
            if data is not None:
                carried[key] = (start, data)
            else:
                carried[key] = (0, await self._join(source, key))
        # No checkpoint from here until the caller has called read_nowait again.
        self._carried = carried
        return RETRY

    async def keep(self, source: Source, number: int, data: bytes) -> None:
        """Take an extent whose bytes are known here already, to be evicted like a fetched one."""
        if self._disk is not None:
            key = ExtentKey(source.mount, source.object, source.version, number)
            await self._disk.write(key, data)

    # --- fetching -------------------------------------------------------------------------------

    async def _join(self, source: Source, key: ExtentKey) -> bytes:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._start(source, key)
        else:
            self._joined += 1
        flight.waiters += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.done.is_set():
                flight.scope.cancel()
                self._forget(key, flight)
        if isinstance(flight.error, UnifsError):
            # Each waiter gets an exception of its own: a shared one would collect all tracebacks.
            raise copy.copy(flight.error) from flight.error
        if flight.error is not None:
            raise flight.error
        assert flight.data is not None
        return flight.data

    def _start(self, source: Source, key: ExtentKey) -> _Flight:
        if self._nursery is None or len(self._flights) >= self._limits.waiting_max:
            raise TryAgain("too many reads wait for their backends")
        flight = _Flight()
        self._flights[key] = flight
        self._nursery.start_soon(self._fetch, source, key, flight)
        return flight

    async def _fetch(self, source: Source, key: ExtentKey, flight: _Flight) -> None:
        try:
            with flight.scope:
                flight.data = await self._read_extent(source, key)
                self._memory.put(key, flight.data)
        except Exception as error:
            # Whatever it is, it belongs to those who wait; a bug reaches the driver's guard there.
            flight.error = error
            self._failures += 1
        finally:
            if flight.data is None and flight.error is None:
                flight.error = TryAgain("the read was given up")
            self._forget(key, flight)
            flight.done.set()
        if flight.data is not None and self._disk is not None:
            await self._disk.write(key, flight.data)

    async def _read_extent(self, source: Source, key: ExtentKey) -> bytes:
        begin = key.number * EXTENT_BYTES
        length = min(source.size_bytes - begin, EXTENT_BYTES)
        slots = self._slots.get(source.mount)
        if slots is None:
            slots = self._slots[source.mount] = trio.Semaphore(self._limits.fetches_max)
        async with slots:
            self._fetches += 1
            data = await source.read(begin, length)
        if len(data) != length:
            raise Corrupt(
                f"the backend sent {len(data)} bytes of {length}", mount=source.mount, offset=begin
            )
        self._fetched_bytes += length
        return data

    def _forget(self, key: ExtentKey, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def statistics(self) -> ReadStatistics:
        """What is held and under way now, the bounds, and counts since the start."""
        return ReadStatistics(
            memory=self._memory.statistics(),
            disk=self._disk.statistics() if self._disk is not None else None,
            fetching=len(self._flights),
            fetching_max=self._limits.waiting_max,
            fetches=self._fetches,
            fetched_bytes=self._fetched_bytes,
            failures=self._failures,
            joined=self._joined,
        )
