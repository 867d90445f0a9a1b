"""Which times move: a (access), m (modification), c (status change), of the object and its parent.

Before each call both have access and modification times of 2001, and the clock has moved since the
last change; "-" means that no time moves. Reads move the access time by relatime's rule, which an
access time of 2001 fulfils. From POSIX.1-2017 (the pages of the calls) and inode(7).
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.posix.calls import OLD_NS
from tests.posix.conftest import Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMES = grid(
    "times",
    """
                              object  parent
file: read                    a       -
file: read at the end         a       -
file: read nothing            -       -
file: mmap load               a       -
file: execve                  a       -
file: write some              mc      -
file: write nothing           -       -
file: append                  mc      -
file: mmap store              amc     -
file: truncate                mc      -
file: truncate longer         mc      -
file: truncate same           mc      -
file: ftruncate               mc      -
file: ftruncate same          mc      -
file: open O_TRUNC            mc      -
file: open O_RDONLY|O_TRUNC   mc      -
file: open O_RDONLY           -       -
file: open O_WRONLY           -       -
file: open O_CREAT            -       -
file: fsync                   -       -
file: stat                    -       -
file: access R_OK             -       -
file: statfs                  -       -
file: getxattr                -       -
file: listxattr               -       -
file: setxattr                c       -
file: removexattr             c       -
file: chmod                   c       -
file: chown                   c       -
file: chown -1 -1             c       -
file: lchown                  c       -
file: utimensat               amc     -
file: utimensat NOW           amc     -
file: utimensat NOW OMIT      ac      -
file: utimensat OMIT          -       -
file: link to new             c       mc
file: unlink                  c       mc
file: rename to new           c       mc
file: rename noreplace        c       mc
file: rename onto itself      -       -
file: mkdir                   -       -
file: open O_CREAT|O_EXCL     -       -
file: setxattr CREATE         -       -
file: removexattr absent      -       -
empty: open O_TRUNC           mc      -
empty: read                   a       -
dir: readdir                  a       -
dir: open O_RDONLY            -       -
dir: chdir                    -       -
dir: stat                     -       -
dir: chmod                    c       -
dir: chown                    c       -
dir: setxattr                 c       -
dir: utimensat                amc     -
dir: utimensat NOW            amc     -
dir: rmdir                    c       mc
dir: rename to new            c       mc
dir: mkdir                    -       -
full: rmdir                   -       -
dangling: readlink            a       -
dangling: lstat               -       -
dangling: lchown              c       -
dangling: utimensat nofollow  amc     -
dangling: rename to new       c       mc
dangling: unlink              c       mc
fifo: chmod                   c       -
fifo: utimensat NOW           amc     -
fifo: link to new             c       mc
fifo: unlink                  c       mc
socket: rename to new         c       mc
""",
)


def times(descriptor: int) -> dict[str, int]:
    """The three times of what an O_PATH descriptor stands for."""
    found = os.fstat(descriptor)
    return {"a": found.st_atime_ns, "m": found.st_mtime_ns, "c": found.st_ctime_ns}


@contextmanager
def held(*paths: Path) -> Iterator[list[int]]:
    """O_PATH descriptors, which follow their objects whatever becomes of the names."""
    descriptors: list[int] = []
    try:
        descriptors.extend(os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in paths)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def let_clock_move(place: Place, beyond_ns: int) -> None:
    """Return when a change gets a later time: a file system's clock may move in ticks of 4 ms."""
    path = place.path / "clock"
    while True:
        path.write_bytes(b"tick")
        if path.stat().st_mtime_ns > beyond_ns:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("row", TIMES.rows)
def test_what_moves(place: Place, row: str) -> None:
    kind, _, call = row.partition(": ")
    directory = place.directory()
    path = place.path / directory / "x"
    make(path, "file" if kind == "empty" else kind)
    if kind == "empty":
        os.truncate(path, 0)
    if call == "unlink":
        os.link(path, place.path / place.directory() / "second", follow_symlinks=False)
    with held(path, path.parent) as descriptors:
        for one in (path, path.parent):
            os.utime(one, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
        before = [times(descriptor) for descriptor in descriptors]
        let_clock_move(place, max(one["c"] for one in before))
        place.users["owner"].ask(call, f"{directory}/x")
        after = [times(descriptor) for descriptor in descriptors]
    moved = [
        "".join(letter for letter in "amc" if now[letter] != then[letter]) or "-"
        for then, now in zip(before, after, strict=True)
    ]
    found = dict(zip(TIMES.columns, moved, strict=True))
    assert found == expected(place.name, "times", row, TIMES.rows[row])


NEW = ("open O_CREAT", "open O_CREAT|O_EXCL", "mkdir", "mkfifo", "mknod file", "symlink", "bind")


@pytest.mark.parametrize("call", [*NEW, "rename2", "link"])
def test_a_new_name_moves_its_directory(place: Place, call: str) -> None:
    directory, other = place.directory(), place.directory()
    parent = place.path / directory
    caller = place.users["owner"]
    make(place.path / other / "x", "file")
    os.utime(parent, ns=(OLD_NS, OLD_NS))
    before = parent.stat()
    let_clock_move(place, before.st_ctime_ns)
    started_ns = parent.parent.joinpath("clock").stat().st_mtime_ns
    arguments = {"rename2": (f"{other}/x", f"{directory}/n", 0), "link": (f"{other}/x",)}
    caller.do(call, *arguments.get(call, ()), *([f"{directory}/n"] if call != "rename2" else []))
    after, made = parent.stat(), (parent / "n").lstat()
    assert after.st_atime_ns == OLD_NS
    assert after.st_mtime_ns == after.st_ctime_ns >= started_ns
    assert made.st_ctime_ns >= started_ns
    if call not in ("rename2", "link"):
        assert made.st_atime_ns == made.st_mtime_ns <= made.st_ctime_ns
        found = {"ctime": "same" if made.st_ctime_ns == made.st_mtime_ns else "later"}
        assert found == expected(place.name, "new", call, {"ctime": "same"})
        assert (made.st_uid, made.st_gid) == (caller.uid, caller.gid)


@pytest.mark.parametrize("flag", [0, 2], ids=["replace", "exchange"])
def test_a_rename_between_directories_moves_both(place: Place, flag: int) -> None:
    one, two = place.directory(), place.directory()
    make(place.path / one / "x", "file")
    make(place.path / two / "y", "file")
    for directory in (one, two):
        os.utime(place.path / directory, ns=(OLD_NS, OLD_NS))
    with held(place.path / two / "y") as (kept,):
        before = times(kept)
        let_clock_move(place, before["c"])
        place.users["owner"].do("rename2", f"{one}/x", f"{two}/y", flag)
        after = times(kept)
    for directory in (one, two):
        assert (place.path / directory).stat().st_mtime_ns != OLD_NS
    assert after["c"] > before["c"]
    assert after["m"] == before["m"]


MOMENTS = (0, 1, -1, 2**31, 2**31 - 1, 2**32, 2**33, 1 - 2**31)


@pytest.mark.parametrize("seconds", MOMENTS)
@pytest.mark.parametrize("kind", ["file", "dir", "dangling"])
def test_times_are_kept_to_the_nanosecond(place: Place, kind: str, seconds: int) -> None:
    path = place.path / place.directory() / "x"
    make(path, kind)
    atime_ns, mtime_ns = seconds * 10**9 + 123_456_789, seconds * 10**9 + 999_999_999
    os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    found = path.lstat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (atime_ns, mtime_ns)
