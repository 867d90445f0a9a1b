"""Fixtures of the tests of volumes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs.hostworld import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A host directory and its volume, which leaves no descriptor open."""
    directory = tmp_path / "shown"
    directory.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    made = World(directory)
    yield made
    made.volume.close()
    assert len(os.listdir("/proc/self/fd")) == before
