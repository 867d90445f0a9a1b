"""The edges of what a number, a name or a mapping may be, and what outlives the daemon."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from tests.posix.calls import RENAME_EXCHANGE, rename2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.posix.conftest import Place

SECOND_NS = 1_000_000_000
#: 1901, just before 1970, 1970, 2038 and after, 2106, 2262, 2446: what an inode of ext4 can hold.
MOMENTS_NS = (
    -(2**31) * SECOND_NS,
    -(2**31) * SECOND_NS + 1_999_999_999,
    -1_500_000_000,
    -1,
    0,
    (2**31 - 1) * SECOND_NS + 999_999_999,
    2**31 * SECOND_NS,
    2**32 * SECOND_NS + 1,
    2**63 - 1,
    2**63,
    15_032_385_535 * SECOND_NS + 999_999_999,
)
#: The first and the last moment.
EXT4_NS = -(2**31) * SECOND_NS, 15_032_385_535 * SECOND_NS
MFS_NS = -(2**63), 2**63 - 1


@pytest.fixture
def here(place: Place) -> Path:
    return place.path / place.directory()


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("moment_ns", MOMENTS_NS)
def test_moments(place: Place, here: Path, kind: str, moment_ns: int) -> None:
    """What is beyond the first or the last one that there is becomes that."""
    path = here / "x"
    path.mkdir() if kind == "dir" else path.touch()
    os.utime(path, ns=(moment_ns, moment_ns))
    found = path.stat()
    first, last = MFS_NS if place.name == "mfs" else EXT4_NS
    wanted = min(max(moment_ns, first), last)
    assert (found.st_atime_ns, found.st_mtime_ns) == (wanted, wanted)


def test_stores_into_a_mapping_of_an_unlinked_file(here: Path) -> None:
    path = here / "x"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:5] = b"first"
        path.unlink()
        memory[9000:9006] = b"second"
        memory.flush()
        os.ftruncate(file.fileno(), 12_000)
        assert os.pread(file.fileno(), 5, 0) == b"first"
        assert os.pread(file.fileno(), 6, 9000) == b"second"
        assert os.fstat(file.fileno()).st_nlink == 0
        again = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        assert os.pread(again, 6, 9000) == b"second"
        os.close(again)
    assert list(here.iterdir()) == []


def test_stores_into_a_mapping_of_a_file_that_was_replaced(here: Path) -> None:
    path, other = here / "x", here / "y"
    path.write_bytes(bytes(10_000))
    os.link(path, here / "z")
    other.write_bytes(b"other" * 2000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:5] = b"first"
        other.replace(path)
        memory[9000:9006] = b"second"
        memory.flush()
    assert path.read_bytes() == b"other" * 2000
    data = (here / "z").read_bytes()
    assert (data[:5], data[9000:9006], len(data)) == (b"first", b"second", 10_000)


def test_names_of_attributes_have_255_bytes(here: Path) -> None:
    path = here / "x"
    path.touch()
    longest = "user." + "n" * 250
    os.setxattr(path, longest, b"v")
    assert os.listxattr(path) == [longest]
    for call in (
        lambda: os.setxattr(path, longest + "n", b"v"),
        lambda: os.getxattr(path, longest + "n"),
        lambda: os.removexattr(path, longest + "n"),
    ):
        with pytest.raises(OSError, match="out of range") as caught:
            call()
        assert caught.value.errno == errno.ERANGE
    with pytest.raises(OSError, match="too long") as caught:
        os.setxattr(path, "user.large", bytes(65_537))
    assert caught.value.errno == errno.E2BIG
    os.removexattr(path, longest)
    assert os.listxattr(path) == []


def test_appending_follows_the_end_of_the_file(here: Path) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    one, two = (os.open(here / "x", flags) for _ in range(2))
    os.write(one, b"one" * 1000)
    os.write(two, b"two")
    os.ftruncate(one, 4)
    os.write(two, b"TWO")
    os.truncate(here / "x", 9)
    os.write(one, b"ONE")
    assert os.lseek(one, 0, os.SEEK_CUR) == 12
    os.close(one)
    os.close(two)
    assert (here / "x").read_bytes() == b"oneoTWO\0\0ONE"


def test_an_exchange_of_a_directory_and_what_is_in_it(here: Path) -> None:
    (here / "d" / "e").mkdir(parents=True)
    (here / "d" / "f").write_bytes(b"f")
    for inside in ("d/f", "d/e"):
        for pair in (("d", inside), (inside, "d")):
            with pytest.raises(OSError, match="Invalid") as caught:
                rename2(*(str(here / name) for name in pair), RENAME_EXCHANGE)
            assert caught.value.errno == errno.EINVAL
    # One level up it is none of its own.
    (here / "g").write_bytes(b"g")
    rename2(str(here / "d/e"), str(here / "g"), RENAME_EXCHANGE)
    assert (here / "d/e").read_bytes() == b"g"
    assert (here / "g").is_dir()
    assert (here / "d").stat().st_nlink == 2
    assert here.stat().st_nlink == 4
    assert os.stat(here / "g" / "..").st_ino == here.stat().st_ino
