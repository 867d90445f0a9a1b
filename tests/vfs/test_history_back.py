"""Undelete, rollback, diff, the versions of a path, and what is not tracked."""

from __future__ import annotations

import os
import stat
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.vfs.historyworld import HistorySystem, Seen
from tests.vfs.invariants import check
from tests.vfs.test_history_model import NOTHING, Walk
from unifs.errors import (
    Busy,
    Exists,
    InvalidArgument,
    NotADirectory,
    NotFound,
    ReadOnly,
    Unsupported,
)
from unifs.vfs.rollback import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LARGE = bytes(range(256)) * 1_000


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[HistorySystem]:
    async with HistorySystem(tmp_path) as system:
        yield system
        check(system)


async def fill(fs: HistorySystem) -> None:
    """One of everything below d."""
    await fs.mkdir("d", mode=0o750)
    await fs.mkdir("d/sub")
    await fs.write("d/small", b"small")
    await fs.write("d/large", LARGE)
    await fs.write("d/empty", b"")
    await fs.hard_link("d/small", "d/sub/same")
    await fs.symlink(b"small", "d/link")
    await fs.mknod("d/fifo", stat.S_IFIFO | 0o600)
    await fs.mknod("d/device", stat.S_IFCHR | 0o600, rdev=0x103)
    await fs.setxattr("d/small", b"user.a", b"1")
    await fs.setxattr("d/sub", b"user.b", b"2")
    await fs.setattr("d/large", mode=0o4711, uid=5, gid=6, mtime_ns=10**18)
    await fs.setattr("d/sub", mode=0o2775, mtime_ns=10**18 + 1)
    # Recovery dates directories by their records, microseconds later than the calls did.
    fs.tick()


def plain(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """Without the root itself, whose times move."""
    return {path: each for path, each in seen.items() if path}


async def change(fs: HistorySystem, path: str) -> None:
    match path:
        case "everything":
            for name in await fs.listdir("d/sub"):
                await fs.unlink(f"d/sub/{name.decode()}")
            await fs.rmdir("d/sub")
            for name in await fs.listdir("d"):
                await fs.unlink(f"d/{name.decode()}")
            await fs.rmdir("d")
        case "bytes":
            await fs.write("d/small", LARGE)
            await fs.write("d/large", b"now small")
            await fs.truncate("d/empty", 70_000)
        case "kinds":
            await fs.unlink("d/large")
            await fs.mkdir("d/large")
            await fs.write("d/large/inside", b"x")
            await fs.unlink("d/link")
            await fs.symlink(b"elsewhere", "d/link")
            await fs.unlink("d/sub/same")
            await fs.rmdir("d/sub")
            await fs.write("d/sub", b"a file")
            await fs.unlink("d/device")
            await fs.mknod("d/device", stat.S_IFCHR | 0o600, rdev=0x105)
        case "owners":
            await fs.setattr("d", mode=0o700, uid=9)
            await fs.setattr("d/small", mode=0o600, uid=9, gid=9)
            await fs.setxattr("d/small", b"user.a", b"other")
            await fs.setxattr("d/small", b"user.new", b"new")
            await fs.removexattr("d/sub", b"user.b")
        case "links":
            await fs.unlink("d/sub/same")
            await fs.write("d/sub/same", b"not the same")
            await fs.hard_link("d/large", "d/second")
        case "names":
            await fs.rename("d/small", "d/renamed")
            await fs.rename("d/sub", "d/moved")
            await fs.write("d/new", b"new")


CHANGES = ("everything", "bytes", "kinds", "owners", "links", "names")


@pytest.mark.parametrize("what", CHANGES)
async def test_a_rollback_restores_everything_and_can_be_rolled_back(
    fs: HistorySystem, what: str
) -> None:
    await fill(fs)
    was = await fs.seen(await fs.at("/mfs/d"))
    await fs.history.checkpoint("then")
    await change(fs, what)
    changed = plain(await fs.live())
    first = await fs.answer.rollback("/mfs/d", "then")
    assert await fs.seen(await fs.at("/mfs/d")) == was
    assert await fs.then("then") == await fs.then(first.epoch)
    check(fs)
    await fs.kill()
    assert await fs.seen(await fs.at("/mfs/d")) == was
    second = await fs.answer.rollback("/mfs", str(first.before))
    assert second.before > first.before
    assert plain(await fs.live()) == changed
    await fs.settle()
    await fs.collect()
    assert plain(await fs.live()) == changed


@pytest.mark.parametrize("seed", range(3))
async def test_a_rollback_of_random_changes(tmp_path: Path, seed: int) -> None:
    """To any epoch and back, with collections and kills in between."""
    async with HistorySystem(tmp_path) as fs:
        walk = Walk(fs, 500 + seed)
        while len(walk.snapshots) < 6:
            await walk.steps(25)
            await walk.end_epoch()
        chance = Random(seed)
        for number in chance.sample(sorted(walk.snapshots), 5):
            await fs.answer.rollback("/mfs", str(number))
            assert await fs.live() == walk.snapshots[number]
            check(fs)
            await fs.settle()
            await fs.collect()
            if chance.random() < 0.5:
                await fs.kill()
                assert plain(await fs.live()) == plain(walk.snapshots[number])
        await walk.compare()


async def test_a_rollback_survives_a_power_cut(fs: HistorySystem) -> None:
    """Its bytes are durable already: they are those of the past."""
    await fill(fs)
    await fs.settle()
    was = await fs.seen(await fs.at("/mfs/d"))
    await fs.history.checkpoint("then")
    await change(fs, "bytes")
    await fs.settle()
    await fs.answer.rollback("/mfs/d", "then")
    fs.tick()
    await fs.storage.flusher.flush()
    await fs.kill(boot="after a power cut")
    assert await fs.seen(await fs.at("/mfs/d")) == was
    assert await fs.then("then") != {}


async def test_a_rollback_that_ends_in_the_middle_is_finished_by_the_next(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is old or new at every kill; the same rollback again does the rest."""
    await fill(fs)
    was = await fs.seen(await fs.at("/mfs/d"))
    await fs.history.checkpoint("then")
    for what in ("links", "bytes", "owners", "kinds"):
        await change(fs, what) if what != "kinds" else None
    changed = await fs.seen(await fs.at("/mfs/d"))
    commit = type(fs.storage.tree).commit
    for number in range(1, 40):
        left = number

        def failing(*args: object, **options: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            commit(*args, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(type(fs.storage.tree), "commit", failing)
            try:
                await fs.answer.rollback("/mfs/d", "then")
                is_done = True
            except KeyboardInterrupt:
                is_done = False
        await fs.kill()
        seen = await fs.seen(await fs.at("/mfs/d"))
        for path in (b"/small", b"/large", b"/empty", b"/sub/same"):
            assert seen[path].data in (was[path].data, changed[path].data)
        if is_done:
            break
    assert is_done
    assert number > 5
    assert seen == was
    assert not [path for path in seen if TEMPORARY in path]


async def test_a_rollback_leaves_a_busy_file_alone(fs: HistorySystem) -> None:
    await fill(fs)
    await fs.history.checkpoint("then")
    await fs.write("d/empty", b"not empty")
    async with fs.open("d/small", os.O_RDWR) as file:
        await file.write(0, b"SMALL")
        with pytest.raises(Busy, match=r"/mfs/d/\S+ is open for writing"):
            await fs.answer.rollback("/mfs/d", "then")
        assert await fs.read("d/empty") == b"not empty"
    async with fs.open("d/large") as reader:
        await fs.write("d/large", b"other")
        await fs.answer.rollback("/mfs/d", "then")
        assert await reader.read() == LARGE
    assert await fs.read("d/small") == b"small"


async def test_what_cannot_be_rolled_back(fs: HistorySystem) -> None:
    await fs.write("a", b"x")
    await fs.history.checkpoint("then")
    await fs.write("late", b"x")
    for path, epoch, error in (
        ("/mfs/late", "then", NotFound),
        ("/mfs/a", "never", NotFound),
        ("/mfs/never", "then", NotFound),
        ("/ipfs/a", "then", Unsupported),
        ("/", "then", Unsupported),
        ("mfs/a", "then", InvalidArgument),
    ):
        with pytest.raises(error):
            await fs.answer.rollback(path, epoch)
    await fs.unlink("a")
    await fs.mkdir("a")
    await fs.write("a/inside", b"y")
    restored = await fs.answer.rollback("/mfs/a", "then")
    assert await fs.read("a") == b"x"
    assert await fs.bytes_of(await fs.at(f"/.unifs/history/mfs/{restored.before}/a/inside")) == b"y"
    fs.volume.refuses_changes = True
    with pytest.raises(ReadOnly):
        await fs.answer.rollback("/mfs/a", "then")


# --- undelete -------------------------------------------------------------------------------------


async def test_undelete_brings_back_the_last_that_was_there(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    await fs.history.end_epoch()
    await fs.write("a", b"two")
    await fs.history.end_epoch()
    await fs.unlink("a")
    found = await fs.answer.undelete("/mfs/a", None, None)
    assert (await fs.read("a"), found.made) == (b"two", 1)
    with pytest.raises(Exists, match="--to"):
        await fs.answer.undelete("/mfs/a", None, None)
    first = str(fs.history.shown()[0].number)
    await fs.answer.undelete("/mfs/a", first, "b")
    await fs.answer.undelete("/mfs/a", first, "/mfs/c")
    assert [await fs.read(name) for name in "abc"] == [b"two", b"one", b"one"]
    for to in ("", "x/y", "..", "/ipfs/x"):
        with pytest.raises((InvalidArgument, Unsupported)):
            await fs.answer.undelete("/mfs/a", first, to)
    with pytest.raises(NotFound, match="in no epoch"):
        await fs.answer.undelete("/mfs/never", None, None)
    with pytest.raises(NotADirectory):
        await fs.answer.undelete("/mfs/a", first, "/mfs/b/below")


async def test_undelete_of_a_directory_makes_what_is_missing_above(fs: HistorySystem) -> None:
    await fill(fs)
    await fs.rename("d", "up")
    await fs.mkdir("d", mode=0o700)
    await fs.rename("up", "d/inner")
    was = await fs.seen(await fs.at("/mfs/d/inner"))
    await fs.history.end_epoch()
    await fs.answer.rollback("/mfs", str(await fs.history.checkpoint("all")))
    await fs.rename("d/inner", "d2")
    for name in ("sub/same", "small", "large", "empty", "link", "fifo", "device"):
        await fs.unlink(f"d2/{name}")
    await fs.rmdir("d2/sub")
    await fs.rmdir("d2")
    await fs.rmdir("d")
    await fs.settle()
    await fs.kill()
    restored = await fs.answer.undelete("/mfs/d/inner", "all", None)
    assert restored.made == len(was) + 1
    assert await fs.seen(await fs.at("/mfs/d/inner")) == was
    assert (await fs.stat("d")).mode == 0o040700


async def test_undelete_of_one_of_several_names(fs: HistorySystem) -> None:
    """It is that file again, unless that has changed since."""
    await fs.write("a", b"bytes")
    await fs.hard_link("a", "b")
    await fs.history.end_epoch()
    await fs.unlink("b")
    await fs.answer.undelete("/mfs/b", None, None)
    assert (await fs.stat("a")).ino == (await fs.stat("b")).ino
    await fs.history.end_epoch()
    await fs.unlink("b")
    await fs.write("a", b"changed")
    await fs.answer.undelete("/mfs/b", None, None)
    assert (await fs.stat("a")).ino != (await fs.stat("b")).ino
    assert (await fs.read("a"), await fs.read("b")) == (b"changed", b"bytes")


async def test_undelete_copies_no_bytes(fs: HistorySystem) -> None:
    await fs.write("a", LARGE * 8)
    await fs.settle()
    await fs.history.end_epoch()
    await fs.unlink("a")
    before = sum(path.stat().st_blocks for path in fs.storage.state.data.iterdir())
    await fs.answer.undelete("/mfs/a", None, None)
    await fs.answer.undelete("/mfs/a", None, "again")
    assert sum(path.stat().st_blocks for path in fs.storage.state.data.iterdir()) == before
    await fs.write("a", b"changed")
    fs.prune(NOTHING)
    await fs.settle()
    await fs.collect()
    assert await fs.read("again") == LARGE * 8


# --- looking --------------------------------------------------------------------------------------


async def test_diff_names_what_differs(fs: HistorySystem) -> None:
    await fill(fs)
    await fs.history.checkpoint("one")
    await fs.write("d/small", b"other")
    await fs.setattr("d/large", mode=0o600)
    await fs.removexattr("d/sub", b"user.b")
    await fs.unlink("d/link")
    await fs.mkdir("d/new")
    await fs.write("d/new/inside", b"x")
    await fs.unlink("d/fifo")
    await fs.write("d/fifo", b"a file")
    found = {each.path: each async for each in fs.answer.diff("one", "now", "/mfs")}
    assert {path: (each.change, each.what) for path, each in found.items()} == {
        "/mfs/d/small": ("changed", ["content", "time"]),
        "/mfs/d/sub/same": ("changed", ["content", "time"]),
        "/mfs/d/large": ("changed", ["mode"]),
        "/mfs/d/sub": ("changed", ["attributes"]),
        "/mfs/d/link": ("removed", ["removed"]),
        "/mfs/d/new": ("added", ["made"]),
        "/mfs/d/fifo": ("changed", ["kind"]),
    }
    assert [each async for each in fs.answer.diff("one", "one", "/mfs")] == []
    below = [each.path async for each in fs.answer.diff("now", "one", "/mfs/d/sub")]
    assert below == ["/mfs/d/sub", "/mfs/d/sub/same"]
    with pytest.raises(NotFound):
        [each async for each in fs.answer.diff("one", "now", "/mfs/never")]


async def test_the_versions_of_a_path(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    await fs.history.end_epoch()
    await fs.write("other", b"x")
    await fs.history.end_epoch()
    await fs.setattr("a", mode=0o600)
    await fs.setxattr("a", b"user.a", b"1")
    await fs.history.end_epoch()
    await fs.unlink("a")
    await fs.history.end_epoch()
    await fs.symlink(b"target", "a")
    versions = [each async for each in fs.answer.versions("/mfs/a")]
    assert [each.changed for each in versions] == [
        ["made"],
        ["mode", "attributes"],
        ["removed"],
        ["made"],
    ]
    assert [each.kind for each in versions] == ["file", "file", None, "symlink"]
    assert versions[0].cid == versions[1].cid is not None
    with pytest.raises(NotFound, match="in no epoch"):
        [each async for each in fs.answer.versions("/mfs/never")]


# --- what is not tracked --------------------------------------------------------------------------


async def test_an_untracked_directory_has_no_past(fs: HistorySystem) -> None:
    await fs.mkdir("cache")
    await fs.mkdir("cache/sub")
    await fs.mkdir("kept")
    await fs.answer.track("/mfs/cache", False)
    for name in ("cache/a", "cache/sub/b", "kept/c"):
        await fs.write(name, LARGE)
    number = await fs.history.end_epoch()
    await fs.kill()
    for name in ("cache/a", "cache/sub/b", "kept/c"):
        await fs.write(name, b"new")
        await fs.rename(name, name + "2")
    await fs.settle()
    await fs.settle()
    assert fs.storage.database.one("select count(*) from content")[0] == 1
    assert fs.storage.database.one("select count(*) from dentry_past")[0] == 1
    assert await fs.names(await fs.at(f"/.unifs/history/mfs/{number}")) == [b"kept"]
    with pytest.raises(NotFound):
        await fs.at(f"/.unifs/history/mfs/{number}/cache")
    listed = [(each.path, each.is_tracked) for each in await fs.answer.tracked()]
    assert listed == [("/mfs", True), ("/mfs/cache", False)]
    restored = await fs.answer.rollback("/mfs", str(number))
    assert restored.skipped == ["/cache"]
    assert await fs.read("cache/a2") == b"new"
    assert await fs.read("kept/c") == LARGE
    with pytest.raises(InvalidArgument, match="/mfs/cache is not tracked"):
        await fs.answer.rollback("/mfs/cache", str(number))
    with pytest.raises(InvalidArgument, match="lies in /mfs/cache, which is not tracked"):
        await fs.answer.rollback("/mfs/cache/a2", str(number))


async def test_a_mount_that_was_untracked_as_a_whole_is_tracked_again(fs: HistorySystem) -> None:
    await fs.write("file", b"one")
    await fs.answer.track("/mfs", False)
    await fs.write("file", b"two")
    await fs.mkdir("d")
    with pytest.raises(InvalidArgument, match="/mfs/d lies in /mfs, which is not tracked"):
        await fs.answer.track("/mfs/d", True)
    assert (await fs.answer.track("/mfs", True)).is_tracked
    assert [(each.path, each.is_tracked) for each in await fs.answer.tracked()] == [("/mfs", True)]
    await fs.write("file", b"three")
    number = await fs.history.end_epoch()
    await fs.write("file", b"four")
    await fs.answer.rollback("/mfs/file", str(number))
    assert await fs.read("file") == b"three"


async def test_a_checkpoint_loses_a_directory_only_where_that_is_asked_for(
    fs: HistorySystem,
) -> None:
    await fs.write("before", b"one")
    await fs.mkdir("d")
    await fs.write("d/a", b"one")
    for number in range(5):
        await fs.answer.checkpoint(f"c{number}")
    await fs.mkdir("later")
    with pytest.raises(Busy, match=r"/mfs/d is in the checkpoints c0, c1, c2 and 2 more: with"):
        await fs.answer.track("/mfs/d", False)
    with pytest.raises(Busy, match=r"/mfs is in"):
        await fs.answer.track("/mfs", False)
    assert await fs.at("/.unifs/history/mfs/c0/d/a")
    # What no checkpoint shows needs no word, nor what it shows no more.
    assert not (await fs.answer.track("/mfs/later", False)).is_tracked
    assert not (await fs.answer.track("/mfs/d", False, is_sure=True)).is_tracked
    with pytest.raises(NotFound):
        await fs.at("/.unifs/history/mfs/c0/d")
    await fs.answer.track("/mfs/d", True)
    assert not (await fs.answer.track("/mfs/d", False)).is_tracked


async def test_what_was_not_tracked_once_is_not_shown_as_it_never_was(fs: HistorySystem) -> None:
    """Rows are missing in epochs from before: a rollback to one must not take them for removals."""
    await fs.mkdir("cache")
    await fs.write("cache/a", b"one")
    before = await fs.history.end_epoch()
    await fs.answer.track("/mfs/cache", False)
    await fs.write("cache/a", b"two")
    await fs.history.end_epoch()
    await fs.write("cache/a", b"three")
    await fs.answer.track("/mfs/cache", True)
    await fs.answer.track("/mfs/cache", True)
    await fs.kill()
    await fs.write("cache/b", b"four")
    after = await fs.history.end_epoch()
    await fs.write("cache/b", b"five")
    await fs.history.end_epoch()
    with pytest.raises(NotFound):
        await fs.at(f"/.unifs/history/mfs/{before}/cache")
    restored = await fs.answer.rollback("/mfs", str(before))
    assert restored.skipped == ["/cache"]
    with pytest.raises(NotFound):
        await fs.answer.rollback("/mfs/cache", str(before))
    await fs.answer.rollback("/mfs/cache", str(after))
    assert (await fs.read("cache/a"), await fs.read("cache/b")) == (b"three", b"four")


async def test_a_whole_mount_may_keep_no_past(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    number = await fs.history.end_epoch()
    await fs.answer.track("/mfs", False)
    assert await fs.names(await fs.at("/.unifs/history/mfs")) == []
    for step in (
        lambda: fs.at(f"/.unifs/history/mfs/{number}"),
        lambda: fs.answer.rollback("/mfs", str(number)),
        lambda: fs.answer.undelete("/mfs/a", None, "b"),
    ):
        with pytest.raises((NotFound, InvalidArgument)):
            await step()
    await fs.write("a", b"two")
    assert fs.storage.database.one("select count(*) from inode_past")[0] == 0


async def test_tracking_follows_a_directory_that_moves(fs: HistorySystem) -> None:
    for name in ("a", "b", "b/inner"):
        await fs.mkdir(name)
    await fs.answer.track("/mfs/a", False)
    tracking = fs.storage.tree.tracking
    inner = (await fs.stat("b/inner")).ino
    assert tracking.keeps(inner)
    await fs.rename("b/inner", "a/inner")
    assert not tracking.keeps(inner)
    with pytest.raises(InvalidArgument, match="lies in /mfs/a, which is not tracked"):
        await fs.answer.track("/mfs/a/inner", True)
    await fs.answer.track("/mfs/a", True)
    assert tracking.keeps(inner)
    assert [each.path for each in await fs.answer.tracked()] == ["/mfs"]
    await fs.write("file", b"x")
    for path, error in (("/mfs/file", NotADirectory), ("/mfs/none", NotFound)):
        with pytest.raises(error):
            await fs.answer.track(path, False)
