"""Owner, group and mode: of what is new, and what each call makes of the set-ID bits."""

from __future__ import annotations

import os
import stat

import pytest

from tests.posix.conftest import GROUP, OTHER, OWNER, SECOND_GROUP, Place, make
from tests.posix.differences import expected

MAKING = {
    "open": (os.O_CREAT | os.O_WRONLY, 0o6777),
    "mkdir": (0o7777,),
    "mkfifo": (0o6777,),
}
MEMBERS_GROUP = 70_202


def mode_of(place: Place, name: str) -> int:
    return stat.S_IMODE((place.path / name).lstat().st_mode)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("call", MAKING)
@pytest.mark.parametrize("user", ["root", "owner", "other"])
def test_the_mode_of_what_is_new(place: Place, user: str, call: str, mask: int) -> None:
    """The umask takes away; mkdir ignores all but the permissions and the sticky bit."""
    name = f"{place.directory()}/n"
    caller = place.users[user]
    caller.do("umask", mask, call, name, *MAKING[call])
    asked = MAKING[call][-1] & (0o1777 if call == "mkdir" else 0o7777)
    assert oct(mode_of(place, name)) == oct(asked & ~mask)
    found = (place.path / name).lstat()
    assert (found.st_uid, found.st_gid) == (caller.uid, caller.gid)


@pytest.mark.parametrize("call", [*MAKING, "symlink", "mknod file", "bind"])
@pytest.mark.parametrize("user", ["root", "owner", "other"])
def test_a_set_group_id_directory_hands_its_group_down(place: Place, user: str, call: str) -> None:
    directory = place.directory(0o2777, OWNER, SECOND_GROUP)
    caller = place.users[user]
    arguments = (os.O_CREAT | os.O_WRONLY, 0o644) if call == "open" else (0o755,)
    caller.do(call, f"{directory}/n", *(arguments if call in MAKING else ()))
    found = (place.path / directory / "n").lstat()
    assert (found.st_uid, found.st_gid) == (caller.uid, SECOND_GROUP)
    # A directory hands the bit itself down as well.
    assert bool(found.st_mode & stat.S_ISGID) == (call == "mkdir")


@pytest.mark.parametrize(("user", "keeps"), [("root", True), ("owner", True), ("other", False)])
def test_a_new_file_is_set_group_id_only_for_members(place: Place, user: str, keeps: bool) -> None:
    """Nobody gets a set-group-ID program of a group that they are not in."""
    directory = place.directory(0o2777, OWNER, SECOND_GROUP)
    place.users[user].do("open", f"{directory}/n", os.O_CREAT | os.O_WRONLY, 0o2775)
    assert bool(mode_of(place, f"{directory}/n") & stat.S_ISGID) == keeps


#: (mode before, call, caller) -> mode after; the file is the owner's, with the group GROUP.
SET_ID = (
    (0o6777, "write some", "other", 0o0777),
    (0o6777, "write some", "member", 0o0777),
    (0o6777, "write some", "owner", 0o0777),
    (0o6777, "write some", "root", 0o6777),
    (0o2767, "write some", "owner", 0o2767),
    (0o2767, "write some", "other", 0o0767),
    (0o4777, "append", "other", 0o0777),
    (0o6777, "write nothing", "other", 0o6777),
    (0o6777, "truncate", "other", 0o0777),
    (0o6777, "truncate", "root", 0o6777),
    (0o6777, "ftruncate", "other", 0o0777),
    (0o6777, "open O_TRUNC", "other", 0o0777),
    (0o6777, "open O_TRUNC", "owner", 0o0777),
    (0o6777, "open O_TRUNC", "root", 0o6777),
    (0o6777, "open O_RDONLY|O_TRUNC", "other", 0o0777),
    (0o6777, "open O_WRONLY", "other", 0o6777),
    (0o6777, "read", "other", 0o6777),
    (0o6777, "chown", "owner", 0o0777),
    (0o6777, "chown", "root", 0o0777),
    (0o6777, "chown -1 -1", "owner", 0o0777),
    (0o6767, "chown", "owner", 0o2767),
    (0o6777, "setxattr", "other", 0o6777),
    (0o6777, "link to new", "owner", 0o6777),
    (0o6777, "rename to new", "owner", 0o6777),
    (0o6777, "utimensat NOW", "other", 0o6777),
)


@pytest.mark.parametrize(("before", "call", "user", "after"), SET_ID)
def test_set_id_bits_of_a_file(place: Place, before: int, call: str, user: str, after: int) -> None:
    directory = place.directory()
    path = place.path / directory / "x"
    make(path, "file")
    path.chmod(before)
    place.users[user].do(call, f"{directory}/x")
    if call.startswith("rename"):
        path = path.with_name("x.new")
    row, wanted = f"{before:o} {call} {user}", {"after": f"{after:o}"}
    found = {"after": f"{stat.S_IMODE(path.stat().st_mode):o}"}
    assert found == expected(place.name, "set-id", row, wanted)


def test_truncating_an_empty_file_clears_its_set_id_bits(place: Place) -> None:
    directory = place.directory()
    path = place.path / directory / "x"
    path.touch()
    path.chmod(0o6777)
    place.users["other"].do("open O_TRUNC", f"{directory}/x")
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o777)


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
@pytest.mark.parametrize("mode", [0, 0o1, 0o644, 0o777, 0o1755, 0o2755, 0o4755, 0o7777])
def test_chmod_sets_all_twelve_bits(place: Place, kind: str, mode: int) -> None:
    directory = place.directory()
    make(place.path / directory / "x", kind)
    place.users["owner"].do("chmod to", f"{directory}/x", mode)
    assert oct(mode_of(place, f"{directory}/x")) == oct(mode)
    assert (place.path / directory / "x").is_dir() == (kind == "dir")


def test_chmod_drops_set_group_id_of_a_foreign_group(place: Place) -> None:
    directory = place.directory()
    make(place.path / directory / "x", "file", OWNER, 70_203)
    place.users["owner"].do("chmod to", f"{directory}/x", 0o6755)
    assert oct(mode_of(place, f"{directory}/x")) == oct(0o4755)


def test_a_directory_keeps_its_set_id_bits_when_it_is_given_away(place: Place) -> None:
    directory = place.directory(0o7777)
    os.chown(place.path / directory, OTHER, 70_203)
    assert oct(mode_of(place, directory)) == oct(0o7777)


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "dangling", "null"])
def test_owner_and_group_change_apart(place: Place, kind: str) -> None:
    path = place.path / place.directory() / "x"
    make(path, kind)
    os.lchown(path, OTHER, -1)
    assert path.lstat()[4:6] == (OTHER, GROUP)
    os.lchown(path, -1, MEMBERS_GROUP)
    assert path.lstat()[4:6] == (OTHER, MEMBERS_GROUP)
    os.lchown(path, 2**32 - 2, 2**32 - 2)
    assert path.lstat()[4:6] == (2**32 - 2, 2**32 - 2)


@pytest.mark.parametrize(
    ("kind", "device"),
    [(stat.S_IFCHR, (1, 3)), (stat.S_IFBLK, (7, 200)), (stat.S_IFCHR, (4095, 1_048_575))],
)
def test_device_nodes_keep_their_numbers(place: Place, kind: int, device: tuple[int, int]) -> None:
    path = place.path / place.directory() / "x"
    os.mknod(path, kind | 0o640, os.makedev(*device))
    found = path.stat()
    assert stat.S_IFMT(found.st_mode) == kind
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == device
