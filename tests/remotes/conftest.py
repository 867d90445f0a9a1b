"""Fixtures of the tests of remote mounts as a user has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.control.conftest import Shell
from tests.remotes.system import S3, DaemonSystem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[DaemonSystem]:
    async with DaemonSystem(tmp_path, s3=S3) as running:
        assert isinstance(running, DaemonSystem)
        yield running


@pytest.fixture
def shell(
    system: DaemonSystem, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """The command line against the running daemon."""
    monkeypatch.setenv("UNIFS_HOME", str(system.path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    return Shell(system, capfdbinary)
