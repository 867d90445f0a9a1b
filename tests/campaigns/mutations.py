"""Planted faults: each takes one safeguard out of a copy of the source, and a test must fail.

    python -m tests.campaigns.mutations [NAME …]

A ``Mutation`` replaces one piece of text that must stand in its file exactly once: where the source
has moved, ``planted`` says so. The exit code is 1 where a mutation survives its tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What pytest answers where tests ran and failed.
TESTS_FAILED = 1


@dataclass(frozen=True, slots=True)
class Mutation:
    """``old`` becomes ``new`` in ``path``; one of ``tests`` must then fail."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


CUTS = "tests/journal/test_powercut.py::test_a_power_cut_leaves_old_or_new"
RECOVERY = "tests/journal/test_recovery.py"
COLLECTION = "tests/vfs/test_collection.py"

MUTATIONS = (
    Mutation(
        "skip the sync of a file's data",
        "unifs/journal/flush.py",
        "                os.fdatasync(descriptor)\n",
        "                pass\n",
        (CUTS,),
    ),
    Mutation(
        "skip the sync of a directory",
        "unifs/vfs/fsync.py",
        "            descriptors.append(containers.directory)\n",
        "            pass\n",
        (CUTS,),
    ),
    Mutation(
        "skip the sync of a directory when sealing",
        "unifs/vfs/sealing.py",
        "        os.fsync(self.directory)\n",
        "",
        (CUTS,),
    ),
    Mutation(
        "skip the sync of the segments' directory",
        "unifs/ipfs/embedded/segments.py",
        "        os.fsync(self._directory)\n",
        "        pass\n",
        (CUTS,),
    ),
    Mutation(
        "replay what was carried in the wrong order",
        "unifs/journal/redo.py",
        'order by container,id"',
        'order by container,id desc"',
        ("tests/journal/test_redo.py::test_13_the_last_of_several_stores_wins",),
    ),
    Mutation(
        "ignore a checksum",
        "unifs/journal/trust.py",
        "            return holds(proof, lambda",
        "            return bool(proof) or holds(proof, lambda",
        (CUTS,),
    ),
    Mutation(
        "commit metadata before data",
        "unifs/vfs/sealing.py",
        "            self._sync_data()\n",
        "",
        (CUTS,),
    ),
    Mutation(
        "replay closed as sealed",
        "unifs/journal/trust.py",
        "        if state == SEALED or not extents:\n",
        "        if state or not extents:\n",
        (f"{RECOVERY}::test_5_large_bytes_lost",),
    ),
    Mutation(
        "trust a hole instead of the map of what is dirty",
        "unifs/journal/overlay.py",
        "        overlay.extents.lay(offset, offset + written, overlay.container)\n",
        "        if any(data):\n"
        "            overlay.extents.lay(offset, offset + written, overlay.container)\n",
        ("tests/journal/test_overlay.py::test_zeros_over_what_was_there_are_zeros",),
    ),
    Mutation(
        "reuse a generation in place",
        "unifs/vfs/writer.py",
        "if is_freed and overlay is not None and overlay.content is not None:",
        "if overlay is None and is_freed and inode.is_gone:",
        ("tests/journal/test_powercut.py::test_what_a_row_names_is_not_cut_from_under_it",),
    ),
    Mutation(
        "drop the sync of the WAL",
        "unifs/journal/flush.py",
        "            os.fdatasync(self._database.wal)\n",
        "",
        (CUTS,),
    ),
    Mutation(
        "hold what is not noted",
        "unifs/state/held.py",
        "            is_noted = self._ahead.note(batch)\n",
        "            is_noted = True\n",
        ("tests/journal/test_held.py::test_nothing_acknowledged_is_lost_by_kills",),
    ),
    Mutation(
        "sync before what is held is committed",
        "unifs/journal/flush.py",
        "        self._database.settle()\n",
        "",
        ("tests/journal/test_held.py::test_a_flush_round_commits_first",),
    ),
    Mutation(
        "let others run before what is held is committed",
        "unifs/driver/loop.py",
        "        self._waits.on_leave()\n        await trio.lowlevel.wait_readable(fd)\n",
        "        await trio.lowlevel.wait_readable(fd)\n",
        ("tests/driver/test_loop.py::test_the_loop_tells_before_any_other_task_may_run",),
    ),
    Mutation(
        "execute notes of another boot",
        "unifs/state/ahead.py",
        "        self._seed = crc32(boot_id.encode())\n",
        "        self._seed = 0\n",
        ("tests/journal/test_held.py::test_after_another_boot_nothing_is_executed",),
    ),
    Mutation(
        "recover without asking for the boot",
        "unifs/journal/recovery.py",
        'is_other_boot = str(database.get_meta("boot", state.boot_id)) != state.boot_id',
        "is_other_boot = False",
        (f"{RECOVERY}::test_4_small_bytes_lost",),
    ),
    Mutation(
        "release a predecessor before its successor is sealed",
        "unifs/vfs/upkeep.py",
        "if self.is_sealed(inode) and not self._is_guarded(inode):",
        "if not self._is_guarded(inode):",
        (f"{RECOVERY}::test_5_large_bytes_lost", CUTS),
    ),
    Mutation(
        "collect what is open",
        "unifs/vfs/ipfsvolume.py",
        "        self.held = self.pinned\n",
        "        self.held = type(self.pinned)()\n",
        (f"{COLLECTION}::test_what_is_open_below_ipfs_stays_until_it_is_closed",),
    ),
    Mutation(
        "call durable what the disk refused",
        "unifs/journal/flush.py",
        "                turn.errors[descriptor] = error\n",
        "                del error\n",
        ("tests/journal/test_flush.py::test_an_error_reaches_exactly_its_waiters",),
    ),
    Mutation(
        "go on after the WAL's sync failed",
        "unifs/journal/flush.py",
        '            self._database.fail(f"fdatasync: {turn.failure}")\n',
        "            pass\n",
        ("tests/journal/test_faults.py::test_a_failed_wal_is_told_to_every_waiter",),
    ),
    Mutation(
        "give up what cannot be read",
        "unifs/journal/trust.py",
        "        except (NotFound, Corrupt):\n",
        "        except UnifsError:\n",
        (
            "tests/journal/test_faults.py::test_bytes_that_cannot_be_read_at_a_start_are_not_given_up",
        ),
    ),
)


def planted(mutation: Mutation, root: Path = ROOT) -> str:
    """The file with the fault in it; ValueError where the text is not there exactly once."""
    source = (root / mutation.path).read_text()
    count = source.count(mutation.old)
    if count != 1:
        raise ValueError(f"{mutation.name}: its text stands {count} times in {mutation.path}")
    return source.replace(mutation.old, mutation.new)


def is_caught(mutation: Mutation, scratch: Path) -> bool:
    """Whether one of its tests fails on a copy of the tree with the fault."""
    copy = scratch / "tree"
    for name in ("unifs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / mutation.path).write_text(planted(mutation))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    # A hung test is a caught one only where its own limit ends it.
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(
            [*command, *mutation.tests],
            cwd=copy,
            env=environment,
            capture_output=True,
            check=False,
            timeout=900,
        )
    finally:
        shutil.rmtree(copy)
    if done.returncode not in (0, TESTS_FAILED):
        raise RuntimeError(f"{mutation.name}: {done.stdout.decode()[-2000:]}")
    return done.returncode == TESTS_FAILED


def main() -> int:
    """Plant every fault, or those named; 1 where one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    names = set(parser.parse_args().names)
    survivors = []
    with tempfile.TemporaryDirectory(prefix="unifs-mutations-") as scratch:
        for mutation in MUTATIONS:
            if names and mutation.name not in names:
                continue
            caught = is_caught(mutation, Path(scratch))
            print(f"{'caught' if caught else 'SURVIVES'}: {mutation.name}", flush=True)
            if not caught:
                survivors.append(mutation.name)
    print(f"{len(survivors)} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
