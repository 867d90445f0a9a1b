"""A directory's link count is that of the directories in it, in memory and after a rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.remote.system import RemoteSystem
from tests.vfs import invariants
from unifs.errors import NotFound
from unifs.vfs.remotestatus import trim
from unifs.vfs.tree import ATTRIBUTES

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount

#: From so many names on a page becomes rows without inodes.
MANY = 40


async def counts(system: RemoteSystem, path: str, directories: int) -> None:
    """The count is right now, in the row, and for the next daemon after a kill."""
    ino = (await system.stat(path)).ino
    assert (await system.stat(path)).nlink == 2 + directories
    (packed,) = system.storage.database.one("select attributes from inode where ino=?", (ino,))
    assert ATTRIBUTES.unpack(packed)[3] == 2 + directories
    invariants.check(system)
    await system.kill()
    assert (await system.stat(path)).nlink == 2 + directories


@pytest.mark.parametrize("count", [2, MANY])
@pytest.mark.parametrize("is_hot", [False, True])
async def test_directories_that_somebody_makes_and_removes(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, count: int, is_hot: bool
) -> None:
    remote.plant_directory("d")
    for number in range(count):
        remote.plant_directory(f"d/{number}")
    await system.listdir("d")
    await counts(system, "d", count)
    remote.change("d/0", None)
    remote.change("d/1", None)
    remote.change("d/1", b"a file")
    if is_hot:
        assert (await system.stat("d/0")).nlink == 2
    await trio.sleep(31)
    with pytest.raises(NotFound):
        await system.stat("d/0")
    await system.listdir("d")
    await counts(system, "d", count - 2)


async def test_rows_that_are_trimmed(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.plant_directory("d")
    remote.plant_directory("d/sub")
    await system.listdir("d")
    await system.kill()
    assert trim(system.volume, 1) == 1
    await system.listdir("d")
    await counts(system, "d", 1)


@pytest.mark.parametrize("conflicts", ["keep-both", "theirs"])
@pytest.mark.parametrize("is_ours", [False, True])
async def test_a_conflict_of_a_directory_with_a_file(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, conflicts: str, is_ours: bool
) -> None:
    async with RemoteSystem(tmp_path / "state", remote, conflicts=conflicts) as system:
        await system.mkdir("d")
        await system.sync()
        await system.listdir("d")
        if is_ours:
            remote.change("d/x", b"theirs")
            await system.mkdir("d/x")
        else:
            remote.plant_directory("d/x")
            await system.write("d/x", b"ours")
        await system.sync()
        await counts(system, "d", int(not is_ours or conflicts == "keep-both"))


async def test_a_look_at_the_backend_leaves_what_is_not_written_yet(
    clock: MockClock, system: RemoteSystem
) -> None:
    """The rows of a directory's count and times follow a moment after the name in it."""
    await system.mkdir("d")
    await system.sync()
    await trio.sleep(31)
    await system.mkdir("d/sub")
    await system.listdir("")
    assert not system.volume.is_changed(system.volume.inodes.get((await system.stat("d")).ino))
    system.tick()
    await counts(system, "d", 1)
