"""Names of /local: links, renames, types of objects, listings."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.vfs.hostworld import ROOT, World
from unifs.mounts.hostcalls import RENAME_EXCHANGE, RENAME_NOREPLACE

if TYPE_CHECKING:
    from unifs.types import Attributes


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff\xfe", b"a\nb", b"-rf", b" ", b"...", b"\x01"])
def test_odd_names(world: World, name: bytes) -> None:
    inode = world.make(name, b"x")
    assert world.names() == [name]
    assert world.find(name).ino == inode.ino
    world.volume.rename(world.root, name, world.root, b"plain", 0)
    world.volume.rename(world.root, b"plain", world.root, name, 0)
    world.volume.unlink(world.root, name, ROOT)
    assert os.listdir(world.directory) == []


def test_every_type_of_object(world: World) -> None:
    volume = world.volume
    made = {
        b"file": volume.mknod(world.root, b"file", stat.S_IFREG | 0o600, 0, ROOT),
        b"fifo": volume.mknod(world.root, b"fifo", stat.S_IFIFO | 0o600, 0, ROOT),
        b"sock": volume.mknod(world.root, b"sock", stat.S_IFSOCK | 0o600, 0, ROOT),
        b"dir": volume.mkdir(world.root, b"dir", 0o700, ROOT),
        b"link": volume.symlink(world.root, b"link", b"/etc/\xff", ROOT),
    }
    if os.geteuid() == 0:
        made[b"null"] = volume.mknod(
            world.root, b"null", stat.S_IFCHR | 0o600, os.makedev(1, 3), ROOT
        )
        assert made[b"null"].attributes.st_rdev == os.makedev(1, 3)
    assert volume.readlink(made[b"link"]) == b"/etc/\xff"
    for name, attributes in world.list():
        assert attributes.st_mode == made[name].attributes.st_mode
        assert attributes.st_ino == made[name].ino
    assert len(world.remembered) == len(made)


def test_hard_links(world: World) -> None:
    inode = world.make(b"a", b"x")
    linked = world.volume.link(inode, world.root, b"b", ROOT)
    assert (linked.ino, linked.attributes.st_nlink) == (inode.ino, 2)
    world.volume.unlink(world.root, b"b", ROOT)
    assert world.volume.getattr(inode).st_nlink == 1
    assert world.find(b"a").ino == inode.ino
    symlink = world.volume.symlink(world.root, b"s", b"target", ROOT)
    twin = world.volume.link(symlink, world.root, b"s2", ROOT)
    assert twin.ino == symlink.ino
    assert os.readlink(world.directory / "s2") == "target"


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
def test_a_renamed_file_is_reached_under_its_new_name(world: World, flags: int) -> None:
    inode = world.make(b"a", b"1")
    sub = world.volume.mkdir(world.root, b"sub", 0o755, ROOT)
    world.volume.rename(world.root, b"a", sub, b"b", flags)
    assert world.volume.getattr(inode).st_size == 1
    world.volume.open(inode, os.O_RDONLY, ROOT).release()
    other = world.make(b"c", b"22")
    world.volume.rename(world.root, b"c", sub, b"b", RENAME_EXCHANGE)
    assert world.volume.getattr(inode).st_size == 1
    assert world.volume.getattr(other).st_size == 2


def test_rename_replaces_refuses_and_exchanges(world: World) -> None:
    one, two = world.make(b"one", b"1"), world.make(b"two", b"2")
    sub = world.volume.mkdir(world.root, b"sub", 0o755, ROOT)
    with pytest.raises(FileExistsError):
        world.volume.rename(world.root, b"one", world.root, b"two", RENAME_NOREPLACE)
    world.volume.rename(world.root, b"one", world.root, b"two", RENAME_EXCHANGE)
    assert (world.find(b"one").ino, world.find(b"two").ino) == (two.ino, one.ino)
    assert world.volume.getattr(one).st_size == 1
    world.volume.rename(world.root, b"one", sub, b"moved", RENAME_NOREPLACE)
    assert world.find(b"sub/moved").ino == two.ino
    world.volume.rename(world.root, b"two", sub, b"moved", 0)
    assert world.find(b"sub/moved").ino == one.ino
    assert world.volume.getattr(two).st_nlink == 0
    with pytest.raises(FileNotFoundError):
        world.volume.rename(world.root, b"absent", sub, b"moved", 0)
    assert world.find(b"sub/moved").ino == one.ino


def test_renaming_onto_another_link_of_the_same_file_changes_nothing(world: World) -> None:
    inode = world.make(b"a", b"x")
    world.volume.link(inode, world.root, b"b", ROOT)
    world.volume.rename(world.root, b"a", world.root, b"b", 0)
    assert world.names() == [b"a", b"b"]
    assert world.volume.getattr(inode).st_nlink == 2


def test_a_renamed_directory_keeps_what_is_in_it(world: World) -> None:
    top = world.volume.mkdir(world.root, b"top", 0o755, ROOT)
    below = world.volume.mkdir(top, b"below", 0o755, ROOT)
    world.volume.create(below, b"f", 0o644, os.O_RDWR, ROOT)[1].release()
    world.volume.rename(world.root, b"top", world.root, b"elsewhere", 0)
    assert world.volume.lookup(below, b"f").ino == world.find(b"elsewhere/below/f").ino


def test_removing_what_is_not_empty_or_not_there(world: World) -> None:
    sub = world.volume.mkdir(world.root, b"sub", 0o755, ROOT)
    world.volume.mkdir(sub, b"inner", 0o755, ROOT)
    with pytest.raises(OSError, match="not empty"):
        world.volume.rmdir(world.root, b"sub", ROOT)
    with pytest.raises(FileNotFoundError):
        world.volume.unlink(world.root, b"absent", ROOT)
    with pytest.raises(IsADirectoryError):
        world.volume.unlink(world.root, b"sub", ROOT)
    assert world.names(sub) == [b"inner"]


# --- listings -----------------------------------------------------------------------------------


def test_a_listing_goes_on_where_it_was_cut(world: World) -> None:
    for number in range(2000):
        (world.directory / f"file-{number}").touch()
    handle = world.volume.opendir(world.root)
    seen: list[bytes] = []
    offset = 0

    def emit(name: bytes, attributes: Attributes, after: int) -> bool:
        nonlocal offset
        if taken[0] == 7:
            return False
        taken[0] += 1
        seen.append(name)
        offset = after
        return True

    while True:
        taken = [0]
        handle.readdir(offset, emit)
        if not taken[0]:
            break
        if len(seen) % 70 == 0:
            # Another handle, at the same offset: the cookie is the host's, not the handle's.
            handle.release()
            handle = world.volume.opendir(world.root)
    handle.release()
    assert sorted(seen) == sorted(f"file-{number}".encode() for number in range(2000))
    assert len(world.remembered) == 2000


def test_a_listing_survives_removals_and_starts_again_at_zero(world: World) -> None:
    for number in range(300):
        world.make(b"f%d" % number)
    handle = world.volume.opendir(world.root)
    seen: list[bytes] = []

    def emit(name: bytes, attributes: Attributes, after: int) -> bool:
        seen.append(name)
        world.volume.unlink(world.root, name, ROOT)
        return True

    handle.readdir(0, emit)
    assert len(seen) == len(set(seen)) == 300
    world.make(b"late")
    seen.clear()
    handle.readdir(0, emit)
    assert seen == [b"late"]
    world.make(b"later")
    handle.readdir(0, lambda name, attributes, after: False)
    world.make(b"latest")
    seen.clear()
    handle.readdir(0, emit)
    assert sorted(seen) == [b"later", b"latest"]
    handle.release()


def test_an_entry_that_did_not_fit_is_not_remembered(world: World) -> None:
    (world.directory / "a").touch()
    handle = world.volume.opendir(world.root)
    before = world.volume.remembered
    handle.readdir(0, lambda name, attributes, after: False)
    assert (world.remembered, world.volume.remembered) == ([], before)
    handle.release()
