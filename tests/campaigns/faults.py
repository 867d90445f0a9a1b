"""Every call to the disk fails once: in fixed work and in the recovery after it.

    python -m tests.campaigns.faults [--stride 1] [--kinds ENOSPC EIO short] [--lasting]
        [--parts work recovery]

For each fault, end and n = 1, 2, 3 … until none fires (``tests.journal.faultwork``). The exit code
is 1 where a promise was broken or nothing fired.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.campaigns.rounds import innermost
from tests.journal.faultwork import ENDS, KINDS, prepare, recover_once, run_once
from tests.vfs.harness import BOOT

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS_MAX = 20_000
PARTS = ("work", "recovery")


class Tally:
    """What was tried, and what was found."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.calls: Counter[str] = Counter()
        self.violations: list[str] = []

    def enumerate(self, what: str, run: Callable[[int], Any]) -> None:
        """``run`` with 1, 1 + stride, … until it says that nothing fired."""
        fired = 0
        for number in range(1, CALLS_MAX, self.stride):
            try:
                call = trio.run(run, number)
            except Exception as error:  # each violation is told, and the next number tried
                self.violations.append(f"{what}, call {number}: {innermost(error)!r}")
                continue
            if call is None:
                break
            self.calls[call[0]] += 1
            fired += 1
        print(f"{what}: {fired} faults, {len(self.violations)} violations so far", flush=True)


async def _once(base: Path, kind: str, end: str, is_lasting: bool, holds: bool, number: int) -> Any:
    path = base / "work"
    try:
        return await run_once(path, kind, number, end, is_lasting=is_lasting, holds=holds)
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def _recovery(
    base: Path, work: Any, kind: str, boot: str, is_lasting: bool, number: int
) -> Any:
    path = base / "copy"
    shutil.copytree(base / "left", path, ignore=shutil.ignore_patterns("reserve"))
    try:
        return await recover_once(path, work, kind, number, boot, is_lasting=is_lasting)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _try_work(base: Path, tally: Tally, kinds: list[str], is_lasting: bool) -> None:
    for kind in kinds:
        lasts = is_lasting and kind != "short"
        for end, holds in product(ENDS, (False, True)):
            run = partial(_once, base, kind, end, lasts, holds)
            told = f"{kind}{', changes held' if holds else ''}, then {end}"
            tally.enumerate(told, run)


def _try_recoveries(base: Path, tally: Tally, kinds: list[str], is_lasting: bool) -> None:
    work = trio.run(prepare, base / "left")
    for boot in (BOOT, "another"):
        for kind in kinds:
            lasts = is_lasting and kind != "short"
            told = f"{kind} in a recovery, {'same' if boot == BOOT else 'another'} boot"
            tally.enumerate(told, partial(_recovery, base, work, kind, boot, lasts))


def main() -> int:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1, help="try every so many calls")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--lasting", action="store_true", help="every later call fails too")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    tally = Tally(options.stride)
    with tempfile.TemporaryDirectory(prefix="unifs-faults-") as name:
        base = Path(name)
        if "work" in options.parts:
            _try_work(base, tally, options.kinds, options.lasting)
        if "recovery" in options.parts:
            _try_recoveries(base, tally, options.kinds, options.lasting)
    print(f"{tally.calls.total()} faults: {dict(tally.calls.most_common())}")
    print(*tally.violations, f"{len(tally.violations)} violations", sep="\n")
    return 0 if tally.calls and not tally.violations else 1


if __name__ == "__main__":
    sys.exit(main())
