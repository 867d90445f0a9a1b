"""Epoch: one cheap question that keeps all rows of a mount fresh.

Where a backend has a version of the whole (a commit, a root), old rows are right as long as it is
the same: it is asked at most once per freshness time, instead of one ``stat`` for each row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.vfs.remotevolume import RemoteVolume


class Epoch:
    """The epoch of one volume's backend."""

    def __init__(self, volume: RemoteVolume) -> None:
        self._volume = volume
        self._value: str | None = None
        #: Rows checked since then are of the present epoch.
        self._since_ns = 0
        self._told_ns = 0

    def _is_due(self) -> bool:
        volume = self._volume
        return volume.now_ns() - self._told_ns >= volume.fresh_s * 1e9

    def covers(self, checked_ns: int) -> bool:
        """Whether a row checked then is known to be right still."""
        return self._value is not None and checked_ns >= self._since_ns and not self._is_due()

    def check(self) -> None:
        """WouldBlock where the backend's epoch can tell whether old rows are still right."""
        if self._volume.mount.supports("epoch") and self._is_due():
            raise WouldBlock(self._ask, self._volume.name)

    async def _ask(self) -> object:
        asked_ns = self._volume.now_ns()
        value = await self._volume.mount.epoch()
        if value != self._value:
            self._value, self._since_ns = value, asked_ns
        # From the answer on: one that takes longer than it is believed would be asked for for ever.
        self._told_ns = self._volume.now_ns()
        return RETRY
