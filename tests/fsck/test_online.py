"""Fsck beside a running file system."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import apsw
import pytest
import trio

from tests.vfs.nodeworld import NodeSystem
from unifs.fsck import look as looks
from unifs.fsck import records
from unifs.fsck.online import examine_beside
from unifs.journal.log import Op

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.fsck.look import Finding

LARGE = bytes(range(256)) * 800


async def look(path: Path, is_thorough: bool = True) -> list[Finding]:
    def work() -> list[Finding]:
        return [*examine_beside(path, is_thorough, lambda: None)]

    return await trio.to_thread.run_sync(work)


async def _churn(fs: NodeSystem, rng: random.Random) -> None:
    """Names come, move and go."""
    for number in range(400):
        name = f"d{rng.randrange(4)}/f{rng.randrange(20)}"
        if not await fs.exists(name):
            await fs.write(name, rng.choice([b"x" * 50, LARGE]))
        elif rng.random() < 0.5:
            await fs.rename(name, f"d{rng.randrange(4)}/f{rng.randrange(20)}")
        else:
            await fs.unlink(name)
        if number % 8 == 0:
            fs.tick()
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("rows", [looks.KEYS, 7])
async def test_a_tree_that_changes_is_not_called_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(looks, "KEYS", rows)
    monkeypatch.setattr(records, "KEYS", rows)
    async with NodeSystem(tmp_path) as fs:
        for number in range(4):
            await fs.mkdir(f"d{number}")
        found: list[Finding] = []
        count = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_churn, fs, random.Random(3))
            while len(nursery.child_tasks):
                found += await look(tmp_path)
                count += 1
        assert count > 1
        assert [(each.code, each.sentence) for each in found] == []


async def test_what_is_wrong_is_named_while_it_is_mounted(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.write("a", b"a")
        await fs.mkdir("d")
        await fs.settle()
        assert await look(tmp_path) == []
        ino = (await fs.stat("a")).ino
        (packed,) = fs.storage.database.one("select attributes from inode where ino=?", (ino,))
        wrong = packed[:12] + b"\x09" + packed[13:]
        fs.storage.database.execute("update inode set attributes=? where ino=?", (wrong, ino))
        (finding,) = await look(tmp_path)
        assert finding.code == "LINK_COUNT"
        assert finding.sentence == "/mfs/a has 1 names and says 9"
        fs.storage.database.execute("update inode set attributes=? where ino=?", (packed, ino))


async def test_the_record_that_a_release_waits_for_is_of_no_inode(tmp_path: Path) -> None:
    """It is nobody's; any other record is somebody's."""
    async with NodeSystem(tmp_path) as fs:
        await fs.write("a", b"a")
        fs.storage.tree.commit([fs.storage.log.row(Op.SYNC, 0, 0, b"")])
        assert await look(tmp_path) == []
        fs.storage.tree.commit([fs.storage.log.row(Op.SETATTR, 0, 0, b"")])
        assert [each.code for each in await look(tmp_path)] == ["RECORD_NO_INODE"]
        fs.storage.database.execute("delete from journal where ino=0")


async def test_it_only_reads(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.write("a", LARGE)
        await fs.settle()
        changes = fs.storage.database.one("pragma data_version")
        await look(tmp_path)
        assert fs.storage.database.one("pragma data_version") == changes
        assert isinstance(fs.storage.database._connection, apsw.Connection)


async def test_it_can_be_ended_where_nothing_is_wrong(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        for number in range(3):
            await fs.write(f"f{number}", LARGE + bytes((number,)))
        await fs.settle()
        asks: list[str] = []
        assert [*examine_beside(tmp_path, False, lambda: asks.append("rows"))] == []
        assert [*examine_beside(tmp_path, True, lambda: asks.append("all"))] == []
        # Before each range of rows, and before each leaf that is hashed.
        assert asks.count("rows") > 10
        assert asks.count("all") == asks.count("rows") + 3

        def end() -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            next(examine_beside(tmp_path, False, end))
