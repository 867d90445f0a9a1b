"""The power-cut harness on plain disks: an honest one passes, a lying fsync is found."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import run_module

if TYPE_CHECKING:
    import subprocess

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root"),
]


def power(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module("tests.crash.power", "--target", "plain", *arguments)


@pytest.mark.parametrize("scenario", ["mixed", "closed_not_synced"])
def test_ext4_keeps_what_was_synced(scenario: str) -> None:
    done = power("--cuts", "4", "--scenario", scenario)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"4 crashes, (\d+) acknowledged calls \((\d+) of them fsync", done.stdout)
    assert counts is not None
    assert int(counts[1]) > 100
    assert int(counts[2]) > 10


def test_an_fsync_that_does_nothing_is_found() -> None:
    done = power("--cuts", "4", "--fake-fsync")
    assert done.returncode == 1
    assert re.search(r"[1-9]\d* violations", done.stdout), done.stdout + done.stderr
