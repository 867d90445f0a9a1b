"""Notes of changes that are acknowledged ahead of their commit.

SQLite takes 8 µs to commit a transaction of three rows, all of it outside the three statements.
While the request loop serves one request after another, ``Database`` therefore executes their
batches in one transaction that it holds open, and writes each batch down here first: one pwrite of
some hundred bytes. Killed before the commit, a daemon finds the notes at its next start and
executes them again. The page cache keeps them as it keeps the WAL; a power cut takes both, and
fsync commits before it syncs, so nothing here is ever synced.

Each transaction that was held has a number, one higher than the one before; the transaction itself
puts its number into ``meta``. Notes with the next number are those of a transaction that never
committed. A note's checksum begins with the boot's id and the number, so that neither what an
earlier boot left nor half a note is ever taken for one.

Owned by ``Database``; belongs to the event loop's thread. It never decides what is noted.
"""

from __future__ import annotations

import logging
import marshal
import os
import struct
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from unifs.errors import from_os_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Batch = Sequence[tuple[str, tuple[Any, ...]]]

log = logging.getLogger(__name__)

#: The file: blocks that exist, so that a note never waits for free space.
AHEAD_BYTES: Final = 128 << 10
#: A batch with more is committed by itself.
NOTE_BYTES_MAX: Final = 8 << 10
#: The format of ``marshal`` that every Python from 2.5 on reads and that is the cheapest: 0.5 µs.
MARSHAL_VERSION: Final = 2
#: Number of the transaction, length and checksum of what follows.
_HEAD: Final = struct.Struct("<QII")
_HEAD_BYTES: Final = _HEAD.size
_pack, _dumps = _HEAD.pack, marshal.dumps


class Ahead:
    """The notes of one state directory."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Open or make the file; where the disk has no room for it, nothing can be noted.

        One that is there and cannot be opened may hold what nobody else knows: that raises.
        """
        self._seed = crc32(boot_id.encode())
        self._number = 0
        self._start = 0
        self._at = 0
        self._descriptor = -1
        self._has_room = False
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            missing = AHEAD_BYTES - os.fstat(self._descriptor).st_size
            if missing > 0:
                missing -= os.pwrite(self._descriptor, bytes(missing), AHEAD_BYTES - missing)
            self._has_room = missing <= 0
        except OSError as error:
            if self._descriptor < 0 and path.exists():
                raise from_os_error(error) from error
            log.warning("changes are committed one by one: %s", from_os_error(error))

    def begin(self, number: int) -> None:
        """What is noted from now on belongs to the transaction of that number."""
        self._number = number
        self._start = _seed_of(self._seed, number)
        self._at = 0

    def note(self, batch: Batch) -> bool:
        """Write a batch down behind the others of its transaction.

        False where that cannot be: it is too long, there is no room, the disk refuses.
        """
        payload = _dumps(batch, MARSHAL_VERSION)  # type: ignore[arg-type]
        length = len(payload)
        end = self._at + _HEAD_BYTES + length
        if length > NOTE_BYTES_MAX or end > AHEAD_BYTES or not self._has_room:
            return False
        head = _pack(self._number, length, crc32(payload, self._start))
        try:
            written = os.pwrite(self._descriptor, head + payload, self._at)
            is_whole = written == _HEAD_BYTES + length
        except OSError as error:
            log.warning("from now on changes are committed one by one: %s", from_os_error(error))
            self._has_room = is_whole = False
        if is_whole:
            self._at = end
        return is_whole

    def left(self, number: int) -> list[Batch] | None:
        """The batches noted for the transaction of that number, in their order.

        None where nothing is: an empty list tells of notes that another boot left, or half a note.
        """
        if self._descriptor < 0:
            return None
        self.begin(number)
        try:
            return _find(os.pread(self._descriptor, AHEAD_BYTES, 0), number, self._start)
        except OSError as error:
            raise from_os_error(error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._has_room = False


def look(path: Path, boot_id: str, number: int) -> list[Batch] | None:
    """As ``Ahead.left``, of a file that stays as it is; OSError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(AHEAD_BYTES)
    except FileNotFoundError:
        return None
    return _find(data, number, _seed_of(crc32(boot_id.encode()), number))


def _seed_of(seed: int, number: int) -> int:
    """What the checksum of each note of a transaction begins with."""
    return crc32(number.to_bytes(8, "little"), seed)


def _find(data: bytes, number: int, begin: int) -> list[Batch] | None:
    if len(data) < _HEAD_BYTES or _HEAD.unpack_from(data)[0] != number:
        return None
    found: list[Batch] = []
    at = 0
    while at + _HEAD_BYTES <= len(data):
        noted, length, checksum = _HEAD.unpack_from(data, at)
        start = at + _HEAD_BYTES
        payload = data[start : start + length]
        if noted != number or len(payload) != length or crc32(payload, begin) != checksum:
            break
        found.append(marshal.loads(payload))
        at = start + length
    return found
