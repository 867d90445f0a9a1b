"""Notes that do not fit the rows any more: what can be made is made, the rest is told."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from tests.vfs.harness import BOOT, FileSystem
from tests.vfs.invariants import check
from unifs.answers.checks import read_receipts
from unifs.answers.explain import state_warnings
from unifs.errors import NoSpace
from unifs.fsck.offline import LEFT, REPAIRED, Outcome, examine
from unifs.state import replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LARGE = bytes(range(256)) * 400


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    """Killed with five changes held; somebody has given the name of the third to another inode."""
    async with FileSystem(tmp_path / "state", upkeep=False, holds=True) as system:
        await system.write("first", b"1")
        system.storage.database.settle()
        await system.write("a", b"x" * 100)
        await system.mkdir("d")
        await system.write("taken", LARGE)
        await system.rename("first", "last")
        await system.write("taken", LARGE + b"more")
        assert len(system.storage.database.held.batches) == 5
        root = system.volume.root
        await system.kill(start=False)
        change(system, "insert into dentry select ?,1000,x'74616b656e',ino,1 from dentry", root)
        yield system


def change(fs: FileSystem, sql: str, *bindings: Any) -> None:
    with closing(sqlite3.connect(fs.path / "tree.db")) as connection:
        assert connection.execute(sql, bindings).rowcount
        connection.commit()


def fsck(fs: FileSystem, repair: bool = False) -> Outcome:
    with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
        return examine(fs.path, repair=repair)


def receipts(fs: FileSystem) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (fs.path / "lost+found").glob("receipt-*")]
    return [each for each in found if each.get("kind") == "notes"]


async def test_a_note_that_does_not_fit_keeps_nothing_from_being_mounted(fs: FileSystem) -> None:
    """Every other change is there, and what could not be made is named wherever one looks."""
    await fs.start()
    assert set(await fs.listdir()) == {b"a", b"d", b"last", b"taken"}
    assert await fs.read("a") == b"x" * 100
    (receipt,) = receipts(fs)
    (sentence,) = receipt["sentences"]
    assert "'taken'" in sentence
    assert "(number 3 of 5)" in sentence
    assert "UNIQUE constraint failed: dentry.parent, dentry.name" in sentence
    (note,) = receipt["notes"]
    assert any(each.startswith("insert into inode values(") for each in note)
    assert any("x'74616b656e'" in each for each in note)
    (warning,) = state_warnings(fs.storage)
    assert fs.storage.database.held.receipt in warning
    (told,) = [each for each in read_receipts(fs.path / "lost+found") if each.kind != "kill"]
    assert (told.kind, list(told.sentences)) == ("changes not made", [sentence])
    # Once: what was committed is no note any more.
    await fs.kill()
    assert len(receipts(fs)) == 1
    assert state_warnings(fs.storage) == []


async def test_a_repair_finds_the_bytes_whose_name_was_refused(fs: FileSystem) -> None:
    await fs.start()
    await fs.stop()
    outcome = fsck(fs, repair=True)
    assert outcome.exit_code == REPAIRED, outcome.left
    await fs.start()
    (name,) = await fs.listdir("lost+found")
    assert await fs.read(b"lost+found/" + name) == LARGE + b"more"
    check(fs)


async def test_fsck_names_it_before_the_start(fs: FileSystem) -> None:
    before = {path: path.read_bytes() for path in fs.path.glob("tree.db*")}
    for _ in range(2):
        look = fsck(fs)
        assert look.exit_code == LEFT
        (finding,) = [each for each in look.found if each.code == "NOTE_REFUSED"]
        assert "'taken'" in finding.sentence
    assert {path: path.read_bytes() for path in fs.path.glob("tree.db*")} == before
    outcome = fsck(fs, repair=True)
    assert outcome.exit_code == REPAIRED, outcome.left
    assert finding in outcome.found
    (receipt,) = (fs.path / "lost+found").glob(outcome.receipt)
    assert finding.sentence in [
        each["sentence"] for each in json.loads(receipt.read_text())["found"]
    ]
    (notes,) = receipts(fs)
    assert notes["sentences"] == [finding.sentence]
    await fs.start()
    (name,) = await fs.listdir("lost+found")
    assert await fs.read(b"lost+found/" + name) == LARGE + b"more"


TAKEN = {
    "number of the inode": (
        "insert into inode select max(ino)+1,1,1,1,null,attributes,content,null from inode"
    ),
    "number of the record": (
        "insert into journal select max(seq)+1,time_ns,op,ino,parent,data,state from journal"
    ),
    "number of the name": "insert into dentry select parent,max(id)+1,x'78',ino,epoch from dentry",
}


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.parametrize("data", [b"x" * 100, LARGE])
async def test_whatever_is_in_the_way_the_bytes_are_kept(
    tmp_path: Path, what: str, data: bytes
) -> None:
    """In the tree after a repair, or where no row could be made for them, in lost+found."""
    async with FileSystem(tmp_path / "state", upkeep=False, holds=True) as fs:
        await fs.write("first", b"1")
        fs.storage.database.settle()
        await fs.write("new", data)
        await fs.write("second", b"2")
        await fs.kill(start=False)
        with closing(sqlite3.connect(fs.path / "tree.db")) as connection:
            connection.execute(TAKEN[what])
            connection.commit()
        await fs.start()
        assert len(receipts(fs)) == 1
        await fs.stop()
        assert fsck(fs, repair=True).left == []
        await fs.start()
        found = {path.read_bytes() for path in (fs.path / "lost+found").iterdir()}
        for top in ("", "lost+found"):
            for name in await fs.listdir(top) if await fs.exists(top) else []:
                path = os.path.join(os.fsencode(top), name)
                if (await fs.stat(path)).mode & 0o170000 == 0o100000:
                    found.add(await fs.read(path))
        assert data in found
        assert await fs.read("second") == b"2"
        check(fs)


async def test_what_is_told_is_durable_before_it_is_given_up(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the receipt finds no room, nothing is committed; the next start finds the notes."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(replay, "write_durably", full)
        with pytest.raises(NoSpace):
            await fs.start()
    assert not receipts(fs)
    await fs.start()
    assert len(receipts(fs)) == 1
    assert await fs.read("a") == b"x" * 100
