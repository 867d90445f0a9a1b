"""Host directories that come and go while the tree is mounted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs.harness import ROOT, FileSystem
from unifs.driver.notify import Notifications
from unifs.errors import Exists, NotFound, Stale
from unifs.mounttable import MountTable
from unifs.vfs.reserved import Reserved
from unifs.vfs.vfs import DOT_DOT
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.types import Attributes


class World:
    """A mount table over an otherwise empty tree, and a host directory to show in it."""

    def __init__(self, fs: FileSystem, directory: Path) -> None:
        self.fs = fs
        self.vfs = fs.vfs
        self.directory = directory
        self.table = MountTable(fs.vfs, fs.storage, Notifications(), "")
        self.table.add_local({}, 1.0)
        self.local = fs.vfs.lookup(fs.vfs.namespace.root.ino, b"local", ROOT).st_ino

    def look_up(self, *names: bytes) -> list[int]:
        """The inode numbers along a path below /local; each is one look-up to forget."""
        found = [self.local]
        for name in names:
            found.append(self.vfs.lookup(found[-1], name, ROOT).st_ino)
        return found[1:]

    def descriptors(self) -> int:
        """How many of this process's descriptors lead into the host directory."""
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        paths = [os.readlink(link) for link in links if os.path.lexists(link)]
        return sum(path.startswith(str(self.directory)) for path in paths)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    directory = tmp_path / "shown"
    (directory / "below").mkdir(parents=True)
    (directory / "below" / "file").write_bytes(b"bytes")
    async with FileSystem(tmp_path / "state", upkeep=False) as fs:
        made = World(fs, directory)
        await made.table.add("local/here", str(directory))
        yield made


async def test_a_removed_mount_keeps_no_descriptor(world: World) -> None:
    seen = world.look_up(b"here", b"below", b"file")
    world.vfs.forget([(ino, 1) for ino in seen])
    assert world.descriptors() > 0
    await world.table.remove("local/here")
    assert world.descriptors() == 0
    with pytest.raises(NotFound):
        world.look_up(b"here")


async def test_open_files_stay_usable_until_they_are_closed(world: World) -> None:
    root, below, file = world.look_up(b"here", b"below", b"file")
    handle = await complete(world.vfs.open, file, os.O_RDONLY, ROOT)
    listing = world.vfs.opendir(below, ROOT)
    await world.table.remove("local/here")
    assert bytes(await complete(world.vfs.read, handle.fh, 0, 10)) == b"bytes"
    assert world.vfs.getattr(file).st_size == 5
    names: list[bytes] = []

    def emit(name: bytes, attributes: Attributes, offset: int) -> bool:
        names.append(name)
        return True

    await complete(world.vfs.readdir, listing, DOT_DOT, emit)
    assert names == [b"file"]
    world.vfs.forget([(file, 1)])
    await complete(world.vfs.release, handle.fh)
    world.vfs.forget([(root, 1), (below, 1)])
    assert world.descriptors() > 0, "a look-up and the directory's handle are left"
    world.vfs.forget([(file, 1)])
    assert world.descriptors() > 0
    world.vfs.releasedir(listing)
    assert world.descriptors() == 0
    with pytest.raises(Stale):
        world.vfs.getattr(below)


async def test_a_name_can_be_shown_again(world: World) -> None:
    (root,) = world.look_up(b"here")
    await world.table.remove("local/here")
    await world.table.add("local/here", str(world.directory))
    (again,) = world.look_up(b"here")
    assert again != root
    world.vfs.forget([(root, 1)])
    assert world.vfs.getattr(again).st_mode
    await world.table.remove("local/here")
    world.vfs.forget([(again, 1)])
    assert world.descriptors() == 0


async def test_the_reserved_name_is_no_mount(world: World) -> None:
    Reserved(world.vfs.namespace, world.vfs.inodes)
    with pytest.raises(Exists, match="reserved"):
        world.table.check_free(".unifs")
