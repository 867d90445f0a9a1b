"""Fixtures of tests that run a whole daemon in front of a real service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.control.conftest import Shell
from tests.s3.operations import Bench, daemon_of
from tests.s3.story import Story

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.servers.s3 import S3Server


@asynccontextmanager
async def bench_on(
    server: S3Server,
    path: Path,
    capture: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    bucket = server.bucket()
    async with daemon_of(server, path) as system:
        monkeypatch.setenv("UNIFS_HOME", str(system.path))
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        yield Bench(server, bucket, system, Shell(system, capture))


@pytest.fixture
async def bench(
    s3_server: S3Server,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    """On SeaweedFS."""
    async with bench_on(s3_server, tmp_path, capfdbinary, monkeypatch) as made:
        yield made


@pytest.fixture
async def moto_bench(
    moto_server: S3Server,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    async with bench_on(moto_server, tmp_path, capfdbinary, monkeypatch) as made:
        yield made


@pytest.fixture(params=["weed", "moto"])
async def both(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    """On each of them."""
    name = {"weed": "s3_server", "moto": "moto_server"}[request.param]
    server = request.getfixturevalue(name)
    async with bench_on(server, tmp_path, capfdbinary, monkeypatch) as made:
        yield made


@pytest.fixture
def story(tmp_path: Path, s3_server: S3Server) -> Iterator[Story]:
    made = Story(tmp_path, s3_server)
    try:
        yield made
        made.daemon.stop()
    finally:
        made.daemon.close()
