"""The model against a local directory, which proves the model, and against a real mount."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import FileSystemMachine, profile
from tests.model.operations import Directory

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = 60
STEPS = 60


@pytest.fixture(autouse=True)
def _no_umask() -> None:
    previous = os.umask(0o022)
    yield
    os.umask(previous)


def directories(base: Path, renew=None):
    """Return a maker of subjects, each in a new directory below ``base``."""
    numbers = itertools.count()

    def make() -> Directory:
        root = base / f"example-{next(numbers)}"
        root.mkdir()
        return Directory(os.fsencode(root), renew)

    return make


def test_the_model_is_what_a_local_directory_does(tmp_path: Path) -> None:
    class Local(FileSystemMachine):
        make_subject = staticmethod(directories(tmp_path))

    run_state_machine_as_test(Local, settings=profile(EXAMPLES, STEPS))
