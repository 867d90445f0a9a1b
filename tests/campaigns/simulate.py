"""Journal, writeback and cache on a clock, a disk and a backend that are all in this process.

    python -m tests.campaigns.simulate --rounds 200 [--seed 1] [--renames] [--trace]

One seed is one history: virtual time, one thread, every call to the disk through
``tests.journal.seam``, every call to the backend through ``tests.mounts.remote``. The disk loses
what was not synced, in any order, torn, as zeros or with a wrong bit; the backend fails before or
after it has acted, is slow, silent or lies. What was synced is there after each cut, and in the end
tree and backend agree. The same seed gives the same trace (``--trace`` prints it). With
``--renames`` files are also renamed over each other, saved by a rename, cut and made empty.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import stat
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import trio
from trio.testing import MockClock

from tests.campaigns.rounds import violations
from tests.journal.powercut import Disk
from tests.journal.seam import Fault, Observer, Seam
from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.vfs.invariants import check
from unifs.errors import DeadlineExceeded, RateLimited, UnifsError, Unreachable
from unifs.journal.writeback_order import ASIDE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from unifs.journal.flush import Flusher, Round

NAMES = ("a", "b", "c", "d")
SIZES = (1, 900, 5000, 65_537, 120_000)
FAULTS = (Unreachable, RateLimited, DeadlineExceeded)
METHODS = ("put", "make", "remove", "rename", "read", "stat")
STEPS_MAX = 40


class Watched(Observer):
    """Writes down every call to the disk that changes something."""

    is_syncing = False

    def __init__(self, state: Path, disk: Disk, trace: list[str]) -> None:
        self._state, self._disk, self._trace = str(state), disk, trace

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        if call not in ("read", "pread", "preadv", "open"):
            # A receipt's name is a moment of the real clock.
            where = re.sub(r"\d{19}", "…", path.removeprefix(self._state))
            self._trace.append(f"disk {call} {where}")
        return None

    def synced(self, path: str) -> None:
        self._disk.synced(path)


class TracedRemote(RemoteMount):
    """Writes down every call to the backend, and when it came."""

    def __init__(self, trace: list[str]) -> None:
        super().__init__()
        self._trace = trace

    @asynccontextmanager
    async def _call(self, method: str, path: str) -> AsyncIterator[None]:
        shown = re.sub(f"{ASIDE}[0-9a-f]+", ASIDE, path)
        self._trace.append(f"{trio.current_time():.3f} backend {method} {shown}")
        async with super()._call(method, path):
            yield


# --- one thread -----------------------------------------------------------------------------------


class Inline:
    """The queue of a flusher whose rounds are done when they are put."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher

    def put(self, turn: Round | None) -> None:
        if turn is not None:
            self._flusher._sync(turn)
            token = trio.lowlevel.current_trio_token()
            token.run_sync_soon(self._flusher._finished, turn)


class InlineExecutor(AbstractContextManager["InlineExecutor"]):
    """Does at once what it is given."""

    def __init__(self, threads: int) -> None:
        assert threads

    def __exit__(self, *error: object) -> None:
        """Nothing goes on."""

    def submit(self, call: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(call())
        return done


def _start_inline(flusher: Flusher) -> None:
    flusher._work = Inline(flusher)  # type: ignore[assignment]


async def _run_inline(call: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return call(*arguments)


#: Modules of ``unifs.vfs`` that act on how long ago something was.
TIMED = ("remotelate", "roots", "sealing", "treenames", "upkeep", "writer")


def _one_thread(stack: ExitStack, seed: int) -> None:
    def nothing(_: object) -> None:
        """No thread."""

    clock = SimpleNamespace(
        perf_counter_ns=lambda: int(trio.current_time() * 1e9),
        monotonic=trio.current_time,
        time_ns=time.time_ns,
    )
    for patch in (
        *(mock.patch(f"unifs.vfs.{name}.time", clock) for name in TIMED),
        mock.patch("unifs.journal.flush.Flusher.start", _start_inline),
        mock.patch("unifs.journal.flush.time", clock),
        mock.patch("unifs.journal.overlay.Overlays.start", nothing),
        mock.patch("unifs.state.database.Database.start_checkpoints", nothing),
        mock.patch("trio.to_thread.run_sync", _run_inline),
        mock.patch("trio.from_thread.check_cancelled", return_value=None),
        mock.patch("unifs.vfs.storage.ThreadPoolExecutor", InlineExecutor),
        mock.patch("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True),
    ):
        stack.enter_context(patch)
    trio._core._run._r.seed(seed)  # type: ignore[attr-defined]


# --- the work -------------------------------------------------------------------------------------


class History:
    """A system, its disk and backend, and what each name was promised.

    A cut may take the note that the backend has confirmed a change, but nobody else writes: so
    what was synced has to be there, under its name, and nothing may ever be there that nobody
    wrote, nor anything under the name of a conflict.
    """

    def __init__(self, state: Path, seed: int, trace: list[str]) -> None:
        self.chance = random.Random(seed)
        self.trace = trace
        self.disk = Disk(state)
        self.disk.more = ("zeros", "flipped")
        self.remote = TracedRemote(trace)
        self.system = RemoteSystem(state, self.remote)
        #: What each name shows now, where no call was refused and no cut came since.
        self.sure: dict[str, bytes | None] = dict.fromkeys(NAMES)
        #: Synced, and nobody has begun to change it since.
        self.promised: dict[str, bytes] = {}
        self.written: set[bytes] = {b""}
        self.cuts = 0

    def began(self) -> None:
        self.system.volume.writeback._random = random.Random(self.chance.random())
        self.disk.begin()

    async def step(self) -> None:
        steps = (self.write, self.write, self.write, self.append, self.unlink, self.sleep)
        steps = (*steps, self.fault, self.fault, self.slow, self.read, self.freeze, self.cut)
        action = self.chance.choice(steps)
        name = self.chance.choice(NAMES)
        self.trace.append(f"{trio.current_time():.3f} step {action.__name__} {name}")
        try:
            await action(name)
        except UnifsError as error:
            self.trace.append(f"refused {type(error).__name__}")

    def changes(self, name: str) -> bytes | None:
        """What it was; from now on nothing is sure, or promised, until the change is done."""
        self.promised.pop(name, None)
        return self.sure.pop(name, None)

    async def write(self, name: str) -> None:
        data = self.chance.randbytes(self.chance.choice(SIZES))
        is_synced = self.chance.random() < 0.5
        self.changes(name)
        self.written.add(data)
        await self.system.write(name, data, fsync=is_synced)
        self.sure[name] = data
        if is_synced:
            self.promised[name] = data

    async def append(self, name: str) -> None:
        if self.sure.get(name) is None:
            return
        before = self.changes(name)
        assert before is not None
        data = before + self.chance.randbytes(self.chance.choice((10, 3000)))
        self.written.add(data)
        async with self.system.open(name, 1) as file:
            await file.write(len(before), data[len(before) :])
            await file.fsync()
        self.sure[name] = self.promised[name] = data

    async def unlink(self, name: str) -> None:
        if self.sure.get(name) is not None:
            self.changes(name)
            await self.system.unlink(name)
            self.sure[name] = None

    async def read(self, name: str) -> None:
        known = self.sure.get(name)
        if known is not None:
            try:
                found = await self.system.read(name)
                assert found == known, name
            except FAULTS:
                self.trace.append("unreadable for now")

    async def sleep(self, name: str) -> None:
        await trio.sleep(self.chance.choice((0.5, 3.0, 90.0)))

    async def fault(self, name: str) -> None:
        method, error = self.chance.choice(METHODS), self.chance.choice(FAULTS)
        self.remote.fail(method, error("a fault"), after=self.chance.random() < 0.5)

    async def slow(self, name: str) -> None:
        self.remote.delay_s = self.chance.choice((0.0, 0.2, 5.0))

    async def freeze(self, name: str) -> None:
        """Silent for a while; who needs it waits."""
        self.remote.freeze()
        await trio.sleep(self.chance.choice((1.0, 40.0)))
        self.remote.thaw()

    async def cut(self, name: str) -> None:
        await self.system.kill(start=False)
        chosen = self.disk.cut(self.chance)
        self.trace.append(f"cut {sorted(chosen.items())}")
        self.cuts += 1
        await self.system.start(boot=f"boot {self.cuts}")
        self.began()
        check(self.system)
        self.remote._failures.clear()
        self.sure.clear()
        shown = await self.shown()
        for name, data in shown.items():
            assert data in self.written, (name, len(data), chosen)
        for name, data in self.promised.items():
            assert shown.get(name) == data, (name, len(data), chosen)

    async def shown(self) -> dict[str, bytes]:
        """Every file and its bytes."""
        tree = await self.system.tree()
        return {path.decode(): seen[-1] for path, seen in tree.items() if not stat.S_ISDIR(seen[0])}

    async def end(self) -> None:
        self.remote._failures.clear()
        self.remote.delay_s = 0.0
        await self.system.sync()
        held = {name: item.data for name, item in self.remote._root.children.items()}
        shown = await self.shown()
        assert held == shown
        assert shown.keys() <= {*NAMES, *map(temporary, NAMES)}
        for name, data in self.sure.items():
            assert shown.get(name) == data, name


class Renaming(History):
    """Names move between files, and files lose bytes and have none."""

    async def step(self) -> None:
        if self.chance.random() < 0.65:
            await super().step()
            return
        steps = (self.rename, self.rename, self.touch, self.resize, self.save)
        action, name = self.chance.choice(steps), self.chance.choice(NAMES)
        self.trace.append(f"{trio.current_time():.3f} step {action.__name__} {name}")
        try:
            await action(name)
        except UnifsError as error:
            self.trace.append(f"refused {type(error).__name__}")

    async def rename(self, name: str) -> None:
        other = self.chance.choice(NAMES)
        if self.sure.get(name) is None or other == name or other not in self.sure:
            return
        data = self.changes(name)
        self.changes(other)
        await self.system.rename(name, other)
        self.sure[name], self.sure[other] = None, data

    async def touch(self, name: str) -> None:
        if name in self.sure and self.sure[name] is None:
            self.changes(name)
            await self.system.write(name, b"")
            self.sure[name] = b""

    async def resize(self, name: str) -> None:
        if self.sure.get(name) is None:
            return
        before = self.changes(name) or b""
        size = self.chance.randint(0, len(before))
        self.written.add(before[:size])
        await self.system.truncate(name, size)
        self.sure[name] = before[:size]

    async def save(self, name: str) -> None:
        data = self.chance.randbytes(self.chance.choice(SIZES))
        self.written.add(data)
        self.changes(name)
        is_synced = self.chance.random() < 0.5
        await self.system.write(temporary(name), data, fsync=is_synced)
        await self.system.rename(temporary(name), name)
        self.sure[name] = data


def temporary(name: str) -> str:
    """Under which a file is written before it takes a name."""
    return f"{name}.tmp"


async def _play(history: History, trace: list[str]) -> int:
    state = history.system.path
    with Seam(state, Watched(state, history.disk, trace)):
        async with history.system:
            history.began()
            for _ in range(history.chance.randint(5, STEPS_MAX)):
                await history.step()
            await history.end()
    return history.cuts


def play(seed: int, kind: type[History] = History) -> tuple[int, list[str]]:
    """One history: how many cuts it had, and all that disk and backend were asked."""
    trace: list[str] = []
    with ExitStack() as stack:
        base = stack.enter_context(tempfile.TemporaryDirectory(prefix="unifs-simulate-"))
        _one_thread(stack, seed)
        clock = MockClock(autojump_threshold=0.0)
        history = kind(Path(base) / "state", seed, trace)
        cuts = trio.run(_play, history, trace, clock=clock)
    return cuts, trace


def main() -> int:
    """Run histories from the command line; 1 where one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print all that was asked")
    parser.add_argument("--renames", action="store_true", help="rename, resize and save, too")
    options = parser.parse_args()
    kind = Renaming if options.renames else History
    logging.disable(logging.CRITICAL)
    told: Counter[str] = Counter()

    def one(seed: int) -> None:
        cuts, trace = play(seed, kind)
        told.update(cuts=cuts, calls=len(trace))
        if options.trace:
            print(*trace, sep="\n")

    wrong = violations(options.rounds, options.seed, one)
    cuts, calls = told["cuts"], told["calls"]
    print(f"{options.rounds} histories from seed {options.seed}: {cuts} cuts, {calls} calls")
    print(*wrong, f"{len(wrong)} violations", sep="\n")
    return 0 if calls and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
