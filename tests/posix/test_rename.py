"""Renaming: every kind over every kind, with each flag, and what may not move where."""

from __future__ import annotations

import os
import stat

import pytest

from tests.posix.conftest import Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid, told

FLAGS = {"rename": 0, "noreplace": 1, "exchange": 2}

#: Row: what is renamed; column: what has the new name.
OVER = grid(
    "rename over",
    """
            absent  file     dir     full       link     dangling  fifo     socket   null
file        -       -        EISDIR  EISDIR     -        -         -        -        -
dir         -       ENOTDIR  -       ENOTEMPTY  ENOTDIR  ENOTDIR   ENOTDIR  ENOTDIR  ENOTDIR
full        -       ENOTDIR  -       ENOTEMPTY  ENOTDIR  ENOTDIR   ENOTDIR  ENOTDIR  ENOTDIR
link        -       -        EISDIR  EISDIR     -        -         -        -        -
dangling    -       -        EISDIR  EISDIR     -        -         -        -        -
fifo        -       -        EISDIR  EISDIR     -        -         -        -        -
socket      -       -        EISDIR  EISDIR     -        -         -        -        -
null        -       -        EISDIR  EISDIR     -        -         -        -        -
absent      ENOENT  ENOENT   ENOENT  ENOENT     ENOENT   ENOENT    ENOENT   ENOENT   ENOENT
""",
)


def identity(place: Place, name: str) -> tuple[int, int] | None:
    """What an object is, whatever its name; None where there is none."""
    try:
        found = os.lstat(place.path / name)
    except FileNotFoundError:
        return None
    return found.st_ino, stat.S_IFMT(found.st_mode)


def wanted(flag: str, kind: str, cells: dict[str, str]) -> dict[str, str]:
    """A row of the table under a flag."""
    if flag == "noreplace" and kind != "absent":
        return {column: "-" if column == "absent" else "EEXIST" for column in cells}
    if flag == "exchange":
        there = {column: "ENOENT" if column == "absent" else "-" for column in cells}
        return cells if kind == "absent" else there
    return cells


@pytest.mark.parametrize("is_same_directory", [True, False], ids=["within", "across"])
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", OVER.rows)
def test_over(place: Place, kind: str, flag: str, is_same_directory: bool) -> None:
    found = {}
    for column in OVER.columns:
        source = place.directory()
        target = source if is_same_directory else place.directory()
        old, new = f"{source}/old", f"{target}/new"
        # Links name "target", which two of them share.
        make(place.path / old, kind)
        if not is_same_directory or {kind, column} != {"link"}:
            make(place.path / new, column)
        else:
            (place.path / new).symlink_to("target")
        before = identity(place, old), identity(place, new)
        caller = place.users["owner"]
        found[column] = told(caller.ask("rename2", old, new, FLAGS[flag])[0])
        after = identity(place, old), identity(place, new)
        if found[column] != "-":
            assert after == before
        else:
            assert after == (before[1] if flag == "exchange" else None, before[0])
    assert found == wanted(flag, kind, expected(place.name, "rename over", kind, OVER.rows[kind]))


#: Paths below one directory: d (with d/e), file f with a second name g, a symlink s to d.
WAYS = grid(
    "rename ways",
    """
                rename     noreplace  exchange
d d/x           EINVAL     EINVAL     ENOENT
d d/e           EINVAL     EEXIST     EINVAL
d d/e/x         EINVAL     EINVAL     ENOENT
d/e d           ENOTEMPTY  EEXIST     EINVAL
d d             -          EEXIST     -
d d/            -          EEXIST     -
d s/x           EINVAL     EINVAL     ENOENT
f g             -          EEXIST     -
f f             -          EEXIST     -
f d/x           -          -          ENOENT
f/ h            ENOTDIR    ENOTDIR    ENOENT
f h/            ENOTDIR    ENOTDIR    ENOENT
d h/            -          -          ENOENT
s/ h            ENOTDIR    ENOTDIR    ENOENT
f/x h           ENOTDIR    ENOTDIR    ENOTDIR
f h/x           ENOENT     ENOENT     ENOENT
f f/x           ENOTDIR    ENOTDIR    ENOTDIR
d/. h           EBUSY      EBUSY      EBUSY
d/.. h          EBUSY      EBUSY      EBUSY
f d/.           EBUSY      EEXIST     EBUSY
f d/..          EBUSY      EEXIST     EBUSY
""",
)


@pytest.mark.parametrize("way", WAYS.rows)
def test_ways(place: Place, way: str) -> None:
    found = {}
    for flag in WAYS.columns:
        directory = place.directory()
        base = place.path / directory
        (base / "d" / "e").mkdir(parents=True)
        (base / "f").touch()
        os.link(base / "f", base / "g")
        (base / "s").symlink_to("d")
        old, new = (f"{directory}/{name}" for name in way.split())
        found[flag] = told(place.users["root"].ask("rename2", old, new, FLAGS[flag])[0])
        assert (base / "f").exists() != (way == "f d/x" and found[flag] == "-")
    assert found == expected(place.name, "rename ways", way, WAYS.rows[way])


def test_unknown_flags(place: Place) -> None:
    directory = place.directory()
    make(place.path / directory / "x", "file")
    caller = place.users["root"]
    for flags in (3, 6, 8, 1 << 20):
        number = caller.ask("rename2", f"{directory}/x", f"{directory}/y", flags)[0]
        assert told(number) == "EINVAL", flags


def test_two_names_of_one_file_stay_two_names(place: Place) -> None:
    directory = place.path / place.directory()
    (directory / "one").write_bytes(b"bytes")
    os.link(directory / "one", directory / "two")
    os.rename(directory / "one", directory / "two")
    assert sorted(os.listdir(directory)) == ["one", "two"]
    assert (directory / "two").stat().st_nlink == 2


def test_what_is_replaced_lives_while_it_is_open(place: Place) -> None:
    directory = place.path / place.directory()
    (directory / "new").write_bytes(b"new")
    (directory / "old").write_bytes(b"old")
    with (directory / "old").open("r+b") as file:
        os.replace(directory / "new", directory / "old")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"old"
        file.write(b" and more")
        file.seek(0)
        assert file.read() == b"old and more"
    assert (directory / "old").read_bytes() == b"new"


def test_a_renamed_file_keeps_its_open_descriptors(place: Place) -> None:
    directory, other = place.path / place.directory(), place.path / place.directory()
    with (directory / "x").open("w+b") as file:
        file.write(b"before")
        file.flush()
        os.rename(directory / "x", other / "y")
        file.write(b" after")
        file.flush()
        assert (other / "y").read_bytes() == b"before after"
        assert os.fstat(file.fileno()).st_ino == (other / "y").stat().st_ino


def test_directories_count_their_subdirectories(place: Place) -> None:
    one, two = place.path / place.directory(), place.path / place.directory()
    (one / "d").mkdir()
    assert (one.stat().st_nlink, two.stat().st_nlink) == (3, 2)
    os.rename(one / "d", two / "d")
    assert (one.stat().st_nlink, two.stat().st_nlink) == (2, 3)
    (one / "d").mkdir()
    os.rename(one / "d", two / "d")
    assert (one.stat().st_nlink, two.stat().st_nlink) == (2, 3)
    (two / "d").rmdir()
    assert two.stat().st_nlink == 2
