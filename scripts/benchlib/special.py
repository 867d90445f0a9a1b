"""Rows of their own: start-up, memory, bytes on disk, 100,000 files, the embedded node.

Each is a function of a ``Bench`` (where to work) and yields ``Special`` results. A measured value
is judged by gates.SPECIAL_LIMITS. What is compared with ext4 works in a plain directory of the same
disk.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchlib.gates import SPECIAL_LIMITS
from benchlib.processes import process_tree, pss_bytes, written_bytes
from benchlib.rows import MIB, timed, write_big
from benchlib.sides import environment, unifs_command, unifs_side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: A mount settles (indexer, first root) before its memory is called idle.
IDLE_S = 5.0
SMALL_FILES = 100_000
SMALL_BYTES = 1000
STEP_FILES = 10_000


@dataclass(frozen=True)
class Special:
    """One measured value, with the numbers that it comes from in words."""

    name: str
    about: str
    value: float
    detail: str = ""
    failure: str = ""

    @property
    def is_within(self) -> bool:
        """Whether the value is at or below its limit."""
        return not self.failure and self.value <= SPECIAL_LIMITS[self.name][0]


@dataclass(frozen=True)
class Bench:
    """Where the special rows work (a directory on the disk under test), and how much."""

    base: Path
    rounds: int
    gib_mib: int = 1024

    def fresh(self, name: str) -> Path:
        """Return a new directory path, removing what an earlier row left there."""
        path = self.base / name
        shutil.rmtree(path, ignore_errors=True)
        return path


def _command(*arguments: str | Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise OSError(f"{arguments!r}: {done.stderr[-500:]}{done.stdout[-500:]}")
    return done.stdout


def _unifs(state: Path, *arguments: str) -> dict[str, object]:
    """Run one control operation and return its JSON answer (the last line, where it streams)."""
    out = _command(*unifs_command("ctl", "--state", str(state), *arguments, "--json"))
    try:
        answer = json.loads(out)
    except json.JSONDecodeError:
        answer = json.loads(out.strip().splitlines()[-1])
    if not isinstance(answer, dict):
        raise OSError(f"not an object: {out[-200:]}")
    return answer


def _medians(first: Callable[[], float], second: Callable[[], float], rounds: int) -> list[float]:
    """Take both samples in turn, order swapped each round, and return the two medians."""
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            samples[which].append((first, second)[which]())
    return [statistics.median(taken) for taken in samples]


def _ratio(name: str, about: str, pair: list[float]) -> Special:
    return Special(name, about, pair[0] / pair[1], f"{pair[0]:.3f} s / {pair[1]:.3f} s")


def startup(bench: Bench) -> Iterator[Special]:
    """Mount in the background until ls answers; a control command as a process; idle memory."""
    base = bench.fresh("startup")
    mount, state = base / "mnt", base / "state"
    mount.mkdir(parents=True)
    mount_command = unifs_command("mount", "--state", str(state), str(mount))
    waits = []
    for _ in range(bench.rounds):
        waits.append(timed(lambda: (_command(*mount_command), _command("ls", str(mount)))))
        _command(*unifs_command("umount", str(mount)))
    yield Special(
        "mount_ls",
        "unifs mount until the first ls has answered",
        statistics.median(waits),
        f"best {min(waits):.2f} s",
    )
    with unifs_side(base) as side:
        commands = [timed(lambda: _unifs(state, "version")) for _ in range(bench.rounds)]
        yield Special(
            "ctl_version", "unifs ctl version, the whole process", statistics.median(commands)
        )
        time.sleep(IDLE_S)
        pids = side.pids()
        yield Special(
            "idle_pss",
            "idle memory of all processes (PSS)",
            pss_bytes(pids) / MIB,
            f"{len(pids)} processes",
        )


def one_gib(bench: Bench) -> Iterator[Special]:
    """1 GiB with fsync against ext4, and how often it reaches the disk."""
    native = bench.fresh("native")
    native.mkdir(parents=True)
    size_bytes = bench.gib_mib * MIB
    written = []
    with unifs_side(bench.fresh("gib")) as side:

        def ours() -> float:
            before = written_bytes(side.pids())
            seconds = timed(lambda: write_big(str(side.directory / "gib"), size_bytes, sync=True))
            (side.directory / "gib").unlink()
            written.append((written_bytes(side.pids()) - before) / size_bytes)
            return seconds

        def theirs() -> float:
            seconds = timed(lambda: write_big(str(native / "gib"), size_bytes, sync=True))
            (native / "gib").unlink()
            return seconds

        pair = _medians(ours, theirs, bench.rounds)
    yield _ratio("gib_fsync", f"{bench.gib_mib} MiB written + fsync", pair)
    yield Special(
        "gib_written", "bytes on disk per byte written, large file", statistics.median(written)
    )


def _syncs(directory: Path, threads: int, each: int) -> float:
    def writer(number: int) -> None:
        fd = os.open(directory / f"log{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for _ in range(each):
            os.write(fd, b"z" * 200)
            os.fsync(fd)
        os.close(fd)

    running = [threading.Thread(target=writer, args=(number,)) for number in range(threads)]
    start = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return (time.perf_counter() - start) / (threads * each)


def fsync_rate(bench: Bench) -> Iterator[Special]:
    """append of 200 bytes + fsync, one thread judged, 32 threads told."""
    native = bench.fresh("native")
    native.mkdir(parents=True)
    with unifs_side(bench.fresh("fsync")) as side:
        one = _medians(
            lambda: _syncs(side.directory, 1, 500), lambda: _syncs(native, 1, 500), bench.rounds
        )
        many = _medians(
            lambda: _syncs(side.directory, 32, 50), lambda: _syncs(native, 32, 50), bench.rounds
        )
    rates = [f"{1 / seconds:,.0f}/s" for seconds in (*one, *many)]
    detail = f"1 thread {rates[0]} / {rates[1]}; 32 threads {rates[2]} / {rates[3]}"
    yield Special("fsync_time", "append + fsync, one thread", one[0] / one[1], detail)


def _fill(directory: Path) -> list[float]:
    """Create SMALL_FILES files and return the seconds of each step."""
    steps, block = [], bytearray(os.urandom(SMALL_BYTES))
    for first in range(0, SMALL_FILES, STEP_FILES):
        start = time.perf_counter()
        for number in range(first, first + STEP_FILES):
            block[:8] = number.to_bytes(8, "little")
            fd = os.open(f"{directory}/f{number:06d}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
            os.write(fd, block)
            os.close(fd)
        steps.append(time.perf_counter() - start)
    return steps


def small_files(bench: Bench) -> Iterator[Special]:
    """100,000 files of 1,000 bytes in one directory: growth, bytes on disk, ls, memory."""
    native = bench.fresh("native") / "many"
    native.mkdir(parents=True)
    with unifs_side(bench.fresh("small")) as side:
        ours = side.directory / "many"
        ours.mkdir()
        before = written_bytes(side.pids())
        steps = _fill(ours)
        os.sync()
        written_mib = (written_bytes(side.pids()) - before) / MIB
        detail = f"{steps[0] / STEP_FILES * 1e6:.0f} → {steps[-1] / STEP_FILES * 1e6:.0f} µs a file"
        yield Special("growth", "last 10,000 of 100,000 creates", steps[-1] / steps[0], detail)
        yield Special("small_written", "disk writes of 100,000 files of 1,000 bytes", written_mib)
        _fill(native)
        pair = _medians(
            lambda: timed(lambda: _command("ls", str(ours))),
            lambda: timed(lambda: _command("ls", str(native))),
            bench.rounds,
        )
        resident = f"; {pss_bytes(side.pids()) / MIB:.0f} MiB resident afterwards"
        listing = _ratio("ls_100k", "ls of 100,000 names", pair)
        yield Special(listing.name, listing.about, listing.value, listing.detail + resident)
    shutil.rmtree(native)


def _read(path: Path) -> float:
    """Return the seconds to read a file once."""

    def everything() -> None:
        buffer = bytearray(MIB)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return timed(everything)


def embedded_node(bench: Bench) -> Iterator[Special]:
    """ctl add against sha256sum and cp + sync; the first, verifying read of a CID after a mount."""
    base, native = bench.fresh("node"), bench.fresh("native")
    native.mkdir(parents=True)
    source = native / "source"
    write_big(str(source), bench.gib_mib * MIB)

    def copy() -> float:
        copied = native / "copy"
        seconds = timed(lambda: (_command("cp", source, copied), _command("sync", copied)))
        copied.unlink()
        return seconds

    with unifs_side(base) as side:
        state = base / "state"
        pids = process_tree(side.server.pid) if side.server else []
        pair = _medians(
            lambda: timed(lambda: _unifs(state, "add", "--only-hash", str(source))),
            lambda: timed(lambda: _command("sha256sum", str(source))),
            bench.rounds,
        )
        yield _ratio("only_hash", f"ctl add --only-hash of {bench.gib_mib} MiB", pair)

        def add() -> float:
            # Every leaf is new, or the node would find the block and write nothing.
            with source.open("r+b") as file:
                for start in range(0, bench.gib_mib * MIB, MIB):
                    file.seek(start)
                    file.write(os.urandom(16))
            answers: list[dict[str, object]] = []
            seconds = timed(lambda: answers.append(_unifs(state, "add", str(source))))
            # Or the rounds together would need a disk of their own.
            _unifs(state, "pins", "rm", str(answers[0]["cid"]))
            _unifs(state, "repo", "gc")
            return seconds

        before = written_bytes(pids)
        pair = _medians(add, copy, bench.rounds)
        per_add = (written_bytes(pids) - before) / (bench.rounds * bench.gib_mib * MIB)
        added = _ratio("add", f"ctl add of {bench.gib_mib} MiB", pair)
        yield Special(
            added.name, added.about, added.value, f"{added.detail}; ×{per_add:.2f} on disk"
        )
        cid = str(_unifs(state, "add", str(source))["cid"])

    def read() -> float:
        with unifs_side(base) as again:
            return _read(again.directory.parent / "ipfs" / cid)

    pair = _medians(read, lambda: timed(lambda: _command("sha256sum", str(source))), bench.rounds)
    yield _ratio("verified_read", "first read of a CID after a mount", pair)


SPECIAL_ROWS = (startup, one_gib, fsync_rate, small_files, embedded_node)
