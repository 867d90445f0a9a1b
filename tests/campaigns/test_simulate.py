"""Short histories of the simulation, and that a seed is a history."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.campaigns.mutations import ROOT
from tests.campaigns.simulate import Renaming, play


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_what_was_synced_is_there_and_the_backend_agrees(first: int) -> None:
    cuts = sum(play(seed)[0] for seed in range(first, first + 10))
    assert cuts >= 5


@pytest.mark.parametrize("first", [0, 100, 5620])
def test_names_that_move_meanwhile_lose_nothing(first: int) -> None:
    assert sum(play(seed, Renaming)[0] for seed in range(first, first + 10)) >= 5


def test_the_same_seed_gives_the_same_trace() -> None:
    """In processes of their own: numbers of descriptors and hashes begin anew."""
    command = [sys.executable, "-m", "tests.campaigns.simulate", "--trace", "--rounds", "3"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    one, other = (
        subprocess.run([*command, "--seed", "5"], cwd=ROOT, env=environment, capture_output=True)
        for _ in range(2)
    )
    assert one.returncode == other.returncode == 0
    assert one.stdout == other.stdout
    assert one.stdout.count(b"backend put") >= 3
    assert one.stdout.count(b"\ncut ") >= 2


@pytest.mark.parametrize("seed", [5638, 5954])
def test_what_was_removed_stays_away_though_a_cut_took_the_note_that_it_was_sent(seed: int) -> None:
    assert play(seed)[0] >= 1


@pytest.mark.parametrize("seed", [1148, 1406, 1610, 2154])
def test_what_the_backend_has_is_told_from_what_it_lacks_after_a_cut(seed: int) -> None:
    """Confirmations of empty files, and numbers of contents, that a cut took."""
    assert play(seed)[0] >= 1
