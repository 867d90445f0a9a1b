"""The files of the disk tier as threads see them: scan, read, write, unlink.

``DiskTier`` calls every method except ``path`` in a thread, and none for a file that another thread
writes. Nothing here is mutable, so threads need no lock. Failures are OSError and Corrupt; the tier
turns them into misses.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from unifs.cache.buffers import in_blocks
from unifs.cache.extentfile import (
    DIGEST_BYTES,
    Part,
    data_bytes,
    pack_trailer,
    trailer_bytes,
    unpack_trailer,
)
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.cache.memory import Extent

T = TypeVar("T")

Extents = Sequence[tuple[bytes, "Extent"]]

_TMP: Final = "tmp.unifs"
#: How the name of a file of several extents ends.
_RUN: Final = ".run"
#: Written at once. Larger steps get larger folios of the page cache, from memory that a host has
#: taken back: 1 GiB cost 3.7 to 5 s of the processor's time in steps of 8 MiB, 1.5 to 1.8 in these.
STEP_BYTES: Final = 128 << 10
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


@dataclass(slots=True, eq=False)
class Held:
    """One file of extents on disk."""

    name: str
    digests: tuple[bytes, ...]
    lengths: tuple[int, ...]
    #: Of each extent a bit: written by this daemon, or compared with its checksum since the start.
    checked: int = 0

    @property
    def data_bytes(self) -> int:
        """Where the trailer begins."""
        return sum(self.lengths)

    @property
    def size_bytes(self) -> int:
        """What the file takes on disk."""
        return self.data_bytes + trailer_bytes(self.data_bytes)

    def start_of(self, number: int) -> int:
        """Where an extent begins."""
        return sum(self.lengths[:number])

    def part_in(self, trailer: bytes, number: int) -> Part:
        """What the file says of an extent; Corrupt unless it is the one that is looked for."""
        part = unpack_trailer(trailer)[number]
        if (part.digest, part.length) != (self.digests[number], self.lengths[number]):
            raise Corrupt("the trailer belongs to another extent")
        return part


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan found, oldest first."""

    files: tuple[Held, ...]
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did."""

    is_written: bool
    free_bytes: int


def name_of(digests: Sequence[bytes]) -> str:
    """The name of the file that holds these extents."""
    name = digests[0].hex()
    return f"{name[:2]}/{name[2:]}{_RUN if len(digests) > 1 else ''}"


class Shelf:
    """Files below ``directory``, sharded by the first two hex digits of their first extent."""

    def __init__(self, directory: Path, free_bytes_min: int) -> None:
        self._directory = directory
        self._free_bytes_min = free_bytes_min

    def path(self, name: str) -> str:
        """Where that file lies or would lie."""
        return f"{self._directory}/{name}"

    def scan(self, extents_max: int) -> Found:
        """List the files, make the directory, unlink torn ones and what exceeds the limit.

        Files that are not named like one of extents are none of ours and stay.
        """
        tmp = self._directory / _TMP
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[tuple[int, str, Held]] = []
        for shard in range(256):
            found += self._scan_shard(f"{shard:02x}")
        found.sort(key=lambda one: one[:2], reverse=True)
        kept: list[Held] = []
        count = 0
        for _, name, held in found:
            count += len(held.digests)
            if count > extents_max:
                Path(self.path(name)).unlink(missing_ok=True)
            else:
                kept.append(held)
        return Found(tuple(reversed(kept)), self.free_bytes())

    def _scan_shard(self, shard: str) -> list[tuple[int, str, Held]]:
        found: list[tuple[int, str, Held]] = []
        try:
            files = os.scandir(self._directory / shard)
        except FileNotFoundError:
            return found
        with files:
            for file in files:
                digest = _digest_from(shard + file.name.removesuffix(_RUN))
                if digest is None:
                    continue
                status = file.stat(follow_symlinks=False)
                held = self._held(f"{shard}/{file.name}", digest, status.st_size)
                if held is None:
                    Path(file.path).unlink()
                else:
                    found.append((status.st_mtime_ns, held.name, held))
        return found

    def _held(self, name: str, digest: bytes, size: int) -> Held | None:
        """What the file has; None if it is torn. A single extent's length is told by the size."""
        length = data_bytes(size)
        if length is None or not name.endswith(_RUN):
            return Held(name, (digest,), (length,)) if length else None
        try:
            parts = unpack_trailer(self._pread(name, length, size - length))
        except Corrupt:
            return None
        held = Held(name, tuple(one.digest for one in parts), tuple(one.length for one in parts))
        return held if held.data_bytes == length and held.digests[0] == digest else None

    def read(self, held: Held, number: int, start: int, size: int) -> bytes:
        """A range of an extent; all of it is read and checked unless it has been already.

        Corrupt, FileNotFoundError or another OSError.
        """
        offset = held.start_of(number)
        if held.checked >> number & 1:
            return self._pread(held.name, offset + start, size)
        end = held.data_bytes
        part = held.part_in(self._pread(held.name, end, trailer_bytes(end)), number)
        data = self._pread(held.name, offset, part.length)
        part.check(data)
        return data[start : start + size]

    def load(self, held: Held, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """Fill a buffer with each extent, checked, past the page cache where that is possible.

        Corrupt, FileNotFoundError or another OSError.
        """
        self._fill(held, wanted)
        if all(held.checked >> number & 1 for number, _ in wanted):
            return
        end = held.data_bytes
        trailer = self._pread(held.name, end, trailer_bytes(end))
        for number, buffer in wanted:
            held.part_in(trailer, number).check(buffer)

    def _fill(self, held: Held, wanted: Sequence[tuple[int, memoryview]]) -> None:
        if all(in_blocks(buffer) for _, buffer in wanted):
            try:
                self._fill_by(os.O_DIRECT, held, wanted)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return
        self._fill_by(0, held, wanted)

    def _fill_by(self, flags: int, held: Held, wanted: Sequence[tuple[int, memoryview]]) -> None:
        fd = os.open(self.path(held.name), os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            while wanted:
                first = wanted[0][0]
                row = [buffer for at, (number, buffer) in enumerate(wanted) if number == first + at]
                if os.preadv(fd, row, held.start_of(first)) != sum(map(len, row)):
                    raise Corrupt("the file is cut short")
                wanted = wanted[len(row) :]
        finally:
            os.close(fd)

    def _pread(self, name: str, start: int, size: int) -> bytes:
        fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, size, start)
        finally:
            os.close(fd)
        if len(data) != size:
            raise Corrupt("the file is cut short")
        return data

    def remove(self, victims: list[str]) -> None:
        """Unlink files."""
        for victim in victims:
            Path(self.path(victim)).unlink(missing_ok=True)

    def write(self, extents: Extents, free_bytes: int) -> Written:
        """Write a file unless that would use the last of the free space, as just looked up."""
        size = sum(len(data) for _, data in extents)
        if free_bytes - size < self._free_bytes_min:
            return Written(False, free_bytes)
        name = name_of([digest for digest, _ in extents])
        tmp = f"{self._directory}/{_TMP}/{name.replace('/', '')}"
        parts: list[Part] = []
        try:
            fd = _made(tmp, lambda: os.open(tmp, _CREATE, 0o600))
            try:
                for digest, data in extents:
                    # What its checksum has just read is still near the processor.
                    parts.append(Part.of(digest, data))
                    _write_all(fd, data)
                _write_all(fd, pack_trailer(parts))
            finally:
                os.close(fd)
            target = self.path(name)
            _made(target, lambda: os.rename(tmp, target))
        except OSError:
            Path(tmp).unlink(missing_ok=True)
            raise
        return Written(True, free_bytes - size)

    def free_bytes(self) -> int:
        """What the file system has left; makes the directory where somebody has removed it."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize


def _digest_from(name: str) -> bytes | None:
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES and digest.hex() == name else None


def _made(path: str, call: Callable[[], T]) -> T:
    """Call, and once more where the directory of ``path`` has yet to be made."""
    try:
        return call()
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return call()


def _write_all(fd: int, data: Extent) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done : done + STEP_BYTES])
