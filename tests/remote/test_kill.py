"""The daemon is killed at each call to the backend, before and after the backend acted."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown
from tests.vfs import invariants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

#: Calls of the scenario, reads aside; the test fails where there are fewer.
CALLS = 11
WANTED = {
    "new": None,
    "new/kept": b"kept",
    "new/fresh": b"fresh",
    "a": b"bb",
    "b": b"aa",
    "saved": b"after",
    "big": bytes(100_000),
}


class Stopping(RemoteMount):
    """Stops at one call that changes something, before or after it has done its work."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.is_after = False
        self.reached = trio.Event()

    @asynccontextmanager
    async def _call(self, method: str, path: str) -> AsyncIterator[None]:
        stops = False
        if self.left is not None and method not in ("stat", "scan", "read", "epoch"):
            self.left -= 1
            stops = self.left == 0
        if stops and not self.is_after:
            self.reached.set()
            await trio.sleep_forever()
        async with super()._call(method, path):
            yield
        if stops:
            self.reached.set()
            await trio.sleep_forever()


async def prepare(system: RemoteSystem) -> None:
    await system.mkdir("old")
    await system.write("old/kept", b"kept")
    await system.write("old/gone", b"gone")
    await system.write("a", b"aa")
    await system.write("b", b"bb")
    await system.write("saved", b"before")
    await system.sync()


async def change(system: RemoteSystem) -> None:
    await system.rename("old", "new")
    await system.write("new/fresh", b"fresh")
    await system.unlink("new/gone")
    await system.rename("a", "b", 2)
    await system.write("saved.tmp", b"after")
    await system.rename("saved.tmp", "saved")
    await system.write("big", bytes(100_000))


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("number", range(1, CALLS + 1))
async def test_killed_at_a_call(
    clock: MockClock, tmp_path: Path, number: int, is_after: bool
) -> None:
    mount = Stopping()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await prepare(system)
        mount.left, mount.is_after = number, is_after
        await change(system)
        system.volume.writeback.hurry()
        with trio.fail_after(600):
            await mount.reached.wait()
        await system.kill()
        mount.left = None
        assert await shown(system) == WANTED
        await system.sync()
        assert everything(mount) == WANTED
        assert await shown(system) == WANTED


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_power_cut_during_an_upload(
    clock: MockClock, tmp_path: Path, is_after: bool
) -> None:
    mount = Stopping()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        mount.left, mount.is_after = 1, is_after
        await system.write("a", bytes(100_000))
        await mount.reached.wait()
        await system.kill(boot="another")
        mount.left = None
        await system.sync()
        assert everything(mount) == {"a": bytes(100_000)}
        assert await shown(system) == everything(mount)


async def test_a_number_is_not_given_again_while_its_removal_waits(
    clock: MockClock, tmp_path: Path
) -> None:
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        mount.change("gone", b"gone")
        last = (await system.stat("gone")).ino
        mount.freeze()
        await system.unlink("gone")
        system.tick()
        assert system.volume.tree.inode_row(last) is None
        await system.kill()
        mount.thaw()
        mount.change("new", b"new")
        assert (await system.stat("new")).ino > last
        await system.sync()
        assert everything(mount) == await shown(system) == {"new": b"new"}
        invariants.check(system)
