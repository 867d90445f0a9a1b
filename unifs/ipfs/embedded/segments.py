"""Segments: append-only files of blocks, one directory of them.

The journal appends small contents here at close (hot path: one pwritev, no sync); the embedded node
appends DAG nodes and added files to an instance of its own, so that a flush round of the journal
never has to sync somebody's gigabyte. The format stands in ``sections``.

Life of a segment: *open* (takes appends) → *full* (``limit_bytes`` reached) → *closed* (footer
written and synced, by the next flush round). A clean ``close`` writes a footer as well; the next
start takes it off and goes on, so that only a crash costs a scan. A segment found damaged is never
appended to again: what follows goes to a new file.

Durability: an append is in the page cache. ``sync_target`` says what a flush round has to sync, its
``run`` does that in a thread, and ``is_synced`` answers for one place. An error while syncing makes
that segment *failed*: never called durable again, never appended to, never synced again (the kernel
drops the dirty flag of pages it could not write, so that a second fdatasync would lie), and every
later flush round fails too, whoever ran the one that failed, until ``acknowledge_failure``. A file
``<n>.failed`` tells later processes. A footer is written only after its data are synced.

Locks: ``_lock`` around the state, held for an append's pwritev (uncontended 50 ns); ``_round``
serializes flush rounds and is taken before ``_lock``. Appends may come from any thread. Nothing of
another module but ``segment_file`` is called under a lock.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from unifs.errors import Corrupt, DiskFailed
from unifs.ipfs.embedded.sections import (
    HEADER,
    RAW_PREFIX,
    Gap,
    Head,
    read_data_end,
    read_exactly,
    varint,
    walk_index,
)
from unifs.ipfs.embedded.segment_file import (
    FAILED_SUFFIX,
    Damage,
    Descriptor,
    Place,
    SegmentFile,
    SegmentStatistics,
    SyncTarget,
    named,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Damage", "Descriptor", "Place", "SegmentStatistics", "Segments", "SyncTarget"]

SEGMENT_BYTES_MAX: Final = 256 << 20
#: The index of a segment of 1000-byte contents is 10 MiB; at 16 MiB a segment counts as full.
INDEX_BYTES_MAX: Final = 16 << 20
#: Descriptors kept open for reading; the soft limit of many systems is 1024.
DESCRIPTORS_MAX: Final = 64


class Segments:
    """The segments of one directory. The module's text has threads and durability."""

    def __init__(self, directory: Path, limit_bytes: int = SEGMENT_BYTES_MAX) -> None:
        """Open or create ``directory``; scans segments that have no footer.

        What was wrong is in ``damages``. Errors: NoSpace, DiskFailed and what the host says.
        """
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.damages: list[Damage] = []
        self._lock = threading.Lock()
        self._round = threading.Lock()
        self._descriptors: OrderedDict[int, Descriptor] = OrderedDict()
        #: End of the sections of every segment but the open one.
        self._ends: dict[int, int] = {}
        #: Segments without a durable footer: the open one, full ones, failed ones.
        self._files: dict[int, SegmentFile] = {}
        self._open: SegmentFile | None = None
        self._names_made = 1
        self._names_synced = 0
        #: The first error of a sync, told by every flush round until ``acknowledge_failure``.
        self._failure: Exception | None = None
        #: Where the last walk through the open segment ended: (segment, offset, index position).
        self._resume = (0, 0, 0)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Held open: a lack of descriptors must not fail a flush round.
            self._directory: Descriptor | None = Descriptor(os.open(directory, os.O_RDONLY))
            self._load()
        except OSError as error:
            raise named(error) from error

    def _load(self) -> None:
        names = (name for name in os.listdir(self.directory) if name.endswith(".car"))
        numbers = sorted(int(name[:-4]) for name in names if name[:-4].isdigit())
        for number in numbers:
            if number != numbers[-1] and (end := self._end_of_closed(number)) is not None:
                self._ends[number] = end
                continue
            file, is_closed, damages = SegmentFile.load(self._path(number), number)
            self.damages += damages
            self._ends[number] = file.end
            is_sound = all(damage.is_torn_tail for damage in damages) and not file.is_failed
            if file.is_failed or not is_closed:
                self._files[number] = file
            if number == numbers[-1] and is_sound and not self._is_full(file, 0):
                os.ftruncate(file.fd, file.end)
                self._files[number] = self._open = file

    def _end_of_closed(self, segment: int) -> int | None:
        """Where the sections of a segment with a footer end; None if it has to be looked at."""
        if self._path(segment).with_suffix(FAILED_SUFFIX).exists():
            return None
        return read_data_end(Descriptor(os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)))

    # --- appending ------------------------------------------------------------------------------

    def append(self, cid_binary: bytes, data: bytes | memoryview) -> Place:
        """Append one block, to the page cache; nothing is hashed here.

        NoSpace and DiskFailed leave the segment as it was.
        """
        length = len(data)
        return self._append(varint(len(cid_binary) + length) + cid_binary, data, length)

    def append_raw(self, digest: bytes, data: bytes | memoryview) -> Place:
        """Append a raw block (CIDv1, sha2-256) given its 32-byte digest; else as ``append``."""
        length = len(data)
        return self._append(varint(36 + length) + RAW_PREFIX + digest, data, length)

    def _append(self, head: bytes, data: bytes | memoryview, length: int) -> Place:
        with self._lock:
            file = self._open
            if file is None or file.is_failed or self._is_full(file, len(head) + length):
                file = self._next()
            return Place(file.number, file.append(head, data, length), length)

    def _is_full(self, file: SegmentFile, wanted: int) -> bool:
        """Whether ``wanted`` bytes go elsewhere; one larger than the limit gets its own segment."""
        if file.end + wanted <= self.limit_bytes and len(file.index) < INDEX_BYTES_MAX:
            return False
        return file.entries > 0

    def _next(self) -> SegmentFile:
        number = max(self._ends, default=0) + 1
        file = SegmentFile.create(self._path(number), number)
        if self._open is not None:
            self._ends[self._open.number] = self._open.end
        self._names_made += 1
        self._open = self._files[number] = file
        self._ends[number] = file.end
        return file

    # --- reading --------------------------------------------------------------------------------

    def descriptor(self, segment: int) -> Descriptor:
        """The descriptor for preads from ``segment``, valid as long as the object is referred to.

        NotFound if there is no such segment.
        """
        with self._lock:
            file = self._files.get(segment)
            if file is not None:
                return file.fd
            fd = self._descriptors.get(segment)
            if fd is not None:
                self._descriptors.move_to_end(segment)
                return fd
            try:
                fd = Descriptor(os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise named(error) from error
            self._descriptors[segment] = fd
            if len(self._descriptors) > DESCRIPTORS_MAX:
                self._descriptors.popitem(last=False)
            return fd

    def read(self, place: Place) -> bytes:
        """The bytes at ``place``, not verified; Corrupt if the file is too short for it."""
        fd = self.descriptor(place.segment)
        try:
            data = read_exactly(fd, place.length, place.offset)
        except OSError as error:
            raise named(error) from error
        if len(data) != place.length:
            raise Corrupt(
                f"segment {place.segment} ends before byte {place.offset + place.length}",
                path=str(self._path(place.segment)),
                offset=place.offset,
                length=place.length,
            )
        return data

    def segments(self) -> dict[int, int]:
        """Where the sections of each segment end, in bytes, by segment number, ascending."""
        with self._lock:
            return self._all_ends()

    def _all_ends(self) -> dict[int, int]:
        ends = dict(sorted(self._ends.items()))
        if self._open is not None:
            ends[self._open.number] = self._open.end
        return ends

    def position(self) -> tuple[int, int]:
        """(segment, offset) before which every section exists and after which none does yet."""
        with self._lock:
            if self._open is None:
                return max(self._ends, default=0) + 1, len(HEADER)
            return self._open.number, self._open.end

    def open_segment(self) -> int:
        """The segment that takes appends, 0 if the next append begins one."""
        with self._lock:
            return self._open.number if self._open is not None else 0

    def iterate(self, segment: int, start_offset: int = 0) -> Iterator[tuple[bytes, Place]]:
        """(CID, place) of the sections of ``segment`` that begin at or after ``start_offset``.

        A snapshot: appends made meanwhile are not seen. Closed segments are read by their footer,
        so that a rotten section hides nothing. NotFound if there is no such segment.
        """
        for entry in self._walk(segment, start_offset):
            if isinstance(entry, Head):
                yield entry.cid_binary, Place(segment, entry.offset, entry.length)

    def gaps(self, segment: int) -> list[Gap]:
        """The byte ranges of ``segment`` that are no section."""
        return [entry for entry in self._walk(segment, 0) if isinstance(entry, Gap)]

    def _walk(self, segment: int, start_offset: int) -> Iterator[Head | Gap]:
        index, begin = self._index(segment, start_offset)
        for entry in walk_index(index, begin):
            if begin >= start_offset:
                yield entry
            begin = entry.offset + entry.length

    def _index(self, segment: int, start_offset: int) -> tuple[bytes, int]:
        """The heads of a segment and the file offset at which the first of them begins."""
        with self._lock:
            file = self._files.get(segment)
            if file is not None:
                number, begin, skip = self._resume
                if number != segment or begin > start_offset:
                    begin, skip = len(HEADER), 0
                self._resume = (segment, file.end, len(file.index))
                return bytes(memoryview(file.index)[skip:]), begin
        try:
            file, _, damages = SegmentFile.load(self._path(segment), segment)
        except OSError as error:
            raise named(error) from error
        with self._lock:
            self.damages += [damage for damage in damages if damage not in self.damages]
        return bytes(file.index), len(HEADER)

    # --- durability -----------------------------------------------------------------------------

    def sync_target(self) -> SyncTarget | None:
        """What to sync so that everything appended so far survives power loss; None if nothing.

        Cheap: call it on the event loop, and its ``run`` in a thread. Fails as ``run`` does.
        """
        with self._lock:
            if self._unsynced() == 0 and self._failure is None:
                return None
            file = self._open or next(iter(self._files.values()), None)
            if file is None:
                raise DiskFailed(str(self._failure))
            return SyncTarget(file, self._sync)

    def _unsynced(self) -> int:
        return sum(
            file.end - file.synced_end for file in self._files.values() if not file.is_failed
        )

    def is_synced(self, place: Place) -> bool:
        """Whether the bytes at ``place`` survive power loss. Never true in a failed segment."""
        with self._lock:
            file = self._files.get(place.segment)
            if file is None:
                return True
            return not file.is_failed and place.offset + place.length <= file.synced_end

    def _sync(self, segment: int, position: int) -> None:
        with self._round:
            with self._lock:
                files = [file for file in self._files.values() if not file.is_failed]
                full = [file for file in files if file is not self._open]
                opened = [file for file in files if file is self._open and file.number == segment]
                names = self._names_made
            for file in (*full, *opened):
                self._attempt(file, file.sync)
            for file in full:
                self._attempt(file, file.close_with_footer)
            if names != self._names_synced:
                for file in (*full, *opened):
                    self._attempt(file, self._sync_directory)
            with self._lock:
                self._names_synced = names
                for file in full:
                    self._ends[file.number] = file.end
                    self._files.pop(file.number, None)
                for file in opened:
                    file.synced_end = max(file.synced_end, position)
                if self._failure is not None:
                    raise DiskFailed(str(self._failure)) from self._failure

    def _attempt(self, file: SegmentFile, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            file.fail()
            self._failure = self._failure or named(error)
            raise named(error) from error

    def failed(self) -> set[int]:
        """The segments that could not be synced, now or by an earlier process."""
        with self._lock:
            return {file.number for file in self._files.values() if file.is_failed}

    def acknowledge_failure(self) -> None:
        """Everybody concerned knows what was lost: flush rounds may succeed again.

        For an owner that knows by ``is_synced``, or has failed all that it had appended.
        """
        with self._lock:
            self._failure = None

    def _sync_directory(self) -> None:
        assert self._directory is not None
        os.fsync(self._directory)

    # --- life -----------------------------------------------------------------------------------

    def remove(self, segment: int) -> None:
        """Delete a segment that is not open; readers that hold its descriptor go on.

        Idempotent: an absent one is success.
        """
        with self._lock:
            assert self._open is None or self._open.number != segment, "the open segment stays"
            self._ends.pop(segment, None)
            self._files.pop(segment, None)
            self._descriptors.pop(segment, None)
            path = self._path(segment)
            try:
                path.unlink(missing_ok=True)
                path.with_suffix(FAILED_SUFFIX).unlink(missing_ok=True)
            except OSError as error:
                raise named(error) from error

    def roll(self) -> None:
        """Let the next append begin a new segment, so that the present one can be collected."""
        with self._lock:
            file, self._open = self._open, None
            if file is not None:
                self._ends[file.number] = file.end

    def close(self) -> None:
        """Sync, write the open segment's footer and let go of all descriptors. Blocks.

        DiskFailed if that fails, unless a flush round has said so before.
        """
        is_told = self._failure is not None
        try:
            target = self.sync_target()
            if target is not None:
                target.run()
            with self._lock:
                if self._open is not None and not self._open.is_failed:
                    self._attempt(self._open, self._open.close_with_footer)
        except DiskFailed:
            if not is_told:
                raise
        finally:
            self._open = self._directory = None
            self._files.clear()
            self._descriptors.clear()

    def statistics(self) -> SegmentStatistics:
        """Numbers for telemetry."""
        with self._lock:
            ends = self._all_ends()
            return SegmentStatistics(
                segments=len(ends),
                size_bytes=sum(ends.values()),
                open_segment=self._open.number if self._open is not None else 0,
                unsynced_bytes=self._unsynced(),
                descriptors=len(self._descriptors) + len(self._files),
                descriptors_max=DESCRIPTORS_MAX,
            )

    def _path(self, segment: int) -> Path:
        return self.directory / f"{segment}.car"
