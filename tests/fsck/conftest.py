"""A state directory for each test, copied from one that is filled once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fsck.world import State, copy, make

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory that the others are copies of."""
    path = tmp_path_factory.mktemp("fsck") / "state"
    make(path)
    return path


@pytest.fixture
def state(filled: Path, tmp_path: Path) -> State:
    """A state directory without anything wrong in it."""
    path = tmp_path / "state"
    copy(filled, path)
    return State(path)
