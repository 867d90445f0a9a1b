"""A short round of the collection campaign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.campaigns.collect import play

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_reachable_goes_whatever_is_killed(tmp_path: Path, seed: int) -> None:
    assert (await play(tmp_path / "state", seed)).total() >= 10
