"""Power cuts under a real daemon: what was synced is there, what was closed is old or new."""

from __future__ import annotations

import os
import re

import pytest

from tests.crash.daemon import run_module
from tests.crash.scenarios import SCENARIOS

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root"),
]


def power(*arguments: str) -> tuple[int, int]:
    """Run a campaign that must find nothing; the acknowledged calls and the fsyncs among them."""
    done = run_module("tests.crash.power", *arguments)
    words = done.stdout + done.stderr
    assert done.returncode == 0, words
    counts = re.search(r"(\d+) acknowledged calls \((\d+) of them fsync", done.stdout)
    assert counts is not None, words
    return int(counts[1]), int(counts[2])


@pytest.mark.slow
def test_nothing_synced_is_lost_in_power_cuts() -> None:
    calls, syncs = power("--cuts", "15")
    assert calls > 1000
    assert syncs > 50


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_closed_files_are_old_or_new_after_somebody_elses_fsync(scenario: str) -> None:
    calls, syncs = power("--cuts", "3", "--scenario", scenario)
    assert calls >= 3 * 60
    assert syncs >= 3 * 6
