"""The view of the past, what it is called, and how long it is there."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
import trio

from tests.vfs.historyworld import HistorySystem
from tests.vfs.invariants import check
from unifs.control import render
from unifs.errors import (
    Corrupt,
    Exists,
    InvalidArgument,
    NoSpace,
    NotFound,
    ReadOnly,
    Stale,
    TooLarge,
)
from unifs.state import schema
from unifs.types import SetAttributes
from unifs.vfs import history as history_module
from unifs.vfs import historyview as view_module
from unifs.vfs import roots as roots_module
from unifs.vfs.epochs import SECOND_NS
from unifs.vfs.history import names_at
from unifs.vfs.retention import DAY_S, HOUR_S, Ended, Limits, kept
from unifs.vfs.volume import INO_SHIFT
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from unifs.vfs.history import Ask

NOTHING = Limits(0, 0, 0)
LARGE = bytes(range(256)) * 1_000


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[HistorySystem]:
    async with HistorySystem(tmp_path) as system:
        yield system


async def read(fs: HistorySystem, path: str) -> bytes:
    return await fs.bytes_of(await fs.at(f"/.unifs/history/mfs/{path}"))


# --- names of epochs ------------------------------------------------------------------------------


async def test_an_epoch_is_found_by_number_name_and_time(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    number = await fs.history.checkpoint("before-upgrade")
    now_ns = time.time_ns()
    await fs.write("a", b"two")
    later = await fs.history.end_epoch()
    assert later > number
    for name in (f"{number}", "before-upgrade"):
        assert await read(fs, f"{name}/a") == b"one"
    assert await read(fs, f"{later}/a") == b"two"
    statement = "update epoch set time_ns=? where epoch=?"
    for epoch, age_s in ((number, 60), (later, 20)):
        fs.storage.database.execute(statement, (now_ns - age_s * 10**9, epoch))
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_ns / 1e9 - 40))
    assert await read(fs, f"{text}/a") == b"one"
    listed = await fs.names(await fs.at("/.unifs/history/mfs"))
    assert listed == [b"%d" % number, b"%d" % later, b"before-upgrade"]
    assert await fs.names(await fs.at("/.unifs/history")) == [b"mfs"]


async def test_a_time_as_it_is_shown_names_the_epoch_that_it_was_shown_for(
    fs: HistorySystem,
) -> None:
    """Whole seconds are shown; the epoch ended later in that one."""
    await fs.write("a", b"one")
    number = await fs.history.checkpoint("kept")
    await fs.write("a", b"two")
    later = await fs.history.end_epoch()
    second = int(time.time()) - 60
    statement = "update epoch set time_ns=? where epoch=?"
    for epoch, time_ns in (
        (number, second * SECOND_NS + 700_000_000),
        (later, (second + 1) * SECOND_NS),
    ):
        fs.storage.database.execute(statement, (time_ns, epoch))
    assert fs.history.resolve(render.moment(second + 0.7)) == number
    assert fs.history.resolve(render.moment(second + 1)) == later


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("77", "is not kept"),
        ("nothing-of-the-kind", "is no epoch"),
        ("2999-01-01", "in the future"),
        ("1999-01-01T00:00:00Z", "as old as"),
        ("1999-13-01", "is no epoch"),
        ("99999999999999999999", "is no epoch"),
    ],
)
async def test_an_unknown_epoch_is_named(fs: HistorySystem, name: str, why: str) -> None:
    await fs.history.end_epoch()
    with pytest.raises(NotFound, match=why):
        await fs.at(f"/.unifs/history/mfs/{name}")


@pytest.mark.parametrize("name", ["", "7", "now", "a/b", "2026-11-21", "-x", "a\0b", "x" * 201])
async def test_a_checkpoint_needs_a_name_of_its_own(fs: HistorySystem, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await fs.history.checkpoint(name)


async def test_checkpoints_are_bounded_and_unique(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "CHECKPOINTS_MAX", 2)
    first = await fs.answer.checkpoint("one")
    with pytest.raises(Exists):
        await fs.answer.checkpoint("one")
    second = await fs.answer.checkpoint("two")
    assert first.epoch == second.epoch, "nothing changed in between"
    with pytest.raises(TooLarge):
        await fs.answer.checkpoint("three")
    assert (await fs.answer.remove_checkpoint("one")).name == "one"
    with pytest.raises(NotFound):
        await fs.answer.remove_checkpoint("one")
    assert [each.name for each in await fs.answer.checkpoints()] == ["two"]


async def test_a_name_that_is_used_again_shows_what_it_names_now(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    await fs.answer.checkpoint("point")
    assert await read(fs, "point/a") == b"one"
    await fs.answer.remove_checkpoint("point")
    await fs.write("a", b"two")
    await fs.answer.checkpoint("point")
    assert (fs.view._mounts[b"mfs"].ino, b"point") in fs.told.entries
    assert await read(fs, "point/a") == b"two"


# --- what is seen ---------------------------------------------------------------------------------


async def test_nothing_in_it_can_be_changed(fs: HistorySystem) -> None:
    await fs.write("d", b"x")
    number = await fs.history.end_epoch()
    top = await fs.at(f"/.unifs/history/mfs/{number}")
    ino = await fs.at(f"/.unifs/history/mfs/{number}/d")
    vfs, caller = fs.vfs, fs.caller
    for change in (
        lambda: vfs.open(ino, os.O_RDWR, caller),
        lambda: vfs.setattr(ino, SetAttributes(mode=0), None, caller),
        lambda: vfs.unlink(top, b"d", caller),
        lambda: vfs.mkdir(top, b"new", 0o755, caller),
        lambda: vfs.create(top, b"new", 0o644, os.O_WRONLY, caller),
        lambda: vfs.setxattr(ino, b"user.a", b""),
        lambda: vfs.rename(top, b"d", top, b"e", 0, caller),
        lambda: vfs.mkdir(fs.view.top.ino, b"new", 0o755, caller),
    ):
        with pytest.raises(ReadOnly):
            change()


async def test_numbers_are_those_of_the_tree_behind_a_prefix(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    await fs.hard_link("a", "b")
    live = (await fs.stat("a")).ino
    one = await fs.history.end_epoch()
    await fs.write("a", b"two")
    two = await fs.history.end_epoch()
    numbers = [await fs.at(f"/.unifs/history/mfs/{epoch}/a") for epoch in (one, two)]
    assert len({live, *numbers}) == 3
    assert all(number & ((1 << INO_SHIFT) - 1) == live for number in numbers)
    assert await fs.at(f"/.unifs/history/mfs/{one}/b") == numbers[0]
    assert await fs.at(f"/.unifs/history/mfs/{one}/a") == numbers[0]


async def test_a_large_directory_is_read_in_pages(fs: HistorySystem) -> None:
    """As many as three pages, in replies of seven names; a third is past, a third came later."""
    await fs.mkdir("d")
    names = [f"{number:04}" for number in range(700)]
    for name in names:
        await fs.mknod(f"d/{name}")
    number = await fs.history.end_epoch()
    for name in names[::3]:
        await fs.unlink(f"d/{name}")
        await fs.mknod(f"d/new-{name}")
    await fs.rename("d/0001", "d/renamed")
    await fs.history.end_epoch()
    ino = await fs.at(f"/.unifs/history/mfs/{number}/d")
    assert await fs.names(ino, page=7) == [name.encode() for name in names]
    assert await fs.names(await fs.at("/mfs/d")) != await fs.names(ino)


def test_a_name_that_becomes_past_between_two_questions_is_listed_once() -> None:
    def ask(sql: str, bindings: Sequence[object]) -> list[object]:
        return [(3, b"c", 9)] if "dentry_past" not in sql else [(3, b"c", 9), (2, b"b", 8)]

    assert names_at(ask, 1, 5, 0, 10) == [(2, b"b", 8), (3, b"c", 9)]


async def test_an_open_file_keeps_its_epoch(fs: HistorySystem) -> None:
    await fs.write("a", LARGE)
    await fs.write("b", b"small")
    await fs.settle()
    number = await fs.history.end_epoch()
    handles = []
    for name in ("a", "b"):
        ino = await fs.at(f"/.unifs/history/mfs/{number}/{name}")
        handles.append(await complete(fs.vfs.open, ino, os.O_RDONLY, fs.caller))
        await fs.unlink(name)
    for _ in range(3):
        fs.prune(NOTHING)
        await fs.settle()
        await fs.collect()
    assert fs.history.is_shown(number)
    reads = [bytes(await complete(fs.vfs.read, handle.fh, 0, 1 << 20)) for handle in handles]
    assert reads == [LARGE, b"small"]
    for handle in handles:
        await complete(fs.vfs.release, handle.fh)
    fs.prune(NOTHING)
    assert not fs.history.is_shown(number)
    with pytest.raises(Stale):
        await complete(fs.vfs.open, handles[0].inode.ino, os.O_RDONLY, fs.caller)


async def test_a_thinned_epoch_vanishes_with_a_clear_error(fs: HistorySystem) -> None:
    await fs.write("a", b"one")
    number = await fs.history.end_epoch()
    await fs.write("a", b"two")
    ino = await fs.at(f"/.unifs/history/mfs/{number}/a")
    fs.prune(NOTHING)
    assert (fs.view._mounts[b"mfs"].ino, b"%d" % number) in fs.told.entries
    with pytest.raises(Stale, match=f"epoch {number} is not kept any more"):
        await complete(fs.vfs.getattr, ino)
    with pytest.raises(NotFound, match=f"epoch {number} is not kept"):
        await fs.at(f"/.unifs/history/mfs/{number}")
    assert count(fs, "inode_past") == 0
    check(fs)


async def test_views_that_nobody_looks_at_make_room(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "VIEWS_MAX", 3)
    for number in range(6):
        await fs.write("a", b"%d" % number)
        await fs.history.end_epoch()
    parts = fs.vfs.inodes.volumes
    for shown in fs.history.shown():
        view = fs.view._view(fs.volume, b"%d" % shown.number, shown.number)
        assert view.root().ino >> INO_SHIFT == view.prefix
    assert len(fs.view._views) == 3
    assert len([each for each in parts.values() if each.name == "history"]) == 4


async def test_a_file_that_is_being_written_is_what_was_sealed_next(fs: HistorySystem) -> None:
    """Its bytes change in place until then: the view seals them before anybody reads."""
    file = await fs.open_file("a", os.O_CREAT | os.O_RDWR)
    await file.write(0, LARGE)
    await file.flush()
    seal, fs.history.seal = fs.history.seal, history_module._no_sealer
    number = await fs.history.end_epoch()
    fs.history.seal = seal
    await file.write(0, b"changed")
    top = await fs.at(f"/.unifs/history/mfs/{number}")
    assert await fs.names(top) == [b"a"]
    # As the kernel does that knows the name from the listing.
    ino = fs.view._views["mfs", b"%d" % number].number(file.ino)
    listed = fs.vfs.inodes.get(ino).attributes
    assert listed.attr_timeout == 0.0
    await file.write(len(LARGE), b"more")
    seen = await fs.bytes_of(ino)
    assert seen == b"changed" + LARGE[7:] + b"more"
    assert (await complete(fs.vfs.getattr, ino)).st_size == len(seen)
    assert await fs.at(f"/.unifs/history/mfs/{number}/a") == ino
    await file.write(0, b"CHANGED")
    await file.close()
    await fs.settle()
    assert await fs.bytes_of(ino) == seen
    assert (await fs.read("a")).startswith(b"CHANGED")


async def test_what_no_fsync_covered_is_not_invented_after_a_power_cut(fs: HistorySystem) -> None:
    file = await fs.open_file("a", os.O_CREAT | os.O_RDWR)
    await file.write(0, LARGE)
    await file.flush()
    fs.history.seal = history_module._no_sealer
    number = await fs.history.end_epoch()
    await file.truncate(0)
    await file.close()
    statement = "update content set boot=x'00' where state=1"
    fs.storage.database.execute(statement)
    ino = await fs.at(f"/.unifs/history/mfs/{number}/a")
    with pytest.raises(Corrupt, match="before these bytes were stored"):
        await complete(fs.vfs.open, ino, os.O_RDONLY, fs.caller)


async def test_linked_content_is_seen_by_its_cid(fs: HistorySystem) -> None:
    cid = await fs.add(b"linked " * 30_000)
    await fs.link(cid, "linked")
    number = await fs.history.end_epoch()
    await fs.setattr("linked", mode=0o700)
    await fs.history.end_epoch()
    # Nobody has opened the directory: it gets rows for its names now, as old as itself.
    assert await fs.names(await fs.at(f"/.unifs/history/mfs/{number}/linked")) == [b"file"]
    await fs.unlink("linked/file")
    await fs.rmdir("linked")
    await fs.history.end_epoch()
    assert await read(fs, f"{number}/linked/file") == b"linked " * 30_000
    ino = await fs.at(f"/.unifs/history/mfs/{number}/linked/file")
    assert (await complete(fs.vfs.getxattr, ino, b"ipfs.cid")).decode().startswith("baf")
    restored = await fs.answer.undelete("/mfs/linked", None, None)
    assert restored.made == 2
    assert await fs.read("linked/file") == b"linked " * 30_000


# --- how long -------------------------------------------------------------------------------------


def count(fs: HistorySystem, table: str) -> int:
    return int(fs.storage.database.one(f"select count(*) from {table}")[0])


def test_the_limits_keep_what_was_the_present_then() -> None:
    """Everything for an hour, of each full hour of a day and each midnight of 30 days one."""
    day = 20_000 * DAY_S
    now = day + 12 * HOUR_S + 1_800
    ages = [*range(0, 3 * HOUR_S, 60), *range(3 * HOUR_S, 50 * DAY_S, 1_000)]
    epochs = [
        Ended(number, (now - age) * 10**9) for number, age in enumerate(sorted(ages, reverse=True))
    ]
    chosen = kept(epochs, now * 10**9, Limits())
    times = {epoch.number: epoch.time_ns // 10**9 for epoch in epochs}
    for back in range(0, HOUR_S, 60):
        assert max(number for number in times if times[number] <= now - back) in chosen
    for moment in [day + 12 * HOUR_S - back * HOUR_S for back in range(24)]:
        assert max(number for number in times if times[number] <= moment) in chosen
    for moment in [day - back * DAY_S for back in range(30)]:
        assert max(number for number in times if times[number] <= moment) in chosen
    assert len(chosen) <= 62 + 24 + 30
    assert kept(epochs, now * 10**9, NOTHING) == set()


def test_what_was_the_present_for_long_is_kept_by_its_end() -> None:
    """A file that nobody touched for a year and that is removed now is not lost."""
    year = 365 * DAY_S * 10**9
    epochs = [Ended(1, year), Ended(2, 2 * year)]
    assert kept(epochs, 2 * year + 60 * 10**9, Limits()) == {1, 2}
    assert kept(epochs, 3 * year, Limits()) == {2}


async def test_a_full_disk_keeps_checkpoints_only(fs: HistorySystem) -> None:
    await fs.write("a", LARGE)
    await fs.history.checkpoint("kept")
    await fs.unlink("a")
    await fs.write("b", LARGE[::-1])
    await fs.history.end_epoch()
    await fs.unlink("b")
    await fs.storage.flusher.flush()
    fs.tick()
    fs.prune(Limits(), is_low=True)
    await fs.storage.flusher.flush()
    fs.tick()
    assert [each.names for each in fs.history.shown()] == [("kept",)]
    assert await read(fs, "kept/a") == LARGE
    assert count(fs, "content") == 1
    check(fs)


async def test_a_database_of_the_format_before_keeps_its_past(tmp_path: Path) -> None:
    """Names of the past move to their new key, attributes get an epoch."""
    import apsw

    path = tmp_path / "tree.db"
    connection = apsw.Connection(str(path))
    for version in range(schema.VERSION - 1):
        for statement in schema.MIGRATIONS[version]:
            connection.execute(statement)
    connection.execute("insert into dentry_past values(1,5,9,x'61',7,2)")
    connection.execute("insert into xattr values(7,x'62',x'63')")
    for statement in schema.MIGRATIONS[schema.VERSION - 1]:
        connection.execute(statement)
    rows = connection.execute("select parent,until,id,name,ino,epoch from dentry_past").fetchall()
    assert rows == [(1, 5, 9, b"a", 7, 2)]
    rows = connection.execute("select ino,name,value,epoch from xattr").fetchall()
    assert rows == [(7, b"b", b"c", 0)]
    connection.close()


async def test_what_changes_while_a_root_is_built_is_the_past_of_its_epoch(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is there from its end on, also for a sweep that comes before its root."""
    await fs.write("a", b"one")
    number = fs.storage.tree.epoch
    record = fs.roots._record

    def recording(*args: object) -> None:
        if is_sweeping:
            retention = fs.retention(Limits())
            with monkeypatch.context() as patch:
                patch.setattr(retention, "is_low", lambda: False)
                while retention.prune():
                    pass
        record(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fs.roots, "_record", recording)
    is_sweeping = True
    next_epoch = roots_module.next_epoch

    def changing(*args: object) -> int:
        ended = next_epoch(*args)  # type: ignore[arg-type]
        fs.volume.unlink(fs.vfs.inodes.get(fs.volume.root), b"a", fs.caller)
        return ended

    monkeypatch.setattr(roots_module, "next_epoch", changing)
    await fs.roots.build()
    fs.tick()
    assert await read(fs, f"{number}/a") == b"one"


async def test_a_root_that_comes_after_its_epoch_was_thinned_is_not_shown(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fs.write("a", b"one")
    record = fs.roots._record

    def recording(*args: object) -> None:
        fs.prune(NOTHING)
        record(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fs.roots, "_record", recording)
    await fs.roots.build()
    assert fs.history.shown() == []
    assert fs.roots.current() is not None
    await fs.remount()
    assert fs.roots.current() is not None
    await fs.write("a", b"two")
    await fs.roots.build()
    fs.prune(NOTHING)
    assert count(fs, "epoch") == count(fs, "thinned") == 1


async def test_a_build_that_fails_again_and_again_ends_one_epoch(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fs.write("a", b"one")
    with monkeypatch.context() as patch:
        patch.setattr(fs.roots, "_record", Mock(side_effect=NoSpace))
        for _ in range(5):
            with pytest.raises(NoSpace):
                await fs.roots.build()
    assert len(fs.history.shown()) == 1
    number = await fs.history.checkpoint("point")
    await fs.roots.build()
    assert [(each.number, each.names) for each in fs.history.shown()] == [(number, ("point",))]
    assert fs.history.shown()[0].root is not None


async def test_questions_of_the_past_end_between_two_queries(fs: HistorySystem) -> None:
    """A daemon that stops waits for its threads."""

    def ask_for_long(ask: Ask) -> None:
        for _ in range(1_000_000):
            ask("select 1", ())

    with trio.move_on_after(0.01) as scope:
        await fs.history.in_thread(ask_for_long)
    assert scope.cancelled_caught
