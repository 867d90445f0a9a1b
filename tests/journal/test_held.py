"""What is acknowledged before it is committed: noted, committed together, found after a kill."""

from __future__ import annotations

import errno
import marshal
import os
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

import apsw
import pytest

from tests.vfs.harness import BOOT, FileSystem
from tests.vfs.invariants import check
from unifs.errors import JournalFailed, NoSpace, UnifsError
from unifs.fsck.offline import examine
from unifs.state import ahead, held
from unifs.state.ahead import AHEAD_BYTES, NOTE_BYTES_MAX, Ahead
from unifs.state.queries import Reader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.state.held import Held

BATCH = [("insert into meta values(?,?)", ("a", b"\x00\xff")), ("delete from meta", ())]


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    """A file system that holds, with a first commit behind it."""
    async with FileSystem(tmp_path / "state", upkeep=False, holds=True) as system:
        await system.write("first", b"1")
        system.storage.database.settle()
        yield system


def held_of(fs: FileSystem) -> Held:
    return fs.storage.database.held


def committed(fs: FileSystem) -> set[bytes]:
    """The names that another connection sees."""
    reader = Reader(fs.storage.database.path)
    try:
        return {row[0] for row in reader.all("select name from dentry")}
    finally:
        reader.close()


# --- notes ----------------------------------------------------------------------------------------


def test_notes_are_found_by_their_number_and_boot(tmp_path: Path) -> None:
    notes = Ahead(tmp_path / "ahead", "boot")
    notes.begin(7)
    assert notes.note(BATCH)
    assert notes.note(BATCH[1:])
    notes.close()
    again = Ahead(tmp_path / "ahead", "boot")
    assert again.left(7) == [BATCH, BATCH[1:]]
    assert again.left(6) is again.left(8) is None
    assert (tmp_path / "ahead").stat().st_size == AHEAD_BYTES
    again.close()
    other = Ahead(tmp_path / "ahead", "another boot")
    assert other.left(7) == []
    other.close()


def test_no_part_of_a_note_is_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1_000
    monkeypatch.setattr(ahead, "AHEAD_BYTES", size)
    path = tmp_path / "ahead"
    notes = Ahead(path, "boot")
    notes.begin(1)
    assert notes.note(BATCH)
    assert notes.note(BATCH)
    whole = path.read_bytes()
    length = 16 + len(marshal.dumps(BATCH, ahead.MARSHAL_VERSION))
    for end in range(2 * length):
        for rest in (b"\1", b"\xff"):
            path.write_bytes(whole[:end].ljust(size, rest))
            assert (notes.left(1) or []) == [BATCH] * (end // length)
    for at in range(length):
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 16,)) + whole[at + 1 :])
        assert not notes.left(1)
    notes.close()


def test_older_notes_behind_the_last_are_no_part_of_it(tmp_path: Path) -> None:
    notes = Ahead(tmp_path / "ahead", "boot")
    for number, count in ((1, 5), (2, 2)):
        notes.begin(number)
        assert all(notes.note(BATCH) for _ in range(count))
    assert notes.left(2) == [BATCH] * 2
    assert notes.left(1) is None
    notes.close()


def test_what_does_not_fit_is_not_noted(tmp_path: Path) -> None:
    notes = Ahead(tmp_path / "ahead", "boot")
    notes.begin(1)
    assert not notes.note([("select ?", (bytes(NOTE_BYTES_MAX),))])
    one = [("select ?", (bytes(NOTE_BYTES_MAX - 100),))]
    count = 0
    while notes.note(one):
        count += 1
    assert count == AHEAD_BYTES // NOTE_BYTES_MAX
    assert notes.left(1) == [one] * count
    assert (tmp_path / "ahead").stat().st_size == AHEAD_BYTES
    notes.close()


def test_without_room_for_the_file_nothing_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead.os, "pwrite", refuse)
    notes = Ahead(tmp_path / "ahead", "boot")
    monkeypatch.undo()
    notes.begin(1)
    assert not notes.note(BATCH)
    assert notes.left(1) is None
    notes.close()


def refuse(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "no space")


# --- holding --------------------------------------------------------------------------------------


async def test_what_is_held_is_committed_together(fs: FileSystem) -> None:
    database = fs.storage.database
    commits, wal = database.commits, database.wal_bytes
    for name in "abc":
        await fs.write(name, b"x")
    await fs.unlink("a")
    assert database.wal_bytes == wal
    assert database.commits == commits + 4
    assert committed(fs) == {b"first"}
    assert set(await fs.listdir()) == {b"first", b"b", b"c"}
    database.settle()
    assert committed(fs) == {b"first", b"b", b"c"}
    assert database.wal_bytes > wal
    check(fs)


async def test_a_flush_round_commits_first(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    await fs.write("b", b"x")
    assert held_of(fs).batches
    await fs.fsyncdir()
    assert not held_of(fs).batches
    assert fs.storage.flusher.durable_commits == fs.storage.database.commits
    await fs.kill(boot="another")
    assert set(await fs.listdir()) == {b"first", b"a", b"b"}


async def test_a_transaction_of_ones_own_comes_after_what_is_held(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    database = fs.storage.database
    database.begin()
    database.set_meta("mine", 1)
    database.rollback()
    assert committed(fs) == {b"first", b"a"}
    assert database.get_meta("mine") is None


async def test_so_many_are_held_and_no_more(fs: FileSystem) -> None:
    most = 0
    for index in range(3 * held.HELD_MAX):
        await fs.mkdir(f"d{index}")
        most = max(most, len(held_of(fs).batches))
    assert most == held.HELD_MAX
    assert len(committed(fs)) == 2 * held.HELD_MAX + 1


async def test_nothing_is_held_unless_the_loop_says_so(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"x")
        assert committed(fs) == {b"a"}


async def test_the_wal_has_room_for_what_is_held(fs: FileSystem) -> None:
    wal = fs.path / "tree.db-wal"
    for index in range(400):
        await fs.mkdir(f"d{index}")
        if held_of(fs).batches:
            room = wal.stat().st_size - fs.storage.database.wal_bytes
            assert room >= held.HELD_WAL_BYTES
    size, used = wal.stat().st_size, fs.storage.database.wal_bytes
    assert size - used < 2 * len(held.WAL_MORE)
    await fs.kill()
    assert len(await fs.listdir()) == 401


@pytest.mark.parametrize("how", ["no room in the WAL", "no note", "a note too long"])
async def test_what_cannot_be_held_is_committed_by_itself(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await fs.write("a", b"x")
    if how == "no room in the WAL":
        fs.storage.database.settle()
        monkeypatch.setattr(held.Held, "_has_wal_room", lambda _: False)
    elif how == "no note":
        monkeypatch.setattr(ahead.Ahead, "note", lambda *_: False)
    if how == "a note too long":
        await fs.setxattr("a", b"user.long", bytes(NOTE_BYTES_MAX))
    else:
        await fs.write("b", b"x")
    assert not held_of(fs).batches
    names = await fs.listdir()
    assert committed(fs) == set(names)
    check(fs)
    await fs.kill()
    assert await fs.listdir() == names
    if how == "a note too long":
        assert await fs.getxattr("a", b"user.long") == bytes(NOTE_BYTES_MAX)


# --- failures -------------------------------------------------------------------------------------


async def test_a_statement_that_fails_takes_nobody_else_along(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    await fs.mkdir("d")
    batch = [("insert into meta values('x',1)", ()), ("insert into meta values('x',1)", ())]
    with pytest.raises(apsw.ConstraintError):
        fs.storage.database.execute_batch(batch)
    assert fs.storage.database.get_meta("x") is None
    assert committed(fs) == {b"first", b"a", b"d"}
    await fs.write("b", b"x")
    check(fs)
    await fs.kill()
    assert set(await fs.listdir()) == {b"first", b"a", b"d", b"b"}


class Refusing:
    """The loop's connection, which refuses to commit so many times."""

    def __init__(self, fs: FileSystem, times: int, error: apsw.Error) -> None:
        self.database = fs.storage.database
        self.execute = self.database.execute
        self.times = times
        self.error = error
        self.database.execute = self  # type: ignore[assignment]

    def __call__(self, sql: str, bindings: Any = ()) -> Any:
        if sql == "commit" and self.times:
            self.times -= 1
            # SQLite rolls back by itself where a commit fails.
            self.execute("rollback")
            raise self.error
        return self.execute(sql, bindings)


async def test_a_commit_that_fails_is_done_again_with_the_reserve(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    await fs.mkdir("d")
    Refusing(fs, 2, apsw.FullError("database or disk is full"))
    fs.storage.database.settle()
    assert fs.storage.database.failed is None
    assert not fs.storage.state.has_reserve
    assert committed(fs) == {b"first", b"a", b"d"}
    check(fs)


@pytest.mark.parametrize("error", [apsw.FullError("full"), apsw.IOError("disk I/O error")])
async def test_what_cannot_be_committed_waits_for_the_next_start(
    fs: FileSystem, error: apsw.Error
) -> None:
    await fs.write("a", b"x" * 100)
    await fs.rename("first", "last")
    Refusing(fs, 9, error)
    fs.storage.database.settle()
    assert fs.storage.database.failed is not None
    with pytest.raises(JournalFailed, match="waits for the next start"):
        await fs.mkdir("d")
    with pytest.raises((JournalFailed, NoSpace)):
        await fs.storage.flusher.flush()
    assert set(await fs.listdir()) == {b"a", b"last"}
    assert await fs.read("a") == b"x" * 100
    check(fs)
    await fs.kill()
    assert set(await fs.listdir()) == {b"a", b"last"}
    assert await fs.read("a") == b"x" * 100
    check(fs)


async def test_nothing_follows_a_full_transaction_that_cannot_be_committed(fs: FileSystem) -> None:
    for index in range(held.HELD_MAX):
        await fs.mkdir(f"d{index}")
    assert len(held_of(fs).batches) == held.HELD_MAX
    Refusing(fs, 9, apsw.IOError("disk I/O error"))
    with pytest.raises(JournalFailed):
        await fs.mkdir("one more")
    await fs.kill()
    assert set(await fs.listdir()) == {b"first", *(b"d%d" % n for n in range(held.HELD_MAX))}
    check(fs)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_change_that_cannot_be_taken_back_fails_the_journal(
    fs: FileSystem, is_first: bool
) -> None:
    """It is told as what it is, and what was acknowledged before is there at the next start."""
    if not is_first:
        await fs.write("a", b"x")
    database = fs.storage.database
    execute = database.execute

    def refusing(sql: str, bindings: Any = ()) -> Any:
        if sql == "rollback" or " xattr " in sql:
            raise apsw.IOError("disk I/O error")
        return execute(sql, bindings)

    database.execute = refusing  # type: ignore[assignment]
    with pytest.raises(JournalFailed):
        await fs.setxattr("first", b"user.a", b"1")
    database.execute = execute
    assert database.failed is not None
    await fs.kill()
    assert set(await fs.listdir()) == ({b"first"} if is_first else {b"first", b"a"})
    assert await fs.listxattr("first") == []
    check(fs)


async def test_a_reserve_that_cannot_be_given_up_is_no_way_out(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    held_of(fs).make_room = refuse  # type: ignore[assignment]
    Refusing(fs, 2, apsw.FullError("database or disk is full"))
    fs.storage.database.settle()
    assert fs.storage.database.failed is not None
    await fs.kill()
    assert set(await fs.listdir()) == {b"first", b"a"}


async def test_a_flush_round_fails_where_what_is_held_cannot_be_committed(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    Refusing(fs, 9, apsw.IOError("disk I/O error"))
    with pytest.raises(UnifsError):
        await fs.fsyncdir()
    assert fs.storage.database.failed is not None
    await fs.kill()
    assert set(await fs.listdir()) == {b"first", b"a"}


# --- kills ----------------------------------------------------------------------------------------


async def step(fs: FileSystem, chance: Random) -> None:
    names = [chance.choice("abcdefgh") for _ in range(2)]
    what = chance.randrange(10)
    if what < 4:
        data = chance.randbytes(chance.choice((1, 5_000, 90_000)))
        await fs.write(names[0], data, fsync=what == 0)
    elif what == 4:
        await fs.unlink(names[0])
    elif what == 5:
        await fs.rename(names[0], names[1], chance.choice((0, 0, 2)))
    elif what == 6:
        await fs.link(names[0], names[1])
    elif what == 7:
        await fs.setattr(names[0], mode=chance.choice((0o600, 0o751)), uid=9)
    elif what == 8:
        await fs.setxattr(names[0], b"user.a", chance.randbytes(9))
    else:
        await fs.symlink(b"target", names[0])


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    found = 0
    async with FileSystem(tmp_path / "state", upkeep=False, holds=True) as fs:
        for _ in range(12):
            for _ in range(chance.randrange(60)):
                try:
                    await step(fs, chance)
                except UnifsError:
                    continue
                if chance.random() < 0.02:
                    fs.storage.database.settle()
            before = await fs.tree()
            found += len(held_of(fs).batches)
            await fs.kill()
            assert await fs.tree() == before
            check(fs)
    assert found > 20


async def test_a_start_that_is_killed_too_finds_them_again(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    await fs.kill(start=False)
    for _ in range(2):
        await fs.start()
        assert set(await fs.listdir()) == {b"first", b"a"}
        await fs.kill(start=False)
    await fs.start()
    check(fs)


async def test_after_another_boot_nothing_is_executed(fs: FileSystem) -> None:
    """The page cache is gone: bytes that notes speak of may be, and rows before them."""
    await fs.write("a", b"x")
    await fs.kill(boot="another")
    assert await fs.listdir() == [b"first"]
    await fs.write("b", b"y")
    await fs.kill(boot=BOOT)
    assert await fs.listdir() == [b"first"]
    check(fs)


async def test_notes_of_another_machine_do_not_count_when_the_directory_is_back(
    fs: FileSystem,
) -> None:
    """A disk that is carried there and back: meanwhile the numbers of records were given anew."""
    await fs.write("a", b"x")
    await fs.kill(boot="that of another machine")
    fs.storage.database.held.is_allowed = False
    await fs.write("b", b"y", fsync=True)
    await fs.kill(boot=BOOT)
    assert set(await fs.listdir()) == {b"first", b"b"}
    check(fs)


async def test_a_clean_end_leaves_nothing_to_do(
    fs: FileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    await fs.write("a", b"x")
    await fs.remount()
    assert fs.receipt is None
    assert set(await fs.listdir()) == {b"first", b"a"}
    assert "had not committed" not in caplog.text
    await fs.write("b", b"x")
    await fs.kill()
    assert "a killed daemon had not committed: changes=1" in caplog.text


async def test_notes_that_cannot_be_read_are_not_given_up(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fs.write("a", b"x")
    await fs.kill(start=False)
    real = os.open

    def refuse_notes(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith("/ahead"):
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse_notes)
    with pytest.raises(UnifsError):
        await fs.start()
    monkeypatch.undo()
    await fs.start()
    assert set(await fs.listdir()) == {b"first", b"a"}


async def test_looking_at_what_was_held_finds_nothing_wrong(fs: FileSystem) -> None:
    await fs.write("a", b"x" * 90_000)
    await fs.write("b", b"x", fsync=True)
    await fs.write("a", b"y")
    await fs.unlink("b")
    assert held_of(fs).batches
    await fs.kill(start=False)
    with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
        found = examine(fs.path)
        assert (found.found, found.needs_recovery) == ([], True)
        examine(fs.path, repair=True)
    await fs.start()
    assert set(await fs.listdir()) == {b"first", b"a"}
    assert await fs.read("a") == b"y"


@pytest.mark.parametrize("notes", [b"", os.urandom(1000), bytes(AHEAD_BYTES)])
async def test_notes_that_are_damaged_are_none(fs: FileSystem, notes: bytes) -> None:
    fs.storage.database.settle()
    await fs.kill(start=False)
    (fs.path / "ahead").write_bytes(notes)
    await fs.start()
    assert await fs.listdir() == [b"first"]
    await fs.write("a", b"x")
    await fs.kill()
    assert set(await fs.listdir()) == {b"first", b"a"}
