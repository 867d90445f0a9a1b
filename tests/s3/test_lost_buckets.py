"""Buckets that are not there: never were, by a slip in the settings, or are removed by somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.control.conftest import Shell
from tests.s3.operations import Bench, daemon_of
from unifs.errors import Unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server
    from unifs.control.daemon_protocol import JournalRecord

MISSING = "there is no bucket 'missing-bucket' at the service"


async def waiting(bench: Bench) -> list[JournalRecord]:
    found = [record async for record in bench.system.daemon.journal.list(None, None, 100)]
    return [record for record in found if record.state != "synced"]


async def test_a_bucket_of_the_settings_that_is_not_there_is_said(
    s3_server: S3Server,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with daemon_of(s3_server, tmp_path, bucket="missing-bucket") as system:
        bench = Bench(s3_server, "missing-bucket", system, Shell(system, capfdbinary))
        with pytest.raises(Unreachable, match=MISSING):
            await system.listdir()
        with pytest.raises(Unreachable, match=MISSING):
            await system.write("new", b"x")
        (told,) = await system.daemon.backends.list()
        assert told.problem == MISSING
        bench.client.create_bucket(Bucket=bench.bucket)
        await system.write("new", b"mine")
        await system.sync()
        assert bench.get("new") == b"mine"
        bench.client.delete_object(Bucket=bench.bucket, Key="new")
        bench.client.delete_bucket(Bucket=bench.bucket)
        # What is written before anybody knows of it waits, with the reason.
        await system.write("new", b"more")
        with trio.fail_after(30):
            reasons: list[str | None] = []
            while MISSING not in reasons:
                await trio.sleep(0.02)
                reasons = [record.reason for record in await waiting(bench)]
        bench.client.create_bucket(Bucket=bench.bucket)
        await system.sync()
        assert bench.get("new") == b"more"


async def test_a_bucket_that_somebody_removes_is_made_anew_for_what_waits(bench: Bench) -> None:
    await bench.write("kept", b"old")
    await bench.system.sync()
    assert await bench.names() == ["kept"]
    bench.client.delete_object(Bucket=bench.bucket, Key="kept")
    bench.client.delete_bucket(Bucket=bench.bucket)
    await bench.write("late", b"not lost")
    await bench.system.sync()
    assert bench.get("late") == b"not lost"
    assert await bench.names() == ["late"]
