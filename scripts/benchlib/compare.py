"""Runs every row on unifs and on one peer in turn, and keeps the samples.

The order is swapped every round, so that load from elsewhere hits both alike; round 0 warms up and
is not counted. A sample during which somebody emptied the kernel's caches is taken again.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.processes import cpu_s
from benchlib.rows import ROWS, Work, make_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchlib.rows import Sample
    from benchlib.sides import Side

RETAKES_MAX = 5


@dataclass(frozen=True)
class Plan:
    """How much work, and which rows."""

    rounds: int = 5
    files: int = 300
    size_mib: int = 64
    only: frozenset[str] = frozenset()

    def rows(self) -> list[Callable[[Work], Sample]]:
        """Return the rows of this run, in order."""
        return [row for row in ROWS if not self.only or row.__name__ in self.only]


@dataclass(frozen=True)
class Outcome:
    """One row on both sides: medians and bests in seconds per unit, CPU of the server per unit."""

    row: str
    about: str
    ours_s: float
    theirs_s: float
    ours_best_s: float
    theirs_best_s: float
    ours_cpu_s: float
    theirs_cpu_s: float
    failure: str = ""

    @property
    def ratio(self) -> float:
        """Time of unifs over time of the peer."""
        return self.ours_s / self.theirs_s


@dataclass
class Comparison:
    """All outcomes of one run, and how many samples were disturbed."""

    ours: str
    peer: str
    outcomes: list[Outcome]
    retaken: int


def cache_drops() -> int:
    """Return how often anyone on this machine has emptied the kernel's caches."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return sum(
        int(line.split()[1]) for line in lines if line.startswith(("drop_page", "drop_slab"))
    )


class _Runner:
    def __init__(self, sides: Sequence[Side], works: Sequence[Work]) -> None:
        self.sides, self.works = sides, works
        self.times: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.cpu: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.failures: dict[str, str] = {}
        self.retaken = 0

    def sample(self, row: Callable[[Work], Sample], which: int, *, counted: bool) -> None:
        """Take one sample of a row on one side."""
        pids = self.sides[which].pids()
        for _ in range(RETAKES_MAX):
            drops, cpu = cache_drops(), cpu_s(pids)
            try:
                taken = row(self.works[which])
            except OSError as error:
                self.failures[row.__name__] = f"{self.sides[which].name}: {error}"
                return
            cpu = cpu_s(pids) - cpu
            if cache_drops() == drops:
                break
            self.retaken += 1
        if counted:
            self.times[row.__name__, which].append(taken.seconds / taken.units)
            self.cpu[row.__name__, which].append(cpu / taken.units)

    def outcome(self, row: Callable[[Work], Sample]) -> Outcome:
        """Return the medians of a row."""
        name, about = row.__name__, (row.__doc__ or "").rstrip(".")
        ours, theirs = self.times[name, 0], self.times[name, 1]
        if name in self.failures or not ours or not theirs:
            failure = self.failures.get(name, "no sample")
            return Outcome(name, about, 1, 1, 1, 1, 0, 0, failure)
        medians = statistics.median(ours), statistics.median(theirs)
        cpu = statistics.median(self.cpu[name, 0]), statistics.median(self.cpu[name, 1])
        return Outcome(name, about, *medians, min(ours), min(theirs), *cpu)


def compare(ours: Side, theirs: Side, plan: Plan, scratch: Path) -> Comparison:
    """Run the plan on both sides in turn and return the medians."""
    archive = scratch / "tree.tar"
    make_archive(archive, plan.files)
    sides = (ours, theirs)
    works = [Work(side.directory / "bench", archive, plan.files, plan.size_mib) for side in sides]
    for work in works:
        work.prepare()
    runner = _Runner(sides, works)
    rows = plan.rows()
    for number in range(plan.rounds + 1):
        for row in rows:
            for which in (0, 1) if number % 2 else (1, 0):
                runner.sample(row, which, counted=number > 0)
    return Comparison(ours.name, theirs.name, [runner.outcome(row) for row in rows], runner.retaken)
