"""The files of the disk tier as threads see them: scan, read, write, unlink.

``DiskTier`` calls every method except ``path`` in a thread, and none for an extent that another
thread writes. Nothing here is mutable, so threads need no lock. Failures are OSError and Corrupt;
the tier turns them into misses.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from unifs.cache.buffers import BLOCK_BYTES, in_blocks
from unifs.cache.extentfile import (
    DIGEST_BYTES,
    data_bytes,
    pack_trailer,
    trailer_bytes,
    verify,
)
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.cache.memory import Extent

T = TypeVar("T")

_TMP: Final = "tmp.unifs"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Held(NamedTuple):
    """What is known of an extent on disk."""

    length: int
    #: Written by this daemon, or compared with its checksum since the start.
    is_checked: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan found, oldest first: digests with their data lengths."""

    extents: tuple[tuple[bytes, int], ...]
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did."""

    is_written: bool
    free_bytes: int


class Shelf:
    """Extent files below ``directory``, sharded by the first two hex digits of their digest."""

    def __init__(self, directory: Path, free_bytes_min: int) -> None:
        self._directory = directory
        self._free_bytes_min = free_bytes_min

    def path(self, digest: bytes) -> str:
        """Where that extent lies or would lie."""
        name = digest.hex()
        return f"{self._directory}/{name[:2]}/{name[2:]}"

    def scan(self, extents_max: int) -> Found:
        """List the extents, make the directory, unlink torn files and what exceeds the limit.

        Files that are not named like an extent are none of ours and stay.
        """
        tmp = self._directory / _TMP
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[tuple[int, bytes, int]] = []
        for shard in range(256):
            found += self._scan_shard(f"{shard:02x}")
        found.sort()
        surplus = max(len(found) - extents_max, 0)
        for _, digest, _ in found[:surplus]:
            Path(self.path(digest)).unlink(missing_ok=True)
        kept = tuple((digest, length) for _, digest, length in found[surplus:])
        return Found(kept, self.free_bytes())

    def _scan_shard(self, shard: str) -> list[tuple[int, bytes, int]]:
        found: list[tuple[int, bytes, int]] = []
        try:
            files = os.scandir(self._directory / shard)
        except FileNotFoundError:
            return found
        with files:
            for file in files:
                digest = _digest_from(shard + file.name)
                if digest is None:
                    continue
                status = file.stat(follow_symlinks=False)
                length = data_bytes(status.st_size)
                if length is None:
                    Path(file.path).unlink()
                else:
                    found.append((status.st_mtime_ns, digest, length))
        return found

    def read(self, digest: bytes, held: Held, start: int, size: int) -> bytes:
        """A range of an extent; all of it is read and checked unless it has been checked.

        Corrupt, FileNotFoundError or another OSError.
        """
        fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if held.is_checked:
                return _read_all(fd, size, start)
            whole = _read_all(fd, held.length + trailer_bytes(held.length), 0)
        finally:
            os.close(fd)
        view = memoryview(whole)[: held.length]
        verify(view, whole[held.length :], digest)
        return bytes(view[start : start + size])

    def remove(self, victims: list[bytes]) -> None:
        """Unlink extents."""
        for victim in victims:
            Path(self.path(victim)).unlink(missing_ok=True)

    def write(
        self, digest: bytes, data: Extent | None, free_bytes: int, is_direct: bool
    ) -> Written:
        """Write an extent unless that would use the last of the free space, as just looked up.

        ``is_direct``: past the page cache where file system and data allow it.
        """
        if data is None or free_bytes - len(data) < self._free_bytes_min:
            return Written(False, free_bytes)
        tmp = f"{self._directory}/{_TMP}/{digest.hex()}"
        try:
            trailer = pack_trailer(digest, data)
            is_direct = is_direct and in_blocks(data) and len(trailer) == BLOCK_BYTES
            if not (is_direct and self._write_direct(tmp, data, trailer)):
                fd = _made(tmp, lambda: os.open(tmp, _CREATE, 0o600))
                try:
                    _write_all(fd, [memoryview(data), memoryview(trailer)])
                finally:
                    os.close(fd)
            target = self.path(digest)
            _made(target, lambda: os.rename(tmp, target))
        except OSError:
            Path(tmp).unlink(missing_ok=True)
            raise
        return Written(True, free_bytes - len(data))

    def _write_direct(self, tmp: str, data: Extent, trailer: bytes) -> bool:
        """Write the file past the page cache; False where that cannot be done here."""
        try:
            fd = _made(tmp, lambda: os.open(tmp, _CREATE | os.O_DIRECT, 0o600))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        try:
            with mmap.mmap(-1, BLOCK_BYTES) as block:
                block[:] = trailer
                return os.writev(fd, [data, block]) == len(data) + BLOCK_BYTES
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        finally:
            os.close(fd)

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


def _read_all(fd: int, size: int, start: int) -> bytes:
    data = os.pread(fd, size, start)
    if len(data) != size:
        raise Corrupt("the extent is cut short")
    return data


def _write_all(fd: int, parts: list[memoryview]) -> None:
    while parts:
        count = os.writev(fd, parts)
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][count:]
