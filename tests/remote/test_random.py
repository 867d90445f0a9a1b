"""Random changes, faults and kills: in the end the backend is what the tree is.

``Model`` is what a user expects of the names and bytes. Whatever fails on the way, and whenever the
daemon is killed, after a sync the model, the tree and the backend agree; where somebody else writes
too, tree and backend agree and nothing that somebody else wrote, and nobody here touched since, is
lost.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from unifs.errors import (
    DeadlineExceeded,
    Exists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    RateLimited,
    Stale,
    Unreachable,
)

NAMES = ("a", "b", "c")
PATHS = [*NAMES, *(f"{above}/{name}" for above in NAMES for name in NAMES)]
FAULTS = (Unreachable, RateLimited, DeadlineExceeded)
METHODS = ("put", "make", "remove", "rename", "set_attributes")
#: What a file system answers to calls that make no sense, and a reader whose version is gone.
REFUSED = (Exists, InvalidArgument, IsADirectory, NotADirectory, NotEmpty, NotFound, Stale)

path = st.sampled_from(PATHS)
LOCAL = st.one_of(
    st.tuples(st.just("write"), path, st.integers(0, 999)),
    st.tuples(st.just("patch"), path, st.integers(0, 999)),
    st.tuples(st.just("unlink"), path),
    st.tuples(st.just("mkdir"), path),
    st.tuples(st.just("rmdir"), path),
    st.tuples(st.just("rename"), path, path),
    st.tuples(st.just("rename"), path, path),
    st.tuples(st.just("exchange"), path, path),
    st.tuples(st.just("sleep"), st.sampled_from([0.1, 1.0, 2.5, 40.0])),
)
DISTURBANCE = st.one_of(
    st.tuples(st.just("fault"), st.sampled_from(METHODS), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("kill")),
    st.tuples(st.just("slow"), st.sampled_from([0.0, 0.3, 3.0])),
)
FOREIGN = st.tuples(st.just("foreign"), path, st.integers(0, 99))


class Model:
    """Names and bytes, as a dictionary: None is a directory."""

    def __init__(self) -> None:
        self.paths: dict[str, bytes | None] = {}

    def put(self, path: str, data: bytes) -> None:
        self.paths[path] = data

    def rename(self, old: str, new: str) -> None:
        self.paths = {_moved(held, old, new): self.paths[held] for held in self.paths}

    def exchange(self, one: str, other: str) -> None:
        self.rename(one, "\0")
        self.rename(other, one)
        self.rename("\0", other)


def _moved(path: str, old: str, new: str) -> str:
    if path == old or path.startswith(f"{old}/"):
        return new + path[len(old) :]
    return path


class Run:
    """One example: a system, its backend and the model."""

    def __init__(self, system: RemoteSystem, remote: RemoteMount) -> None:
        self.system = system
        self.remote = remote
        self.model = Model()
        self.unseen: dict[bytes, str] = {}

    async def do(self, step: tuple[Any, ...]) -> None:
        verb, *arguments = step
        for touched in arguments[:2]:
            if verb != "foreign" and isinstance(touched, str):
                name = touched.rpartition("/")[2]
                held = self.unseen.items()
                self.unseen = {d: p for d, p in held if p.rpartition("/")[2] != name}
        if verb in ("write", "mkdir", "rename", "exchange") and not await self._has_parents(step):
            return
        try:
            await getattr(self, verb)(*arguments)
        except REFUSED:
            return

    async def _has_parents(self, step: tuple[Any, ...]) -> bool:
        """Whether the paths lie in directories: the kernel asks for nothing else."""
        for path in step[1:]:
            if isinstance(path, str) and "/" in path:
                try:
                    above = await self.system.stat(path.rpartition("/")[0])
                except REFUSED:
                    return False
                if not stat.S_ISDIR(above.mode):
                    return False
        return True

    async def write(self, path: str, number: int) -> None:
        data = b"w%d" % number * 3
        await self.system.write(path, data)
        self.model.put(path, data)

    async def patch(self, path: str, number: int) -> None:
        async with self.system.open(path, 2) as file:
            await file.write(1, b"%03d" % number)
        before = self.model.paths.get(path) or b""
        self.model.put(path, before[:1].ljust(1, b"\0") + b"%03d" % number + before[4:])

    async def unlink(self, path: str) -> None:
        await self.system.unlink(path)
        self.model.paths.pop(path, None)

    async def mkdir(self, path: str) -> None:
        await self.system.mkdir(path)
        self.model.paths[path] = None

    async def rmdir(self, path: str) -> None:
        await self.system.rmdir(path)
        self.model.paths.pop(path, None)

    async def rename(self, old: str, new: str) -> None:
        await self.system.rename(old, new)
        if old != new:
            self.model.paths.pop(new, None)
            self.model.rename(old, new)

    async def exchange(self, one: str, other: str) -> None:
        await self.system.rename(one, other, 2)
        self.model.exchange(one, other)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def fault(self, method: str, number: int, after: bool) -> None:
        self.remote.fail(method, FAULTS[number]("a fault"), after=after)

    async def slow(self, seconds: float) -> None:
        self.remote.delay_s = seconds

    async def kill(self) -> None:
        await self.system.kill()

    async def foreign(self, path: str, number: int) -> None:
        data = b"foreign%d" % number
        known = everything(self.remote).get(path, b"")
        if known is None or data in self.unseen:
            return
        self.remote.change(path, data)
        self.unseen = {held: where for held, where in self.unseen.items() if where != path}
        self.unseen[data] = path

    async def settle(self) -> None:
        self.remote.delay_s = 0
        await self.system.sync()
        assert not self.system.volume.status.quarantined()


def everything(remote: RemoteMount) -> dict[str, bytes | None]:
    """All that the backend holds."""
    found: dict[str, bytes | None] = {}
    todo = [("", remote._root)]
    while todo:
        above, directory = todo.pop()
        for name, held in directory.children.items():
            path = f"{above}/{name}" if above else name
            found[path] = None if held.is_directory else held.data
            todo.append((path, held))
    return found


async def shown(system: RemoteSystem) -> dict[str, bytes | None]:
    """All that the tree shows."""
    found: dict[str, bytes | None] = {}
    for path, (mode, *_, data) in (await system.tree()).items():
        if path:
            found[path.decode()] = None if stat.S_ISDIR(mode) else data
    return found


async def run_alone(steps: list[tuple[Any, ...]], place: Path) -> None:
    remote = RemoteMount()
    async with RemoteSystem(place, remote) as system:
        run = Run(system, remote)
        for step in steps:
            await run.do(step)
        await run.settle()
        assert await shown(system) == run.model.paths
        assert everything(remote) == run.model.paths
        await trio.sleep(40)
        assert await shown(system) == run.model.paths
        await system.kill()
        assert await shown(system) == run.model.paths
        assert system.volume.statistics()["waiting"] == 0


async def run_together(steps: list[tuple[Any, ...]], place: Path) -> None:
    remote = RemoteMount()
    async with RemoteSystem(place, remote) as system:
        run = Run(system, remote)
        for step in steps:
            await run.do(step)
        await run.settle()
        await trio.sleep(40)
        tree = await shown(system)
        await run.settle()
        held = everything(remote)
        assert tree == held
        missing = set(run.unseen) - {data for data in held.values() if data is not None}
        assert not missing


def play(steps: list[tuple[Any, ...]], what: Any) -> None:
    place = Path(tempfile.mkdtemp(prefix="unifs-random-"))
    try:
        trio.run(what, steps, place / "state", clock=MockClock(autojump_threshold=0.005))
    finally:
        shutil.rmtree(place)


RANDOM = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@RANDOM
@given(st.lists(st.one_of(LOCAL, LOCAL, LOCAL, DISTURBANCE), min_size=5, max_size=40))
def test_backend_tree_and_model_agree(steps: list[tuple[Any, ...]]) -> None:
    play(steps, run_alone)


@pytest.mark.slow
@RANDOM
@given(st.lists(st.one_of(LOCAL, LOCAL, LOCAL, FOREIGN, DISTURBANCE), min_size=5, max_size=40))
def test_nothing_of_somebody_else_is_lost(steps: list[tuple[Any, ...]]) -> None:
    play(steps, run_together)
