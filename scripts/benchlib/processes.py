"""Reads what a tree of processes costs: CPU, memory, bytes to disk. Starts and ends servers.

Used by the sides and the special rows. It never signals a process that it did not start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How long a server may take until its mount answers, and until it has gone.
START_LIMIT_S = 30.0
STOP_LIMIT_S = 30.0


class ServerFailed(RuntimeError):
    """A server that the bench started did not come up; the message carries the end of its log."""


def process_tree(pid: int) -> list[int]:
    """Return ``pid`` and all its living descendants."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                found.extend(int(child) for child in (task / "children").read_text().split())
            except OSError:
                continue
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds that these processes have used, ended threads included.

    The clock id of another process's CPU time is ``~pid << 3 | 2`` (clock_getcpuclockid(3)).
    """
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            continue
    return total


def pss_bytes(pids: Sequence[int]) -> int:
    """Return the proportional set size of these processes together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def written_bytes(pids: Sequence[int]) -> int:
    """Return the bytes that these processes have caused to be written to a disk (proc(5), io)."""
    total = 0
    for pid in pids:
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        total += int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])
    return total


def wait_until(answers: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when ``answers`` does; raise ServerFailed when the server ends or takes too long."""
    limit = time.monotonic() + START_LIMIT_S
    while not answers():
        if server.poll() is not None or time.monotonic() > limit:
            tail = log.read_bytes()[-2000:].decode(errors="replace")
            state = "is silent" if server.poll() is None else f"ended with {server.returncode}"
            raise ServerFailed(f"{server.args!r} {state}:\n{tail}")
        time.sleep(0.01)


def stop(server: subprocess.Popen[bytes], mount: Path) -> None:
    """Unmount ``mount``, end ``server`` and wait for it."""
    subprocess.run(["umount", str(mount)], stderr=subprocess.DEVNULL, check=False)
    try:
        server.wait(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        for pid in reversed(process_tree(server.pid)):
            os.kill(pid, signal.SIGKILL)
        server.wait()
    if os.path.ismount(mount):
        subprocess.run(["umount", "-l", str(mount)], check=False)
