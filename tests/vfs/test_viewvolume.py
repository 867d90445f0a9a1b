"""A mount shown without rows: look-ups, listings page by page, and the bound of its inodes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from unifs.cache.reads import ReadCache
from unifs.errors import IsADirectory, NotADirectory, NotFound, Stale
from unifs.mounts.base import Mount
from unifs.types import Entry, Node, Page, PlainCaller, Version
from unifs.vfs import viewvolume
from unifs.vfs.reserved import Reserved
from unifs.vfs.vfs import Vfs
from unifs.vfs.viewvolume import FRESH_S, ViewVolume
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

CALLER = PlainCaller()


class Shelf(Mount):
    """One directory of files, two names a page; pages may be empty."""

    kind = "shelf"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.scans: list[str | None] = []
        self.stats = 0

    def _node(self, name: str) -> Node:
        data = self.files[name]
        return Node(stat.S_IFREG | 0o444, len(data), Version(data.decode()))

    async def stat(self, path: str) -> Node:
        self.stats += 1
        if path not in self.files:
            raise NotFound
        return self._node(path)

    async def scan(self, path: str, after: str | None) -> Page:
        assert path == ""
        self.scans.append(after)
        names = sorted(self.files)
        start = int(after or 0)
        entries = tuple(Entry(n.encode(), self._node(n)) for n in names[start : start + 2])
        return Page(entries, str(start + 2) if start + 2 < len(names) + 2 else None)

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        assert version == self.files[path].decode()
        return self.files[path][offset : offset + size]


class World:
    def __init__(self, path: Path) -> None:
        self.vfs = Vfs(path)
        self.shelf = Shelf()
        self.cache = ReadCache(None)
        reserved = Reserved(self.vfs.namespace, self.vfs.inodes)
        self.view = ViewVolume("view", self.shelf, self.cache, reserved)

    async def lookup(self, name: str) -> int:
        attributes = await complete(self.vfs.lookup, self.view.root, name.encode(), CALLER)
        return attributes.st_ino

    async def listed(self, fh: int, offset: int, count: int = 100) -> list[tuple[str, int]]:
        """What one call of readdir gives, at most ``count`` names, with the next offsets."""
        found: list[tuple[str, int]] = []

        def emit(name: bytes, attributes: object, following: int) -> bool:
            if name in (b".", b".."):
                return True
            if len(found) == count:
                return False
            found.append((name.decode(), following))
            return True

        await complete(self.vfs.readdir, fh, offset or viewvolume_start(), emit)
        return found


def viewvolume_start() -> int:
    """The offset behind "..", where a kernel goes on."""
    return (1 << 62) + 2


@pytest.fixture
def world(tmp_path: Path, autojump_clock: MockClock) -> World:
    return World(tmp_path)


async def whole(world: World, fh: int, count: int = 100) -> list[str]:
    names: list[str] = []
    offset = 0
    while page := await world.listed(fh, offset, count):
        names += [name for name, _ in page]
        offset = page[-1][1]
    return names


@pytest.mark.parametrize("count", [1, 2, 3, 100])
async def test_a_listing_names_each_entry_once_however_it_is_read(world: World, count: int) -> None:
    world.shelf.files = {f"f{number}": b"x" for number in range(7)}
    fh = world.vfs.opendir(world.view.root, CALLER)
    assert await whole(world, fh, count) == sorted(world.shelf.files)
    # From the start again it is what is there now.
    world.shelf.files["f9"] = b"y"
    assert await whole(world, fh, count) == sorted(world.shelf.files)
    world.vfs.releasedir(fh)


async def test_a_reader_may_go_back(world: World) -> None:
    world.shelf.files = {f"f{number}": b"x" for number in range(6)}
    fh = world.vfs.opendir(world.view.root, CALLER)
    (first,) = await world.listed(fh, 0, 1)
    names = await whole(world, fh)
    assert names == sorted(world.shelf.files)
    again = await world.listed(fh, first[1], 2)
    assert again[0][0] in names
    world.vfs.releasedir(fh)


async def test_an_answer_is_believed_for_a_while(world: World, autojump_clock: MockClock) -> None:
    world.shelf.files = {"a": b"one"}
    ino = await world.lookup("a")
    assert await world.lookup("a") == ino
    assert world.shelf.stats == 1
    autojump_clock.jump(FRESH_S + 1)
    assert await world.lookup("a") == ino
    assert world.shelf.stats == 2
    # Other bytes are another inode: pages that the kernel keeps are never another version's.
    world.shelf.files["a"] = b"two"
    autojump_clock.jump(FRESH_S + 1)
    assert await world.lookup("a") != ino
    with pytest.raises(NotFound):
        await world.lookup("b")


async def test_an_open_file_is_the_version_that_was_opened(world: World) -> None:
    world.shelf.files = {"a": b"bytes"}
    async with world.cache.serve():
        ino = await world.lookup("a")
        handle = world.vfs.open(ino, 0, CALLER)
        assert bytes(await complete(world.vfs.read, handle.fh, 1, 100)) == b"ytes"
        world.vfs.forget([(ino, 1)])
        # It is open: its number stays.
        assert world.vfs.getattr(ino).st_size == 5
        world.vfs.release(handle.fh)
    with pytest.raises(IsADirectory):
        world.vfs.open(world.view.root, 0, CALLER)
    ino = await world.lookup("a")
    with pytest.raises(NotADirectory):
        world.vfs.opendir(ino, CALLER)
    with pytest.raises(NotADirectory):
        await complete(world.vfs.lookup, ino, b"below", CALLER)


async def test_what_the_kernel_forgets_is_forgotten(world: World) -> None:
    world.shelf.files = {"a": b"x"}
    ino = await world.lookup("a")
    world.vfs.forget([(ino, 1)])
    with pytest.raises(Stale):
        world.vfs.getattr(ino)
    world.vfs.forget([(world.view.root, 1)])
    assert stat.S_ISDIR(world.vfs.getattr(world.view.root).st_mode)


async def test_the_table_is_bounded_and_keeps_what_is_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewvolume, "INODES_MAX", 20)
    world.shelf.files = {f"f{number:03}": b"x" for number in range(100)}
    kept = await world.lookup("f000")
    root = world.vfs.inodes.get(world.view.root)
    for number in range(1, 100):
        # As a path of a control operation: looked up, and never remembered.
        await complete(world.view.lookup, root, f"f{number:03}".encode())
    assert len(world.view._by_ino) <= 22
    assert world.vfs.getattr(kept).st_size == 1
    assert stat.S_ISDIR(world.vfs.getattr(world.view.root).st_mode)
