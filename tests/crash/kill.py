"""kill -9 of the daemon at seeded moments, under load, on one state directory.

    python -m tests.crash.kill --kills 20 --seed 1 [--target unifs|juicefs|rclone]

The peers are there to prove the harness: JuiceFS keeps what it acknowledged, rclone does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.cycle import Campaign, Receipts, Summary
from tests.crash.daemon import Daemon
from tests.crash.history import KILL

if TYPE_CHECKING:
    from collections.abc import Sequence


class Killed:
    """A daemon whose crash is SIGKILL."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon, self.root = daemon, daemon.root

    def start(self) -> None:
        """Mount again; every start after a crash is a recovery."""
        self.daemon.start()

    def crash(self, workers: Sequence[int]) -> list[str]:
        """Kill the daemon and say which of its workers outlived it."""
        left = self.daemon.kill()
        return [f"processes {left} outlive the daemon"] if left else []

    def receipts(self) -> Receipts:
        """Return what recovery wrote about bytes that it could not place."""
        return lost_and_found(self.daemon.state)


def lost_and_found(state: Path) -> Receipts:
    """Return what the receipts in the state directory's lost+found say."""
    words, damaged = [], []
    for path in sorted((state / "lost+found").glob("*.json")):
        try:
            words += [f"{key}: {value}" for key, value in json.loads(path.read_text()).items()]
        except ValueError:
            damaged.append(path.name)
    return Receipts("\n".join(words), damaged)


def peer(name: str, base: Path) -> Daemon:
    """Return a peer's daemon, working in the mount's root."""
    programs = Path(sys.executable).parent
    base.mkdir(parents=True, exist_ok=True)
    mount = base / "mnt"
    if name == "rclone":
        (base / "source").mkdir(exist_ok=True)
        command = [programs / "rclone", "mount", base / "source", mount, "--config", os.devnull]
        command += ["--vfs-cache-mode", "full", "--cache-dir", base / "cache"]
        return Daemon(base, [str(word) for word in command], below="")
    meta = f"sqlite3://{base}/meta.db"
    setup = [str(programs / "juicefs"), "format", "--storage", "file", "--trash-days", "0"]
    setup += ["--bucket", f"{base}/objects/"]
    subprocess.run([*setup, meta, "crash"], check=True, capture_output=True)
    command = [programs / "juicefs", "mount", "--no-usage-report", "--enable-xattr"]
    command += ["--cache-dir", base / "cache", meta, mount]
    daemon = Daemon(base, [str(word) for word in command], below="")
    daemon.has_servers_below = True
    return daemon


def run_kills(daemon: Daemon, kills: int, seed: int, scratch: Path) -> Summary:
    """Kill the daemon ``kills`` times and return what was found."""
    try:
        return Campaign(Killed(daemon), KILL, scratch, seed).run(kills)
    finally:
        daemon.close()


def main() -> int:
    """Run a campaign from the command line; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=("unifs", "juicefs", "rclone"), default="unifs")
    parser.add_argument(
        "--dir", default=tempfile.gettempdir(), help="on the disk that holds the state"
    )
    parser.add_argument("--keep", type=Path, help="copy the manifests here, to see what led to it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unifs-kill-", dir=options.dir) as name:
        base, scratch = Path(name) / "base", Path(name) / "manifests"
        scratch.mkdir()
        daemon = Daemon(base) if options.target == "unifs" else peer(options.target, base)
        summary = run_kills(daemon, options.kills, options.seed, scratch)
        if options.keep:
            shutil.copytree(scratch, options.keep, dirs_exist_ok=True)
        print(f"kill -9 of {options.target}, seed {options.seed}: {summary}")
        if summary.violations:
            print(daemon.tail()[-2000:])
    return 0 if summary.is_proof else 1


if __name__ == "__main__":
    sys.exit(main())
