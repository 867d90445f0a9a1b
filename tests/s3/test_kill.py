"""The daemon is killed in the middle of an upload, of a rename and of removals; it converges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.s3.kill import SCENARIOS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "after"),
    [("upload", 1), ("upload", 10), ("rename", 2), ("rename", 900), ("removal", 1)],
)
def test_killed_in_the_middle(s3_server: S3Server, tmp_path: Path, name: str, after: int) -> None:
    scenario, last = SCENARIOS[name]
    assert after <= last
    assert scenario(s3_server, tmp_path, after)
