"""Fixtures of the tests of remote volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trio.testing import MockClock

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def clock() -> MockClock:
    """Time jumps when nothing happens for long enough that the flush thread is done too."""
    return MockClock(autojump_threshold=0.02)


@pytest.fixture
def remote() -> RemoteMount:
    return RemoteMount()


@pytest.fixture
async def system(
    clock: MockClock, tmp_path: Path, remote: RemoteMount
) -> AsyncIterator[RemoteSystem]:
    async with RemoteSystem(tmp_path / "state", remote) as system:
        yield system
