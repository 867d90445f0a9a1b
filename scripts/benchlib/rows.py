"""The timed work: one function a row, the same for every file system.

Each row gets a ``Work`` (a prepared directory on one side) and returns how many units it did and in
how many seconds; preparing and clearing up are outside the clock. "Cold" means out of the page
cache of the file under test (POSIX_FADV_DONTNEED), not out of what lies below the server.
"""

from __future__ import annotations

import io
import mmap
import os
import random
import shutil
import subprocess
import tarfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
FILES_PER_DIRECTORY = 100


@dataclass(frozen=True)
class Sample:
    """What one run of a row did."""

    units: int
    seconds: float


class Work:
    """A prepared directory: one big file and a tree of small ones."""

    def __init__(self, directory: Path, archive: Path, files: int, size_mib: int) -> None:
        self.directory = directory
        self.archive = archive
        self.files = files
        self.size_bytes = size_mib * MIB
        self.big = str(directory / "big.bin")
        self.tree = str(directory / "tree")
        self.paths = [
            f"{self.tree}/d{i // FILES_PER_DIRECTORY:03d}/f{i % FILES_PER_DIRECTORY:03d}"
            for i in range(files)
        ]

    def prepare(self) -> None:
        """Make the big file and the tree."""
        os.makedirs(self.tree)
        write_big(self.big, self.size_bytes)
        for number in range((self.files + FILES_PER_DIRECTORY - 1) // FILES_PER_DIRECTORY):
            os.mkdir(f"{self.tree}/d{number:03d}")
        for path in self.paths:
            with open(path, "wb") as file:
                file.write(b"x" * 100)

    def cool(self) -> None:
        """Drop the big file from the page cache."""
        fd = os.open(self.big, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that ``action`` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run(*command: str) -> None:
    """Run a program; OSError with its words if it fails."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.decode(errors='replace')[-200:]}")


def write_big(path: str, size_bytes: int, *, sync: bool = False) -> None:
    """Write ``size_bytes`` in 1 MiB requests, no two MiB alike, and fsync if asked."""
    block = bytearray(os.urandom(MIB))
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    try:
        for number in range(size_bytes // MIB):
            block[:8] = number.to_bytes(8, "little")
            os.write(fd, block)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def make_archive(path: Path, files: int) -> None:
    """Write the tar file that the tar row unpacks: ``files`` files of 4 KiB of noise."""
    noise = random.Random(1)
    with tarfile.open(path, mode="w") as archive:
        for number in range(files):
            member = tarfile.TarInfo(f"t/d{number // FILES_PER_DIRECTORY:02d}/f{number:04d}")
            member.size = 4096
            member.mtime = 1_700_000_000
            archive.addfile(member, io.BytesIO(noise.randbytes(4096)))


def _read_all(work: Work) -> None:
    fd = os.open(work.big, os.O_RDONLY)
    buffer, total = mmap.mmap(-1, MIB), 0
    try:
        while got := os.readv(fd, [buffer]):
            total += got
    finally:
        os.close(fd)
    if total != work.size_bytes:
        raise OSError(f"read {total} of {work.size_bytes} bytes")


def seq_cold(work: Work) -> Sample:
    """Sequential read, cold, 1 MiB reads."""
    work.cool()
    return Sample(work.size_bytes, timed(lambda: _read_all(work)))


def seq_cached(work: Work) -> Sample:
    """Sequential read from the page cache."""
    _read_all(work)
    return Sample(work.size_bytes, timed(lambda: _read_all(work)))


def rand_4k(work: Work, reads: int = 1000) -> Sample:
    """Random 4 KiB reads, cold."""
    work.cool()
    choose = random.Random(7)
    offsets = [choose.randrange(work.size_bytes // 4096) * 4096 for _ in range(reads)]
    fd = os.open(work.big, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return Sample(reads, timed(lambda: [os.pread(fd, 4096, offset) for offset in offsets]))
    finally:
        os.close(fd)


def rand_8thr(work: Work, reads: int = 1600, threads: int = 8) -> Sample:
    """Random 64 KiB reads from 8 threads, cold."""
    work.cool()

    def reader(seed: int) -> None:
        choose = random.Random(seed)
        fd = os.open(work.big, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(reads // threads):
            os.pread(fd, 65536, choose.randrange(work.size_bytes // 65536) * 65536)
        os.close(fd)

    def everyone() -> None:
        running = [threading.Thread(target=reader, args=(seed,)) for seed in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    return Sample(reads, timed(everyone))


def stat(work: Work) -> Sample:
    """stat of every file of the tree, three times."""

    def everything() -> None:
        look = os.stat
        for _ in range(3):
            for path in work.paths:
                look(path)

    return Sample(3 * len(work.paths), timed(everything))


def find_ls(work: Work) -> Sample:
    """find -ls over the tree, per file."""
    return Sample(work.files, timed(lambda: run("find", work.tree, "-ls")))


def ls_l(work: Work) -> Sample:
    """ls -lR over the tree, per file."""
    return Sample(work.files, timed(lambda: run("ls", "-lR", work.tree)))


def open_read(work: Work) -> Sample:
    """open + read + close of a small file."""

    def everything() -> None:
        for path in work.paths:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)

    return Sample(len(work.paths), timed(everything))


def create(work: Work, count: int = 500) -> Sample:
    """create + write of 4 KiB + close."""
    directory, block = work.directory / "new", os.urandom(4096)
    directory.mkdir()

    def everything() -> None:
        for number in range(count):
            path = f"{directory}/f{number}"
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, block)
            os.close(fd)

    try:
        return Sample(count, timed(everything))
    finally:
        shutil.rmtree(directory)


def tar(work: Work) -> Sample:
    """tar extract, per file of 4 KiB."""
    directory = work.directory / "tar"
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    return Sample(
        work.files, timed(lambda: run("tar", "xf", str(work.archive), "-C", str(directory)))
    )


def rm_r(work: Work) -> Sample:
    """rm -r of what tar made, per file."""
    directory = work.directory / "tar"
    if not directory.exists():
        tar(work)
    return Sample(work.files, timed(lambda: run("rm", "-r", str(directory))))


def rename(work: Work, count: int = 300) -> Sample:
    """rename of an empty file."""
    directory = work.directory / "ren"
    directory.mkdir()
    for number in range(count):
        (directory / f"a{number}").touch()

    def everything() -> None:
        for number in range(count):
            os.rename(f"{directory}/a{number}", f"{directory}/b{number}")

    try:
        return Sample(count, timed(everything))
    finally:
        shutil.rmtree(directory)


def write_4k(work: Work, count: int = 2000) -> Sample:
    """write() of 4 KiB, and one close."""
    path, block = work.directory / "small.bin", os.urandom(4096)

    def everything() -> None:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        for _ in range(count):
            os.write(fd, block)
        os.close(fd)

    try:
        return Sample(count, timed(everything))
    finally:
        path.unlink()


def append_sync(work: Work, count: int = 100) -> Sample:
    """append of 200 bytes + fsync."""
    path = work.directory / "log"

    def everything() -> None:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for _ in range(count):
            os.write(fd, b"y" * 200)
            os.fsync(fd)
        os.close(fd)

    try:
        return Sample(count, timed(everything))
    finally:
        path.unlink()


def big_write(work: Work) -> Sample:
    """Sequential write in 1 MiB requests + close."""
    path = str(work.directory / "out.bin")
    try:
        return Sample(work.size_bytes, timed(lambda: write_big(path, work.size_bytes)))
    finally:
        os.unlink(path)


def big_write_sync(work: Work) -> Sample:
    """Sequential write in 1 MiB requests + fsync + close."""
    path = str(work.directory / "outs.bin")
    try:
        return Sample(work.size_bytes, timed(lambda: write_big(path, work.size_bytes, sync=True)))
    finally:
        os.unlink(path)


ROWS: tuple[Callable[[Work], Sample], ...] = (
    seq_cold,
    seq_cached,
    rand_4k,
    rand_8thr,
    stat,
    find_ls,
    ls_l,
    open_read,
    create,
    tar,
    rm_r,
    rename,
    write_4k,
    append_sync,
    big_write,
    big_write_sync,
)
BYTE_ROWS = frozenset({"seq_cold", "seq_cached", "big_write", "big_write_sync"})
