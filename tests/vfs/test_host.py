"""Attributes of /local, what other programs do to it, and its bounds."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.vfs.hostworld import ROOT, World
from unifs.errors import AttributeNamespace, NoAttribute, Stale
from unifs.types import PlainCaller, SetAttributes

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.vfs.volume import Inode


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")


# --- attributes ---------------------------------------------------------------------------------


def test_setattr_applies_what_it_is_given_and_nothing_else(world: World) -> None:
    inode = world.make(b"a", b"0123456789")
    world.volume.setattr(inode, SetAttributes(mtime_ns=1_000_000_001), None, ROOT)
    before = os.stat(world.directory / "a")
    world.volume.setattr(inode, SetAttributes(atime_ns=5_000_000_007), None, ROOT)
    after = os.stat(world.directory / "a")
    assert (after.st_mtime_ns, after.st_atime_ns) == (1_000_000_001, 5_000_000_007)
    assert before.st_mode == after.st_mode
    got = world.volume.setattr(inode, SetAttributes(mode=0o4711, size_bytes=3), None, ROOT)
    assert (stat.S_IMODE(got.st_mode), got.st_size) == (0o4711, 3)
    handle = world.volume.open(inode, os.O_RDWR, ROOT)
    assert world.volume.setattr(inode, SetAttributes(size_bytes=8), handle, ROOT).st_size == 8
    handle.release()


def test_times_of_a_symlink_are_its_own(world: World) -> None:
    target = world.make(b"target")
    link = world.volume.symlink(world.root, b"link", b"target", ROOT)
    before = os.stat(world.directory / "target").st_mtime_ns
    world.volume.setattr(link, SetAttributes(atime_ns=1, mtime_ns=2), None, ROOT)
    assert os.lstat(world.directory / "link").st_mtime_ns == 2
    assert world.volume.getattr(target).st_mtime_ns == before


@needs_root
def test_new_objects_belong_to_their_caller(world: World) -> None:
    caller = PlainCaller(uid=1001, gid=1002)
    volume = world.volume
    made = [
        volume.create(world.root, b"f", 0o4755, os.O_RDWR, caller),
        volume.mkdir(world.root, b"d", 0o755, caller),
        volume.symlink(world.root, b"s", b"t", caller),
        volume.mknod(world.root, b"p", stat.S_IFIFO | 0o622, 0, caller),
    ]
    made[0][1].release()
    for inode in (made[0][0], *made[1:]):
        attributes = volume.getattr(inode)
        assert (attributes.st_uid, attributes.st_gid) == (1001, 1002)
    assert stat.S_IMODE(os.stat(world.directory / "f").st_mode) == 0o4755
    assert stat.S_IMODE(os.stat(world.directory / "p").st_mode) == 0o622


@needs_root
def test_a_set_group_id_directory_gives_its_group(world: World) -> None:
    os.chown(world.directory, 0, 50)
    os.chmod(world.directory, 0o2777)
    caller = PlainCaller(uid=1001, gid=1002)
    inode, handle = world.volume.create(world.root, b"f", 0o644, os.O_RDWR, caller)
    handle.release()
    sub = world.volume.mkdir(world.root, b"d", 0o755, caller)
    for made in (inode, sub):
        attributes = world.volume.getattr(made)
        assert (attributes.st_uid, attributes.st_gid) == (1001, 50)
    assert sub.attributes.st_mode & stat.S_ISGID


def test_the_mode_is_the_callers_whatever_the_daemons_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        world = World(tmp_path)
        inode, handle = world.volume.create(world.root, b"f", 0o666, os.O_RDWR, ROOT)
        handle.release()
        assert stat.S_IMODE(inode.attributes.st_mode) == 0o666
        sub = world.volume.mkdir(world.root, b"d", 0o777, ROOT)
        assert stat.S_IMODE(sub.attributes.st_mode) == 0o777
        world.volume.close()
    finally:
        os.umask(before)


def test_extended_attributes(world: World) -> None:
    inode = world.make(b"a")
    volume = world.volume
    volume.setxattr(inode, b"user.k", b"\0v")
    assert volume.getxattr(inode, b"user.k") == b"\0v"
    assert volume.listxattr(inode) == [b"user.k"]
    assert os.getxattr(world.directory / "a", "user.k") == b"\0v"
    volume.removexattr(inode, b"user.k")
    with pytest.raises(OSError, match="No data"):
        volume.getxattr(inode, b"user.k")
    for name in (b"security.capability", b"system.posix_acl_access", b"trusted.x"):
        with pytest.raises(AttributeNamespace):
            volume.getxattr(inode, name)
        with pytest.raises(AttributeNamespace):
            volume.setxattr(inode, name, b"")
    with pytest.raises(NoAttribute):
        volume.getxattr(inode, b"ipfs.cid")


# --- what others do -----------------------------------------------------------------------------


def test_a_rename_outside_is_stale_then_found_again_by_its_new_name(world: World) -> None:
    inode = world.make(b"a", b"x")
    os.rename(world.directory / "a", world.directory / "b")
    with pytest.raises(Stale):
        world.volume.getattr(inode)
    with pytest.raises(Stale):
        world.volume.open(inode, os.O_RDONLY, ROOT)
    assert (world.root.ino, b"a") in world.invalidations.entries
    assert world.find(b"b").ino == inode.ino
    assert world.volume.getattr(inode).st_size == 1


def test_a_name_that_others_gave_to_another_file_is_another_inode(world: World) -> None:
    inode = world.make(b"a", b"x")
    (world.directory / "b").write_bytes(b"other")
    os.rename(world.directory / "b", world.directory / "a")
    with pytest.raises(Stale):
        world.volume.open(inode, os.O_RDONLY, ROOT)
    with pytest.raises(Stale):
        world.volume.getattr(inode)
    assert world.find(b"a").ino != inode.ino


def test_a_fifo_in_the_files_place_does_not_stop_the_loop(world: World) -> None:
    inode = world.make(b"a", b"x")
    os.unlink(world.directory / "a")
    os.mkfifo(world.directory / "a")
    for flags in (os.O_RDONLY, os.O_RDWR):
        with pytest.raises(Stale):
            world.volume.open(inode, flags, ROOT)


def test_no_symlink_is_followed_on_the_host(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not shown")
    inode = world.make(b"a", b"x")
    sub = world.volume.mkdir(world.root, b"sub", 0o755, ROOT)
    os.unlink(world.directory / "a")
    os.symlink(secret, world.directory / "a")
    os.rmdir(world.directory / "sub")
    os.symlink(tmp_path, world.directory / "sub")
    for attempt in (
        lambda: world.volume.open(inode, os.O_RDONLY | os.O_TRUNC, ROOT),
        lambda: world.volume.setattr(inode, SetAttributes(mode=0o777), None, ROOT),
        lambda: world.volume.lookup(sub, b"secret"),
        lambda: world.volume.unlink(sub, b"secret", ROOT),
        lambda: world.volume.opendir(sub),
    ):
        with pytest.raises((Stale, FileNotFoundError, OSError)):
            attempt()
    assert secret.read_text() == "not shown"
    assert stat.S_ISLNK(world.find(b"a").attributes.st_mode)


def test_an_inode_number_that_the_host_gives_again_is_a_new_inode_here(world: World) -> None:
    inode = world.make(b"a")
    number = os.stat(world.directory / "a").st_ino
    world.volume.unlink(world.root, b"a", ROOT)
    world.volume.forgotten(inode.ino)
    again = None
    for attempt in range(200):
        again = world.volume.mkdir(world.root, b"d%d" % attempt, 0o755, ROOT)
        if os.stat(world.directory / f"d{attempt}").st_ino == number:
            break
    assert again is not None
    assert again.ino != inode.ino


def test_changes_outside_show_at_the_next_question(world: World) -> None:
    inode = world.make(b"a", b"x")
    (world.directory / "a").write_bytes(b"longer")
    attributes = world.volume.getattr(inode)
    assert attributes.st_size == 6
    assert attributes.attr_timeout == attributes.entry_timeout == 1.0


# --- bounds -------------------------------------------------------------------------------------


def test_descriptors_stay_bounded_and_cold_directories_are_found_again(world: World) -> None:
    deep = world.root
    chain: list[Inode] = []
    for _ in range(300):
        deep = world.volume.mkdir(deep, b"d", 0o755, ROOT)
        chain.append(deep)
    unlinked = []
    for number in range(300):
        unlinked.append(world.make(b"u%d" % number))
        world.volume.unlink(world.root, b"u%d" % number, ROOT)
    assert world.volume.getattr(unlinked[-1]).st_nlink == 0
    with pytest.raises(Stale):
        world.volume.getattr(unlinked[0])
    assert world.volume.descriptors <= 1 + 128 + 128
    made = world.volume.mkdir(chain[-1], b"leaf", 0o755, ROOT)
    for inode in chain[::-1]:
        assert world.volume.lookup(inode, b"leaf" if inode is chain[-1] else b"d")
    assert world.volume.descriptors <= 1 + 128 + 128
    assert world.volume.getattr(made).st_nlink == 2


def test_forgotten_objects_cost_nothing(world: World) -> None:
    before = world.volume.remembered
    for number in range(50):
        inode = world.make(b"f%d" % number)
        world.volume.unlink(world.root, b"f%d" % number, ROOT)
        world.volume.forgotten(inode.ino)
    assert world.volume.remembered == before
    assert world.volume.descriptors == 1


def test_a_directory_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        World(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        World(tmp_path / "file")
