"""Reads that met their deadline, and that the kernel asks for a second time.

A page that readahead did not get is read again by itself before ``read(2)`` tells the error
(Linux, ``filemap_read``): its caller would wait for two deadlines. So the second request for it is
refused where it would have to wait; a caller who then tries again has the whole deadline.

Owned by ``operations.py``, on the event loop. It must never refuse what need not wait.
"""

from __future__ import annotations

from typing import Final

import trio

from unifs.errors import DeadlineExceeded

#: The kernel asks at once; its request may stand behind others of a busy loop.
SECOND_S: Final = 0.5
#: Handles of which a late read is remembered; of others the kernel's second request waits too.
HANDLES_MAX: Final = 1024


class LateReads:
    """The last read of each handle that met its deadline, until it is asked for again."""

    def __init__(self) -> None:
        #: Handle → start and end of what was asked for, and how long that is remembered.
        self._late: dict[int, tuple[int, int, float]] = {}

    def note(self, fh: int, offset: int, size: int) -> None:
        """This read has met its deadline."""
        self._late.pop(fh, None)
        if len(self._late) >= HANDLES_MAX:
            del self._late[next(iter(self._late))]
        self._late[fh] = offset, offset + size, trio.current_time() + SECOND_S

    def refuse_second(self, fh: int, offset: int, _size: int) -> None:
        """DeadlineExceeded where a read that would wait asks for the same once more."""
        start, end, until = self._late.pop(fh, (0, 0, 0.0))
        if start <= offset < end and trio.current_time() < until:
            raise DeadlineExceeded("the same read met its deadline just now")
