"""``durability = "backend"``: fsync waits for the backend; and reading back what it has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from unifs.errors import Corrupt, DeadlineExceeded, NoSpace, Stale, UnifsError
from unifs.vfs.readback import read_back
from unifs.vfs.remotefsync import STALL_S

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem

LARGE = bytes(range(256)) * 9000


@pytest.fixture
def waiting(system: RemoteSystem) -> RemoteSystem:
    """A system whose fsync waits for the backend."""
    system.volume.waits_for_backend = True
    return system


async def _list_and_freeze(system: RemoteSystem, remote: RemoteMount) -> None:
    """The backend hangs; which names it has is known."""
    await system.listdir("")
    remote.freeze()


async def test_fsync_returns_when_the_backend_has_it(
    clock: MockClock, waiting: RemoteSystem, remote: RemoteMount
) -> None:
    async with waiting.open("a", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, LARGE)
        await file.fsync()
        assert remote.content("a") == LARGE


async def test_without_it_fsync_does_not_wait(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await _list_and_freeze(system, remote)
    async with system.open("a", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"a")
        with trio.fail_after(1):
            await file.fsync()
    assert remote.count("put") == 0
    remote.thaw()


async def test_fsync_of_a_directory_waits_for_what_is_in_it(
    clock: MockClock, waiting: RemoteSystem, remote: RemoteMount
) -> None:
    await waiting.mkdir("d")
    await waiting.write("d/a", b"a")
    await waiting.fsyncdir("d")
    assert remote.content("d/a") == b"a"


async def test_fsync_ends_where_nothing_moves(
    clock: MockClock, waiting: RemoteSystem, remote: RemoteMount
) -> None:
    await _list_and_freeze(waiting, remote)
    async with waiting.open("a", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"a")
        began = trio.current_time()
        with pytest.raises(UnifsError) as error:
            await file.fsync()
        assert isinstance(error.value, DeadlineExceeded)
        assert STALL_S < trio.current_time() - began < STALL_S + 15
        remote.thaw()


async def test_fsync_tells_why_the_backend_refuses(
    clock: MockClock, waiting: RemoteSystem, remote: RemoteMount
) -> None:
    remote.full_bytes = 1
    async with waiting.open("a", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"more than one")
        with pytest.raises(NoSpace):
            await file.fsync()
        remote.full_bytes = None
        await file.fsync()
    assert remote.content("a") == b"more than one"


async def test_what_is_there_is_read_back(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.write("d/large", LARGE)
    await system.write("small", b"small")
    await system.write("empty", b"")
    await system.sync()
    reads = remote.count("read")
    assert await read_back(system.volume, None) == 3
    assert remote.count("read") > reads
    ino = (await system.stat("d")).ino
    assert await read_back(system.volume, ino) == 1


async def test_a_backend_that_lies_is_found_out(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("large", LARGE)
    await system.sync()
    remote.lie("large", b"?" * len(LARGE))
    with pytest.raises(Corrupt, match="/remote/large: the backend has other bytes"):
        await read_back(system.volume, None)


async def test_bytes_that_only_the_backend_has_are_held_against_their_cid(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("large", LARGE)
    await system.sync()
    await trio.sleep(600)
    assert await read_back(system.volume, None) == 1
    remote.lie("large", b"?" * len(LARGE))
    with pytest.raises(Corrupt, match="other bytes"):
        await read_back(system.volume, None)


async def test_what_is_not_synced_is_not_verified(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await _list_and_freeze(system, remote)
    await system.write("a", b"a")
    with pytest.raises(Stale):
        await read_back(system.volume, None)
    remote.thaw()
