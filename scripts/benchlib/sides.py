"""The file systems that are compared: each started fresh in a directory of its own, and ended.

``open_side(kind, base)`` is a context manager; ``base`` is a directory on the disk under test.
A side's ``directory`` is where the work is done, ``pids()`` who serves it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.processes import ServerFailed, process_tree, stop, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = ("rclone", "juicefs", "null", "ext4", "self")


@dataclass(frozen=True)
class Side:
    """One file system under test. ``server`` is None where only the kernel serves."""

    name: str
    directory: Path
    base: Path
    server: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        """Return the processes that serve this side."""
        return process_tree(self.server.pid) if self.server else []


def environment() -> dict[str, str]:
    """Return the environment in which this repository's packages are found first."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def unifs_command(*arguments: str) -> list[str]:
    """Return the command line that runs this repository's unifs."""
    return [sys.executable, "-m", "unifs", *arguments]


def program(name: str) -> str:
    """Return the path of a peer's program, which the extra ``bench`` installs beside Python."""
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        raise ServerFailed(f"{name} is not installed: pip install '.[bench]'")
    return str(beside)


@contextlib.contextmanager
def _served(name: str, base: Path, command: Sequence[str], below: str = "") -> Iterator[Side]:
    """Run a server that stays in the foreground until its mount is gone."""
    mount, log = base / "mnt", base / "log"
    mount.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(), cwd=base
        )
    try:
        directory = mount / below
        wait_until(lambda: os.path.ismount(mount) and directory.is_dir(), server, log)
        yield Side(name, directory, base, server)
    finally:
        stop(server, mount)


def unifs_side(base: Path, name: str = "unifs") -> contextlib.AbstractContextManager[Side]:
    """Mount this repository's unifs; the work is done in its /mfs."""
    state = str(base / "state")
    command = unifs_command("mount", "--foreground", "--state", state, str(base / "mnt"))
    return _served(name, base, command, "mfs")


def _rclone_side(base: Path) -> contextlib.AbstractContextManager[Side]:
    source = base / "source"
    source.mkdir(parents=True)
    command = [program("rclone"), "mount", str(source), str(base / "mnt")]
    command += ["--vfs-cache-mode", "full", "--cache-dir", str(base / "cache")]
    return _served("rclone", base, [*command, "--config", os.devnull])


def _juicefs_side(base: Path) -> contextlib.AbstractContextManager[Side]:
    base.mkdir(parents=True)
    meta, objects = f"sqlite3://{base}/meta.db", f"{base}/objects/"
    juicefs = program("juicefs")
    made = subprocess.run(
        [juicefs, "format", "--storage", "file", "--bucket", objects, meta, "bench"],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        raise ServerFailed(made.stderr.decode(errors="replace"))
    command = [juicefs, "mount", "--no-usage-report", "--cache-dir", str(base / "cache")]
    return _served("juicefs", base, [*command, meta, str(base / "mnt")])


def _null_side(base: Path) -> contextlib.AbstractContextManager[Side]:
    command = [sys.executable, "-m", "tests.driver.ramfs", str(base / "mnt")]
    return _served("null", base, command)


@contextlib.contextmanager
def _ext4_side(base: Path) -> Iterator[Side]:
    directory = base / "files"
    directory.mkdir(parents=True)
    yield Side("ext4", directory, base)


def open_side(kind: str, base: Path) -> contextlib.AbstractContextManager[Side]:
    """Start the file system ``kind`` (one of PEERS, or ``unifs``) in the new directory ``base``."""
    if kind == "unifs":
        return unifs_side(base)
    if kind == "self":
        return unifs_side(base, "unifs again")
    makers = {
        "rclone": _rclone_side,
        "juicefs": _juicefs_side,
        "null": _null_side,
        "ext4": _ext4_side,
    }
    return makers[kind](base)
