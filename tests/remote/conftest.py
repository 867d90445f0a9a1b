"""Fixtures of the tests of remote volumes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from unifs.journal.flush import Flusher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


JUMP_S = 0.005


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Time jumps when nothing happens, but not while somebody waits for a thread's work.

    To the clock such a wait is idleness, however busy the machine is.
    """
    clock = MockClock(autojump_threshold=JUMP_S)
    waiting = 0

    def patient(real: Any) -> Any:
        async def wait(*arguments: Any, **named: Any) -> Any:
            nonlocal waiting
            waiting += 1
            clock.autojump_threshold = math.inf
            try:
                return await real(*arguments, **named)
            finally:
                waiting -= 1
                if not waiting:
                    clock.autojump_threshold = JUMP_S

        return wait

    monkeypatch.setattr(Flusher, "flush", patient(Flusher.flush))
    monkeypatch.setattr(trio.to_thread, "run_sync", patient(trio.to_thread.run_sync))
    return clock


@pytest.fixture
def remote() -> RemoteMount:
    return RemoteMount()


@pytest.fixture
async def system(
    clock: MockClock, tmp_path: Path, remote: RemoteMount
) -> AsyncIterator[RemoteSystem]:
    async with RemoteSystem(tmp_path / "state", remote) as system:
        yield system
