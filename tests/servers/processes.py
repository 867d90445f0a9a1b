"""A server in a process of its own: started on chosen ports, waited for, frozen, ended by its pid.

The servers beside this module build on it; tests hold them through the fixtures of
``tests/servers/fixtures.py``. Nothing here knows what is served.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Below the range from which the kernel takes ports for outgoing connections (32768), with 10,000
#: added too: SeaweedFS listens for gRPC there.
PORTS = range(12_000, 22_000, 10)
GRPC_OFFSET = 10_000
READY_S = 30.0
#: After SIGTERM; a server that has not ended by then is killed.
END_S = 15.0
POLL_S = 0.02


class NotReadyError(AssertionError):
    """A server did not come up; the message carries the end of its log."""


def free_ports(count: int, offsets: tuple[int, ...] = (0,)) -> list[int]:
    """``count`` ports in a row of 127.0.0.1 that nobody has, nor those ``offsets`` above them."""
    assert count <= PORTS.step
    # Several test sessions on one machine: each looks in an order of its own.
    for base in random.Random(os.getpid() ^ time.time_ns()).sample(PORTS, 200):
        ports = list(range(base, base + count))
        if all(_is_free(port + offset) for port in ports for offset in offsets):
            return ports
    raise AssertionError("no free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection of the last run in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class ServerProcess:
    """One child process; ``start`` and ``stop`` may alternate, over the same ports and data."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self, command: list[str], is_ready: Callable[[], bool]) -> None:
        """Run ``command`` until ``is_ready``; NotReadyError if it ends before or takes too long."""
        assert not self.is_running
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
            )
        deadline = time.monotonic() + READY_S
        while not is_ready():
            if not self.is_running or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise NotReadyError(f"{command[0]} is not ready: {self.tail()}")
            time.sleep(POLL_S)

    def tail(self, size: int = 2000) -> str:
        """The end of what the server logged."""
        return self.log.read_bytes()[-size:].decode(errors="replace")

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers, and new ones are still accepted."""
        os.kill(self.pid, signal.SIGSTOP)
        self._is_frozen = True

    def thaw(self) -> None:
        """SIGCONT; nothing if it is not frozen."""
        if self._is_frozen and self.is_running:
            os.kill(self.pid, signal.SIGCONT)
        self._is_frozen = False

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and reap it; nothing if it does not run."""
        if self._process is None:
            return
        self.thaw()
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
