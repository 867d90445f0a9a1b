"""Somebody else has put a file where a directory was in which something is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown
from tests.vfs import invariants

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount

DUE = ("write", "patch", "mkdir", "chmod", "unlink", "rename in", "rename out", "rename within")


async def stored(system: RemoteSystem, above: str) -> None:
    """A file, and a directory with two, at the backend."""
    await system.write("far", b"far")
    if "/" in above:
        await system.mkdir(above.partition("/")[0])
    await system.mkdir(above)
    for name in ("old", "other"):
        await system.write(f"{above}/{name}", name.encode())
    await system.sync()


async def change(system: RemoteSystem, above: str, what: str) -> None:
    match what:
        case "write":
            await system.write(f"{above}/new", b"mine")
        case "patch":
            await system.write(f"{above}/old", b"mine")
        case "mkdir":
            await system.mkdir(f"{above}/new")
        case "chmod":
            await system.setattr(f"{above}/old", mode=0o600)
        case "unlink":
            await system.unlink(f"{above}/old")
        case "rename in":
            await system.rename("far", f"{above}/far")
        case "rename out":
            await system.rename(f"{above}/old", "mine")
        case _:
            await system.rename(f"{above}/old", f"{above}/mine")


@pytest.mark.parametrize("policy", ["keep-both", "ours", "theirs"])
@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("above", ["d", "d/e"])
@pytest.mark.parametrize("what", DUE)
async def test_what_is_due_in_it_reaches_the_backend(
    clock: MockClock,
    tmp_path: Path,
    remote: RemoteMount,
    what: str,
    above: str,
    is_killed: bool,
    policy: str,
) -> None:
    async with RemoteSystem(tmp_path / "state", remote, conflicts=policy) as system:
        await stored(system, above)
        await change(system, above, what)
        remote.change("d", b"theirs")
        if is_killed:
            await system.kill()
        await system.sync()
        assert not system.volume.status.quarantined()
        invariants.check(system)
        await trio.sleep(100)
        held = everything(remote)
        assert await shown(system) == held
        if policy != "ours":
            assert held["d"] == b"theirs"
        mine = {"write": b"mine", "patch": b"mine", "rename in": b"far"}.get(what)
        if mine is not None:
            assert mine in held.values()
