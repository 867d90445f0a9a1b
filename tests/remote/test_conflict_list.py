"""`ctl conflicts`: what both sides changed is listed, survives restarts, and is decided."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from unifs.answers.conflicts import ConflictsAnswer
from unifs.errors import NotFound
from unifs.vfs.paths import Paths

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem


def answer(system: RemoteSystem) -> ConflictsAnswer:
    paths = Paths(system.vfs, system.told)
    return ConflictsAnswer(system.storage, paths, system.loader.volumes)


async def both_sides_change(
    system: RemoteSystem, remote: RemoteMount, name: str = "a.txt"
) -> ConflictsAnswer:
    remote.change(name, b"base")
    assert await system.read(name) == b"base"
    await system.write(name, b"mine")
    remote.change(name, b"theirs")
    await trio.sleep(31)
    await system.sync()
    return answer(system)


async def test_a_conflict_is_listed_with_both_paths(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    conflicts = await both_sides_change(system, remote)
    (found,) = await conflicts.list(None)
    assert found.path == "/remote/a.txt"
    assert found.ours.startswith("/remote/a.conflict-")
    assert found.has_theirs
    assert await conflicts.list("/remote/a.txt") == [found]
    assert await conflicts.list(found.ours) == [found]
    assert await conflicts.list("/remote") == [found]
    # The record is the tree's own: nobody sees it as an attribute.
    name = os.fsencode(found.ours.rpartition("/")[2])
    assert await system.listxattr(name) == []


@pytest.mark.parametrize("is_killed", [True, False])
async def test_the_list_survives_a_restart(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, is_killed: bool
) -> None:
    before = await (await both_sides_change(system, remote)).list(None)
    await (system.kill() if is_killed else system.remount())
    assert await answer(system).list(None) == before


async def test_a_conflict_moves_with_its_file_and_goes_with_it(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    conflicts = await both_sides_change(system, remote)
    (found,) = await conflicts.list(None)
    await system.rename(found.ours.rpartition("/")[2], "mine.txt")
    (moved,) = await conflicts.list(None)
    assert (moved.path, moved.ours) == ("/remote/a.txt", "/remote/mine.txt")
    await system.unlink("mine.txt")
    assert await conflicts.list(None) == []


@pytest.mark.parametrize("is_by_copy", [True, False])
async def test_ours_takes_the_place(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, is_by_copy: bool
) -> None:
    conflicts = await both_sides_change(system, remote)
    (found,) = await conflicts.list(None)
    await conflicts.resolve(found.ours if is_by_copy else found.path, "ours")
    assert await system.listdir("") == [b"a.txt"]
    assert await system.read("a.txt") == b"mine"
    assert await conflicts.list(None) == []
    await system.sync()
    assert remote.content("a.txt") == b"mine"
    await trio.sleep(60)
    assert await system.listdir("") == [b"a.txt"]


async def test_theirs_stays(clock: MockClock, system: RemoteSystem, remote: RemoteMount) -> None:
    conflicts = await both_sides_change(system, remote)
    await conflicts.resolve("/remote/a.txt", "theirs")
    assert await system.listdir("") == [b"a.txt"]
    assert await conflicts.list(None) == []
    await system.sync()
    assert remote.content("a.txt") == b"theirs"
    assert await system.read("a.txt") == b"theirs"


async def test_both_stay(clock: MockClock, system: RemoteSystem, remote: RemoteMount) -> None:
    conflicts = await both_sides_change(system, remote)
    (found,) = await conflicts.list(None)
    await conflicts.resolve(found.ours, "both")
    assert await conflicts.list(None) == []
    assert len(await system.listdir("")) == 2
    with pytest.raises(NotFound, match="no conflict"):
        await conflicts.resolve(found.ours, "both")


async def test_nothing_is_removed_for_a_version_that_is_gone(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    conflicts = await both_sides_change(system, remote)
    await system.unlink("a.txt")
    (found,) = await conflicts.list(None)
    assert not found.has_theirs
    with pytest.raises(NotFound, match="not there any more"):
        await conflicts.resolve(found.ours, "theirs")
    await conflicts.resolve(found.ours, "ours")
    assert await system.read("a.txt") == b"mine"
    await system.sync()
    assert remote.content("a.txt") == b"mine"
