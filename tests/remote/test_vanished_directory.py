"""A directory that somebody removes at the backend while something in it is being written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from tests.remote.test_random import everything, shown
from tests.vfs import invariants
from unifs.errors import PermissionDenied, Unreachable, Unsynced
from unifs.vfs.remotegiveup import give_up
from unifs.waiting import complete

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem


@pytest.mark.parametrize("name", ["a", "new", "sub/new"])
@pytest.mark.parametrize("is_listed", [False, True])
async def test_what_is_being_written_is_not_lost(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, name: str, is_listed: bool
) -> None:
    remote.plant_directory("d")
    remote.plant_directory("d/sub")
    remote.change("d/a", b"theirs")
    remote.change("d/b", b"theirs")
    assert await system.read("d/a") == await system.read("d/b") == b"theirs"
    await system.listdir("d/sub")
    async with system.open(f"d/{name}", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"ours!!")
        remote.change("d", None)
        await trio.sleep(31)
        if is_listed:
            await system.listdir("")
        else:
            await system.stat("d")
    with trio.fail_after(60):
        await system.volume.writeback.sync()
    wanted: dict[str, bytes | None] = {"d": None, f"d/{name}": b"ours!!"}
    if "/" in name:
        wanted["d/sub"] = None
    assert everything(remote) == await shown(system) == wanted
    invariants.check(system)


async def test_a_directory_is_not_given_up_with_what_is_being_written_in_it(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("make", PermissionDenied("no"))
    ino = (await system.mkdir("d")).ino
    await trio.sleep(3)
    async with system.open("d/new", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"ours")
        with pytest.raises(Unsynced):
            await complete(give_up, system.volume, ino)
    system.volume.writeback.retry(ino)
    await system.sync()
    assert everything(remote) == await shown(system) == {"d": None, "d/new": b"ours"}


@pytest.mark.parametrize("is_there_again", [False, True])
async def test_a_rename_without_an_answer_ends_with_its_directory(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, is_there_again: bool
) -> None:
    remote.plant_directory("d")
    remote.change("d/a", b"theirs")
    assert await system.read("d/a") == b"theirs"
    remote.fail("rename", *[Unreachable("cut off")] * 20)
    await system.rename("d/a", "d/b")
    await trio.sleep(30)
    remote.change("d", None)
    await trio.sleep(10)
    await system.listdir("")
    if is_there_again:
        remote.plant_directory("d")
        remote.change("d/a", b"again")
    await trio.sleep(31)
    with trio.fail_after(60):
        await system.listdir("")
        if is_there_again:
            assert await system.read("d/a") == b"again"
        await system.volume.writeback.sync()
    assert await shown(system) == everything(remote)
    assert system.volume.attempts.is_quiet
