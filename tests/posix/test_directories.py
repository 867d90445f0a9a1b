"""Directory streams: each name once, whatever others do meanwhile, and positions to return to."""

from __future__ import annotations

import ctypes
import os
import random
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.posix.calls import checked, rename2
from tests.posix.conftest import Place, make

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: More than one reply holds (32 KiB of the host's, 256 rows of the tree's).
MANY = 1200


class Dirent(ctypes.Structure):
    """struct dirent of 64-bit Linux."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = ctypes.c_void_p
LIBC.readdir.restype = ctypes.POINTER(Dirent)
LIBC.telldir.restype = ctypes.c_long
for function in (LIBC.readdir, LIBC.telldir, LIBC.rewinddir, LIBC.closedir):
    function.argtypes = (ctypes.c_void_p,)
LIBC.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Stream:
    """opendir(3) and what goes with it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def read(self) -> bytes | None:
        """The next name; None at the end."""
        entry = LIBC.readdir(self._handle)
        return bytes(entry.contents.name) if entry else None

    def rest(self) -> list[bytes]:
        """The names up to the end, but for the two that every directory has."""
        names = []
        while (name := self.read()) is not None:
            if name not in (b".", b".."):
                names.append(name)
        return names

    def tell(self) -> int:
        return int(LIBC.telldir(self._handle))

    def seek(self, position: int) -> None:
        LIBC.seekdir(self._handle, position)

    def rewind(self) -> None:
        LIBC.rewinddir(self._handle)


@contextmanager
def stream(path: Path) -> Iterator[Stream]:
    handle = LIBC.opendir(os.fsencode(path))
    assert handle
    try:
        yield Stream(handle)
    finally:
        checked(LIBC.closedir(handle))


def filled(place: Place, count: int = MANY) -> tuple[Path, set[bytes]]:
    """A directory with that many files."""
    directory = place.path / place.directory()
    names = {b"name-%05d" % number for number in range(count)}
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(directory), name), os.O_CREAT))
    return directory, names


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, MANY])
def test_each_name_once(place: Place, count: int) -> None:
    directory, names = filled(place, count)
    with stream(directory) as listing:
        found = listing.rest()
        assert sorted(found) == sorted(names)
        assert listing.read() is None
        listing.rewind()
        assert {listing.read(), listing.read()} <= {b".", b".."} | names
        listing.rewind()
        assert listing.rest() == found


def test_positions_can_be_returned_to(place: Place) -> None:
    directory, names = filled(place)
    with stream(directory) as listing:
        positions = []
        while True:
            at = listing.tell()
            name = listing.read()
            if name is None:
                break
            positions.append((at, name))
        assert len({at for at, _ in positions}) == len(names) + 2
        for at, name in random.Random(3).sample(positions, 60):
            listing.seek(at)
            assert listing.read() == name


def test_positions_hold_while_names_come_and_go(place: Place) -> None:
    directory, names = filled(place)
    with stream(directory) as listing:
        before = [name for name in (listing.read() for _ in range(500)) if name]
        at = listing.tell()
        rest = set(listing.rest())
        gone = set(random.Random(4).sample(sorted(rest), 100))
        for name in gone:
            os.unlink(os.path.join(os.fsencode(directory), name))
        for number in range(50):
            (directory / f"late-{number}").touch()
        listing.seek(at)
        after = listing.rest()
    stayed = [name for name in after if name in names]
    assert sorted(stayed) == sorted(rest - gone)
    assert not set(before) & set(after)
    assert len(after) == len(set(after))


def test_removing_while_reading_misses_nothing(place: Place) -> None:
    directory, names = filled(place)
    removed = []
    with stream(directory) as listing:
        while (name := listing.read()) is not None:
            if name not in (b".", b".."):
                os.unlink(os.path.join(os.fsencode(directory), name))
                removed.append(name)
    assert sorted(removed) == sorted(names)
    assert os.listdir(directory) == []


def test_adding_while_reading_ends_and_repeats_nothing(place: Place) -> None:
    directory, names = filled(place, 600)
    base = os.fsencode(directory)
    seen = []
    with stream(directory) as listing:
        while (name := listing.read()) is not None:
            seen.append(name)
            os.close(os.open(os.path.join(base, b"new-%05d" % len(seen)), os.O_CREAT))
            assert len(seen) < 10_000
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    assert len(os.listdir(directory)) == 600 + len(seen)


@pytest.mark.parametrize("flag", [0, 2], ids=["replaced", "exchanged"])
def test_a_name_that_gets_another_file_is_read_once(place: Place, flag: int) -> None:
    directory, names = filled(place, 600)
    order = random.Random(6).sample(sorted(names), 600)
    seen = []
    with stream(directory) as listing:
        while (name := listing.read()) is not None:
            if name in names:
                seen.append(name)
                other = directory / "temporary"
                if flag == 2:
                    other = directory / os.fsdecode(order[0])
                else:
                    other.write_bytes(name)
                rename2(str(other), str(directory / os.fsdecode(order[len(seen) - 1])), flag)
    assert sorted(seen) == sorted(names)


def test_a_listing_tells_inode_numbers_and_types(place: Place) -> None:
    directory = place.path / place.directory()
    for kind in ("file", "dir", "dangling", "fifo", "socket", "null"):
        make(directory / kind, kind)
    with os.scandir(directory) as entries:
        for entry in entries:
            found = (directory / entry.name).lstat()
            assert entry.inode() == found.st_ino
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(found.st_mode)
            assert entry.is_file(follow_symlinks=False) == stat.S_ISREG(found.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(found.st_mode)


def test_dot_and_dot_dot_are_the_directory_and_its_parent(place: Place) -> None:
    directory = place.path / place.directory()
    (directory / "d" / "e").mkdir(parents=True)
    assert (directory / "d" / "." / ".").stat().st_ino == (directory / "d").stat().st_ino
    assert (directory / "d/e/../..").stat().st_ino == directory.stat().st_ino
    os.rename(directory / "d/e", directory / "e")
    assert (directory / "e/..").stat().st_ino == directory.stat().st_ino


def test_a_deep_tree(place: Place) -> None:
    """Deeper than a path can name: 60 levels of 100 bytes."""
    here = os.open(place.path / place.directory(), os.O_RDONLY)
    top = here
    levels = []
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=here)
        here = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        levels.append(here)
    os.close(os.open("bottom", os.O_CREAT, dir_fd=here))
    assert os.listdir(here) == ["bottom"]
    os.unlink("bottom", dir_fd=here)
    for above in [*levels[:-1][::-1], top]:
        os.rmdir("d" * 100, dir_fd=above)
    assert os.listdir(top) == []
    for descriptor in (top, *levels):
        os.close(descriptor)
