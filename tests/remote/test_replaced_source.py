"""Somebody else has put another thing where an object was that is renamed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount

POLICIES = ("keep-both", "ours", "theirs")


async def renamed(system: RemoteSystem, remote: RemoteMount) -> dict[str, bytes | None]:
    """Rename old to new, until nothing is left to do; what the backend has then, and the tree."""
    await system.rename("old", "new")
    with trio.fail_after(600):
        await system.volume.writeback.sync()
    await trio.sleep(31)
    await system.listdir("")
    await trio.sleep(31)
    kept = everything(remote)
    assert await shown(system) == kept
    return kept


@pytest.mark.parametrize("conflicts", POLICIES)
@pytest.mark.parametrize("there", ["file", "directory"])
async def test_a_rename_whose_source_and_target_are_somebody_elses_ends(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, conflicts: str, there: str
) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts=conflicts) as system:
        await system.write("old", b"mine")
        await system.sync()
        remote.change("old", None)
        remote.plant_directory("old")
        remote.change("old/theirs", b"theirs")
        if there == "file":
            remote.change("new", b"theirs too")
        else:
            remote.plant_directory("new")
        kept = await renamed(system, remote)
        assert kept["old/theirs"] == b"theirs"
        assert (b"mine" in kept.values()) == (conflicts != "theirs")
        is_replaced = conflicts == "ours" and there == "file"
        assert (b"theirs too" in kept.values()) == (there == "file" and not is_replaced)


@pytest.mark.parametrize("conflicts", POLICIES)
async def test_a_directory_that_is_renamed_and_was_replaced_by_a_file(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, conflicts: str
) -> None:
    async with RemoteSystem(tmp_path / "s", remote, conflicts=conflicts) as system:
        await system.mkdir("old")
        await system.write("old/a", b"1")
        await system.sync()
        await system.write("old/a", b"mine")
        remote.change("old", b"theirs")
        remote.change("new", b"theirs too")
        kept = await renamed(system, remote)
        assert kept["old"] == b"theirs"
        assert b"mine" in kept.values()
        assert (b"theirs too" in kept.values()) == (conflicts != "ours")
