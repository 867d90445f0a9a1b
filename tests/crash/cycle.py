"""What every crash campaign does: workloads, a crash at a seeded moment, a check, and the next one.

Each cycle works in a directory of its own; the directories of the last cycles stay and must not
change in any later crash, those before them are removed and must stay away.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.crash.check import check, observe, snapshot_differences
from tests.crash.daemon import repository_environment
from tests.crash.history import Crash, History, Seen, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: How many earlier directories are looked at again after each crash.
KEPT_CYCLES = 3
#: A workload that has not ended this long after the crash hangs on a dead mount.
WORKER_LIMIT_S = 30.0
#: A crash comes between the first acknowledged call and this many recorded bytes (about 400 calls).
RECORDED_BYTES_MAX = 40_000
#: A server slower than this is crashed wherever it is.
CRASH_LIMIT_S = 10.0


@dataclass(frozen=True)
class Receipts:
    """What recovery wrote about losses, and the names of receipts that no longer read."""

    text: str
    damaged: Sequence[str]


class Target(Protocol):
    """Something that can be crashed and come up again."""

    root: Path

    def start(self) -> None:
        """Come up; the tree answers afterwards."""

    def crash(self, workers: Sequence[int]) -> list[str]:
        """Crash under these workers; return sentences about what should not have happened."""

    def receipts(self) -> Receipts:
        """Return what recovery says it could not keep."""


@dataclass
class Summary:
    """What a campaign did and what it found."""

    crashes: int = 0
    acknowledged: int = 0
    synced: int = 0
    checked: int = 0
    given_up: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def is_proof(self) -> bool:
        """Whether something was recorded and nothing was broken."""
        return self.acknowledged > 0 and self.crashes > 0 and not self.violations

    def __str__(self) -> str:
        words = (
            f"{self.crashes} crashes, {self.acknowledged} acknowledged calls ({self.synced} of them"
            f" fsync), {self.checked} names checked, {self.given_up} given up with a receipt, "
            f"{len(self.violations)} violations"
        )
        return "\n".join([words, *self.violations[:50]])


@dataclass(frozen=True)
class Worker:
    """One running workload: where it works and where it records."""

    directory: Path
    manifest: Path
    process: subprocess.Popen[bytes]


class Campaign:
    """Crashes one target again and again. ``scratch`` must lie where no crash reaches."""

    def __init__(self, target: Target, kind: Crash, scratch: Path, seed: int) -> None:
        self.target, self.kind, self.scratch, self.seed = target, kind, scratch, seed
        self.choose = random.Random(seed)
        self.summary = Summary()
        #: Crash after the workloads' end instead of at a seeded moment.
        self.is_ended_first = False
        self.extra_arguments: Sequence[str] = ()
        self.scenarios: Sequence[str] = ("mixed", "mixed")
        self._kept: dict[str, dict[str, Seen]] = {}
        self._removed: list[str] = []

    def run(self, crashes: int) -> Summary:
        """Crash ``crashes`` times and return what was found; stop at the first violation."""
        self.target.start()
        for number in range(crashes):
            self._cycle(number)
            if self.summary.violations:
                break
        return self.summary

    def _cycle(self, number: int) -> None:
        name = f"cycle-{number:04d}"
        workers = self._start_workers(name, number)
        self._wait_for_the_moment(workers)
        self._blame(name, self.target.crash([worker.process.pid for worker in workers]))
        self._collect(name, workers)
        self.target.start()
        self.summary.crashes += 1
        self._check(name, workers)
        self._forget_old()

    def _start_workers(self, name: str, number: int) -> list[Worker]:
        workers = []
        for index, scenario in enumerate(self.scenarios):
            directory = self.target.root / name / f"worker-{index}"
            directory.mkdir(parents=True)
            manifest = self.scratch / f"{name}-{index}.jsonl"
            command = [sys.executable, "-m", "tests.crash.workload", str(directory), str(manifest)]
            command += ["--seed", f"{self.seed * 10_000 + number * 10 + index}"]
            command += ["--scenario", scenario, *self.extra_arguments]
            environment = repository_environment()
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
            workers.append(Worker(directory, manifest, process))
        self._sync(self.target.root / name)
        return workers

    @staticmethod
    def _sync(directory: Path) -> None:
        """Make the cycle's directories durable, so that a power cut is about what is in them."""
        for path in (directory, directory.parent, *directory.iterdir()):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def _wait_for_the_moment(self, workers: Sequence[Worker]) -> None:
        """Return when the workers have recorded a seeded amount, or have all ended."""
        amount = self.choose.randrange(100, RECORDED_BYTES_MAX)
        if self.is_ended_first:
            amount = sys.maxsize
        pause_s = self.choose.random() * 0.002
        limit = time.monotonic() + CRASH_LIMIT_S
        while time.monotonic() < limit:
            sizes = [w.manifest.stat().st_size if w.manifest.exists() else 0 for w in workers]
            if all(sizes) and sum(sizes) >= amount:
                break
            if all(worker.process.poll() is not None for worker in workers):
                break
            time.sleep(0.001)
        time.sleep(pause_s)

    def _collect(self, name: str, workers: Sequence[Worker]) -> None:
        for worker in workers:
            try:
                _, errors = worker.process.communicate(timeout=WORKER_LIMIT_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                _, errors = worker.process.communicate()
                self._blame(name, [f"{worker.directory.name} hangs on the dead mount"])
            if errors:
                self._blame(name, [errors.decode(errors="replace")[-2000:]])

    def _check(self, name: str, workers: Sequence[Worker]) -> None:
        given_up = []
        for worker in workers:
            history = History.load(worker.manifest)
            seen = observe(str(worker.directory)) if worker.directory.exists() else {}
            verdict = check(history, seen, self.kind)
            self._count(history, seen, verdict)
            self._blame(f"{name}/{worker.directory.name}", verdict.violations)
            given_up += [f"{name}/{worker.directory.name}/{path}" for path in verdict.given_up]
        self._check_receipts(given_up)
        for earlier, before in self._kept.items():
            now = observe(str(self.target.root / earlier))
            self._blame(f"{earlier} after {name}", list(snapshot_differences(before, now)))
        for earlier in self._removed:
            if (self.target.root / earlier).exists():
                self._blame(name, [f"{earlier} was removed before and is back"])
        self._kept[name] = observe(str(self.target.root / name))

    def _count(self, history: History, seen: dict[str, Seen], verdict: Verdict) -> None:
        self.summary.acknowledged += history.acknowledged
        self.summary.synced += history.synced
        self.summary.checked += len(seen)
        self.summary.given_up += len(verdict.given_up)

    def _check_receipts(self, given_up: Sequence[str]) -> None:
        receipts = self.target.receipts()
        self._blame("lost+found", [f"{name} is damaged" for name in receipts.damaged])
        for path in given_up:
            if repr(path.rpartition("/")[2])[1:-1] not in receipts.text:
                self._blame(path, ["is given up without a receipt"])

    def _forget_old(self) -> None:
        while len(self._kept) > KEPT_CYCLES:
            name = next(iter(self._kept))
            del self._kept[name]
            try:
                shutil.rmtree(self.target.root / name)
            except OSError as error:
                self._blame(name, [f"cannot be removed: {error}"])
                return
            fd = os.open(self.target.root, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            self._removed = [*self._removed[-KEPT_CYCLES:], name]

    def _blame(self, where: str, sentences: Sequence[str]) -> None:
        self.summary.violations += [f"{where}: {sentence}" for sentence in sentences]
