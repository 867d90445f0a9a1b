"""Bytes: offsets, appending, cutting, holes, mappings, limits; and objects without names."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.posix.calls import AT_SYMLINK_FOLLOW, linkat
from tests.posix.conftest import Place, make
from tests.posix.grid import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def path(place: Place) -> Path:
    """A name in a new directory."""
    return place.path / place.directory() / "x"


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    """A new file, open for reading and writing; removed, since some are a million leaves long."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    yield descriptor
    path.unlink()
    os.close(descriptor)


def test_write_moves_the_offset_and_pwrite_does_not(file: int) -> None:
    assert os.write(file, b"one") == 3
    assert os.pwrite(file, b"two", 10) == 3
    assert os.lseek(file, 0, os.SEEK_CUR) == 3
    assert os.write(file, b"!") == 1
    assert os.pread(file, 100, 0) == b"one!" + bytes(6) + b"two"
    assert os.pread(file, 100, 13) == os.pread(file, 100, 1 << 40) == b""
    assert os.lseek(file, 0, os.SEEK_END) == 13
    assert os.read(file, 1) == b""


def test_vectors(file: int) -> None:
    assert os.writev(file, [b"a" * 1000, b"", b"b" * 5000, b"c"]) == 6001
    assert os.pwritev(file, [b"x", b"yz"], 999) == 3
    first, second = bytearray(1001), bytearray(9000)
    assert os.preadv(file, [first, second], 0) == 6001
    assert bytes(first[998:] + second[:2]) == b"axyzb"
    os.lseek(file, 5999, os.SEEK_SET)
    assert os.readv(file, [first, second]) == 2
    assert os.pwritev(file, [b"sync"], 0, os.RWF_DSYNC) == 4
    assert os.pwritev(file, [b"end"], 0, os.RWF_APPEND) == 3
    assert os.pread(file, 4, 6001) == b"end"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 131_072, 1_048_577, 3_000_000])
def test_sizes_around_pages_and_requests(path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    assert path.stat().st_size == size
    assert path.read_bytes() == data
    with path.open("rb", buffering=0) as file:
        for offset in (0, size // 2, max(0, size - 1)):
            assert os.pread(file.fileno(), 5000, offset) == data[offset : offset + 5000]


@pytest.mark.parametrize("flags", [0, os.O_SYNC, os.O_DSYNC, os.O_DIRECT], ids=str)
def test_flags_of_writers(path: Path, flags: int) -> None:
    block = mmap.mmap(-1, 8192)
    block.write(b"block" * 1638 + b"!!")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags)
    assert os.write(descriptor, block) == 8192
    assert os.pwrite(descriptor, block, 16_384) == 8192
    again = mmap.mmap(-1, 8192)
    assert os.preadv(descriptor, [again], 16_384) == 8192
    os.close(descriptor)
    assert again[:] == block[:]
    assert path.read_bytes() == block[:] + bytes(8192) + block[:]


def test_append_ignores_offsets(path: Path) -> None:
    one = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    two = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(one, b"1")
    os.write(two, b"2")
    os.lseek(one, 0, os.SEEK_SET)
    os.write(one, b"3")
    # Linux appends for pwrite as well: pwrite(2), BUGS.
    os.pwrite(two, b"4", 0)
    os.truncate(path, 2)
    os.write(one, b"5")
    assert os.pread(one, 10, 0) == b"125"
    os.close(one)
    os.close(two)


def test_access_modes(path: Path) -> None:
    path.write_bytes(b"text")
    reading, writing = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    bare = os.open(path, os.O_PATH)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "write on O_RDONLY": (lambda: os.write(reading, b"x"), errno.EBADF),
        "ftruncate on O_RDONLY": (lambda: os.ftruncate(reading, 0), errno.EINVAL),
        "read on O_WRONLY": (lambda: os.read(writing, 1), errno.EBADF),
        "read on O_PATH": (lambda: os.read(bare, 1), errno.EBADF),
        "fchmod on O_PATH": (lambda: os.fchmod(bare, 0o600), errno.EBADF),
        "pread before 0": (lambda: os.pread(reading, 1, -1), errno.EINVAL),
        "lseek before 0": (lambda: os.lseek(reading, -5, os.SEEK_END), errno.EINVAL),
        "getdents of a file": (lambda: os.listdir(reading), errno.ENOTDIR),
    }
    for what, (call, number) in calls.items():
        with pytest.raises(OSError, match=r".") as caught:
            call()
        assert caught.value.errno == number, what
    for descriptor in (reading, writing, bare):
        os.close(descriptor)
    directory = os.open(path.parent, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        os.read(directory, 1)
    os.fsync(directory)
    os.close(directory)


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 100_000, 1 << 33])
@pytest.mark.parametrize("is_open", [True, False], ids=["ftruncate", "truncate"])
def test_cutting_and_growing(path: Path, size: int, is_open: bool) -> None:
    data = random.Random(1).randbytes(20_000)
    path.write_bytes(data)
    with path.open("r+b") as file:
        os.truncate(file.fileno() if is_open else path, size)
    assert path.stat().st_size == size
    os.truncate(path, 30_000)
    kept = data[:size]
    assert path.read_bytes() == kept + bytes(30_000 - len(kept))


def test_what_is_cut_off_does_not_come_back(file: int) -> None:
    os.write(file, b"secret" * 10_000)
    os.ftruncate(file, 3)
    os.pwrite(file, b"end", 70_000)
    assert os.pread(file, 80_000, 0) == b"sec" + bytes(69_997) + b"end"


def test_holes_take_no_space_and_read_as_zeros(file: int) -> None:
    os.pwrite(file, b"end", 5 << 30)
    os.fsync(file)
    found = os.fstat(file)
    assert found.st_size == (5 << 30) + 3
    assert found.st_blocks * 512 < 4 << 20
    assert os.pread(file, 10_000, 3 << 30) == bytes(10_000)
    assert os.pread(file, 10, (5 << 30) - 2) == b"\0\0end"


@pytest.mark.parametrize("offset", [2**31 - 1, 2**32 - 1, 2**33, (1 << 40) - 100])
def test_offsets_beyond_32_bits(file: int, offset: int) -> None:
    assert os.pwrite(file, b"here", offset) == 4
    assert os.lseek(file, 0, os.SEEK_END) == offset + 4
    assert os.pread(file, 10, offset - 2) == b"\0\0here"


def test_too_large(place: Place, path: Path, file: int) -> None:
    for size in (1 << 62, (1 << 63) - 1):
        with pytest.raises(OSError, match="File too large"):
            os.ftruncate(file, size)
        with pytest.raises(OSError, match=r"File too large|Invalid argument"):
            os.pwrite(file, b"xy", size)
    assert os.fstat(file).st_size == 0


def test_the_limit_of_a_process(place: Place) -> None:
    name = f"{place.directory()}/x"
    make(place.path / name, "file")
    owner = place.users["owner"]
    assert told(owner.ask("write limited", name, 100, 100, 1)[0]) == "EFBIG"
    assert owner.ask("write limited", name, 100, 90, 20) == (0, 10)
    assert (place.path / name).stat().st_size == 100


# --- mappings -----------------------------------------------------------------------------------


def test_a_shared_mapping_is_the_file(path: Path) -> None:
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[5000:5004] = b"mmap"
        assert os.pread(file.fileno(), 4, 5000) == b"mmap"
        os.pwrite(file.fileno(), b"file", 9000)
        assert memory[9000:9004] == b"file"
        with path.open("rb") as other:
            other.seek(5000)
            assert other.read(4) == b"mmap"
    assert path.read_bytes()[5000:5004] == b"mmap"
    assert path.stat().st_size == 10_000


def test_a_private_mapping_is_not(path: Path) -> None:
    path.write_bytes(b"kept" * 100)
    with path.open("rb") as file:
        access = mmap.PROT_READ | mmap.PROT_WRITE
        with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, access) as memory:
            memory[:4] = b"lost"
            assert memory[:8] == b"lostkept"
    assert path.read_bytes() == b"kept" * 100


def test_mappings_of_two_processes_are_one_memory(path: Path) -> None:
    path.write_bytes(bytes(4096))
    code = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[7]=m[6]+1\n"
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[6] = 41
        subprocess.run([sys.executable, "-c", code, path], check=True)
        assert memory[7] == 42


def test_a_mapping_beyond_the_end_is_a_bus_error(path: Path) -> None:
    path.write_bytes(bytes(9000))
    code = "import mmap,os,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),9000)\n"
    code += "assert m[8999]==0\nos.truncate(sys.argv[1],10)\nassert m[9]==0\nprint(m[8192])\n"
    done = subprocess.run([sys.executable, "-c", code, path], check=False, stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGBUS


def test_a_mapping_outlives_the_descriptor_and_the_name(path: Path) -> None:
    path.write_bytes(b"before" + bytes(5000))
    os.link(path, path.with_name("second"))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    path.unlink()
    memory[:5] = b"after"
    memory.close()
    assert path.with_name("second").read_bytes()[:6] == b"aftere"


# --- objects without a name -----------------------------------------------------------------------


def test_an_unlinked_file_is_whole_until_its_last_close(path: Path) -> None:
    with path.open("w+b") as file:
        file.write(b"bytes")
        file.flush()
        path.unlink()
        descriptor = file.fileno()
        assert os.fstat(descriptor).st_nlink == 0
        os.pwrite(descriptor, b"more", 100_000)
        os.ftruncate(descriptor, 100_002)
        os.fchmod(descriptor, 0o640)
        os.fchown(descriptor, 1, 2)
        os.utime(descriptor, ns=(1, 2))
        os.fsync(descriptor)
        found = os.fstat(descriptor)
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 1, 2)
        assert (found.st_size, found.st_mtime_ns) == (100_002, 2)
        assert os.pread(descriptor, 10, 99_999) == b"\0mo"
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        assert os.read(again, 5) == b"bytes"
        os.close(again)
        path.write_bytes(b"another")
        assert os.pread(descriptor, 5, 0) == b"bytes"
    assert path.read_bytes() == b"another"


def test_a_file_without_a_name_gets_none(path: Path) -> None:
    with path.open("wb") as file:
        path.unlink()
        with pytest.raises(FileNotFoundError):
            linkat(f"/proc/self/fd/{file.fileno()}", os.fspath(path), AT_SYMLINK_FOLLOW)


def test_a_removed_directory_is_empty_for_ever(path: Path) -> None:
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    path.rmdir()
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    for make_it in (os.mkdir, os.mkfifo):
        with pytest.raises(FileNotFoundError):
            make_it("new", dir_fd=descriptor)
    with pytest.raises(FileNotFoundError):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    path.mkdir()
    assert os.listdir(descriptor) == []
    os.close(descriptor)


def test_hard_links_count_and_share(path: Path) -> None:
    path.write_bytes(b"one")
    names = [path.with_name(f"name{number}") for number in range(50)]
    for name in names:
        os.link(path, name)
    assert path.stat().st_nlink == 51
    names[7].chmod(0o600)
    with names[9].open("ab") as file:
        file.write(b"two")
    path.unlink()
    assert {name.stat().st_nlink for name in names} == {50}
    assert {name.stat().st_mode & 0o777 for name in names} == {0o600}
    assert {name.read_bytes() for name in names} == {b"onetwo"}
    assert len({name.stat().st_ino for name in names}) == 1


@pytest.mark.parametrize("kind", ["fifo", "dangling", "socket", "null"])
def test_every_kind_but_a_directory_has_hard_links(place: Place, path: Path, kind: str) -> None:
    make(path, kind)
    second = path.with_name("second")
    os.link(path, second, follow_symlinks=False)
    one, two = path.lstat(), second.lstat()
    assert (one.st_ino, one.st_mode, one.st_nlink) == (two.st_ino, two.st_mode, 2)
    path.unlink()
    assert second.lstat().st_nlink == 1


def test_a_fifo_carries_bytes(place: Place) -> None:
    name = place.path / place.directory() / "fifo"
    os.mkfifo(name)
    reading = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(name, os.O_WRONLY)
    os.write(writing, b"through")
    assert os.read(reading, 100) == b"through"
    name.unlink()
    os.write(writing, b"still")
    assert os.read(reading, 100) == b"still"
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_fsync_of_everything(path: Path) -> None:
    path.write_bytes(b"bytes")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        descriptor = os.open(path, flags)
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.close(descriptor)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.fdatasync(directory)
    os.close(directory)
    os.sync()


def test_statfs_is_plausible(place: Place, path: Path, file: int) -> None:
    for found in (os.statvfs(path), os.fstatvfs(file)):
        assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
        assert found.f_bsize >= 512
        assert found.f_namemax == 255
        assert found.f_files >= found.f_ffree > 0
