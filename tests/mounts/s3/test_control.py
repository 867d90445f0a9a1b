"""What boto3 is told where files are not enough."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mounts.s3.identities import Fixed
from unifs.mounts.blocking import Blocking
from unifs.mounts.s3.control import Control
from unifs.mounts.s3.options import Credentials, S3Options

OHIO = {"CreateBucketConfiguration": {"LocationConstraint": "us-east-2"}}


@pytest.mark.parametrize(
    ("endpoint", "region", "place"),
    [
        ("", "us-east-1", {}),
        ("", "us-east-2", OHIO),
        ("https://s3.us-east-2.amazonaws.com", "us-east-2", OHIO),
        ("https://s3.example.com", "us-east-2", {}),
    ],
)
async def test_a_bucket_is_made_in_the_region_of_the_mount(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, region: str, place: dict[str, Any]
) -> None:
    options = S3Options(endpoint=endpoint, region=region)
    control = Control(options, Fixed(Credentials("key", "secret")), Blocking(1))
    asked: list[dict[str, object]] = []

    async def call(operation: str, **parameters: object) -> dict[str, Any]:
        asked.append({"operation": operation, **parameters})
        return {}

    monkeypatch.setattr(control, "call", call)
    await control.make_bucket("b")
    assert asked == [{"operation": "create_bucket", "Bucket": "b", **place}]
