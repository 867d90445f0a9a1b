"""The disk tier: files of remote bytes, in ``cache/ab/<digest>``, each of one fetch.

``ReadCache`` owns it. What one request of a backend brought is one file, evicted as a whole: to
make a file for each extent costs a quarter of the daemon's time. Everything here can be fetched
again, so files are written to ``tmp.unifs`` and renamed without fsync. What an earlier daemon wrote
is checked, all of an extent, at its first use since the start. A fault of any kind, a failing disk,
a damaged or vanished file, is a miss for the reader and one warning in the log, never an error. The
directory may be deleted at any time.

The event loop owns the index, the open descriptors and the reused buffer. Threads write, unlink,
scan and read what the page cache does not hold; they open files by path and share nothing with
the loop. The cost of a miss of the page cache is a thread (60 µs), so reads try ``RWF_NOWAIT``
inline first. What is not in the page cache is read for readers in sequence by ``load``, past it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import trio

from unifs.cache.extentfile import PADDED_BYTES, digest_of, trailer_bytes
from unifs.cache.places import Places
from unifs.cache.shelf import Held, Shelf, Written, name_of
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from unifs.cache.memory import Extent, ExtentKey

log = logging.getLogger(__name__)

#: Descriptors kept open for files in use.
OPEN_FILES_MAX: Final = 64
#: Extents waiting for the disk; beyond it a fetched extent stays in memory only. Readahead alone
#: stays below: three runs of 16 MiB, begun while 32 MiB were waiting.
WRITES_PENDING_MAX: Final = 96
LOADS_MAX: Final = 2
#: Files evicted for one write; a shrunken disk is given back over several writes.
VICTIMS_MAX: Final = 64
#: Several extents are one file unless that takes so great a part of the limit.
FILE_SHARE: Final = 8


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
    """One file on its way to the disk; a thread fills in what became of it."""

    extents: list[tuple[bytes, Extent]]
    victims: list[str]
    has_room: bool
    outcome: Written | OSError | None = None


class DiskTier:
    """Extents on disk within ``limits``. ``scan`` must have run before anything is found."""

    def __init__(self, directory: Path, limits: DiskLimits) -> None:
        self._shelf = Shelf(directory, limits.free_bytes_min)
        self._limits = limits
        self._places = Places()
        #: Descriptors by file.
        self._open: OrderedDict[str, int] = OrderedDict()
        self._writing: dict[bytes, int] = {}
        self._free_bytes = 0
        self._scanned = trio.Event()
        self._buffer = bytearray()
        self._limiter = trio.CapacityLimiter(4)
        #: Large reads of one disk: with two under way it never rests, and the first is not late.
        self._loads = trio.CapacityLimiter(LOADS_MAX)
        self._is_failing = False
        self._hits = self._misses = self._faults = self._skipped = 0

    # --- life -----------------------------------------------------------------------------------

    async def scan(self) -> None:
        """Find what an earlier run left. Reads that arrive meanwhile wait for it."""
        try:
            found = await trio.to_thread.run_sync(
                self._shelf.scan, self._limits.extents_max, limiter=self._limiter
            )
            for held in found.files:
                self._places.add(held)
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
        return digest in self._places or digest in self._writing or not self._scanned.is_set()

    def holds(self, key: ExtentKey) -> bool:
        """Whether that extent lies here."""
        return digest_of(key) in self._places

    def is_near(self, key: ExtentKey) -> bool:
        """Whether it is on its way here, nobody knows, or its first byte is in the page cache."""
        digest = digest_of(key)
        if digest in self._writing or not self._scanned.is_set():
            return True
        place = self._places.get(digest)
        if place is None:
            return False
        held, number = place
        try:
            fd = self._open_nowait(held.name)
            return self._pread_nowait(fd, held.start_of(number), 1) is not None
        except OSError as error:
            self._drop(held, error)
            return False

    def read_nowait(self, key: ExtentKey, start: int, size: int) -> memoryview | None:
        """That range of an extent if the page cache has it, else None.

        The view is valid until the next call. The range lies within the extent.
        """
        place = self._places.use(digest_of(key))
        if place is None:
            return None
        held, number = place
        assert start + size <= held.lengths[number]
        offset = held.start_of(number)
        try:
            fd = self._open_nowait(held.name)
            if held.checked >> number & 1:
                view = self._pread_nowait(fd, offset + start, size)
            else:
                view = self._checked_nowait(fd, held, number)
                view = None if view is None else view[start : start + size]
        except (OSError, Corrupt) as error:
            self._drop(held, error)
            return None
        if view is not None:
            self._hits += 1
        return view

    def _checked_nowait(self, fd: int, held: Held, number: int) -> memoryview | None:
        """All of an extent, compared with its checksum; Corrupt if it differs."""
        end = held.data_bytes
        trailer = self._pread_nowait(fd, end, trailer_bytes(end))
        if trailer is None:
            return None
        part = held.part_in(bytes(trailer), number)
        view = self._pread_nowait(fd, held.start_of(number), part.length)
        if view is not None:
            part.check(view)
            held.checked |= 1 << number
        return view

    async def read(self, key: ExtentKey, start: int, size: int) -> bytes | None:
        """That range of an extent, waiting for the disk; None if it is not here or damaged."""
        await self._scanned.wait()
        place = self._places.use(digest_of(key))
        if place is None:
            self._misses += 1
            return None
        held, number = place
        try:
            data = await trio.to_thread.run_sync(
                self._shelf.read, held, number, start, size, limiter=self._limiter
            )
        except (OSError, Corrupt) as error:
            self._drop(held, error)
            self._misses += 1
            return None
        if self._places.get(digest_of(key)) is not place:
            # Evicted meanwhile: what lay under that name may have been something else.
            self._misses += 1
            return None
        held.checked |= 1 << number
        self._hits += 1
        return data

    async def load(self, keys: Sequence[ExtentKey], buffers: Sequence[memoryview]) -> bool:
        """Fill a buffer with each of these extents, past the page cache where that is possible.

        False, and anything in the buffers, where one of them is not here or damaged.
        """
        digests = [digest_of(key) for key in keys]
        places = [place for place in map(self._places.use, digests) if place is not None]
        if len(places) < len(keys):
            return False
        for held, run in groupby(zip(places, buffers, strict=True), lambda one: one[0][0]):
            wanted = [(number, buffer) for (_, number), buffer in run]
            try:
                await trio.to_thread.run_sync(self._shelf.load, held, wanted, limiter=self._loads)
            except (OSError, Corrupt) as error:
                self._drop(held, error)
                return False
        if [self._places.get(digest) for digest in digests] != places:
            # Evicted meanwhile: what lay under that name may have been something else.
            return False
        for held, number in places:
            held.checked |= 1 << number
        self._hits += len(keys)
        return True

    def _open_nowait(self, name: str) -> int:
        fd = self._open.get(name)
        if fd is not None:
            self._open.move_to_end(name)
            return fd
        fd = os.open(self._shelf.path(name), os.O_RDONLY | os.O_CLOEXEC)
        if len(self._open) >= OPEN_FILES_MAX:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = fd
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
        """Keep extents, all by one thread and, where they are large, in one file."""
        named = [(digest_of(key), data) for key, data in extents]
        wanted = [
            one for one in named if one[0] not in self._writing and one[0] not in self._places
        ]
        tasks: list[_Write] = []
        try:
            for group in self._grouped(wanted):
                task = self._reserve(group)
                if task is not None:
                    tasks.append(task)
            if tasks:
                await trio.to_thread.run_sync(self._write_in_thread, tasks, limiter=self._limiter)
        finally:
            for task in tasks:
                self._written(task)

    def _grouped(self, wanted: list[tuple[bytes, Extent]]) -> list[list[tuple[bytes, Extent]]]:
        size = sum(len(data) for _, data in wanted)
        is_large = all(len(data) >= PADDED_BYTES for _, data in wanted)
        if len(wanted) > 1 and is_large and size * FILE_SHARE <= self._limits.bytes_max:
            return [wanted]
        return [[one] for one in wanted]

    def _reserve(self, extents: list[tuple[bytes, Extent]]) -> _Write | None:
        count = len(extents)
        is_full = len(self._writing) + count > WRITES_PENDING_MAX
        if is_full or not self._scanned.is_set():
            self._skipped += count
            return None
        size = sum(len(data) for _, data in extents)
        victims, has_room = self._make_room(size + trailer_bytes(size), count)
        self._writing.update((digest, len(data)) for digest, data in extents)
        return _Write(extents, victims, has_room)

    def _write_in_thread(self, tasks: list[_Write]) -> None:
        try:
            for task in tasks:
                self._shelf.remove(task.victims)
            free_bytes = self._shelf.free_bytes()
        except OSError as error:
            tasks[0].outcome = error
            return
        for task in tasks:
            if not task.has_room:
                task.outcome = Written(False, free_bytes)
                continue
            try:
                written = self._shelf.write(task.extents, free_bytes)
            except OSError as error:
                task.outcome = error
            else:
                task.outcome, free_bytes = written, written.free_bytes

    def _written(self, task: _Write) -> None:
        for digest, _ in task.extents:
            del self._writing[digest]
        outcome = task.outcome
        if isinstance(outcome, OSError):
            self._note_failure(outcome)
        if not isinstance(outcome, Written):
            return
        self._free_bytes = outcome.free_bytes
        self._is_failing = False
        if outcome.is_written:
            # What was written was checked on its way here; after a start it is checked again.
            digests = tuple(digest for digest, _ in task.extents)
            lengths = tuple(len(data) for _, data in task.extents)
            self._places.add(Held(name_of(digests), digests, lengths, (1 << len(digests)) - 1))
        else:
            self._skipped += len(task.extents)

    def _make_room(self, size: int, count: int) -> tuple[list[str], bool]:
        pending = sum(self._writing.values())
        victims: list[str] = []
        while len(victims) < VICTIMS_MAX:
            used = self._places.size_bytes + pending
            spare = self._free_bytes - self._limits.free_bytes_min
            has_room = used + size <= self._limits.bytes_max and size <= spare
            there = len(self._places) + len(self._writing)
            if has_room and there + count <= self._limits.extents_max:
                return victims, True
            held = self._places.pop_coldest()
            if held is None:
                break
            self._free_bytes += held.size_bytes
            self._close_file(held)
            victims.append(held.name)
        return victims, False

    # --- faults ---------------------------------------------------------------------------------

    def _drop(self, held: Held, error: OSError | Corrupt) -> None:
        if not self._places.remove(held):
            return
        self._close_file(held)
        if isinstance(error, FileNotFoundError):
            log.debug("cached extents vanished file=%s", held.name)
            return
        self._faults += 1
        log.warning("cached extents are damaged, fetching again file=%s: %s", held.name, error)
        # Not found again after a restart, whatever it is that comes in its place.
        with suppress(OSError):
            os.unlink(self._shelf.path(held.name))

    def _close_file(self, held: Held) -> None:
        fd = self._open.pop(held.name, None)
        if fd is not None:
            os.close(fd)

    def _note_failure(self, error: OSError) -> None:
        self._faults += 1
        if not self._is_failing:
            self._is_failing = True
            log.warning("cache directory fails, reading without it: %s", error)

    def statistics(self) -> DiskStatistics:
        """What is held now, the bounds, and counts since the start."""
        return DiskStatistics(
            bytes=self._places.size_bytes,
            bytes_max=self._limits.bytes_max,
            extents=len(self._places),
            extents_max=self._limits.extents_max,
            hits=self._hits,
            misses=self._misses,
            faults=self._faults,
            skipped_writes=self._skipped,
        )
