"""A hundred broken requests between a tree and a real S3 server; scripts/campaign plays 10,000."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.s3.faults import play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server


@pytest.mark.slow
def test_nothing_is_lost(s3_server: S3Server, tmp_path: Path) -> None:
    campaign = play(s3_server, tmp_path, seed=3, faults=100)
    assert sum(campaign.dealt.values()) >= 100
    assert campaign.rounds >= 2
    assert not campaign.violations
