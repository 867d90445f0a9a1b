"""The read side: what is known, how long it is believed, and what absence is worth."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.mounts.remote import RemoteMount
from tests.remote.system import FRESH_S, RemoteSystem
from unifs.errors import NotFound, RateLimited, Stale, Unreachable
from unifs.types import Node, Version

if TYPE_CHECKING:
    from trio.testing import MockClock

DIRECTORY = Node(stat.S_IFDIR | 0o755)


async def test_a_file_of_the_backend_is_read(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"hello")
    assert await system.read("a") == b"hello"
    assert (await system.stat("a")).size == 5
    assert await system.listdir("") == [b"a"]


async def test_a_listing_waits_for_its_pages(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.page_entries = 3
    names = [f"n{number}" for number in range(10)]
    for name in names:
        remote.change(name, b"x")
    assert sorted(await system.listdir("")) == [name.encode() for name in names]
    assert remote.count("scan") == 4
    await system.listdir("")
    assert remote.count("scan") == 4


async def test_only_the_backend_or_a_fresh_listing_says_absent(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    with pytest.raises(NotFound):
        await system.stat("a")
    assert remote.count("stat") == 1
    await system.listdir("")
    with pytest.raises(NotFound):
        await system.stat("a")
    assert remote.count("stat") == 1
    remote.change("a", b"1")
    await trio.sleep(FRESH_S + 1)
    assert (await system.stat("a")).size == 1


@pytest.mark.parametrize("error", [Unreachable("gone fishing"), RateLimited("slowly")])
async def test_unreachable_is_not_absent(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, error: Exception
) -> None:
    remote.change("a", b"1")
    remote.fail("stat", error)  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        await system.stat("a")
    assert (await system.stat("a")).size == 1
    remote.fail("scan", error)  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        await system.listdir("")
    assert await system.listdir("") == [b"a"]


async def test_what_vanished_from_a_listing_is_dropped(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    for name in ("a", "b", "c"):
        remote.change(name, b"x")
    await remote.make("d", DIRECTORY, "t")
    remote.change("d/e", b"x")
    await system.listdir("")
    assert await system.read("d/e") == b"x"
    remote.change("b", None)
    remote.change("d", None)
    await trio.sleep(FRESH_S + 1)
    assert await system.listdir("") == [b"a", b"c"]
    assert {b"b", b"d"} <= set(system.told.entries)
    with pytest.raises(NotFound):
        await system.stat("b")
    left = system.storage.database.one("select count(*) from remote")[0]
    assert left == 3, "rows of the root, a and c"


async def test_a_changed_version_is_seen_and_told(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"one")
    ino = (await system.stat("a")).ino
    assert await system.read("a") == b"one"
    remote.change("a", b"three")
    await trio.sleep(FRESH_S + 1)
    assert await system.read("a") == b"three"
    assert (await system.stat("a")).ino == ino
    assert ino in system.told.inodes


async def test_a_handle_keeps_its_version_or_is_stale(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"one")
    async with system.open("a") as old:
        remote.change("a", b"three")
        await trio.sleep(FRESH_S + 1)
        assert (await system.stat("a")).size == 5
        with pytest.raises(Stale):
            await old.read()
        async with system.open("a") as new:
            assert await new.read() == b"three"


async def test_many_lookups_start_a_scan(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    for number in range(20):
        remote.change(f"n{number}", b"x")
    for number in range(8):
        await system.stat(f"n{number}")
    await trio.sleep(1)
    assert remote.count("scan") == 1
    stats = remote.count("stat")
    await system.stat("n19")
    with pytest.raises(NotFound):
        await system.stat("other")
    assert remote.count("stat") == stats


async def test_an_unchanged_epoch_keeps_rows_fresh(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"1")
    await system.listdir("")
    await system.stat("a")
    await trio.sleep(FRESH_S + 1)
    await system.stat("a")
    stats = remote.count("stat")
    await trio.sleep(FRESH_S + 1)
    await system.stat("a")
    assert remote.count("stat") == stats
    remote.change("a", b"22")
    await trio.sleep(FRESH_S + 1)
    assert (await system.stat("a")).size == 2


async def test_an_epoch_that_comes_later_than_it_is_believed_is_an_answer(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"1")
    await system.listdir("")
    remote.delay_s = FRESH_S + 1
    await trio.sleep(FRESH_S + 1)
    with trio.fail_after(3 * remote.delay_s):
        assert (await system.stat("a")).size == 1


async def test_a_mount_may_read_from_this_machine(clock: object, tmp_path: object) -> None:
    class Here(RemoteMount):
        def open_nowait(self, path: str, version: Version) -> object:  # type: ignore[override]
            return self

        def read_nowait(self, offset: int, size: int) -> bytes:
            return b"from here"[offset : offset + size]

    here = Here()
    here.change("a", b"remotely!")
    async with RemoteSystem(tmp_path / "s", here) as system:  # type: ignore[operator]
        assert await system.read("a") == b"from here"
        assert here.count("read") == 0


async def test_rows_are_bounded(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    for number in range(50):
        remote.change(f"n{number}", b"x")
    system.volume.rows_max = 10
    assert len(await system.listdir("")) == 50
    for inode in list(system.vfs.inodes.hot.values()):
        if not inode.is_busy() and inode.ino != system.volume.root:
            system.vfs.inodes.drop(inode.ino)
    await trio.sleep(6)
    assert system.volume.statistics()["rows"] <= 10
    assert await system.read("n7") == b"x"
    assert len(await system.listdir("")) == 50


@pytest.mark.parametrize("stuck", [12, 40, 200])
async def test_reads_stuck_on_a_frozen_mount_hold_up_nobody(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, stuck: int
) -> None:
    for number in range(stuck):
        remote.change(f"n{number}", b"x")
    await system.listdir("")
    await system.write("mine", b"local")
    await system.sync()
    remote.freeze()
    async with trio.open_nursery() as nursery:
        for number in range(stuck):
            nursery.start_soon(system.read, f"n{number}")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert await system.read("mine") == b"local"
        await system.write("other", b"2")
        assert trio.current_time() == began
        remote.thaw()
