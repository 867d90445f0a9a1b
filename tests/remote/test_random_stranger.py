"""What ``test_random_late`` does, while a stranger changes the same backend.

The stranger stores, makes, removes and renames, between our steps and during them; each policy for
conflicts has its seeds. All bytes are unique, and ``Ledger`` keeps who took which of them from
where: the user here, unifs or the stranger. ``judge`` states what is promised of that.
"""

from __future__ import annotations

import logging
import os
import random
import stat
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.remote import test_random_late as late
from tests.remote.system import RemoteSystem
from tests.remote.test_random import PATHS, REFUSED, everything, shown
from tests.vfs import invariants
from unifs.errors import Conflict, IsADirectory, NotADirectory, NotEmpty, NotFound
from unifs.journal.writeback_order import ASIDE
from unifs.vfs import remoteconflict
from unifs.vfs.conflicts import kept
from unifs.vfs.remotevolume import RemoteVolume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from unifs.types import Version
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.volume import Handle, Inode

POLICIES = ("keep-both", "ours", "theirs")
SEEDS = 18
#: How long a stranger waits, who comes during a step of ours.
SOON_S = (0.0, 0.2, 1.0, 2.1, 4.0, 30.0)
VERBS = ("store", "store", "store", "take", "take", "make", "move", "move")
CONFLICT = ".conflict-"
#: What the tree had at its path when a call was sent: a directory replaces a file in two of them.
HEIR: ContextVar[int] = ContextVar("HEIR", default=0)


@dataclass(frozen=True)
class How:
    """How one example is played."""

    policy: str
    #: How long answers are believed.
    fresh_s: float
    #: A file is renamed by a copy and a removal of their own.
    is_stepwise: bool

    @classmethod
    def of(cls, seed: int) -> How:
        return cls(POLICIES[seed % 3], (30.0, 1.0)[seed // 3 % 2], seed // 6 % 2 == 1)


class Ledger:
    """Who made and who took which bytes; all of them differ."""

    def __init__(self) -> None:
        self.known: dict[Version, bytes] = {}
        #: What the user here closed last in each inode, and has neither changed nor removed since.
        self.owned: dict[int, bytes] = {}
        #: What the user here replaced or removed; ``permitted``: or opened to write to it.
        self.ended: set[bytes] = set()
        self.permitted: set[bytes] = set()
        #: What the stranger took from the backend, or gave another place there.
        self.disturbed: set[bytes] = set()
        #: Where he had a hand in, and the names of that.
        self.places: set[str] = set()
        self.names: set[str] = set()
        #: What he has freed: a PUT that comes late may find its place there.
        self.freed: set[str] = set()
        #: Where ours was to have the place of his, whatever became of ours since.
        self.won: set[str] = set()
        #: What was given up for something of his that stood in its place.
        self.yielded: set[bytes] = set()
        #: What unifs may not have done.
        self.wrongs: list[str] = []
        #: The inode that the tree has at a path.
        self.heir: Callable[[str], int] = lambda _: 0

    def new(self, whose: str) -> bytes:
        """Bytes that nobody had before."""
        data = b"%s%05d" % (whose.encode(), len(self.known))
        self.know(data)
        return data

    def know(self, data: bytes) -> None:
        self.known[late.version_of(data)] = data

    def end(self, inode: RemoteInode) -> None:
        """The user here takes the bytes of an inode away."""
        for data in (self.known.get(inode.version), self.owned.pop(inode.ino, None)):
            if data is not None:
                self.ended.add(data)
                self.permitted.add(data)

    def permit(self, inode: RemoteInode) -> None:
        """The user here may replace the bytes of an inode."""
        self.permitted.add(self.known.get(inode.version, b""))
        self.permitted.add(self.owned.get(inode.ino, b""))

    def touch(self, *paths: str) -> None:
        """The stranger has a hand in it."""
        self.places.update(paths)
        self.names.update(path.rpartition("/")[2] for path in paths)


class Watched(RemoteVolume):
    """Tells a ledger what the user takes away, at the moment of it."""

    ledger: Ledger

    def unlink(self, parent: Inode, name: bytes, caller: Any) -> None:
        found = self.find(parent, name)
        super().unlink(parent, name, caller)
        self.ledger.end(found)  # type: ignore[arg-type]

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        moved, found = self.find(parent, name), self.find(new_parent, new_name)
        super().rename(parent, name, new_parent, new_name, flags)
        if found is not None and found is not moved and not flags:
            self.ledger.end(found)  # type: ignore[arg-type]

    def open(self, inode: Inode, flags: int, caller: Any) -> Handle:
        handle = super().open(inode, flags, caller)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.ledger.permit(inode)  # type: ignore[arg-type]
        if flags & os.O_TRUNC:
            self.ledger.end(inode)  # type: ignore[arg-type]
        return handle


class WatchedSystem(RemoteSystem):
    volume_type = Watched
    ledger: Ledger

    async def start(self, boot: str | None = None) -> None:
        await super().start(boot)
        self.volume.ledger = self.ledger  # type: ignore[attr-defined]
        self.ledger.heir = self.volume.sync.heir


class Contested(late.Straying):
    """As at S3, a rename replaces what it was told to, and nothing has an epoch."""

    def __init__(self, nursery: trio.Nursery, ledger: Ledger, how: How) -> None:
        super().__init__(nursery)
        self._ledger = ledger
        self._policy = how.policy
        self._is_stepwise = how.is_stepwise

    def supports(self, capability: str) -> bool:
        return capability != "epoch" and super().supports(capability)

    async def _sent(self, change: Any, *arguments: Any) -> Any:
        heir = self._ledger.heir(arguments[0])

        async def told(*arguments: Any) -> Any:
            HEIR.set(heir)
            return await change(*arguments)

        return await super()._sent(told, *arguments)

    @asynccontextmanager
    async def _call(self, method: str, path: str) -> AsyncIterator[None]:
        async with super()._call(method, path):
            before = everything(self)
            yield
            self._judge(before, f"{method} {path}")

    def _judge(self, before: dict[str, bytes | None], what: str) -> None:
        """No bytes go that the user here did not take away, but for those that ours replace."""
        after = everything(self)
        for path, data in before.items():
            if data is None or data in after.values() or data in self._ledger.permitted:
                continue
            if what.startswith("delete") and data in self._ledger.disturbed:
                # He took the copy.
                continue
            is_replaced = after.get(path) is not None or HEIR.get()
            is_theirs = data.startswith(b"theirs") or data in self._ledger.disturbed
            if self._policy == "ours" and is_theirs and (is_replaced or path in self._ledger.won):
                continue
            self._ledger.wrongs.append(f"{data!r} at {path} went by {what}")

    def is_strangers(self, path: str) -> bool:
        """Whether ours may yield to what stands there, or stood there just now."""
        data = everything(self).get(path) or b""
        is_theirs = data.startswith(b"theirs") or path in self._ledger.places
        return self._policy == "theirs" and is_theirs

    # --- rename -----------------------------------------------------------------------------------

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        if not self._is_stepwise or everything(self).get(path) is None:
            await self._sent(self._moved, path, new_path, token, base)
            return
        version = await self._sent(self._copied, path, new_path, token, base)
        with suppress(Conflict):
            await self._sent(self._deleted, path, version)

    async def has_begun(self, new_path: str, token: str) -> bool:
        async with self._call("stat", new_path):
            try:
                return bool(token) and self._find(new_path).token == token
            except (NotFound, NotADirectory):
                return False

    async def _moved(self, path: str, new_path: str, token: str, base: Version | None) -> None:
        async with self._call("rename", path):
            self._check(path, new_path, token, base)
            self._move(path, new_path, token)

    def _check(self, path: str, new_path: str, token: str, base: Version | None) -> bool:
        """Conflict where anything but ``base`` would be replaced; whether it is done already."""
        there = everything(self)
        if there.get(new_path) is None or path not in there:
            return False
        found = self._find(new_path)
        if found.token != token and found.node.version != base:
            raise Conflict(new_path)
        return found.token == token

    async def _copied(
        self, path: str, new_path: str, token: str, base: Version | None
    ) -> Version | None:
        """The first half: what is to be deleted, None where that is another one's by now."""
        async with self._call("rename", path):
            try:
                held = self._find(path)
            except (NotFound, NotADirectory):
                if everything(self).get(new_path) and self._find(new_path).token == token:
                    return None
                raise
            parent, name = self._parent(new_path)
            if name in parent.children and parent.children[name].is_directory:
                raise IsADirectory(new_path)
            if self._check(path, new_path, token, base):
                is_copy = self._find(new_path).data == held.data
                return held.node.version if is_copy else None
            parent.children[name] = replace(held, token=token)
            return held.node.version

    async def _deleted(self, path: str, version: Version | None) -> None:
        async with self._call("delete", path):
            parent, name = self._parent(path)
            found = parent.children.get(name)
            if found is not None and version is not None:
                if found.node.version != version:
                    raise Conflict(path)
                del parent.children[name]

    # --- the stranger -----------------------------------------------------------------------------

    def _take(self, path: str) -> None:
        """What is there is not what unifs left."""
        there = everything(self)
        for place, data in there.items():
            if data is not None and (place == path or place.startswith(f"{path}/")):
                self._ledger.disturbed.add(data)
                self._ledger.freed.add(place)

    def store(self, path: str) -> None:
        if everything(self).get(path, b"") is None:
            return
        self._take(path)
        self.change(path, self._ledger.new("theirs"))
        self._ledger.touch(path)

    def take(self, path: str) -> None:
        found = self._find(path)
        if found.children:
            raise NotEmpty(path)
        self._take(path)
        self.change(path, None)
        self._ledger.touch(path)

    def make_directory(self, path: str) -> None:
        if path not in everything(self):
            self.plant_directory(path)
            self._ledger.touch(path)

    def move(self, path: str, new_path: str, is_known: bool) -> None:
        """As ``aws s3 mv``: the metadata go along, or not."""
        found = self._find(path)
        if new_path == path or f"{new_path}/".startswith(f"{path}/"):
            return
        if (there := everything(self)).get(new_path, b"") is None:
            return
        if new_path in there and found.is_directory:
            return
        for place in [path, *there]:
            if place == path or place.startswith(f"{path}/"):
                self._ledger.touch(place, new_path + place[len(path) :])
        self._take(path)
        self._take(new_path)
        parent, name = self._parent(path)
        new_parent, new_name = self._parent(new_path)
        new_parent.children[new_name] = parent.children.pop(name)
        if not is_known:
            found.token = ""


class StrangerRun(late.LateRun):
    """One example."""

    remote: Contested

    def __init__(self, system: WatchedSystem, remote: Contested, nursery: trio.Nursery) -> None:
        super().__init__(system, remote)
        self.ledger = system.ledger
        self._nursery = nursery

    async def write(self, path: str, number: int) -> None:
        async with self.system.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            data = self.ledger.new("ours")
            await file.write(0, data)
        self.ledger.owned[file.ino] = data

    async def patch(self, path: str, number: int) -> None:
        async with self.system.open(path, os.O_RDWR) as file:
            await file.write(0, self.ledger.new("ours"))
            self.ledger.ended.add(self.ledger.owned.pop(file.ino, b""))
            data = await file.read()
            self.ledger.know(data)
        self.ledger.owned[file.ino] = data

    async def look(self, path: str) -> None:
        found = await self.system.stat(path)
        if stat.S_ISDIR(found.mode):
            await self.system.listdir(path)
        else:
            assert await self.system.read(path) in self.ledger.known.values()

    async def unlink(self, path: str) -> None:
        await self.system.unlink(path)

    async def mkdir(self, path: str) -> None:
        await self.system.mkdir(path)

    async def rmdir(self, path: str) -> None:
        await self.system.rmdir(path)

    async def rename(self, old: str, new: str) -> None:
        await self.system.rename(old, new)

    async def exchange(self, one: str, other: str) -> None:
        await self.system.rename(one, other, 2)

    async def stranger(self, after_s: float | None, verb: str, *arguments: Any) -> None:
        if after_s is None:
            self._stranger(verb, *arguments)
        else:
            self._nursery.start_soon(self._soon, after_s, verb, *arguments)

    async def _soon(self, after_s: float, verb: str, *arguments: Any) -> None:
        await trio.sleep(after_s)
        self._stranger(verb, *arguments)

    def _stranger(self, verb: str, *arguments: Any) -> None:
        try:
            getattr(self.remote, verb)(*arguments)
        except REFUSED:
            return


def steps_of(seed: int) -> list[tuple[Any, ...]]:
    """The steps of one example: ours, and a stranger's among them."""
    chance = random.Random(f"stranger {seed}")
    ours = late.steps_of(chance.randrange(1 << 40))
    named = {word for step in ours for word in step if word in PATHS}
    named |= {chance.choice(PATHS)}
    paths = sorted(named | {path.partition("/")[0] for path in named})
    steps: list[tuple[Any, ...]] = []
    often = chance.choice((0.1, 0.3, 0.6))
    for step in ours:
        if chance.random() < often:
            verb = chance.choice(VERBS)
            when = None if chance.random() < 0.5 else chance.choice(SOON_S)
            words: tuple[Any, ...] = (chance.choice(paths),)
            if verb == "make":
                verb = "make_directory"
            elif verb == "move":
                words = (*words, chance.choice(paths), chance.random() < 0.5)
            steps.append(("stranger", when, verb, *words))
        if chance.random() < 0.15:
            steps.append((chance.choice(("look", "mkdir")), chance.choice(paths)))
        steps.append(step)
    return steps


class Yielding(logging.Handler):
    """Notes what the policies decided: what ``theirs`` gave up, and where ``ours`` won."""

    def __init__(self, ledger: Ledger, remote: Contested) -> None:
        super().__init__()
        self._ledger = ledger
        self._remote = remote

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("conflict: ours is kept"):
            self._ledger.won.add(record.args[1])
        if str(record.msg).startswith("conflict: theirs is kept"):
            ino, path = record.args
            if self._remote.is_strangers(path):
                self._ledger.yielded.add(self._ledger.owned.get(ino, b""))


async def run(steps: list[tuple[Any, ...]], place: Path, how: How) -> None:
    """Do the steps, let all that is late arrive, and judge."""
    ledger = Ledger()
    async with trio.open_nursery() as nursery:
        remote = Contested(nursery, ledger, how)
        system = WatchedSystem(place, remote, conflicts=how.policy, fresh_s=how.fresh_s)
        system.ledger = ledger
        logger, yielding = logging.getLogger(remoteconflict.__name__), Yielding(ledger, remote)
        logger.addHandler(yielding)
        try:
            async with system:
                example = StrangerRun(system, remote, nursery)
                for step in steps:
                    await example.do(step)
                for _ in range(2):
                    await example.settle()
                    await trio.sleep(120)
                await judge(example)
                await system.kill()
                await judge(example)
                judge_rows(system)
                assert len(remote.calls) < late.CALLS_MAX
        finally:
            logger.removeHandler(yielding)


async def refreshed(system: RemoteSystem) -> dict[str, bytes | None]:
    """All that the tree shows, once what it has not asked for yet was asked for."""
    while True:
        try:
            return await shown(system)
        except NotFound:
            # A first listing shows what was known before; one who asks for that hears that it went.
            continue


async def judge(example: StrangerRun) -> None:
    system, remote, ledger = example.system, example.remote, example.ledger
    assert not ledger.wrongs, ledger.wrongs
    tree, there = await refreshed(system), everything(remote)
    assert tree == there, (tree, there)
    left = {data for data in there.values() if data is not None}
    lost = set(ledger.owned.values()) - left - ledger.disturbed - ledger.yielded
    assert not lost, f"neither at the backend nor taken from there by the stranger: {lost}"
    kept_there = {data for path, data in there.items() if path not in ledger.freed}
    back = (ledger.ended & kept_there) - ledger.disturbed - set(ledger.owned.values())
    assert not back, f"removed here, and there again: {back}"
    names = {path.rpartition("/")[2] for path in there}
    copies = {name for name in names if CONFLICT in name}
    assert {name.partition(CONFLICT)[0] for name in copies} <= ledger.names
    assert not {name for name in names if name.startswith(ASIDE)}
    invariants.check(system)


def judge_rows(system: RemoteSystem) -> None:
    """Nothing is left of what is over."""
    database = system.storage.database
    counts = {
        "rows without an inode": "remote where ino not in (select ino from inode)",
        "two rows of one place": "(select 1 from remote where path is not null group by mount,path"
        " having count(*)>1)",
        "attempts": "remote where attempt is not null or content is not null",
        "changes that wait": "journal where state is not null",
        "notes": "meta where key glob 'late/*' or key glob 'refused/*'",
        "inodes without a name": "inode where gone is not null",
    }
    found = {
        what: database.one(f"select count(*) from {which}")[0] for what, which in counts.items()
    }
    assert not any(found.values()), found
    volume = system.volume
    statistics = volume.statistics()
    assert (statistics["waiting"], statistics["quarantined"]) == (0, 0)
    assert statistics["unsynced_bytes"] == 0
    assert volume.attempts.is_quiet
    assert all(system.storage.tree.names_of(each.ino) for each in kept(database))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_nothing_is_lost_and_nothing_of_a_stranger_is_overwritten(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("time.monotonic", trio.current_time)
    await run(steps_of(seed), tmp_path / "state", How.of(seed))
