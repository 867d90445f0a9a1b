"""Starts, kills and ends one unifs daemon as a process of its own. For every test on a real mount.

``Daemon`` never touches the mount from inside the daemon's process, and leaves neither process nor
mount behind: ``close`` is a lazy unmount and SIGKILL of the processes that it started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 30.0
STOP_LIMIT_S = 30.0
#: Workers of a killed daemon notice the closed pipe and end; this is how long that may take.
ORPHAN_LIMIT_S = 5.0
FREEZE_LIMIT_S = 5.0


class DaemonFailed(RuntimeError):
    """The daemon did not come up or did not end; the message carries the end of its log."""


def repository_environment() -> dict[str, str]:
    """Return an environment in which this repository's packages are found."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run_module(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this repository to its end; file names that it says may be no UTF-8."""
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        cwd=REPOSITORY,
        check=False,
    )


def process_tree(pid: int) -> list[int]:
    """Return ``pid`` and all its living descendants."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def has_answer(path: Path) -> bool:
    """Return whether ``path`` can be looked up."""
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def freeze(pids: Sequence[int]) -> None:
    """Stop processes (SIGSTOP) and return when none of their threads runs: nothing is acknowledged.

    A thread that waits for the disk stays there (state D) and stops on its way out.
    """
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    limit = time.monotonic() + FREEZE_LIMIT_S
    while any(_threads_running(pid) for pid in pids):
        if time.monotonic() > limit:
            raise DaemonFailed(f"processes {pids} do not stop")


def thaw(pids: Sequence[int]) -> None:
    """Let frozen processes run again."""
    for pid in pids:
        _signal(pid, signal.SIGCONT)


def _threads_running(pid: int) -> bool:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return any(_state(thread / "stat") not in "TtDZX" for thread in threads)
    except OSError:
        return False


def _state(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]


class Daemon:
    """One state directory and its mount point. Start and kill it as often as you like."""

    def __init__(
        self,
        base: Path,
        command: Sequence[str] | None = None,
        below: str = "mfs",
        settings: str = "",
    ) -> None:
        """``settings`` is the text of a settings file; ``below`` must answer for it to be up."""
        self.base, self.state, self.mount = base, base / "state", base / "mnt"
        self.log = base / "daemon.log"
        self.root = self.mount / below if below else self.mount
        #: A peer whose serving process is a child: all of them are killed.
        self.has_servers_below = False
        self.process: subprocess.Popen[bytes] | None = None
        default = [sys.executable, "-m", "unifs", "mount", "--foreground"]
        base.mkdir(parents=True, exist_ok=True)
        if settings:
            self.config = base / "settings.toml"
            self.config.write_text(settings)
            default += ["--config", str(self.config)]
        self.command = command or [*default, "--state", str(self.state), str(self.mount)]
        self.mount.mkdir(exist_ok=True)

    def start(self) -> None:
        """Mount, and return when the tree answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=repository_environment(),
                cwd=self.base,
            )
        limit = time.monotonic() + START_LIMIT_S
        while not (os.path.ismount(self.mount) and has_answer(self.root)):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise DaemonFailed(f"no answer from {self.command}:\n{self.tail()}")
            time.sleep(0.01)

    def ctl(self, *arguments: str) -> dict[str, Any]:
        """What ``unifs ctl … --json`` says last."""
        return self.program("ctl", *arguments)

    def program(self, *arguments: str) -> dict[str, Any]:
        """What a command of unifs that talks to this daemon says last, as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "unifs", *arguments, "--mount", str(self.mount), "--json"],
            env=repository_environment(),
            capture_output=True,
            check=False,
            timeout=STOP_LIMIT_S,
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def tail(self) -> str:
        """Return the end of the daemon's log."""
        return self.log.read_bytes()[-4000:].decode(errors="replace") if self.log.exists() else ""

    def pids(self) -> list[int]:
        """Return the daemon's processes."""
        return process_tree(self.process.pid) if self.process else []

    def kill(self) -> list[int]:
        """SIGKILL the daemon alone; return those of its processes that did not end by themselves.

        The dead mount is removed, so that whoever waits on it gets an error.
        """
        if self.process is None:
            return []
        others = self.pids()[1:]
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        if self.has_servers_below:
            for pid in others:
                _signal(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        thaw(others)
        subprocess.run(["umount", "-l", self.mount], stderr=subprocess.DEVNULL, check=False)
        limit = time.monotonic() + ORPHAN_LIMIT_S
        while (left := [pid for pid in others if _is_alive(pid)]) and time.monotonic() < limit:
            time.sleep(0.01)
        for pid in left:
            _signal(pid, signal.SIGKILL)
        return left

    def stop(self) -> None:
        """Unmount and wait until the daemon has ended with status 0."""
        if self.process is None:
            return
        subprocess.run(["umount", self.mount], stderr=subprocess.DEVNULL, check=False)
        try:
            status = self.process.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonFailed(f"the daemon outlives its mount:\n{self.tail()}") from None
        self.process = None
        if status:
            raise DaemonFailed(f"the daemon ended with {status}:\n{self.tail()}")

    def close(self) -> None:
        """Leave nothing behind, however the test ended."""
        self.kill()


@contextmanager
def mounted(base: Path, settings: str = "", below: str = "mfs") -> Iterator[Daemon]:
    """A daemon that serves from here on, and has ended well at the end; nothing is left of it."""
    server = Daemon(base, below=below, settings=settings)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.close()


@contextmanager
def mounted_with_host(base: Path) -> Iterator[Daemon]:
    """As ``mounted``, for all users, with the directory ``base/host`` as /local/h."""
    host = base / "host"
    host.mkdir()
    settings = f'allow_other = true\n[mounts.local]\ndirectories = {{h = "{host}"}}\n'
    with mounted(base, settings) as server:
        yield server


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _is_alive(pid: int) -> bool:
    try:
        return _state(Path(f"/proc/{pid}/stat")) != "Z"
    except OSError:
        return False
