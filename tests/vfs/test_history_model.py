"""The view of every kept epoch against a dictionary: what a program saw when the epoch ended."""

from __future__ import annotations

import os
import stat
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from tests.vfs.historyworld import HistorySystem, Seen
from tests.vfs.invariants import check
from unifs.errors import NotFound, UnifsError
from unifs.fsck.offline import CLEAN, examine
from unifs.vfs.retention import Limits

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = Limits(3600.0, 0, 0)
NOTHING = Limits(0, 0, 0)
SIZES = (0, 1, 900, 70_000, 1_300_000)


class Walk:
    """Random operations on one file system, and what it looked like at each epoch's end."""

    def __init__(self, fs: HistorySystem, seed: int) -> None:
        self.fs = fs
        self.chance = Random(seed)
        self.snapshots: dict[int, dict[bytes, Seen]] = {}
        self.named: dict[str, int] = {}

    async def path(self) -> str:
        """A path whose parts but the last are directories: the kernel sees to that."""
        while True:
            parts = [self.chance.choice("abcd") for _ in range(self.chance.randint(1, 3))]
            above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
            if all([await self.is_directory(each) for each in above]):
                return "/".join(parts)

    async def is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR((await self.fs.stat(path)).mode)
        except UnifsError:
            return False

    async def step(self) -> None:
        fs, chance, path = self.fs, self.chance, await self.path()
        what = chance.randrange(12)
        if what <= 2:
            data = bytes([chance.randrange(256)]) * chance.choice(SIZES)
            await fs.write(path, data)
        elif what == 3:
            await fs.mkdir(path)
        elif what == 4:
            await fs.unlink(path)
        elif what == 5:
            await fs.rename(path, await self.path(), chance.choice((0, 0, 0, 2)))
        elif what == 6:
            await fs.hard_link(path, await self.path())
        elif what == 7:
            await fs.setattr(path, mode=chance.choice((0o600, 0o755, 0o4711)), uid=7)
        elif what == 8:
            await fs.symlink(os.urandom(9).hex().encode(), path)
        elif what == 9:
            await fs.setxattr(path, b"user." + chance.choice((b"a", b"b")), os.urandom(3))
        elif what == 10:
            await fs.removexattr(path, b"user.a")
        else:
            await self.clear(path)

    async def clear(self, path: str) -> None:
        """A directory with everything below it, or a cut file."""
        if not await self.is_directory(path):
            if self.chance.random() < 0.3:
                await self.fs.unlink(path)
            else:
                await self.fs.setattr(path, size_bytes=self.chance.randrange(100_000))
            return
        for name in await self.fs.listdir(path):
            await self.clear(f"{path}/{name.decode()}")
        await self.fs.rmdir(path)

    async def steps(self, count: int) -> None:
        for _ in range(count):
            try:
                await self.step()
            except UnifsError:
                continue

    async def end_epoch(self) -> None:
        """By a checkpoint or by a build; what is seen right then is the model."""
        fs = self.fs
        before = await fs.live()
        if self.chance.random() < 0.5:
            name = f"point-{len(self.named)}"
            number = self.named[name] = await fs.history.checkpoint(name)
        else:
            number = await fs.history.end_epoch()
        self.snapshots[number] = before

    async def compare(self) -> int:
        """Every epoch that is shown, with what was seen; how many."""
        shown = [each.number for each in self.fs.history.shown()]
        compared = 0
        for number in set(shown) & set(self.snapshots):
            assert await self.fs.then(number) == self.snapshots[number]
            compared += 1
        for name, number in self.named.items():
            assert await self.fs.then(name) == self.snapshots[number]
        check(self.fs)
        return compared


@pytest.mark.parametrize("seed", range(4))
async def test_every_kept_epoch_is_what_was_seen(tmp_path: Path, seed: int) -> None:
    async with HistorySystem(tmp_path) as fs:
        walk = Walk(fs, seed)
        for turn in range(12):
            await walk.steps(25)
            await walk.end_epoch()
            match turn % 4:
                case 0:
                    await fs.settle()
                case 1:
                    await fs.collect()
                case 2:
                    await fs.kill()
                case 3:
                    await fs.remount()
            walk.fs = fs
        assert await walk.compare() == len(walk.snapshots) >= 8
        # Thinned to what checkpoints name, and collected.
        fs.prune(NOTHING)
        await fs.storage.flusher.flush()
        fs.tick()
        await fs.collect()
        await fs.kill()
        kept = {each.number for each in fs.history.shown()}
        assert kept == set(walk.named.values())
        assert await walk.compare() == len(kept) > 0
        for number in set(walk.snapshots) - kept:
            with pytest.raises(NotFound, match="is not kept"):
                await fs.at(f"/.unifs/history/mfs/{number}")


@pytest.mark.parametrize("seed", range(2))
async def test_thinning_one_by_one_leaves_the_others(tmp_path: Path, seed: int) -> None:
    """Checkpoints are removed in any order: what the others need is never collected."""
    async with HistorySystem(tmp_path) as fs:
        walk = Walk(fs, 100 + seed)
        while len(walk.named) < 8:
            await walk.steps(12)
            await walk.end_epoch()
        names = sorted(walk.named)
        walk.chance.shuffle(names)
        for name in names:
            await fs.history.remove_checkpoint(name)
            number = walk.named.pop(name)
            fs.prune(NOTHING)
            await fs.settle()
            await fs.collect()
            fs.prune(NOTHING)
            if number not in walk.named.values():
                assert not fs.history.is_shown(number)
            await walk.compare()
        for table in ("inode_past", "dentry_past", "xattr_past", "epoch where root is null"):
            assert fs.storage.database.one(f"select count(*) from {table}")[0] == 0
        gone = "select count(*) from inode where gone is not null"
        assert fs.storage.database.one(gone)[0] == 0


@pytest.mark.parametrize("is_killed", [False, True])
async def test_an_offline_check_finds_nothing_wrong(tmp_path: Path, is_killed: bool) -> None:
    """Past rows, checkpoints, thinned epochs, rollbacks and what is not tracked are all sound."""
    async with HistorySystem(tmp_path) as fs:
        walk = Walk(fs, 900)
        await fs.mkdir("d/not", 0o755) if await walk.is_directory("d") else await fs.mkdir("not")
        for _ in range(6):
            await walk.steps(20)
            await walk.end_epoch()
        await fs.answer.rollback("/mfs", str(min(walk.snapshots)))
        fs.prune(NOTHING)
        await walk.steps(20)
        await fs.settle()
        if is_killed:
            await fs.kill()
        await fs.stop()
        outcome = await trio.to_thread.run_sync(examine, tmp_path)
        await fs.start()
    assert [finding.sentence for finding in outcome.found] == []
    assert outcome.exit_code == CLEAN
