"""The model against a local directory, which proves the model, and against a real mount."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.crash.daemon import Daemon
from tests.model.crash import CrashMachine
from tests.model.machine import FileSystemMachine, profile
from tests.model.operations import Directory
from tests.model.process import InProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXAMPLES = 60
PROCESS_EXAMPLES = 40
STEPS = 60
#: A remount is a process that ends and one that starts: about a second each.
MOUNT_EXAMPLES = 25


@pytest.fixture(autouse=True)
def _no_umask() -> Iterator[None]:
    previous = os.umask(0o022)
    yield
    os.umask(previous)


def directories(base: Path, renew: Callable[[], None] | None = None) -> Callable[[], Any]:
    """Return a maker of subjects, each in a new directory below ``base``."""
    numbers = itertools.count()

    def make() -> Any:
        root = base / f"example-{next(numbers)}"
        root.mkdir()
        return Directory(os.fsencode(root), renew)

    return make


def test_the_model_is_what_a_local_directory_does(tmp_path: Path) -> None:
    class Local(FileSystemMachine):
        make_subject = staticmethod(directories(tmp_path))

    run_state_machine_as_test(Local, settings=profile(EXAMPLES, STEPS))


def test_the_vfs_does_what_the_model_does_and_keeps_what_it_promised(tmp_path: Path) -> None:
    """Below FUSE: with sealing, upkeep, remounts, and kill -9 while files are open."""
    numbers = itertools.count()

    class Crashing(CrashMachine):
        make_subject = staticmethod(lambda: InProcess(tmp_path / f"state-{next(numbers)}"))

    run_state_machine_as_test(Crashing, settings=profile(PROCESS_EXAMPLES, STEPS))


@pytest.mark.fuse
@pytest.mark.slow
def test_a_mount_does_what_the_model_does(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "unifs")

    def renew() -> None:
        daemon.stop()
        daemon.start()

    try:
        daemon.start()

        class Mounted(FileSystemMachine):
            remounts_max = 1
            make_subject = staticmethod(directories(daemon.root, renew))

        run_state_machine_as_test(Mounted, settings=profile(MOUNT_EXAMPLES, STEPS))
        daemon.stop()
    finally:
        daemon.close()
