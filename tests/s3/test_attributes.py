"""Attributes in metadata: they go with the bytes, and again only where they changed since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.control.conftest import Shell
from tests.s3.operations import Bench, daemon_of
from unifs.mounts.s3.writing import SINGLE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers.s3 import S3Server


@pytest.fixture
async def keeping(
    s3_server: S3Server, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> AsyncIterator[Bench]:
    """On a bucket that keeps versions."""
    bucket = s3_server.bucket()
    made_of = daemon_of(s3_server, tmp_path, bucket=bucket, keeps_attributes=True)
    # Nothing goes out before somebody waits for it.
    made_of.journal = {"writeback_delay_s": 60.0}
    async with made_of as system:
        made = Bench(s3_server, bucket, system, Shell(system, capfdbinary))
        made.keep_versions()
        yield made


def versions(bench: Bench) -> list[dict[str, str]]:
    """The metadata of all versions of ``f``, the oldest first."""
    place = {"Bucket": bench.bucket, "Key": "f"}
    found = bench.client.list_object_versions(Bucket=bench.bucket, Prefix="f")["Versions"]
    heads = [bench.client.head_object(**place, VersionId=each["VersionId"]) for each in found]
    return [head["Metadata"] for head in reversed(heads)]


@pytest.mark.parametrize("size_bytes", [0, 3, SINGLE_BYTES + 1])
async def test_a_save_is_one_version(keeping: Bench, size_bytes: int) -> None:
    await keeping.system.write("f", bytes(size_bytes))
    moment_ns = 1_500_000_000_250_000_000
    await keeping.system.setattr("f", mode=0o640, uid=7, gid=8, mtime_ns=moment_ns)
    await keeping.system.sync()
    (found,) = versions(keeping)
    wanted = {"mode": str(0o100640), "uid": "7", "gid": "8", "mtime": "1500000000.250000000"}
    assert found.items() >= wanted.items()
    await keeping.system.setattr("f", mode=0o600)
    await keeping.system.sync()
    first, second = versions(keeping)
    assert first == found
    assert second.items() >= (wanted | {"mode": str(0o100600)}).items()
