"""Calls the mount and umount commands as programs, and cleans up after them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.fuse.conftest import PATIENCE_S, REPOSITORY
from unifs.driver import fusectl
from unifs.driver.mountinfo import MNT_DETACH, mount, mounted_at, umount


class Commands:
    """Runs the two commands and cleans up after them."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.mount_point = directory / "mnt"
        self.mount_point.mkdir()

    def _command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "tests.fuse.commands", *map(str, arguments)]

    def start(self, *arguments: str | Path, cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(*arguments), cwd=cwd, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str | Path, cwd: Path = REPOSITORY) -> tuple[int, str]:
        result = subprocess.run(
            self._command(*arguments),
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 2,
            check=False,
        )
        return result.returncode, result.stderr

    def mount(self, *options: str) -> tuple[int, str]:
        return self.run("mount", self.mount_point, "--state", self.state, *options)

    def umount(self, *options: str, cwd: Path = REPOSITORY) -> tuple[int, str]:
        return self.run("umount", self.mount_point, *options, cwd=cwd)

    def daemon(self) -> int:
        found = mounted_at(str(self.mount_point))
        assert found is not None
        (pid,) = fusectl.Connection.of(found).servers()
        return pid

    def log(self) -> str:
        return (self.state / "unifs.log").read_text()

    def clean(self) -> None:
        while (found := mounted_at(str(self.mount_point))) is not None:
            connection = fusectl.Connection.of(found)
            if found.is_unifs:
                for pid in connection.servers():
                    os.kill(pid, signal.SIGKILL)
                if connection.is_alive():
                    connection.abort()
            umount(str(self.mount_point), MNT_DETACH)


def has_ended(pid: int) -> bool:
    """Gone, or waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def other_mount(place: Path) -> None:
    mount("tmpfs", str(place), "tmpfs")
