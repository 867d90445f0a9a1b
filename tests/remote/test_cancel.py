"""Writeback given up at each of its suspensions: every change still reaches the backend, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.contract.cancelling import is_reached
from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_kill import WANTED, change, everything, prepare, shown
from tests.vfs import invariants

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


#: How often each change is given up before it may end.
ATTEMPTS = 2
STEPS_MAX = 20


class Cancelled:
    """Stands before ``Writeback._call``: the first attempts of each inode end at a suspension."""

    def __init__(self, system: RemoteSystem, at: int) -> None:
        self._call = system.volume.writeback._call
        self._at = at
        self._left: dict[int, int] = {}
        self.given_up = 0

    async def __call__(self, batch: Any) -> None:
        ino = batch[0][0].ino
        left = self._left.setdefault(ino, ATTEMPTS)
        if not left:
            await self._call(batch)
            return
        self._left[ino] = left - 1
        self.given_up += await is_reached(self._call(batch), self._at)


async def test_writeback_given_up_at_every_step(clock: MockClock, tmp_path: Path) -> None:
    for at in range(1, STEPS_MAX):
        mount = RemoteMount()
        async with RemoteSystem(tmp_path / str(at), mount) as system:
            await prepare(system)
            cancelled = Cancelled(system, at)
            system.volume.writeback._call = cancelled  # type: ignore[method-assign]
            await change(system)
            await system.sync()
            assert everything(mount) == WANTED
            assert await shown(system) == WANTED
            assert system.volume.unsynced.size_bytes == 0
            invariants.check(system)
        if not cancelled.given_up:
            assert at > 3
            return
    raise AssertionError("a call never ended by itself")
