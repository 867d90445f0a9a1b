"""The S3 rows: unifs, rclone and s3fs as mounts of one bucket of one SeaweedFS.

Every sample has a fresh mount with empty caches, unless its row says warm. A row is judged against
the best of the peers, CPU against rclone. Nothing is awaited longer than the peer itself makes one
wait: rows that write count the time until the bucket has every byte.

Memory that a virtual machine has not used lately comes from its host at the first touch: writing a
file of 1 GiB took 0.3 to 3.5 s of CPU on one machine, by that alone. So before each sample as much
is touched and given back as any side takes.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.processes import cpu_s
from benchlib.rows import MIB, timed
from benchlib.s3store import MANY_KEYS, SMALL_BYTES, SMALL_FILES, Store, open_s3
from benchlib.sides import Side, environment, unifs_command

if TYPE_CHECKING:
    from collections.abc import Callable


SIDES = ("unifs", "rclone", "s3fs")
RANDOM_READS = 512
RANDOM_BYTES = 64 << 10
STORED_LIMIT_S = 120.0
#: What the issue allows at 64 parallel parts.
PARALLEL_READS = 64
MEMORY_MAX_MIB = 300.0
#: What one sample takes of the page cache: the object in the mount and in the side's cache, twice.
TOUCHED_BYTES = 4 << 30


@dataclass
class Outcome:
    """One row: samples by side, with CPU and memory where the row tells them."""

    row: str
    about: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    failure: dict[str, str] = field(default_factory=dict)
    limit: float | None = None
    #: Whom the row is compared with; the best of them counts.
    peers: tuple[str, ...] = SIDES[1:]

    def median(self, side: str) -> float | None:
        """The median of a side's samples; None where it failed."""
        taken = self.samples.get(side)
        return statistics.median(taken) if taken else None

    @property
    def ratio(self) -> float | None:
        """Ours to the best of the peers'; below 1, unifs is ahead."""
        ours = self.median("unifs")
        theirs = [held for side in self.peers if (held := self.median(side)) is not None]
        return ours / min(theirs) if ours is not None and theirs else None

    @property
    def is_within(self) -> bool:
        """Whether the row's limit is held: absolute where it has one, else ahead of the best."""
        ours = self.median("unifs")
        if ours is None:
            return False
        if self.limit is not None:
            return ours <= self.limit
        return self.ratio is not None and self.ratio <= 1.0


def _back_memory() -> None:
    """Let the host back as much memory as a sample takes."""
    size = min(TOUCHED_BYTES, os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE // 2)
    with mmap.mmap(-1, size) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, size, mmap.PAGESIZE):
            pages[offset] = 1


def _list(side: Side) -> None:
    with os.scandir(side.directory / "many") as entries:
        found = sum(1 for _ in entries)
    if found != MANY_KEYS:
        raise OSError(f"{found} names of {MANY_KEYS}")


def _read_big(path: Path, size_bytes: int) -> None:
    buffer, total = bytearray(MIB), 0
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    if total != size_bytes:
        raise OSError(f"read {total} of {size_bytes} bytes")


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_random(path: Path, size_bytes: int) -> None:
    chance = random.Random(7)
    with path.open("rb", buffering=0) as file:
        for _ in range(RANDOM_READS):
            offset = chance.randrange(size_bytes // RANDOM_BYTES) * RANDOM_BYTES
            if len(os.pread(file.fileno(), RANDOM_BYTES, offset)) != RANDOM_BYTES:
                raise OSError("a short read")


def _read_small(side: Side) -> None:
    for number in range(SMALL_FILES):
        if len((side.directory / "small" / f"f{number:04}").read_bytes()) != SMALL_BYTES:
            raise OSError("a short file")


def _write_small(side: Side, prefix: str) -> None:
    directory = side.directory / prefix
    directory.mkdir()
    for number in range(SMALL_FILES):
        (directory / f"f{number:04}").write_bytes(random.Random(number).randbytes(SMALL_BYTES))


def _await_stored(side: Side, store: Store, prefix: str) -> None:
    """Return when the bucket has all small files below ``prefix``."""
    if side.name == "unifs":
        command = unifs_command("ctl", "--state", str(side.base / "state"), "journal", "sync")
        subprocess.run([*command, "/s3"], env=environment(), check=True, capture_output=True)
    limit = time.monotonic() + STORED_LIMIT_S
    while store.count(f"{prefix}/") < SMALL_FILES:
        if time.monotonic() > limit:
            raise OSError("the bucket never got all files")
        time.sleep(0.05)


def _peak_mib(side: Side) -> float:
    """The most memory that the side's processes ever had resident."""
    total = 0
    for pid in side.pids():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


def _read_parallel(path: Path, size_bytes: int) -> None:
    """64 threads, each its own part of the object at a time."""
    step = size_bytes // PARALLEL_READS

    def work(number: int) -> None:
        with path.open("rb", buffering=0) as file:
            for offset in range(number * step, (number + 1) * step, MIB):
                os.pread(file.fileno(), MIB, offset)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(PARALLEL_READS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class S3Bench:
    """The rows, over a loaded store."""

    def __init__(self, store: Store, base: Path, rounds: int) -> None:
        self.store = store
        self.base = base
        self.rounds = rounds
        self.big_bytes = store.big_mib * MIB
        self._mounts = 0
        mib = store.big_mib
        self.outcomes = {
            row.row: row
            for row in (
                Outcome("s3_list", f"list {MANY_KEYS:,} keys of one directory", "s"),
                Outcome("s3_seq", f"read {mib} MiB, cold", "s"),
                Outcome(
                    "s3_seq_cpu", "CPU of that read; against rclone", "s/GB", peers=("rclone",)
                ),
                Outcome("s3_random", f"{RANDOM_READS} random reads of 64 KiB, cold", "s"),
                Outcome("s3_small_down", f"read {SMALL_FILES:,} files of 4 KiB, cold", "s"),
                Outcome("s3_small_up", f"write {SMALL_FILES:,} files of 4 KiB, until stored", "s"),
                Outcome("s3_warm", f"read {mib} MiB again (page cache dropped)", "s"),
                Outcome(
                    "s3_memory",
                    f"peak resident memory, {PARALLEL_READS} parallel reads",
                    "MiB",
                    limit=MEMORY_MAX_MIB,
                ),
            )
        }

    def run(self, only: frozenset[str]) -> list[Outcome]:
        """Every row, side after side, round after round."""
        steps: dict[str, Callable[[Side], None]] = {
            "s3_list": self._list,
            "s3_seq": self._seq,
            "s3_random": self._random,
            "s3_small_down": self._small_down,
            "s3_small_up": self._small_up,
            "s3_memory": self._memory,
        }
        for row, step in steps.items():
            if only and row not in only:
                continue
            for number in range(self.rounds):
                for kind in SIDES if number % 2 else reversed(SIDES):
                    self._sample(row, kind, step)
        return [held for held in self.outcomes.values() if held.samples or held.failure]

    def _sample(self, row: str, kind: str, step: Callable[[Side], None]) -> None:
        if kind in self.outcomes[row].failure:
            return
        self._mounts += 1
        try:
            with open_s3(kind, self.store, self.base / f"m{self._mounts}-{kind}") as side:
                _back_memory()
                step(side)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"{row} of {kind} failed: {error}", file=sys.stderr)
            self.outcomes[row].failure[kind] = str(error)

    def _note(self, row: str, side: Side, value: float) -> None:
        self.outcomes[row].samples.setdefault(side.name, []).append(value)

    def _list(self, side: Side) -> None:
        self._note("s3_list", side, timed(lambda: _list(side)))

    def _seq(self, side: Side) -> None:
        path, pids = side.directory / "big" / "object.bin", side.pids()
        before = cpu_s(pids)
        self._note("s3_seq", side, timed(lambda: _read_big(path, self.big_bytes)))
        self._note("s3_seq_cpu", side, (cpu_s(side.pids()) - before) * 1e9 / self.big_bytes)
        _drop(path)
        self._note("s3_warm", side, timed(lambda: _read_big(path, self.big_bytes)))

    def _random(self, side: Side) -> None:
        path = side.directory / "big" / "object.bin"
        self._note("s3_random", side, timed(lambda: _read_random(path, self.big_bytes)))

    def _small_down(self, side: Side) -> None:
        self._note("s3_small_down", side, timed(lambda: _read_small(side)))

    def _small_up(self, side: Side) -> None:
        prefix = f"up{self._mounts}"
        seconds = timed(
            lambda: (_write_small(side, prefix), _await_stored(side, self.store, prefix))
        )
        self._note("s3_small_up", side, seconds)

    def _memory(self, side: Side) -> None:
        _read_parallel(side.directory / "big" / "object.bin", self.big_bytes)
        self._note("s3_memory", side, _peak_mib(side))


def measure(base: Path, rounds: int, big_mib: int, only: frozenset[str]) -> list[Outcome]:
    """Start the server, load it, run the rows."""
    from tests.servers.s3 import Weed

    (base / "server").mkdir(parents=True)
    with Weed(base / "server") as server:
        store = Store(server, server.bucket(), big_mib)
        print(f"loading took {timed(store.load):.0f} s", file=sys.stderr)
        return S3Bench(store, base, rounds).run(only)


def rows_of(outcomes: list[Outcome]) -> list[list[str]]:
    """The table."""
    rows = [["row", *SIDES, "ratio to the best", "limit", "", "what"]]
    for outcome in outcomes:
        cells = [outcome.row]
        for side in SIDES:
            median = outcome.median(side)
            cells.append("failed" if median is None else f"{median:.2f} {outcome.unit}")
        ratio = outcome.ratio
        cells.append("" if ratio is None else f"{ratio:.2f}")
        limit = "≤ 1" if outcome.limit is None else f"≤ {outcome.limit:g} {outcome.unit}"
        cells += [limit, "ok" if outcome.is_within else "FAIL", outcome.about]
        rows.append(cells)
    return rows


def json_of(outcomes: list[Outcome]) -> list[object]:
    """The numbers."""
    return [asdict(outcome) for outcome in outcomes]
