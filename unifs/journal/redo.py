"""Redo: bytes that an fsync carried in its transaction, and what a power cut makes of them.

Syncing a container costs as much as syncing the WAL, so an fsync of few bytes puts them into the
table ``redo``, in the transaction of the row that names them, and syncs the WAL alone
(``vfs.fsync``). What is carried is in the container too, in the page cache: readers never look
here, nor does a restart on the same boot. After a power cut ``apply`` writes it to the containers.

A carried range lies over what the container has, so rows go in the transaction that calls the
container's present bytes durable, and never before its fdatasync. ``Carried`` knows what there is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unifs.errors import from_os_error
from unifs.state.durable import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from unifs.state.database import Database

    Statement = tuple[str, tuple[object, ...]]
    #: What is carried of a container: (no id is smaller, the last id, bytes).
    Mark = tuple[int, int, int]

#: Up to so many unsynced bytes are carried. 16 KiB more of WAL take 20 µs, the sync saved 150.
CARRY_BYTES = 16 << 10
#: When so many bytes of a container are carried, its next fsync syncs the file: the table stays
#: small, and so does the time that a start after a power cut takes.
CARRIED_BYTES_MAX = 128 << 10

INSERT = "insert into redo values(?,?,?,?)"
DROP = "delete from redo where id between ? and ? and container=?"
KNOWN = "select container,min(id),max(id),sum(length(bytes)) from redo group by container"
#: A row that can be what an fsync wrote: bytes of a file that a content has which is not sealed.
#: Over those of a sealed one nothing is ever carried.
SOUND = (
    "typeof(offset)='integer' and offset>=0 and typeof(bytes)='blob' and container in"
    " (select h.container from holding h join content c on c.id=h.content where c.state=1)"
)
ROWS = f"select container,offset,bytes from redo where {SOUND} order by container,id"
#: A container that no content names any more is not made again; of any other one that is damage.
UNSOUND = (
    "select id,container,cast(bytes as blob) from redo"
    f" where not ({SOUND}) and container in (select container from holding)"
)


class Carried:
    """Which containers have rows in the table. Belongs to the event loop's thread."""

    def __init__(self, database: Database) -> None:
        #: container -> (no id of it is smaller, its last id, bytes)
        self._known: dict[int, Mark] = {
            container: (first, last, size) for container, first, last, size in database.all(KNOWN)
        }
        #: Never used again: who drops rows up to an id must not take later ones.
        self._last_id = max([0, *(last for _, last, _ in self._known.values())])

    def __contains__(self, container: int) -> bool:
        return container in self._known

    def has_room(self, container: int, size: int) -> bool:
        """Whether so many bytes may be carried for a container."""
        known = self._known.get(container, (0, 0, 0))[2]
        return size <= CARRY_BYTES and known + size <= CARRIED_BYTES_MAX

    def rows(self, container: int, pieces: Iterable[tuple[int, bytes]]) -> list[Statement]:
        """Statements that carry (offset, bytes); ``added`` once they are committed."""
        made: list[Statement] = []
        for offset, data in pieces:
            self._last_id += 1
            made.append((INSERT, (self._last_id, container, offset, data)))
        return made

    def added(self, container: int, pieces: Sequence[tuple[int, bytes]]) -> None:
        """The rows that were made last are committed."""
        if pieces:
            first = self._last_id - len(pieces) + 1
            first, _, known = self._known.get(container, (first, 0, 0))
            known += sum(len(data) for _, data in pieces)
            self._known[container] = (first, self._last_id, known)

    def marks(self, containers: Iterable[int]) -> dict[int, Mark]:
        """What is carried now; what is written to these containers from now on is not in it."""
        known = self._known
        return {name: known[name] for name in containers if name in known}

    def drop(self, marks: dict[int, Mark]) -> list[Statement]:
        """Statements that remove what the marks stand for; ``dropped`` once they are committed."""
        return [(DROP, (first, last, container)) for container, (first, last, _) in marks.items()]

    def dropped(self, marks: dict[int, Mark]) -> None:
        """What the marks stand for is gone."""
        for container, (_, last, size) in marks.items():
            known = self._known.get(container)
            if known is not None and known[1] == last:
                del self._known[container]
            elif known is not None:
                self._known[container] = (last + 1, known[1], max(0, known[2] - size))


def apply(database: Database, data: Path) -> int:
    """After a power cut: bring what is carried to the containers, durably; how many bytes.

    Again is the same as once: the rows go when the caller removes them. NoSpace, DiskFailed.
    """
    count = 0
    descriptors: dict[int, int] = {}
    try:
        for container, offset, carried in database.all(ROWS):
            descriptor = descriptors.get(container)
            if descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                descriptor = os.open(data / f"{container:016x}", flags, 0o600)
                descriptors[container] = descriptor
            view = memoryview(carried)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset, count = view[written:], offset + written, count + written
        for descriptor in descriptors.values():
            os.fdatasync(descriptor)
        if descriptors:
            _sync_names(data)
    except OSError as error:
        raise from_os_error(error) from error
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
    return count


def set_aside(database: Database, lost_found: Path, stamp: str) -> list[str]:
    """After a power cut: keep rows that cannot be what an fsync wrote in files; a sentence each.

    NoSpace, DiskFailed.
    """
    told = []
    for number, container, carried in database.all(UNSOUND):
        target = lost_found / f"{stamp}-carried-{number}"
        try:
            write_durably(target, carried or b"")
        except OSError as error:
            raise from_os_error(error) from error
        told.append(
            f"a row of redo, {len(carried or b'')} bytes for container {container:016x}, is none"
            f" that an fsync wrote: they are in {target.name}"
        )
    return told


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
