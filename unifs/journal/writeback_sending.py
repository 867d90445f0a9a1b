"""What becomes of uploads on their way: stopped where they are pointless, ended where they stall.

Once the last byte has been read for a call, the backend may have it, and only its answer tells: so
a call is never cancelled because its file is gone. Its reader gives no more bytes instead, and an
upload that had all of them ends by itself. What ended without an answer is for ``writeback_late``.

Used by ``writeback_calls``; belongs to the event loop's thread, and changes nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from unifs.errors import TryAgain
from unifs.mounts.base import attributes_of, cid_of

if TYPE_CHECKING:
    from unifs.mounts.base import ContentReader

#: A call ends when no byte has moved for so long.
STALL_S = 60.0


class Watched:
    """A reader that moves the deadline of its call with every piece."""

    def __init__(self, reader: ContentReader, scope: trio.CancelScope) -> None:
        self._reader = reader
        self._scope = scope
        self.size_bytes = reader.size_bytes
        self.cid = cid_of(reader)
        self.attributes = attributes_of(reader)
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
