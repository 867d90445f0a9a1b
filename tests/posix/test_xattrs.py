"""Extended attributes: names, sizes, flags, namespaces."""

from __future__ import annotations

import os

import pytest

from tests.posix.conftest import Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid, told

NAMESPACES = grid(
    "xattr namespaces",
    """
                                root        owner       other
get user.absent                 ENODATA     ENODATA     ENODATA
set user.new                    -           -           -
get security.absent             ENODATA     ENODATA     ENODATA
set security.new                -           EPERM       EPERM
remove security.absent          ENODATA     EPERM       EPERM
get trusted.absent              ENODATA     ENODATA     ENODATA
set trusted.new                 -           EPERM       EPERM
remove trusted.absent           ENODATA     EPERM       EPERM
get system.posix_acl_access     ENODATA     ENODATA     ENODATA
get system.unknown              EOPNOTSUPP  EOPNOTSUPP  EOPNOTSUPP
set system.unknown              EOPNOTSUPP  EOPNOTSUPP  EOPNOTSUPP
get unknown.name                EOPNOTSUPP  EOPNOTSUPP  EOPNOTSUPP
set unknown.name                EOPNOTSUPP  EOPNOTSUPP  EOPNOTSUPP
remove unknown.name             EOPNOTSUPP  EOPNOTSUPP  EOPNOTSUPP
get user.                       EINVAL      EINVAL      EINVAL
set user.                       EINVAL      EINVAL      EINVAL
""",
)


@pytest.mark.parametrize("row", NAMESPACES.rows)
def test_namespaces(place: Place, row: str) -> None:
    verb, name = row.split()
    found = {}
    for user in NAMESPACES.columns:
        path = f"{place.directory()}/x"
        make(place.path / path, "file")
        arguments = {"get": (100,), "set": (b"value",), "remove": ()}[verb]
        found[user] = told(place.users[user].ask(f"xattr {verb}", path, name, *arguments)[0])
    assert found == expected(place.name, "xattr namespaces", row, NAMESPACES.rows[row])


#: Flags 0, XATTR_CREATE, XATTR_REPLACE; on one that is there and one that is not.
FLAGS = grid(
    "xattr flags",
    """
         there    absent
0        -        -
1        EEXIST   -
2        -        ENODATA
4        EINVAL   EINVAL
""",
)


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("flag", FLAGS.rows)
def test_flags(place: Place, flag: str, kind: str) -> None:
    found = {}
    for column in FLAGS.columns:
        path = f"{place.directory()}/x"
        make(place.path / path, kind)
        caller, name = place.users["owner"], f"user.{column}"
        found[column] = told(caller.ask("xattr set", path, name, b"changed", int(flag))[0])
        there = {"there": b"value", "absent": None}[column]
        if found[column] == "-":
            there = b"changed"
        if there is None:
            assert told(caller.ask("xattr get", path, name, 10)[0]) == "ENODATA"
        else:
            assert os.getxattr(place.path / path, name) == there
    assert found == expected(place.name, "xattr flags", flag, FLAGS.rows[flag])


def test_buffers(place: Place) -> None:
    path = f"{place.directory()}/x"
    make(place.path / path, "file")
    caller = place.users["owner"]
    assert caller.ask("xattr get", path, "user.there", 0) == (0, 5)
    assert told(caller.ask("xattr get", path, "user.there", 4)[0]) == "ERANGE"
    assert caller.ask("xattr get", path, "user.there", 5) == (0, 5)
    assert caller.ask("xattr list", path, 0) == (0, 11)
    assert told(caller.ask("xattr list", path, 10)[0]) == "ERANGE"
    assert caller.ask("xattr list", path, 11) == (0, 11)
    caller.do("xattr set", path, "user.there", b"")
    assert caller.ask("xattr get", path, "user.there", 0) == (0, 0)
    caller.do("xattr remove", path, "user.there")
    assert caller.ask("xattr list", path, 0) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, 1000, 3500])
def test_any_bytes_are_a_value(place: Place, size: int) -> None:
    path = place.path / place.directory() / "x"
    path.touch()
    value = bytes(number * 7 % 256 for number in range(size))
    os.setxattr(path, "user.value", value)
    assert os.getxattr(path, "user.value") == value
    os.setxattr(path, "user.value", value[::-1])
    assert os.getxattr(path, "user.value") == value[::-1]


def test_values_up_to_64_kib(place: Place) -> None:
    """ext4 holds 4 KiB; the kernel's own limit is what both kinds of mount can have."""
    path = place.path / place.directory() / "x"
    path.touch()
    with pytest.raises(OSError, match="Argument list too long"):
        os.setxattr(path, "user.value", bytes(65_537))
    if place.name == "mfs":
        os.setxattr(path, "user.value", b"v" * 65_536)
        assert os.getxattr(path, "user.value") == b"v" * 65_536
    else:
        with pytest.raises(OSError, match="No space left"):
            os.setxattr(path, "user.value", b"v" * 65_536)


def test_names_up_to_255_bytes(place: Place) -> None:
    path = place.path / place.directory() / "x"
    path.touch()
    longest = "user." + "n" * 250
    os.setxattr(path, longest, b"v")
    assert os.getxattr(path, longest) == b"v"
    with pytest.raises(OSError, match="Numerical result out of range"):
        os.setxattr(path, longest + "n", b"v")
    assert os.listxattr(path) == [longest]
    odd = os.fsdecode(b"user.\xff \n=")
    os.setxattr(path, odd, b"w")
    assert sorted(os.listxattr(path)) == sorted([longest, odd])


def test_more_names_than_one_list_holds(place: Place) -> None:
    """Linux lists 64 KiB of names: E2BIG beyond it, as on XFS; ext4 takes no more before that."""
    path = place.path / place.directory() / "x"
    path.touch()
    names = [f"user.{number:03}" + "n" * 247 for number in range(258)]
    if place.name != "mfs":

        def fill() -> None:
            for name in names:
                os.setxattr(path, name, b"v")

        with pytest.raises(OSError, match="No space left"):
            fill()
        return
    for name in names[:256]:
        os.setxattr(path, name, b"v")
    assert os.listxattr(path) == sorted(names[:256])
    for name in names[256:]:
        os.setxattr(path, name, b"v")
    with pytest.raises(OSError, match="Argument list too long"):
        os.listxattr(path)
    assert os.getxattr(path, names[257]) == b"v"
    os.removexattr(path, names[257])
    os.removexattr(path, names[0])
    assert os.listxattr(path) == sorted(names[1:257])


def test_a_hundred_attributes(place: Place) -> None:
    path = place.path / place.directory()
    names = {f"user.{number}" for number in range(100)}
    for name in names:
        os.setxattr(path, name, name.encode())
    assert set(os.listxattr(path)) == names
    for name in sorted(names)[::2]:
        os.removexattr(path, name)
    assert len(os.listxattr(path)) == 50


def test_attributes_belong_to_the_object_and_not_to_its_name(place: Place) -> None:
    directory = place.path / place.directory()
    make(directory / "x", "file")
    os.link(directory / "x", directory / "y")
    os.setxattr(directory / "y", "user.there", b"other")
    assert os.getxattr(directory / "x", "user.there") == b"other"
    os.rename(directory / "x", directory / "z")
    assert os.getxattr(directory / "z", "user.there") == b"other"
    (directory / "new").touch()
    os.replace(directory / "new", directory / "z")
    assert os.listxattr(directory / "z") == []


def test_attributes_of_an_open_file_without_a_name(place: Place) -> None:
    path = place.path / place.directory() / "x"
    make(path, "file")
    with path.open("rb") as file:
        path.unlink()
        assert os.getxattr(file.fileno(), "user.there") == b"value"
        os.setxattr(file.fileno(), "user.more", b"v")
        assert sorted(os.listxattr(file.fileno())) == ["user.more", "user.there"]


def test_copies_do_not_need_what_is_never_listed(place: Place) -> None:
    path = place.path / place.directory() / "x"
    path.touch()
    assert os.listxattr(path) == []
