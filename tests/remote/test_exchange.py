"""Exchanges of names at a backend that has renames only: one of the two steps aside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.remote.system import RemoteSystem
from tests.remote.test_moving import Held, held
from tests.remote.test_random import everything, shown
from tests.vfs import invariants
from unifs.errors import Unreachable
from unifs.journal.writeback_order import ASIDE

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount

EXCHANGE = 2


async def stored(system: RemoteSystem) -> None:
    """Two directories, a file in each, at the backend."""
    for name in ("a", "b"):
        await system.mkdir(name)
        await system.write(f"{name}/in", name.encode())
    await system.sync()


WANTED = {"a": None, "a/in": b"b", "b": None, "b/in": b"a"}


@pytest.mark.parametrize("is_directory", [False, True])
async def test_what_an_earlier_version_or_somebody_else_put_aside_is_in_nobodys_way(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, is_directory: bool
) -> None:
    """Another state directory may have the same inode number: the name alone makes it nobody's."""
    await stored(system)
    inos = [(await system.stat(name)).ino for name in ("a", "b")]
    theirs = {f"{ASIDE}{ino}": None if is_directory else b"theirs" for ino in inos}
    for path, data in theirs.items():
        if data is None:
            remote.plant_directory(path)
        else:
            remote.change(path, data)
    await system.rename("a", "b", EXCHANGE)
    await system.sync()
    assert everything(remote) == theirs | WANTED
    await trio.sleep(100)
    assert await shown(system) == theirs | WANTED
    invariants.check(system)


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_each_of_its_steps_may_be_cut_off(
    clock: MockClock,
    system: RemoteSystem,
    remote: RemoteMount,
    number: int,
    is_done: bool,
    is_killed: bool,
) -> None:
    await stored(system)
    await system.rename("a", "b", EXCHANGE)
    remote.calls.clear()
    with trio.move_on_after(1000):
        while remote.count("rename") < number - 1:  # noqa: ASYNC110 (the backend has no event)
            await trio.sleep(0.1)
    remote.fail("rename", Unreachable("cut off"), after=is_done)
    while remote.count("rename") < number:  # noqa: ASYNC110
        await trio.sleep(0.1)
    if is_killed:
        await system.kill()
    await system.sync()
    await trio.sleep(100)
    assert everything(remote) == await shown(system) == WANTED
    invariants.check(system)


@pytest.mark.parametrize("number", [1, 2])
async def test_what_is_aside_is_not_shown(clock: MockClock, tmp_path: Path, number: int) -> None:
    mount = Held()
    mount.is_after = True
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await stored(system)
        await system.rename("a", "b", EXCHANGE)
        for _ in range(number):
            mount.reached, held_up = trio.Event(), mount.may_go
            mount.may_go = trio.Event()
            held_up.set()
            await held(system, mount, "rename")
        assert any(name.startswith(ASIDE) for name in everything(mount))
        names: list[bytes] = []

        async def look() -> None:
            names.extend(await system.listdir(""))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(1)
            mount.held = ""
            mount.may_go.set()
        assert sorted(names) == [b"a", b"b"]
        await system.sync()
        assert everything(mount) == WANTED


async def test_names_of_each_time_are_new(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await stored(system)
    for _ in range(4):
        await system.rename("a", "b", EXCHANGE)
        await system.sync()
    # A rename is recorded with the path that it leaves: the last of three leaves what was aside.
    aside = [path for verb, path in remote.calls if verb == "rename" and path.startswith(ASIDE)]
    assert len(aside) == len(set(aside)) == 4
