"""Long listings: rows made many at once, pages asked for ahead, and how a listing ends."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.remote.system import FRESH_S
from unifs.errors import NotFound, Unreachable
from unifs.types import Node
from unifs.vfs.remoteahead import KEEP_S
from unifs.vfs.remotepage import PAGE_MIN
from unifs.vfs.remoterows import COMPLETE
from unifs.vfs.remotestatus import trim

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem
    from unifs.vfs.remoterows import RemoteInode

NAMES = [f"n{number:02}" for number in range(3 * PAGE_MIN)]
ENCODED = [name.encode() for name in NAMES]


def fill(remote: RemoteMount) -> None:
    for number, name in enumerate(NAMES):
        remote.change(name, b"x" * number)


def root_of(system: RemoteSystem) -> RemoteInode:
    inode = system.volume.hot_or_row(system.volume.root)
    assert inode is not None
    return inode


async def first_page(system: RemoteSystem, remote: RemoteMount) -> RemoteInode:
    """The root, of whose names the tree has the first page."""
    fill(remote)
    remote.page_entries = PAGE_MIN
    inode = root_of(system)
    await system.volume.merge.scan_page(inode)
    return inode


async def test_a_page_of_new_names_has_the_rows_that_single_ones_have(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    fill(remote)
    remote.plant_directory("d")
    single = await system.stat(NAMES[7])
    await system.listdir("")
    stats = remote.count("stat")
    many = await system.stat(NAMES[8])
    directory = await system.stat("d")
    assert remote.count("stat") == stats, "the listing told all there is to know"
    assert (many.mode, many.uid, many.gid, many.nlink) == (
        single.mode, single.uid, single.gid, single.nlink
    )  # fmt: skip
    assert (single.size, many.size) == (7, 8)
    assert (stat.S_ISDIR(directory.mode), directory.nlink) == (True, 2)
    assert await system.read(NAMES[20]) == b"x" * 20
    assert (await system.stat(NAMES[7])).ino == single.ino
    assert system.volume.rows == len(NAMES) + 1


async def test_names_of_ours_stand_in_a_page_as_they_are(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    fill(remote)
    await system.listdir("")
    await system.unlink(NAMES[3])
    await system.write(NAMES[4], b"mine")
    await system.write("new", b"mine too")
    remote.change("new", b"theirs")
    root_of(system).listed_ns = 0
    listed = await system.listdir("")
    assert NAMES[3].encode() not in listed
    assert listed.count(b"new") == 1
    assert await system.read(NAMES[4]) == b"mine"
    assert await system.read("new") == b"mine too"
    assert len(listed) == len(set(listed)) == len(NAMES)


async def test_a_page_after_a_page_is_asked_for_ahead(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    inode = await first_page(system, remote)
    await wait_all_tasks_blocked()
    assert remote.count("scan") == 1, "who wants the first page gets it, and no more"
    remote.page_entries = PAGE_MIN // 2
    await system.volume.merge.scan_page(inode)
    await wait_all_tasks_blocked()
    assert remote.count("scan") == 4, "the second, and two ahead"
    await trio.sleep(KEEP_S + 1)
    await system.volume.merge.scan_page(inode)
    await wait_all_tasks_blocked()
    assert remote.count("scan") == 7, "nobody came for them in time; two more are ahead"
    await system.volume.merge.scan_page(inode)
    await wait_all_tasks_blocked()
    assert remote.count("scan") == 7, "one is taken; the last is there already"
    assert sorted(await system.listdir("")) == ENCODED


async def test_a_page_ahead_that_failed_is_asked_for_again(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    inode = await first_page(system, remote)
    remote.page_entries = PAGE_MIN // 2
    await system.volume.merge.scan_page(inode)
    await wait_all_tasks_blocked()
    remote.fail("scan", Unreachable("gone fishing"))
    assert sorted(await system.listdir("")) == ENCODED


async def test_what_changes_here_while_a_page_is_held_is_seen(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    inode = await first_page(system, remote)
    await system.volume.merge.scan_page(inode)
    await wait_all_tasks_blocked()
    assert remote.count("scan") == 3
    await system.unlink(NAMES[-1])
    await system.sync()
    listed = await system.listdir("")
    assert NAMES[-1].encode() not in listed
    assert len(listed) == len(NAMES) - 1


async def test_what_no_page_had_is_gone_at_the_end(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unifs.vfs.remoteending.NAMES_MAX", 5)
    fill(remote)
    assert sorted(await system.listdir("")) == ENCODED
    for name in NAMES[::3]:
        remote.change(name, None)
    await trio.sleep(FRESH_S + 1)
    left = [name for name in ENCODED if name not in ENCODED[::3]]
    assert sorted(await system.listdir("")) == left
    with pytest.raises(NotFound):
        await system.stat(NAMES[0])


async def test_a_listing_that_is_given_up_at_its_end_is_not_complete(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(remote)
    inode = root_of(system)
    seen: list[object] = []

    def give_up(names: list[object]) -> None:
        seen.extend(names)
        inode.listing, inode.cursor = 0, None

    monkeypatch.setattr(system.volume.merge, "vanish", give_up)
    await system.volume.merge.scan_page(inode)
    assert (seen, inode.listing) == ([], 0)
    monkeypatch.undo()
    assert sorted(await system.listdir("")) == ENCODED
    assert inode.listing == COMPLETE


async def test_a_directory_is_counted_by_its_parent(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    fill(remote)
    before = (await system.stat("")).nlink
    for number in range(4):
        await remote.make(f"d{number}", Node(stat.S_IFDIR | 0o755), "t")
    await system.listdir("")
    assert (await system.stat("")).nlink == before + 4


async def test_a_listing_under_way_misses_no_name_that_was_trimmed(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    fill(remote)
    remote.page_entries = PAGE_MIN
    remote.delay_s = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(system.volume.merge.scan, root_of(system))
        await trio.sleep(1.5)
        assert trim(system.volume, 5) == 5
    assert root_of(system).listing == COMPLETE
    assert sorted(await system.listdir("")) == ENCODED
