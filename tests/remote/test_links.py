"""Hard links live in the tree: the backend holds such an object at one of its names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import trio

from tests.remote.system import RemoteSystem
from tests.vfs import invariants
from unifs.errors import NoSpace, NotFound, Unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount


async def linked(system: RemoteSystem, first: str, second: str) -> None:
    await system.mkdir("d")
    await system.write(first, b"bytes")
    await system.link(first, second)
    await system.sync()
    # Nothing that is known is believed any more.
    await trio.sleep(31)


@pytest.mark.parametrize("second", ["b", "d/b"])
async def test_a_listing_leaves_the_other_name(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, second: str
) -> None:
    await linked(system, "a", second)
    assert sorted(await system.listdir("d")) == ([b"b"] if "/" in second else [])
    assert b"a" in await system.listdir("")
    await trio.sleep(31)
    assert await system.read(second) == b"bytes"
    assert await system.read("a") == b"bytes"
    assert (await system.stat("a")).nlink == 2


@pytest.mark.parametrize("second", ["b", "d/b"])
@pytest.mark.parametrize("seen_by", ["a", "b", "list", "list d"])
async def test_what_somebody_removed_goes_with_all_its_names(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, second: str, seen_by: str
) -> None:
    await linked(system, "a", second)
    remote.change("a", None)
    if seen_by.startswith("list"):
        await system.listdir(seen_by[5:])
    else:
        with pytest.raises(NotFound):
            await system.read("a" if seen_by == "a" else second)
    await trio.sleep(31)
    for name in ("", "d"):
        # What was known is listed before the backend is asked.
        await system.listdir(name)
    assert await system.listdir("") == [b"d"]
    for name in ("a", second):
        with pytest.raises(NotFound):
            await system.read(name)
    assert await system.listdir("d") == []
    query = "select count(*) from dentry where ino not in (select ino from inode)"
    assert system.storage.database.one(query)[0] == 0


async def test_theirs_takes_one_name(clock: MockClock, tmp_path: Path, remote: RemoteMount) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts="theirs") as system:
        await linked(system, "a", "d/b")
        await system.write("d/b", b"mine")
        remote.change("a", b"theirs")
        await system.sync()
        await trio.sleep(31)
        assert await system.read("a") == b"theirs"
        assert await system.read("d/b") == b"mine"
        assert remote.content("d/b") == b"mine"
        await system.kill()
        assert await system.read("a") == b"theirs"
        assert await system.read("d/b") == b"mine"


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_name_in_a_directory_that_somebody_removed(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, is_open: bool
) -> None:
    """The object is elsewhere, and keeps its other name."""
    await linked(system, "a", "d/b")
    file = await system.open_file("a", os.O_RDONLY) if is_open else None
    remote.change("d", None)
    with pytest.raises(NotFound):
        await system.stat("d")
    assert (await system.stat("a")).nlink == 1
    # What the next start finds, too.
    invariants.check(system)
    assert await system.read("a") == b"bytes"
    if file is not None:
        assert await file.read() == b"bytes"
        await file.close()
    await system.unlink("a")
    await system.sync()
    assert remote.count("remove") == 1


async def test_a_name_that_is_on_its_way_to_another_directory(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    """The listing of that one does not have it, and says nothing of it."""
    await linked(system, "a", "x")
    await system.unlink("x")
    await system.sync()
    await trio.sleep(31)
    remote.fail("rename", *[Unreachable("gone")] * 3)
    await system.rename("a", "d/c")
    await system.listdir("d")
    assert await system.read("d/c") == b"bytes"
    await trio.sleep(120)
    await system.sync()
    assert sorted(await system.listdir("d")) == [b"c"]
    assert remote.content("d/c") == b"bytes"


async def test_what_could_not_be_dropped_is_still_there(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    """The disk is full while somebody's removal is learnt: memory says what the rows say."""
    await linked(system, "a", "d/b")
    async with system.open("a", os.O_RDONLY) as file:
        await trio.sleep(31)
        remote.change("a", None)
        remote.change("other", b"so that the epoch is another one")
        with (
            mock.patch.object(system.volume.tree, "commit", side_effect=NoSpace("full")),
            pytest.raises(NoSpace),
        ):
            await system.stat("a")
        inode = system.volume.hot_or_row(file.ino)
        assert inode is not None
        assert (inode.is_gone, inode.path, inode.attributes.st_nlink) == (False, "a", 2)
        with pytest.raises(NotFound):
            await system.stat("a")
        assert (inode.is_gone, inode.path, inode.attributes.st_nlink) == (True, None, 0)
