"""What a path can be wrong about, for every call that takes one."""

from __future__ import annotations

import os

import pytest

from tests.posix.conftest import Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid, told

#: Below a directory with a file f, a directory d, a symlink to itself l and a dangling one g.
PATHS = {
    "empty": "",
    "256 bytes": "{}/" + "n" * 256,
    "256 bytes above": "{}/" + "n" * 256 + "/x",
    "4096 bytes": "{}/" + "./" * 2046 + "d",
    "file/x": "{}/f/x",
    "file/": "{}/f/",
    "absent/x": "{}/a/x",
    "loop/x": "{}/l/x",
    "dangling/x": "{}/g/x",
}

EXISTING = grid(
    "existing",
    """
                     empty   256 bytes     256 bytes above  4096 bytes    file/x   file/    absent/x  loop/x  dangling/x
each call            ENOENT  ENAMETOOLONG  ENAMETOOLONG     ENAMETOOLONG  ENOTDIR  ENOTDIR  ENOENT    ELOOP   ENOENT
""",  # noqa: E501 – a table
)
EXISTING_CALLS = (
    *("open O_RDONLY", "open O_WRONLY", "open O_RDWR", "open O_DIRECTORY", "open O_PATH"),
    *("stat", "lstat", "access F_OK", "readlink", "statfs", "chdir", "readdir", "execve"),
    *("truncate", "unlink", "rmdir", "link to new", "rename to new", "chmod", "chown", "lchown"),
    *("utimensat", "getxattr", "setxattr", "listxattr", "removexattr", "lgetxattr"),
)

MAKING = grid(
    "making",
    """
                     256 bytes     256 bytes above  4096 bytes    file/x   absent/x  loop/x  dangling/x
each call            ENAMETOOLONG  ENAMETOOLONG     ENAMETOOLONG  ENOTDIR  ENOENT    ELOOP   ENOENT
""",  # noqa: E501 – a table
)
MAKING_CALLS = ("open O_CREAT", "mkdir", "mkfifo", "mknod file", "symlink")


def prepare(place: Place) -> str:
    directory = place.directory()
    base = place.path / directory
    make(base / "f", "file")
    make(base / "d", "dir")
    make(base / "l", "loop")
    (base / "g").symlink_to("a")
    return directory


@pytest.mark.parametrize("call", EXISTING_CALLS)
def test_paths_of_what_should_exist(place: Place, call: str) -> None:
    directory = prepare(place)
    caller = place.users["owner"]
    found = {
        column: told(caller.ask(call, PATHS[column].format(directory))[0])
        for column in EXISTING.columns
    }
    assert found == expected(place.name, "existing", call, EXISTING.rows["each call"])


@pytest.mark.parametrize("call", MAKING_CALLS)
def test_paths_of_what_is_made(place: Place, call: str) -> None:
    directory = prepare(place)
    caller = place.users["owner"]
    found = {
        column: told(caller.ask(call, PATHS[column].format(directory))[0])
        for column in MAKING.columns
    }
    assert found == expected(place.name, "making", call, MAKING.rows["each call"])


@pytest.mark.parametrize("call", ["rename", "link"])
def test_paths_of_second_names(place: Place, call: str) -> None:
    directory = prepare(place)
    caller = place.users["owner"]
    found = {
        column: told(caller.ask(call, f"{directory}/f", PATHS[column].format(directory))[0])
        for column in MAKING.columns
    }
    assert found == expected(place.name, "making", call, MAKING.rows["each call"])


TAILS = grid(
    "tails",
    """
                     new/     dir/     dir/.    dir/..   file/.
open O_RDONLY        ENOENT   -        -        -        ENOTDIR
open O_CREAT         EISDIR   EISDIR   EISDIR   EISDIR   ENOTDIR
stat                 ENOENT   -        -        -        ENOTDIR
mkdir                -        EEXIST   EEXIST   EEXIST   ENOTDIR
mkfifo               ENOENT   EEXIST   EEXIST   EEXIST   ENOTDIR
symlink              ENOENT   EEXIST   EEXIST   EEXIST   ENOTDIR
unlink               ENOENT   EISDIR   EISDIR   EISDIR   ENOTDIR
rmdir                ENOENT   -        EINVAL   ENOTEMPTY  ENOTDIR
""",
)


@pytest.mark.parametrize("call", TAILS.rows)
def test_tails(place: Place, call: str) -> None:
    found = {}
    for column in TAILS.columns:
        path = prepare(place) + "/" + column.replace("dir", "d").replace("file", "f")
        found[column] = told(place.users["owner"].ask(call, path)[0])
    assert found == expected(place.name, "tails", call, TAILS.rows[call])


def test_longest_names(place: Place) -> None:
    directory = place.path / place.directory()
    for name in (b"n" * 255, "ü".encode() * 127 + b"x", bytes(range(1, 47)), b"\xff" * 255, b"..."):
        path = os.path.join(os.fsencode(directory), name)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        assert name in os.listdir(os.fsencode(directory))
        os.rename(path, path[:-1] + b"!")
        os.unlink(path[:-1] + b"!")
        os.mkdir(path)
        os.rmdir(path)
    assert os.listdir(directory) == []


@pytest.mark.parametrize("size", [1, 255, 4094, 4095])
def test_symlinks_up_to_the_longest_path(place: Place, size: int) -> None:
    directory = place.path / place.directory()
    (directory / "s").symlink_to("t" * size)
    assert os.readlink(directory / "s") == "t" * size
    assert (directory / "s").lstat().st_size == size


def test_longer_symlinks_are_refused(place: Place) -> None:
    directory = place.path / place.directory()
    with pytest.raises(OSError, match="File name too long"):
        (directory / "s").symlink_to("t" * 4096)
    with pytest.raises(FileNotFoundError):
        (directory / "s").symlink_to("")


@pytest.mark.parametrize(("length", "cell"), [(40, "-"), (41, "ELOOP")])
def test_chains_of_symlinks(place: Place, length: int, cell: str) -> None:
    """Linux follows 40 of them."""
    directory = place.directory()
    (place.path / directory / "0").touch()
    for number in range(length):
        (place.path / directory / str(number + 1)).symlink_to(str(number))
    assert told(place.users["owner"].ask("stat", f"{directory}/{length}")[0]) == cell
