"""Our own object at the backend, its confirmation lost, is no conflict; somebody else's is one."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
import trio

from tests.journal.powercut import Disk
from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_lacking import NoRename
from tests.remote.test_random import everything, shown
from tests.vfs import invariants
from unifs.errors import NoSpace, PermissionDenied, RateLimited, Unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from unifs.errors import UnifsError

LARGE = bytes(100_000)
#: Until a closed file is on its way.
DELAY_S = 2.01


async def ended(system: RemoteSystem, mount: RemoteMount) -> dict[str, bytes | None]:
    """What is there in the end; the tree shows the same."""
    await system.sync()
    assert await shown(system) == everything(mount)
    invariants.check(system)
    return everything(mount)


@pytest.mark.parametrize("data", [b"", b"small", LARGE])
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_file_that_was_changed_before_its_upload_was_confirmed(
    clock: MockClock, tmp_path: Path, data: bytes, is_cut: bool
) -> None:
    """The cut takes the confirmation; without it the answer is lost with the connection."""
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("changed", data, fsync=True)
        await system.write("gone", data, fsync=True)
        if not is_cut:
            mount.fail("put", Unreachable(), Unreachable(), after=True)
        with Disk(system.path) as disk:
            await trio.sleep(DELAY_S)
            assert everything(mount) == {"changed": data, "gone": data}
            if is_cut:
                await system.kill(start=False)
                disk.cut("synced")
        if is_cut:
            await system.start(boot="another")
        await system.write("changed", b"again")
        await system.unlink("gone")
        assert await ended(system, mount) == {"changed": b"again"}


@pytest.mark.parametrize("data", [b"", b"small", bytes(9 << 20)])
@pytest.mark.parametrize("is_new", [False, True])
async def test_an_upload_that_is_found_when_nothing_can_arrive_any_more(
    clock: MockClock, tmp_path: Path, data: bytes, is_new: bool
) -> None:
    """The backend was away for as long as a request may be late."""
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        if not is_new:
            await system.write("a", b"before")
            await system.sync()
        mount.fail("put", Unreachable(), after=True)
        await system.write("a", data)
        await trio.sleep(DELAY_S)
        assert everything(mount) == {"a": data}
        mount.fail("stat", *[Unreachable()] * 8)
        await system.write("a", b"again")
        begun = trio.current_time()
        assert await ended(system, mount) == {"a": b"again"}
        assert trio.current_time() - begun > 60


async def test_a_file_that_was_replaced_before_its_upload_was_confirmed(
    clock: MockClock, tmp_path: Path
) -> None:
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        mount.fail("put", Unreachable(), after=True)
        await system.write("a", b"")
        await trio.sleep(DELAY_S)
        await system.write("b", b"new")
        await system.rename("b", "a")
        assert await ended(system, mount) == {"a": b"new"}


async def test_a_file_that_was_replaced_by_a_rename_there(clock: MockClock, tmp_path: Path) -> None:
    """The one that replaces it is at the backend already: a rename, and no upload, meets it.

    The backend has refused what it did all the same, so nothing late is waited for.
    """
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("b", b"new")
        await system.sync()
        mount.fail("put", RateLimited(), after=True)
        await system.write("a", b"old")
        await trio.sleep(DELAY_S)
        await system.rename("b", "a")
        assert await ended(system, mount) == {"a": b"new"}


@pytest.mark.parametrize("is_repeated", [False, True])
@pytest.mark.parametrize("refusal", [PermissionDenied, NoSpace])
async def test_a_refusal_tells_nothing_of_what_arrived_before(
    clock: MockClock, tmp_path: Path, refusal: type[UnifsError], is_repeated: bool
) -> None:
    """A session that has ended since: neither its repetition nor a look by it closes the matter."""
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("a", b"before")
        await system.sync()
        mount.fail("put", Unreachable(), after=True)
        mount.fail("put", refusal())
        await system.write("a", b"arrived")
        await trio.sleep(DELAY_S)
        if is_repeated:
            await trio.sleep(5)
        await system.write("a", b"again")
        await trio.sleep(5)
        assert mount.count("put") >= 3
        for due in system.volume.writeback.dues.values():
            system.volume.writeback.retry(due.ino)
        assert await ended(system, mount) == {"a": b"again"}


async def test_a_copy_that_was_changed_before_it_was_confirmed(
    clock: MockClock, tmp_path: Path
) -> None:
    """Where a backend renames nothing, what only it has is read from the old place again."""
    mount = NoRename()
    for name in ("changed", "moved"):
        mount.change(name, b"theirs")
    async with RemoteSystem(tmp_path / "state", mount) as system:
        mount.fail("put", Unreachable(), Unreachable(), after=True)
        for name in ("changed", "moved"):
            await system.rename(name, f"{name}.new")
        await trio.sleep(DELAY_S)
        await system.write("changed.new", b"ours")
        await system.rename("moved.new", "end")
        assert await ended(system, mount) == {"changed.new": b"ours", "end": b"theirs"}


async def test_what_is_written_while_a_copy_is_made_stays(clock: MockClock, tmp_path: Path) -> None:
    mount = NoRename()
    mount.change("a", b"theirs")
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.rename("a", "b")
        mount.delay_s = 1.0
        await trio.sleep(DELAY_S + 1.5)
        assert system.volume.statistics()["running"] == 1
        async with system.open("b", os.O_WRONLY | os.O_TRUNC) as file:
            await file.write(0, b"ours")
            await file.fsync()
        mount.delay_s = 0.0
        assert await ended(system, mount) == {"b": b"ours"}


@pytest.mark.parametrize("is_killed", [False, True])
async def test_other_bytes_are_never_taken_for_those_that_the_backend_has(
    clock: MockClock, tmp_path: Path, is_killed: bool
) -> None:
    """The backend's bytes are known by a number that a later content must not get."""
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("a", LARGE)
        await system.sync()
        mount.freeze()
        await system.write("a", b"small", fsync=True)
        system.tick()
        await system.storage.flusher.flush()
        system.tick()
        assert system.volume.tree.database.one("select count(*) from content")[0] == 0
        await (system.kill() if is_killed else system.remount())
        await system.write("a", LARGE[1:])
        mount.thaw()
        assert await ended(system, mount) == {"a": LARGE[1:]}


async def test_a_tree_that_went_back_to_a_copy_of_its_state(
    clock: MockClock, tmp_path: Path
) -> None:
    """The records since have numbers that earlier ones had, which the backend may know."""
    mount = RemoteMount()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("a", b"base")
        await system.sync()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    for name, data in (("state", b"one"), ("copy", b"other")):
        async with RemoteSystem(tmp_path / name, mount) as system:
            await system.write("a", data)
            await system.sync()
            assert await shown(system) == everything(mount)
    assert sorted(filter(None, everything(mount).values())) == [b"one", b"other"]
    assert mount.content("a") == b"one"


async def test_two_trees_that_make_one_name_at_a_backend(clock: MockClock, tmp_path: Path) -> None:
    """Each is as new as the other: their records have the same numbers."""
    mount = RemoteMount()
    async with (
        RemoteSystem(tmp_path / "one", mount) as one,
        RemoteSystem(tmp_path / "other", mount) as other,
    ):
        await one.write("a", b"one")
        await other.write("a", b"other")
        await one.sync()
        await other.sync()
        assert sorted(filter(None, everything(mount).values())) == [b"one", b"other"]
        assert mount.content("a") == b"one"
        assert await shown(other) == everything(mount)
