"""Compare a freshly mounted unifs with its peers: ratios of medians in one run.

    scripts/bench                                # every peer and the special rows
    scripts/bench --peer rclone --files 1000     # one comparison
    scripts/bench --peer self                    # unifs against itself: how large the noise is
    scripts/bench --special startup,one_gib      # rows of their own only
    scripts/bench --s3 all                       # S3: against rclone and s3fs, on one SeaweedFS

Peers are started by this script: rclone and juicefs come from the extra `bench`, null is the file
system in memory of tests/driver, ext4 a plain directory. The exit code is 1 where a limit of
scripts/benchlib/gates.py is not held. The processors are kept from halting where that is possible
(benchlib/awake.py says why); `--no-awake` lets them. `--ours KIND` puts another file system in
unifs' place, to prove the harness.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchlib.awake import awake
from benchlib.compare import Plan, compare
from benchlib.processes import ServerFailed
from benchlib.report import (
    comparison_json,
    comparison_rows,
    markdown,
    plain,
    special_json,
    special_rows,
    verdict,
)
from benchlib.s3 import Outcome, json_of, measure, rows_of
from benchlib.sides import PEERS, open_side
from benchlib.special import SPECIAL_ROWS, Bench, Special


def _arguments() -> argparse.Namespace:
    names = ",".join(row.__name__ for row in SPECIAL_ROWS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", action="append", choices=PEERS, help="may be given again")
    parser.add_argument("--special", default=None, help=f"all, none, or some of: {names}")
    parser.add_argument("--s3", default=None, help="all, or some of the rows, as s3_list,s3_seq")
    parser.add_argument("--ours", default="unifs", choices=("unifs", *PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=300, help="files in the trees: 300 or 1000")
    parser.add_argument("--size", type=int, default=64, help="MiB of the big file")
    parser.add_argument("--gib", type=int, default=1024, help="MiB of the special rows' file")
    parser.add_argument("--only", default="", help="comma list of rows")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--awake", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    return parser.parse_args()


def _compare(
    options: argparse.Namespace, peer: str, base: Path
) -> tuple[Any, bool, list[list[str]]]:
    only = frozenset(filter(None, options.only.split(",")))
    plan = Plan(options.rounds, options.files, options.size, only)
    with ExitStack() as stack:
        ours = stack.enter_context(open_side(options.ours, base / "ours"))
        theirs = stack.enter_context(open_side(peer, base / "theirs"))
        comparison = compare(ours, theirs, plan, base)
    rows = comparison_rows(comparison, peer, options.files)
    failed = any(verdict(peer, outcome, plan.files) == "FAIL" for outcome in comparison.outcomes)
    return comparison_json(comparison, peer, options.files), failed, rows


def _special(options: argparse.Namespace, wanted: str, base: Path) -> list[Special]:
    chosen = [row for row in SPECIAL_ROWS if wanted == "all" or row.__name__ in wanted.split(",")]
    bench = Bench(base, options.rounds, options.gib)
    results: list[Special] = []
    for row in chosen:
        try:
            results.extend(row(bench))
        except (OSError, RuntimeError, KeyError) as error:
            print(f"{row.__name__} failed: {error}", file=sys.stderr)
            results.append(
                Special(_first_name(row.__name__), row.__doc__ or "", 0, failure=str(error))
            )
    return results


def _s3(options: argparse.Namespace) -> list[Outcome]:
    only = frozenset() if options.s3 == "all" else frozenset(options.s3.split(","))
    base = Path(tempfile.mkdtemp(prefix="unifs-bench-", dir=options.dir))
    try:
        return measure(base, options.rounds, options.gib, only)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _first_name(function: str) -> str:
    """Return the limit under which a special row that broke is reported."""
    return {
        "startup": "mount_ls",
        "one_gib": "gib_fsync",
        "fsync_rate": "fsync_time",
        "small_files": "growth",
        "embedded_node": "only_hash",
    }[function]


def main() -> int:
    """Measure what was asked for, print the tables, return the exit code."""
    options = _arguments()
    with awake(options.awake) as said:
        return _measure(options, said)


def _measure(options: argparse.Namespace, said: str) -> int:
    asked = bool(options.peer) or options.special is not None or options.s3 is not None
    peers = options.peer or ([] if asked else ["rclone", "juicefs", "null", "ext4", "self"])
    wanted = options.special or ("none" if asked else "all")
    tables: list[str] = []
    has_failed = False
    numbers: dict[str, list[Any]] = {"comparisons": [], "special": []}
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}"
    machine += f", Python {platform.python_version()}, {said}"
    for peer in peers:
        base = Path(tempfile.mkdtemp(prefix="unifs-bench-", dir=options.dir))
        try:
            data, failed, rows = _compare(options, peer, base)
        finally:
            shutil.rmtree(base, ignore_errors=True)
        title = f"{options.ours} against {peer}, {options.files} files, {options.rounds} rounds"
        print(f"\n{title} ({machine})\n{plain(rows)}", flush=True)
        tables.append(f"### {title}\n\n{markdown(rows)}\n")
        numbers["comparisons"].append(data)
        has_failed |= failed
    if wanted != "none":
        base = Path(tempfile.mkdtemp(prefix="unifs-bench-", dir=options.dir))
        try:
            specials = _special(options, wanted, base)
        finally:
            shutil.rmtree(base, ignore_errors=True)
        rows = special_rows(specials)
        print(f"\nrows of their own ({machine})\n{plain(rows)}", flush=True)
        tables.append(f"### Rows of their own\n\n{markdown(rows)}\n")
        numbers["special"] = special_json(specials)
        has_failed |= any(not special.is_within for special in specials)
    if options.s3:
        outcomes = _s3(options)
        rows = rows_of(outcomes)
        title = f"S3: unifs, rclone and s3fs on one SeaweedFS, {options.rounds} rounds"
        print(f"\n{title} ({machine})\n{plain(rows)}", flush=True)
        tables.append(f"### {title}\n\n{markdown(rows)}\n")
        numbers["s3"] = json_of(outcomes)
        has_failed |= not all(outcome.is_within for outcome in outcomes)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **numbers}, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(f"Machine: {machine}.\n\n" + "\n".join(tables))
    return 1 if has_failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerFailed as failure:
        sys.exit(f"bench: {failure}")
