"""Conflicts: somebody else changed what is changed here."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import trio

from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown
from unifs.errors import Conflict, NoSpace, NotFound, PermissionDenied, Stale, Unreachable
from unifs.types import Node
from unifs.vfs.tree import UPDATE_INODE
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount

DIRECTORY = Node(stat.S_IFDIR | 0o755)


async def both_sides_change(system: RemoteSystem, remote: RemoteMount) -> None:
    remote.change("a.txt", b"base")
    assert await system.read("a.txt") == b"base"
    await system.write("a.txt", b"mine")
    remote.change("a.txt", b"theirs")


async def test_both_are_kept(clock: MockClock, system: RemoteSystem, remote: RemoteMount) -> None:
    await both_sides_change(system, remote)
    async with system.open("a.txt", os.O_RDWR) as mine:
        await trio.sleep(31)
        await system.sync()
        assert await mine.read() == b"mine"
    assert await system.read("a.txt") == b"theirs"
    names = sorted(await system.listdir(""))
    assert names[1] == b"a.txt"
    assert names[0].startswith(b"a.conflict-")
    assert names[0].endswith(b".txt")
    assert {b"a.txt", names[0]} <= set(system.told.entries)
    assert remote.content("a.txt") == b"theirs"
    assert remote.content(os.fsdecode(names[0])) == b"mine"
    assert await system.getxattr(names[0], b"user.unifs.state") == b"synced"


async def test_ours_replaces(clock: MockClock, tmp_path: Path, remote: RemoteMount) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts="ours") as system:
        await both_sides_change(system, remote)
        await system.sync()
        assert remote.content("a.txt") == b"mine"
        assert await system.listdir("") == [b"a.txt"]


@pytest.mark.parametrize("is_there", [False, True])
async def test_ours_replaces_when_it_is_saved_by_a_rename(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, is_there: bool
) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts="ours") as system:
        remote.change("a", b"base")
        assert await system.read("a") == b"base"
        await system.write("a.new", b"mine")
        if is_there:
            await system.sync()
        await system.rename("a.new", "a")
        remote.change("a", b"theirs")
        with trio.fail_after(60):
            await system.volume.writeback.sync()
        assert remote.content("a") == b"mine"
        assert await system.listdir("") == [b"a"]


async def test_bytes_that_were_there_before_theirs_replace_them(
    clock: MockClock, tmp_path: Path, remote: RemoteMount
) -> None:
    """They are not taken for stored because the backend had them once."""
    async with RemoteSystem(tmp_path / "s", remote, conflicts="ours") as system:
        await system.write("a", b"first")
        await system.sync()
        await system.write("a", b"second")
        remote.change("a", b"theirs")
        remote.fail("put", Conflict(), *[Unreachable() for _ in range(8)])
        await trio.sleep(31)
        assert await system.listdir("") == [b"a"]
        await system.write("a", b"first")
        await system.sync()
        assert remote.content("a") == b"first"


@pytest.mark.parametrize("policy", ["keep-both", "ours", "theirs"])
async def test_a_save_of_what_is_known_to_be_there_is_no_change(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, policy: str
) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts=policy) as system:
        await system.write("a", b"same")
        await system.sync()
        remote.change("a", b"theirs")
        await system.write("a", b"same")
        await system.sync()
        await trio.sleep(31)
        assert await system.read("a") == remote.content("a") == b"theirs"
        assert await system.listdir("") == [b"a"]


async def test_theirs_stays(clock: MockClock, tmp_path: Path, remote: RemoteMount) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts="theirs") as system:
        await both_sides_change(system, remote)
        async with system.open("a.txt") as mine:
            await system.sync()
            assert await mine.read() == b"mine"
        assert remote.content("a.txt") == b"theirs"
        assert await system.read("a.txt") == b"theirs"
        assert await system.listdir("") == [b"a.txt"]


async def test_two_create_one_name(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"mine")
    remote.change("a", b"theirs")
    await system.sync()
    assert await system.read("a") == b"theirs"
    assert len(await system.listdir("")) == 2


async def test_a_local_removal_yields_to_a_remote_change(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"base")
    await system.read("a")
    await system.unlink("a")
    remote.change("a", b"theirs")
    await system.sync()
    assert await system.read("a") == b"theirs"
    assert await system.listdir("") == [b"a"]


async def test_a_local_change_survives_a_remote_removal(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"base")
    await system.read("a")
    await system.write("a", b"mine")
    remote.change("a", None)
    await system.sync()
    assert remote.content("a") == b"mine"
    assert await system.listdir("") == [b"a"]


async def test_a_local_change_survives_the_removal_of_its_directory(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.mkdir("d/e")
    await system.write("d/e/f", b"1")
    await system.write("d/clean", b"1")
    await system.sync()
    await system.write("d/e/f", b"2")
    remote.change("d", None)
    await system.sync()
    assert remote.content("d/e/f") == b"2"
    with pytest.raises(NotFound):
        await system.stat("d/clean")


async def test_a_rename_over_somebody_elses_file_keeps_both(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"mine")
    await system.sync()
    await system.rename("a", "b")
    remote.change("b", b"theirs")
    await system.sync()
    contents = {await system.read(name) for name in await system.listdir("")}
    assert contents == {b"mine", b"theirs"}
    assert remote.content("b") == b"theirs"
    with pytest.raises(NotFound):
        remote.content("a")


async def test_two_make_one_directory(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.write("d/mine", b"1")
    await remote.make("d", DIRECTORY, "somebody")
    remote.change("d/theirs", b"2")
    await system.sync()
    assert sorted(await system.listdir("d")) == [b"mine", b"theirs"]
    assert remote.content("d/mine") == b"1"


async def test_a_removed_directory_with_somebody_elses_file_stays(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.sync()
    await system.rmdir("d")
    remote.change("d/theirs", b"2")
    await system.sync()
    assert await system.read("d/theirs") == b"2"


async def test_a_late_listing_brings_nothing_back(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"1")
    await system.sync()
    await trio.sleep(31)
    await system.unlink("a")
    async with trio.open_nursery() as nursery:
        remote.delay_s = 0.5
        nursery.start_soon(system.listdir, "")
        nursery.start_soon(system.sync)
    await trio.sleep(1)
    assert await system.listdir("") == []


async def test_an_open_local_file_is_not_replaced_under_its_handle(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"mine")
    await system.sync()
    async with system.open("a") as file:
        remote.change("a", b"theirs")
        await trio.sleep(31)
        assert await system.read("a") == b"theirs"
        assert await file.read() == b"mine"


@pytest.mark.parametrize("size_bytes", [4, 1 << 20])
@pytest.mark.parametrize("there", ["file", "directory", "nothing"])
async def test_an_open_local_file_outlives_a_question_for_its_attributes(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, size_bytes: int, there: str
) -> None:
    """As fstat, or a kernel that asks before it reads."""
    await system.write("a", b"m" * size_bytes)
    await system.sync()
    async with system.open("a") as file:
        remote.change("a", b"theirs" if there == "file" else None)
        if there == "directory":
            remote.plant_directory("a")
        remote.change("other", b"so that the epoch is another one")
        remote.delay_s = 0.1
        await trio.sleep(31)
        with trio.fail_after(5):
            attributes = await complete(system.vfs.getattr, file.ino)
            assert attributes.st_size == size_bytes
            assert await file.read() == b"m" * size_bytes
    assert await shown(system) == everything(remote)


@pytest.mark.parametrize("there", ["directory", "nothing"])
async def test_a_file_that_nobody_has_open_is_stale_where_its_place_has_none(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, there: str
) -> None:
    remote.change("a", b"theirs")
    found = await complete(system.vfs.lookup, system.volume.root, b"a", system.caller)
    ino = found.st_ino
    remote.change("a", None)
    if there == "directory":
        remote.plant_directory("a")
    remote.change("other", b"so that the epoch is another one")
    remote.delay_s = 0.1
    await trio.sleep(31)
    with trio.fail_after(5), pytest.raises(Stale):
        await complete(system.vfs.getattr, ino)
    system.vfs.forget([(ino, 1)])
    assert await shown(system) == everything(remote)


async def test_a_failing_conflict_is_tried_again(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await both_sides_change(system, remote)
    remote.fail("stat", Unreachable())
    await system.sync()
    assert await system.read("a.txt") == b"theirs"
    assert len(await system.listdir("")) == 2


async def test_attributes_of_bytes_that_somebody_replaced_make_no_copy(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"base")
    assert await system.read("a") == b"base"
    await system.setattr("a", mode=0o600)
    remote.change("a", b"theirs")
    remote.fail("set_attributes", Conflict())
    ino = (await system.stat("a")).ino
    await system.sync()
    assert await system.listdir("") == [b"a"]
    assert await system.read("a") == b"theirs"
    kept = await system.stat("a")
    assert (kept.ino, stat.S_IMODE(kept.mode)) == (ino, 0o600)
    assert stat.S_IMODE((await remote.stat("a")).mode) == 0o600


async def test_bytes_that_are_nowhere_any_more_are_said_to_be(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"base")
    ino = (await system.stat("a")).ino
    statement = "update remote set path=null where ino=?"
    system.volume.tree.commit([(statement, (ino,))])
    held = system.volume.hot_or_row(ino)
    assert held is not None
    held.path = None
    system.volume.writeback.add(ino)
    with pytest.raises(Stale, match="only at the backend"):
        await system.sync()
    assert [found.ino for found in system.volume.status.quarantined()] == [ino]


async def test_a_conflict_at_a_place_that_was_left_meanwhile(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    """The upload to the old name is refused after the tree has given the file a new one."""
    remote.plant_directory("d")
    remote.change("d/old", b"base")
    assert await system.read("d/old") == b"base"
    await system.write("d/old", b"mine")
    remote.change("d/old", b"theirs")
    remote.delay_s = 1.0
    await trio.sleep(2.5)
    assert system.volume.statistics()["running"] == 1
    await system.rename("d/old", "d/new")
    remote.delay_s = 0.0
    await system.sync()
    assert sorted(await system.listdir("d")) == [b"new", b"old"]
    assert (await system.read("d/old"), await system.read("d/new")) == (b"theirs", b"mine")
    assert (remote.content("d/old"), remote.content("d/new")) == (b"theirs", b"mine")


@pytest.mark.parametrize("how", ["stat", "list"])
async def test_what_a_full_disk_kept_from_being_learnt_is_not_half_learnt(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, how: str
) -> None:
    """Else the old bytes would be taken for those of the new version, and overwrite it."""
    await system.write("a", b"ours" * 40_000)
    await system.sync()
    remote.change("a", b"theirs")
    commit = system.volume.tree.commit
    ino = (await system.stat("a")).ino
    await trio.sleep(31)
    refusals = [NoSpace("full")]

    def full(batch: list[Any], **options: Any) -> None:
        if refusals and UPDATE_INODE in {statement for statement, _ in batch}:
            raise refusals.pop()
        commit(batch, **options)

    with mock.patch.object(system.volume.tree, "commit", full), pytest.raises(NoSpace):
        await (system.stat("a") if how == "stat" else system.listdir(""))
    inode = system.volume.hot_or_row(ino)
    assert inode is not None
    row = system.volume.tree.inode_row(ino)
    assert inode.stored == row[5]
    assert inode.version == system.volume.remotes.row(ino)[1]
    await trio.sleep(31)
    await system.stat("a")
    await system.kill()
    assert await system.read("a") == b"theirs"
    await system.setattr("a", mode=0o600)
    await system.sync()
    assert remote.content("a") == b"theirs"


@pytest.mark.parametrize("conflicts", ["keep-both", "theirs"])
@pytest.mark.parametrize("is_renamed", [False, True])
async def test_what_ours_was_to_replace_keeps_nobody_from_theirs(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, conflicts: str, is_renamed: bool
) -> None:
    """A file was removed here and made anew; its removal is refused by a policy."""
    async with RemoteSystem(tmp_path / "s", remote, conflicts=conflicts) as system:
        await system.write("a", b"base")
        await system.sync()
        if is_renamed:
            await system.write("b", b"mine")
            await system.rename("b", "a")
        else:
            await system.unlink("a")
            await system.write("a", b"mine")
        remote.change("a", b"theirs")
        remote.fail("remove", PermissionDenied("a policy"))
        with suppress(PermissionDenied):
            await system.sync()
        remote.change("a", b"theirs, again")
        remote.delay_s = 0.1
        await trio.sleep(31)
        with trio.fail_after(5):
            assert await system.read("a") == b"theirs, again"
        assert remote.count("remove") == 0
        await system.kill()
        await system.sync()
        assert await shown(system) == everything(remote)
        assert (b"mine" in everything(remote).values()) == (conflicts == "keep-both")
