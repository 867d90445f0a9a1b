"""A PUT that SeaweedFS hears after its connection was cut, and after its file was removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from tests.remote.system import RemoteSystem
from tests.s3.faults import Fixed
from tests.servers.faultproxy import Fault, FaultProxy
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import S3Options

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server

#: trio's seconds in one of the wall's; the server and the network do not know.
RATE = 10.0
#: Six seconds of the wall's are looked for it: five of them are the server's to be slow in.
LATE_S = 10.0
PATIENCE_S = 120.0 * RATE


@pytest.fixture
def fast() -> MockClock:
    return MockClock(rate=RATE)


@pytest.mark.parametrize("is_idle", [False, True])
async def test_a_removed_file_does_not_come_back(
    is_idle: bool,
    fast: MockClock,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = s3_server.bucket()
    client = s3_server.client()
    async with FaultProxy(s3_server.endpoint) as proxy:
        options = S3Options(endpoint=proxy.endpoint, bucket=bucket)
        mount = S3Mount("s3", options, Fixed(s3_server))
        async with mount.serve(), RemoteSystem(tmp_path / "state", mount) as system:
            await system.write("stays", b"stays")
            await system.sync()
            if not is_idle:
                monkeypatch.setattr(mount.service._pool, "take", lambda address: None)
            proxy.plan(Fault("late", seconds=LATE_S), method="PUT", where="removed")
            await system.write("removed", b"removed")
            system.volume.writeback.hurry()
            with trio.fail_after(PATIENCE_S):
                while not proxy.is_done:
                    await trio.lowlevel.checkpoint()
            await system.unlink("removed")
            await system.sync()
            statuses: list[int] = []
            with trio.fail_after(PATIENCE_S):
                while len(statuses) < 2:
                    await trio.sleep(LATE_S)
                    statuses = [seen.status for seen in proxy.seen if seen.fault == "late"]
            assert statuses == [0, 200]
            assert await system.listdir("") == [b"stays"]
    listed = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert [found["Key"] for found in listed] == ["stays"]
