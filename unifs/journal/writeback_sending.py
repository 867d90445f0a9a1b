"""What becomes of uploads on their way: stopped where they are pointless, remembered where cut off.

Once the last byte has been read for a call, the backend may have it, and only its answer tells: so
a call is never cancelled because its file is gone. Its reader gives no more bytes instead, and an
upload that had all of them ends by itself. A call that ends without an answer may arrive later
still: proxies and services act on what they were sent before the connection closed. ``Late`` knows
for how long.

Used by ``writeback_calls``; belongs to the event loop's thread, and changes nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from unifs.errors import TryAgain
from unifs.mounts.base import cid_of

if TYPE_CHECKING:
    from unifs.mounts.base import ContentReader

#: A call ends when no byte has moved for so long.
STALL_S = 60.0
#: So long after its end a call without an answer may still arrive: twice the 30 s after which
#: services close connections that are silent.
LATE_S = 60.0


class Watched:
    """A reader that moves the deadline of its call with every piece."""

    def __init__(self, reader: ContentReader, scope: trio.CancelScope) -> None:
        self._reader = reader
        self._scope = scope
        self.size_bytes = reader.size_bytes
        self.cid = cid_of(reader)
        #: Nobody wants it any more.
        self.is_pointless = False
        #: The upload was ended for that, before it had all bytes.
        self.is_stopped = False

    async def read(self, offset: int, size: int) -> bytes:
        if self.is_pointless:
            self.is_stopped = True
            raise TryAgain("it was removed while it was being sent")
        self._scope.deadline = math.inf
        try:
            return await self._reader.read(offset, size)
        finally:
            self._scope.deadline = trio.current_time() + STALL_S


class Late:
    """When the last call of each open attempt ended. Of an earlier daemon's nothing is known."""

    def __init__(self) -> None:
        self._ended_at: dict[int, float] = {}

    def begun(self, ino: int) -> None:
        """An attempt is noted; nothing of it was sent."""
        self._ended_at[ino] = -math.inf

    def sent(self, ino: int) -> float | None:
        """A call of it is or was on its way till now; what to say if it was not."""
        before = self._ended_at.get(ino)
        self._ended_at[ino] = trio.current_time()
        return before

    def not_sent(self, ino: int, before: float | None) -> None:
        """The last call of it cannot arrive; ``before`` is what ``sent`` gave."""
        if before is not None:
            self._ended_at[ino] = before

    def ended(self, ino: int) -> None:
        """The outcome is known."""
        self._ended_at.pop(ino, None)

    def left_s(self, ino: int) -> float:
        """How long it may still arrive; not positive where it cannot."""
        now = trio.current_time()
        return self._ended_at.setdefault(ino, now) + LATE_S - now
