"""Real mounts for tests, and nothing left of them afterwards.

``mounts`` starts the drivers of ``tests/driver`` (or any module that mounts and prints "ready") as
processes of their own, so that a test may touch its mount without waiting for itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash import daemon as daemons
from unifs.driver import fusectl
from unifs.driver.mountinfo import MNT_DETACH, mounted_at, umount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fuse.calling import Commands

REPOSITORY = Path(__file__).parents[2]
#: Nothing here takes this long; a test that waits longer has found a hang.
#: A bound for what another process does, on a machine with other work.
PATIENCE_S = 120.0
LOOPS: dict[str, tuple[str, ...]] = {"fast": (), "stock": ("--stock-loop",)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_fuse = os.access("/dev/fuse", os.R_OK | os.W_OK)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("fuse")
            if not has_fuse:
                item.add_marker(pytest.mark.skip(reason="/dev/fuse cannot be opened"))


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.005)


@dataclass
class Mounted:
    """One process that serves one mount."""

    path: Path
    process: subprocess.Popen[str]
    faults: Path
    log: Path

    def fault(self, *lines: str) -> None:
        """What goes wrong from now on."""
        draft = self.faults.with_suffix(".new")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.rename(self.faults)

    def end(self, number: int = 15) -> int:
        """Send a signal, wait, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def logged(self) -> str:
        return self.log.read_text()


@dataclass
class Mounts:
    """The mounts of one test."""

    directory: Path
    all: list[Mounted] = field(default_factory=list)

    def start(
        self, module: str = "tests.driver.faultfs", *options: str, path: Path | None = None
    ) -> Mounted:
        """Mount, and return when it answers."""
        number = len(self.all)
        place = path or self.directory / f"mnt{number}"
        place_is_dead = mounted_at(str(place)) is not None
        if not place_is_dead:
            place.mkdir(exist_ok=True)
        faults = self.directory / f"faults{number}"
        faults.write_text("")
        log = self.directory / f"log{number}"
        extra = ["--faults", str(faults)] if module.endswith("faultfs") else []
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(place), *extra, *options],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        mounted = Mounted(place, process, faults, log)
        self.all.append(mounted)
        assert process.stdout is not None
        line = process.stdout.readline()
        process.stdout.close()
        assert line == "ready\n", mounted.logged()
        return mounted

    def clean(self) -> None:
        """Kill every process, end every connection, unmount every mount."""
        for mounted in self.all:
            found = mounted_at(str(mounted.path))
            if found is not None and fusectl.Connection.of(found).is_alive():
                fusectl.Connection.of(found).abort()
            mounted.process.kill()
            mounted.process.wait()
            while mounted_at(str(mounted.path)) is not None:
                umount(str(mounted.path), MNT_DETACH)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemons.Daemon]:
    """One unifs with its default settings, for all tests of a module."""
    with daemons.mounted(tmp_path_factory.mktemp("unifs")) as server:
        yield server


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The option that chooses the request loop."""
    return LOOPS[request.param]


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    if os.geteuid() != 0:
        pytest.skip("mounts of these tests are made and removed by root")
    fusectl.ensure_mounted()
    started = Mounts(tmp_path)
    yield started
    started.clean()


@pytest.fixture
def commands(tmp_path: Path, mounts: Mounts) -> Iterator[Commands]:
    from tests.fuse.calling import Commands

    made = Commands(tmp_path)
    yield made
    made.clean()
