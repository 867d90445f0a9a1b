"""Random changes with requests that arrive late, answers that are lost, and restarts in between.

As ``test_random``, but what is sent happens whatever becomes of the daemon: at once, or up to 50 s
after its connection ended, in any order. In the end the backend is what the tree is, and the tree
what a user made of it.
"""

from __future__ import annotations

import hashlib
import random
import stat
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_random import FAULTS, PATHS, Run, everything, shown
from tests.vfs import invariants
from unifs.errors import PermissionDenied, UnifsError, Unreachable
from unifs.mounts.base import attributes_of
from unifs.types import Node, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import _Object
    from unifs.mounts.base import ContentReader
    from unifs.types import SetAttributes

#: How long after the end of its connection a request may arrive.
LATE_S = (0.001, 0.1, 3.0, 20.0, 50.0)
PAUSES_S = (0.1, 1.0, 2.5, 2.5, 10.0, 40.0)
METHODS = ("put", "make", "remove", "rename", "set_attributes")
#: More of them in one example would be a daemon that runs in circles.
CALLS_MAX = 3000
SEEDS = 16


def version_of(data: bytes) -> Version:
    """The same bytes have the same version."""
    return Version(hashlib.md5(data, usedforsecurity=False).hexdigest())


class Bytes:
    """A content that was sent whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    async def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class Straying(RemoteMount):
    """What is sent happens, now or later, whether somebody still waits for its answer or not.

    The same bytes have the same version, as at S3.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery
        self.keeps_attributes = False
        #: When the next changes arrive: so long after they got no answer.
        self.fates: deque[float] = deque()

    async def _sent(self, change: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        done, outcome = trio.Event(), []

        async def arrive(after_s: float) -> None:
            await trio.sleep(after_s)
            try:
                outcome.append(await change(*arguments))
            except UnifsError as error:
                outcome.append(error)
            done.set()

        if self.fates:
            self._nursery.start_soon(arrive, self.fates.popleft())
            raise Unreachable("cut off")
        self._nursery.start_soon(arrive, 0.0)
        await done.wait()
        if isinstance(outcome[0], UnifsError):
            raise outcome[0]
        return outcome[0]

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        sent = Bytes(await content.read(0, content.size_bytes))
        put, attributes = super().put, attributes_of(content)

        async def store(path: str) -> Node:
            made = await put(path, sent, base, token)
            self._attributed(path, attributes)
            return made

        made = await self._sent(store, path)
        assert isinstance(made, Node)
        return made

    async def make(self, path: str, node: Node, token: str) -> Node:
        made = await self._sent(super().make, path, node, token)
        assert isinstance(made, Node)
        return made

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        await self._sent(super().remove, path, base, token)

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        await self._sent(super().rename, path, new_path, token, base)

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        await self._sent(super().set_attributes, path, changes, token)

    def _attributed(self, path: str, attributes: SetAttributes | None) -> None:
        """As S3 does, a file comes with its attributes."""
        if attributes is not None and attributes.mode is not None and self.keeps_attributes:
            found = self._find(path)
            found.node = replace(found.node, mode=stat.S_IFREG | attributes.mode)

    def supports(self, capability: str) -> bool:
        if capability == "set_attributes":
            return self.keeps_attributes
        return super().supports(capability)

    def _file(self, data: bytes, token: str) -> _Object:
        made = super()._file(data, token)
        made.node = Node(stat.S_IFREG | 0o644, len(data), version_of(data))
        return made

    def modes(self) -> dict[str, int]:
        """The permissions of all that is there."""
        return {path: stat.S_IMODE(self._find(path).node.mode) for path in everything(self)}


class LateRun(Run):
    """One example."""

    remote: Straying

    def __init__(self, system: RemoteSystem, remote: Straying) -> None:
        super().__init__(system, remote)
        self._boots = 0

    async def keep_attributes(self) -> None:
        self.remote.keeps_attributes = True

    async def late(self, *after_s: float) -> None:
        self.remote.fates.extend(after_s)

    async def chmod(self, path: str, mode: int) -> None:
        await self.system.setattr(path, mode=mode)

    async def deny(self, method: str) -> None:
        self.remote.fail(method, PermissionDenied("a policy"))

    async def remount(self) -> None:
        await self.system.remount()

    async def reboot(self) -> None:
        self._boots += 1
        await self.system.kill(boot=f"another-{self._boots}")

    async def settle(self) -> None:
        self.remote.delay_s = 0
        self.remote.fates.clear()
        self.remote._failures.clear()
        writeback = self.system.volume.writeback
        for ino in list(writeback.dues):
            writeback.retry(ino)
        with trio.fail_after(3600):
            await self.system.sync()


def steps_of(seed: int) -> list[tuple[Any, ...]]:
    """The steps of one example."""
    chance = random.Random(seed)
    # Few names and few contents: so the same bytes come back to where they were.
    paths = chance.sample(PATHS, chance.choice((1, 2, 3, 5)))
    numbers = chance.choice((1, 2, 3))

    def step() -> tuple[Any, ...]:
        path, other = chance.choice(paths), chance.choice(paths)
        number = chance.randrange(numbers)
        match chance.randrange(28):
            case 0 | 1 | 2 | 3 | 24:
                return "write", path, number
            case 4:
                return "patch", path, number
            case 5 | 6 | 7:
                return "unlink", path
            case 8:
                return "mkdir", path
            case 9:
                return "rmdir", path
            case 10 | 11:
                return "rename", path, other
            case 12:
                return "exchange", path, other
            case 13:
                return "chmod", path, chance.choice((0o600, 0o644, 0o755))
            case 14 | 15 | 16 | 17 | 25:
                return "sleep", chance.choice(PAUSES_S)
            case 18 | 19 | 26:
                return "late", *[chance.choice(LATE_S) for _ in range(chance.randint(1, 3))]
            case 20:
                fault = chance.randrange(len(FAULTS))
                return "fault", chance.choice(METHODS), fault, chance.random() < 0.5
            case 21:
                return "slow", chance.choice((0.0, 0.3, 3.0))
            case 22 | 27:
                return (chance.choice(("kill", "remount", "reboot")),)
            case _:
                return ("deny", chance.choice(METHODS)) if seed % 3 == 0 else ("kill",)

    steps = [step() for _ in range(chance.randint(5, 40))]
    return [("keep_attributes",), *steps] if chance.random() < 0.3 else steps


async def run(steps: list[tuple[Any, ...]], place: Path) -> None:
    """Do the steps, let all that is late arrive, and compare."""
    async with trio.open_nursery() as nursery:
        remote = Straying(nursery)
        async with RemoteSystem(place, remote) as system:
            example = LateRun(system, remote)
            for step in steps:
                await example.do(step)
            for _ in range(2):
                await example.settle()
                await compare(example)
                await trio.sleep(120)
            await system.kill()
            await compare(example)
            assert system.volume.statistics()["waiting"] == 0
            assert len(remote.calls) < CALLS_MAX


async def compare(example: LateRun) -> None:
    system, remote = example.system, example.remote
    assert await shown(system) == example.model.paths
    assert everything(remote) == example.model.paths
    invariants.check(system)
    left = "select count(*) from remote where ino not in (select ino from inode)"
    assert system.storage.database.one(left)[0] == 0
    if not remote.keeps_attributes:
        return
    modes = {
        path.decode(): stat.S_IMODE(mode) for path, (mode, *_) in (await system.tree()).items()
    }
    del modes[""]
    assert remote.modes() == modes


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_backend_tree_and_model_agree(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("time.monotonic", trio.current_time)
    await run(steps_of(seed), tmp_path / "state")
