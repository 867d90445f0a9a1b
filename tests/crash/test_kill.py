"""kill -9 of a real daemon under load: what was acknowledged is there after the next mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon
from tests.crash.kill import run_kills

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 20


@pytest.mark.fuse
@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_kills(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    summary = run_kills(Daemon(tmp_path / "unifs"), KILLS, seed=1, scratch=manifests)
    assert summary.violations == []
    assert summary.crashes == KILLS
    assert summary.acknowledged > 100 * KILLS
    assert summary.checked > KILLS
