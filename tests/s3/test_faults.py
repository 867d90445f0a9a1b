"""A hundred broken requests between a tree and a real S3 server; scripts/campaign plays 10,000."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.s3.faults import Bucket, Campaign, play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server


@pytest.mark.slow
def test_nothing_is_lost(s3_server: S3Server, tmp_path: Path) -> None:
    campaign = play(s3_server, tmp_path, seed=3, faults=100)
    assert sum(campaign.dealt.values()) >= 100
    assert campaign.rounds >= 2
    assert not campaign.violations


class Hiding(Bucket):
    """A bucket that lists nothing of ``a/`` until somebody stores something there."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.is_hiding = True

    async def everything(self) -> dict[str, bytes | None]:
        return {key: data for key, data in self.objects.items() if not self.is_hiding}

    async def unlisted(self, wanted: dict[bytes, str]) -> list[str]:
        return [key for data, key in wanted.items() if self.objects.get(key) == data]

    async def uncover(self, key: str) -> None:
        self.is_hiding = self.is_hiding and not key.startswith("a/")


async def judged(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Campaign:
    """A campaign that has judged a run in which somebody else stored ``a/f``."""
    campaign, server = Campaign(None, tmp_path, 0), Hiding(objects)  # type: ignore[arg-type]
    run: Any = SimpleNamespace(bucket=server, unseen={b"theirs": "a/f"})
    monkeypatch.setattr(campaign, "_agreed", lambda run: run.bucket.everything())
    await campaign._judge_together(run)
    return campaign


async def test_an_object_that_the_service_lists_no_more_is_no_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    assert (await judged({"a/f": b"theirs"}, tmp_path, monkeypatch)).hidden == 1
    for objects in ({}, {"a/f": b"ours"}, {"a/f": b""}):
        with pytest.raises(AssertionError, match="somebody else's changes are lost"):
            await judged(objects, tmp_path, monkeypatch)
