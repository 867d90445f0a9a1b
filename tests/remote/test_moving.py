"""What is seen of a mount while a change is on its way to its backend."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

#: Longer than anything that was learnt is believed.
LONG_S = 100.0


class Held(RemoteMount):
    """Holds one kind of call up, before or after it has done its work, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.held = ""
        self.is_after = False
        self.reached = trio.Event()
        self.may_go = trio.Event()

    @asynccontextmanager
    async def _call(self, method: str, path: str) -> AsyncIterator[None]:
        if method == self.held and not self.is_after:
            await self._wait()
        async with super()._call(method, path):
            yield
        if method == self.held and self.is_after:
            await self._wait()

    async def _wait(self) -> None:
        self.reached.set()
        await self.may_go.wait()


async def held(system: RemoteSystem, mount: Held, method: str) -> None:
    """Writeback has come to ``method``, and what was learnt before is not believed any more."""
    mount.held = method
    system.volume.writeback.hurry()
    with trio.fail_after(600):
        await mount.reached.wait()
    await trio.sleep(LONG_S)


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_directory_that_is_being_renamed_keeps_what_is_in_it(
    clock: MockClock, tmp_path: Path, is_after: bool
) -> None:
    mount = Held()
    mount.is_after = is_after
    wanted = {"new": None, "new/kept": b"kept", "other": b"other"}
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.mkdir("old")
        await system.write("old/kept", b"kept")
        await system.write("other", b"other")
        await system.sync()
        await system.rename("old", "new")
        await held(system, mount, "rename")
        names: list[bytes] = []

        async def look() -> None:
            names.extend(await system.listdir(""))
            assert await shown(system) == wanted

        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                await trio.sleep(1)
                mount.may_go.set()
        assert sorted(names) == [b"new", b"other"]
        await system.sync()
        assert everything(mount) == await shown(system) == wanted
        await trio.sleep(LONG_S)
        assert await shown(system) == wanted


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_file_that_is_being_uploaded_is_no_conflict_with_itself(
    clock: MockClock, tmp_path: Path, is_after: bool
) -> None:
    mount = Held()
    mount.is_after = is_after
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("a", b"first")
        await system.sync()
        await system.write("a", b"second")
        await held(system, mount, "put")
        assert await shown(system) == {"a": b"second"}
        mount.may_go.set()
        await system.sync()
        assert everything(mount) == await shown(system) == {"a": b"second"}


async def test_a_file_that_waits_is_still_there_after_a_listing(
    clock: MockClock, tmp_path: Path
) -> None:
    """Its change is due and its backend does not answer to puts; listings are answered."""
    mount = Held()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.mkdir("d")
        await system.write("d/changed", b"first")
        await system.write("blocker", b"x")
        await system.sync()
        await system.write("blocker", b"y")
        await system.write("d/changed", b"second")
        await system.rename("d", "e")
        await held(system, mount, "put")
        with trio.move_on_after(60):
            assert await shown(system) == {"e": None, "e/changed": b"second", "blocker": b"y"}
        mount.may_go.set()
        await system.sync()
        wanted = {"e": None, "e/changed": b"second", "blocker": b"y"}
        assert everything(mount) == await shown(system) == wanted
