"""Random work on a tree with its node and its history, and kills in the middle of collections.

    python -m tests.campaigns.collect --rounds 500 [--seed 1]

Files, hard links, unlinked and open files, links by CID, pins and checkpoints come and go; after
each collection all that anybody can reach is read, the past too, and when in the end nobody needs
anything, nothing is left. The exit code is 1 where that is not so, or where nothing was collected.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.campaigns.rounds import violations
from tests.vfs.historyworld import HistorySystem
from tests.vfs.invariants import check
from tests.vfs.test_collection import NAMES, Work
from unifs.ipfs.embedded.links import walk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LINKS = ("linked-1", "linked-2", "linked-3")
CHECKPOINTS = ("one", "two", "three")
STEPS_MAX = 60


class Life(Work):
    """As ``Work``, with hard links, checkpoints and kills of a collection that runs."""

    fs: HistorySystem

    def __init__(self, fs: HistorySystem, chance: random.Random) -> None:
        super().__init__(fs, chance)
        #: Files that lost the name they were written by.
        self.linked: dict[str, bytes] = {}
        #: What each checkpoint shows, by path.
        self.past: dict[str, dict[str, bytes]] = {}
        self.counts: Counter[str] = Counter()

    async def step(self) -> None:
        mine: tuple[Callable[[], Awaitable[None]], ...] = (
            self.hard_link,
            self.unlink_linked,
            self.checkpoint,
            self.forget_checkpoint,
            self.killed_in_a_collection,
        )
        if self.chance.random() < 0.3:
            action = self.chance.choice(mine)
            self.counts[action.__name__] += 1
            await action()
        else:
            self.counts["other steps"] += 1
            await super().step()

    async def hard_link(self) -> None:
        """The bytes live on under another name."""
        name, new = self.name(), self.chance.choice(LINKS)
        if name is None or new in self.linked:
            return
        await self.fs.hard_link(name, new)
        self.linked[new] = self.files.pop(name)
        if self.chance.random() < 0.5:
            await super().settle()
        await self.fs.unlink(name)

    async def unlink_linked(self) -> None:
        if self.linked:
            name = self.chance.choice(sorted(self.linked))
            del self.linked[name]
            await self.fs.unlink(name)

    async def checkpoint(self) -> None:
        name = self.chance.choice(CHECKPOINTS)
        if name not in self.past:
            await self.fs.history.checkpoint(name)
            self.past[name] = {**self.files, **self.linked}

    async def forget_checkpoint(self) -> None:
        if self.past:
            name = self.chance.choice(sorted(self.past))
            del self.past[name]
            await self.fs.history.remove_checkpoint(name)

    async def killed_in_a_collection(self) -> None:
        """Whatever it has done by then; half of the machines lose their power."""
        while self.below_ipfs or self.open:
            await self.close_one()
        await self.fs.storage.flusher.flush()
        self.fs.storage.segments.roll()
        self.fs.storage.nodes.roll()
        with trio.move_on_after(self.chance.random() * 0.03):
            await self.fs.collect()
        await self.fs.kill()
        await self.check()

    async def collect(self) -> None:
        self.counts["collections"] += 1
        await super().collect()

    async def check(self) -> None:
        await super().check()
        for name, data in self.linked.items():
            assert await self.fs.read(name) == data, name
        for checkpoint, files in self.past.items():
            seen = await self.fs.then(checkpoint)
            shown = {path[1:].decode(): held.data for path, held in seen.items() if path}
            assert shown == files, checkpoint
        check(self.fs)

    async def end(self) -> None:
        while self.past:
            await self.forget_checkpoint()
        while self.linked:
            await self.unlink_linked()
        await super().end()

    def leftovers(self) -> list[str]:
        """What nobody needs and is there nevertheless."""
        fs = self.fs
        blocks = fs.storage.blocks
        roots = fs.keeper.roots()
        reachable = {cid.multihash for root in roots for cid in walk(root.cid, blocks.get)}
        blocks.flush()
        left = [f"block {held.hex()}" for held, _ in blocks.iterate() if held not in reachable]
        left += [f"file {path.name}" for path in fs.storage.state.data.iterdir()]
        size = sum(fs.storage.segments.segments().values())
        return left if size < 200 else [*left, f"{size} bytes of segments"]


async def play(path: Path, seed: int) -> Counter[str]:
    """One life of a tree; how often each thing was done. AssertionError where it went wrong."""
    chance = random.Random(seed)
    async with HistorySystem(path) as fs:
        life = Life(fs, chance)
        for _ in range(chance.randint(10, STEPS_MAX)):
            await life.step()
        await life.check()
        await life.end()
        left = life.leftovers()
        assert not left, left
    assert set(NAMES).isdisjoint(LINKS)
    return life.counts


def main() -> int:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()

    def one(seed: int) -> None:
        with tempfile.TemporaryDirectory(prefix="unifs-collect-") as base:
            counts.update(trio.run(play, Path(base) / "state", seed))

    wrong = violations(options.rounds, options.seed, one)
    print(f"{options.rounds} rounds from seed {options.seed}: {dict(counts)}")
    print(*wrong, f"{len(wrong)} violations", sep="\n")
    return 0 if counts["collections"] and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
