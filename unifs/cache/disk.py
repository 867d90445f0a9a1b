"""The disk tier: one flat file per extent of remote bytes, in ``cache/ab/<digest>``.

``ReadCache`` owns it. Everything here can be fetched again, so files are written to ``tmp.unifs``
and renamed without fsync, large ones past the page cache while the disk is fast. What an earlier
daemon wrote is checked, all of an extent, at its first use since the start. A fault of any kind, a
failing disk, a damaged or vanished file, is a miss for the reader and one warning in the log, never
an error. The directory may be deleted at any time.

The event loop owns the index, the open descriptors and the reused buffer. Threads write, unlink,
scan and read what the page cache does not hold; they open files by path and share nothing with
the loop. The cost of a miss of the page cache is a thread (60 µs), so reads try ``RWF_NOWAIT``
inline first.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from unifs.cache.evict import SegmentedLru
from unifs.cache.extentfile import (
    digest_of,
    trailer_bytes,
    verify,
)
from unifs.cache.memory import EXTENT_BYTES
from unifs.cache.shelf import Held, Shelf, Written
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from unifs.cache.memory import Extent, ExtentKey

log = logging.getLogger(__name__)

#: Descriptors kept open for extents in use.
OPEN_FILES_MAX: Final = 64
#: Extents waiting for the disk; beyond it a fetched extent stays in memory only. Readahead alone
#: stays below: four runs of 8 MiB, begun while 16 MiB were waiting.
WRITES_PENDING_MAX: Final = 48
#: Past the page cache 1 GiB costs 0.12 s of the processor's time instead of 0.35, and no memory. A
#: disk that takes less than so many bytes per second would hold readers up.
DIRECT_RATE_MIN: Final = 200 << 20
#: Then so many bytes go through the page cache before that is tried again.
BUFFERED_BYTES: Final = 256 << 20
#: Extents evicted for one write; a shrunken disk is given back over several writes.
VICTIMS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """What the disk tier may use."""

    bytes_max: int = 10 << 30
    #: Space left to others on that file system.
    free_bytes_min: int = 1 << 30
    #: About 250 bytes of memory each.
    extents_max: int = 65536


@dataclass(frozen=True, slots=True)
class DiskStatistics:
    """What the disk tier holds and what happened to it since the start."""

    bytes: int
    bytes_max: int
    extents: int
    extents_max: int
    hits: int
    misses: int
    faults: int
    skipped_writes: int


@dataclass(slots=True)
class _Write:
    """One extent on its way to the disk; a thread fills in what became of it."""

    digest: bytes
    data: Extent
    victims: list[bytes]
    has_room: bool
    outcome: Written | OSError | None = None


class DiskTier:
    """Extents on disk within ``limits``. ``scan`` must have run before anything is found."""

    def __init__(self, directory: Path, limits: DiskLimits) -> None:
        self._shelf = Shelf(directory, limits.free_bytes_min)
        self._limits = limits
        self._index: SegmentedLru[bytes, Held] = SegmentedLru(_weigh)
        #: Descriptors by digest.
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._writing: dict[bytes, int] = {}
        self._free_bytes = 0
        self._scanned = trio.Event()
        self._buffer = bytearray()
        self._limiter = trio.CapacityLimiter(4)
        self._is_failing = False
        #: Still to be written through the page cache.
        self._buffered_bytes = 0
        self._hits = self._misses = self._faults = self._skipped = 0

    # --- life -----------------------------------------------------------------------------------

    async def scan(self) -> None:
        """Find what an earlier run left. Reads that arrive meanwhile wait for it."""
        try:
            found = await trio.to_thread.run_sync(
                self._shelf.scan, self._limits.extents_max, limiter=self._limiter
            )
            for digest, length in found.extents:
                self._index.put(digest, Held(length, False))
            self._free_bytes = found.free_bytes
        except OSError as error:
            self._note_failure(error)
        finally:
            self._scanned.set()

    def close(self) -> None:
        """Close every descriptor."""
        while self._open:
            os.close(self._open.popitem()[1])

    # --- reading --------------------------------------------------------------------------------

    def has(self, key: ExtentKey) -> bool:
        """Whether that extent is here or on its way; true while nobody knows (``scan``)."""
        digest = digest_of(key)
        return digest in self._index or digest in self._writing or not self._scanned.is_set()

    def read_nowait(self, key: ExtentKey, start: int, size: int) -> memoryview | None:
        """That range of an extent if the page cache has it, else None.

        The view is valid until the next call. The range lies within the extent.
        """
        digest = digest_of(key)
        held = self._index.get(digest)
        if held is None:
            return None
        length = held.length
        assert start + size <= length
        low, high = 0, length + trailer_bytes(length)
        if held.is_checked:
            low, high = start, start + size
        try:
            view = self._pread_nowait(self._open_nowait(digest), low, high - low)
            if view is None:
                return None
            if not held.is_checked:
                verify(view[:length], bytes(view[length:]), digest)
                self._index.put(digest, Held(length, True))
        except (OSError, Corrupt) as error:
            self._drop(digest, error)
            return None
        self._hits += 1
        return view[start - low : start - low + size]

    async def read(self, key: ExtentKey, start: int, size: int) -> bytes | None:
        """That range of an extent, waiting for the disk; None if it is not here or damaged."""
        await self._scanned.wait()
        digest = digest_of(key)
        held = self._index.get(digest)
        if held is None:
            self._misses += 1
            return None
        try:
            data = await trio.to_thread.run_sync(
                self._shelf.read, digest, held, start, size, limiter=self._limiter
            )
        except (OSError, Corrupt) as error:
            self._drop(digest, error)
            self._misses += 1
            return None
        if self._index.get(digest) == held:
            self._index.put(digest, Held(held.length, True))
        self._hits += 1
        return data

    def _open_nowait(self, digest: bytes) -> int:
        fd = self._open.get(digest)
        if fd is not None:
            self._open.move_to_end(digest)
            return fd
        fd = os.open(self._shelf.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        if len(self._open) >= OPEN_FILES_MAX:
            os.close(self._open.popitem(last=False)[1])
        self._open[digest] = fd
        return fd

    def _pread_nowait(self, fd: int, start: int, size: int) -> memoryview | None:
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        try:
            count = os.preadv(fd, [view], start, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        return view if count == size else None

    # --- writing --------------------------------------------------------------------------------

    async def write(self, key: ExtentKey, data: Extent) -> None:
        """Keep an extent, evicting colder ones; skipped where there is no room for it."""
        await self.write_all([(key, data)])

    async def write_all(self, extents: Sequence[tuple[ExtentKey, Extent]]) -> None:
        """Keep extents, all by one thread."""
        tasks: list[_Write] = []
        try:
            for key, data in extents:
                task = self._reserve(digest_of(key), data)
                if task is not None:
                    tasks.append(task)
            if tasks:
                is_direct = self._buffered_bytes <= 0
                took_s = await trio.to_thread.run_sync(
                    self._write_in_thread, tasks, is_direct, limiter=self._limiter
                )
                self._judge(sum(len(task.data) for task in tasks), is_direct, took_s)
        finally:
            for task in tasks:
                self._written(task)

    def _reserve(self, digest: bytes, data: Extent) -> _Write | None:
        if digest in self._writing or digest in self._index:
            return None
        if len(self._writing) >= WRITES_PENDING_MAX or not self._scanned.is_set():
            self._skipped += 1
            return None
        victims, has_room = self._make_room(len(data) + trailer_bytes(len(data)))
        self._writing[digest] = len(data)
        return _Write(digest, data, victims, has_room)

    def _judge(self, size: int, is_direct: bool, took_s: float) -> None:
        """Whether the next ones go past the page cache as well."""
        if not is_direct:
            self._buffered_bytes -= size
        elif size >= EXTENT_BYTES and size < took_s * DIRECT_RATE_MIN:
            self._buffered_bytes = BUFFERED_BYTES

    def _write_in_thread(self, tasks: list[_Write], is_direct: bool) -> float:
        """Write them one after the other; returns how long that took, in seconds."""
        try:
            for task in tasks:
                self._shelf.remove(task.victims)
            free_bytes = self._shelf.free_bytes()
        except OSError as error:
            tasks[0].outcome = error
            return 0.0
        began = time.monotonic()
        for task in tasks:
            data = task.data if task.has_room else None
            try:
                written = self._shelf.write(task.digest, data, free_bytes, is_direct)
            except OSError as error:
                task.outcome = error
            else:
                task.outcome, free_bytes = written, written.free_bytes
        return time.monotonic() - began

    def _written(self, task: _Write) -> None:
        del self._writing[task.digest]
        outcome = task.outcome
        if isinstance(outcome, OSError):
            self._note_failure(outcome)
        if not isinstance(outcome, Written):
            return
        self._free_bytes = outcome.free_bytes
        self._is_failing = False
        if outcome.is_written:
            # What was written was checked on its way here; after a start it is checked again.
            self._index.put(task.digest, Held(len(task.data), True))
        else:
            self._skipped += 1

    def _make_room(self, size: int) -> tuple[list[bytes], bool]:
        pending = sum(self._writing.values())
        victims: list[bytes] = []
        while len(victims) < VICTIMS_MAX:
            used = self._index.weight + pending
            spare = self._free_bytes - self._limits.free_bytes_min
            has_room = used + size <= self._limits.bytes_max and size <= spare
            if has_room and len(self._index) + len(self._writing) < self._limits.extents_max:
                return victims, True
            if not len(self._index):
                break
            digest, held = self._index.pop_coldest()
            self._free_bytes += _weigh(held)
            self._close_file(digest)
            victims.append(digest)
        return victims, False

    # --- faults ---------------------------------------------------------------------------------

    def _drop(self, digest: bytes, error: OSError | Corrupt) -> None:
        self._close_file(digest)
        if self._index.pop(digest) is None:
            return
        if isinstance(error, FileNotFoundError):
            log.debug("cached extent vanished digest=%s", digest.hex())
            return
        self._faults += 1
        log.warning("cached extent is damaged, fetching again digest=%s: %s", digest.hex(), error)

    def _note_failure(self, error: OSError) -> None:
        self._faults += 1
        if not self._is_failing:
            self._is_failing = True
            log.warning("cache directory fails, reading without it: %s", error)

    def _close_file(self, digest: bytes) -> None:
        fd = self._open.pop(digest, None)
        if fd is not None:
            os.close(fd)

    def statistics(self) -> DiskStatistics:
        """What is held now, the bounds, and counts since the start."""
        return DiskStatistics(
            bytes=self._index.weight,
            bytes_max=self._limits.bytes_max,
            extents=len(self._index),
            extents_max=self._limits.extents_max,
            hits=self._hits,
            misses=self._misses,
            faults=self._faults,
            skipped_writes=self._skipped,
        )


def _weigh(held: Held) -> int:
    return held.length + trailer_bytes(held.length)
