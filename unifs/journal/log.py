"""The ordered record of every change made through unifs.

A record is appended in the transaction that makes the change, by the event loop only. Its ``seq``
is dense and is part of the change's token towards a backend. Records are never updated; old ones
are pruned together with history.

``data`` per op, names as bytes:

* CREATE, UNLINK, RMDIR, LINK: the name
* CONTENT: ``pack_pair(old content, new content)``: what recovery goes back to, and what it checks
* RENAME: ``pack_rename``: both directories, both names, the inode that was displaced
* SETATTR: the packed attributes; XATTR: the attribute's name
* SEAL: the content's id, 8 bytes
* SYNC: the content that an fsync covers: what recovery does not go back behind
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unifs.state.database import Database

_PAIR = struct.Struct("<I")
_RENAME = struct.Struct("<QQIB")


class Op(IntEnum):
    """What a record says happened."""

    CREATE = 1
    CONTENT = 2
    UNLINK = 3
    RMDIR = 4
    LINK = 5
    RENAME = 6
    SETATTR = 7
    XATTR = 8
    SEAL = 9
    SYNC = 10


_NAMED = (Op.CREATE, Op.UNLINK, Op.RMDIR, Op.LINK)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the journal."""

    seq: int
    time_ns: int
    op: Op
    ino: int
    parent: int
    data: bytes

    @property
    def parents(self) -> tuple[int, ...]:
        """Directories in which it changed a name; 0 for none."""
        if self.op is Op.RENAME:
            return (self.parent, unpack_rename(self.data).new_parent)
        return (self.parent,)

    @property
    def place(self) -> tuple[int, bytes] | None:
        """The directory and the name that it gave or took; None where it changed no name."""
        if self.op is Op.RENAME:
            renamed = unpack_rename(self.data)
            return renamed.new_parent, renamed.new_name
        return (self.parent, self.data) if self.op in _NAMED else None


@dataclass(frozen=True, slots=True)
class Marked:
    """A record, its mount (None where no row tells it) and its state: None, 0 waiting, 1 given up.

    The state says something in mounts with a backend only.
    """

    record: Record
    mount_id: int | None
    state: int | None


@dataclass(frozen=True, slots=True)
class Renamed:
    """The data of a RENAME record. ``displaced`` is 0 where the new name was free."""

    new_parent: int
    displaced: int
    is_exchange: bool
    name: bytes
    new_name: bytes


INSERT = "insert into journal values(?,?,?,?,?,?,null)"
INSERT_WAITING = "insert into journal values(?,?,?,?,?,?,0)"


#: Of an inode whose row is gone, the directory tells the mount.
JOINED = "from journal j left join inode i on i.ino=j.ino left join inode p on p.ino=j.parent"
MARKED = f"j.seq,j.time_ns,j.op,j.ino,j.parent,j.data,coalesce(i.mount,p.mount),j.state {JOINED}"
OF_MOUNT = "where j.seq>? and coalesce(i.mount,p.mount)=?"


class Log:
    """Makes journal rows and reads them back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seq: int = database.one("select coalesce(max(seq),0) from journal")[0]
        # Pruning may have emptied the table, and a rolled back transaction used numbers that are
        # called sealed: numbers go on from the highest ever used.
        self.seq = max(self.seq, database.get_meta("pruned_seq", 0))
        self.seq = max(self.seq, database.get_meta("sealed_seq", 0))

    def row(
        self, op: Op, ino: int, parent: int, data: bytes, now_ns: int | None = None
    ) -> tuple[str, tuple[object, ...]]:
        """The statement that appends a record; it must be executed in the order of these calls.

        ``now_ns`` is the time that the change gives to directories, which recovery reads here.
        """
        self.seq += 1
        time_ns = time.time_ns() if now_ns is None else now_ns
        return INSERT, (self.seq, time_ns, int(op), ino, parent, data)

    def records(self, after: int = 0, limit: int = -1) -> Iterator[Record]:
        """Records with a higher seq than ``after``, in order."""
        query = (
            "select seq,time_ns,op,ino,parent,data from journal where seq>? order by seq limit ?"
        )
        for seq, time_ns, op, ino, parent, data in self._database.rows(query, (after, limit)):
            yield Record(seq, time_ns, Op(op), ino, parent, data)

    def records_of(self, mount_id: int, after: int) -> Iterator[Record]:
        """Records of one mount with a higher seq than ``after``, in order.

        Fetched a page at a time: the caller may take its time.
        """
        query = f"select {MARKED} {OF_MOUNT} order by j.seq limit 256"
        while rows := self._database.all(query, (after, mount_id)):
            for *row, _, _ in rows:
                yield _record(row)
            after = rows[-1][0]

    def count_of(self, mount_id: int, after: int) -> int:
        """How many changes ``records_of`` gives: notes of what became durable are none."""
        query = f"select count(*) {JOINED} {OF_MOUNT} and j.op not in (?,?)"
        return int(self._database.one(query, (after, mount_id, Op.SEAL, Op.SYNC))[0])

    def newest(self) -> Iterator[Marked]:
        """Records from the newest back, fetched a page at a time: the caller may take its time."""
        before = self.seq + 1
        query = f"select {MARKED} where j.seq<? order by j.seq desc limit 256"
        while rows := self._database.all(query, (before,)):
            for *row, mount_id, state in rows:
                yield Marked(_record(row), mount_id, state)
            before = rows[-1][0]


class WaitingLog:
    """The log of a mount with a backend: its records wait for the backend's confirmation.

    ``fresh`` collects (seq, inode) of what was appended and nobody has looked at; a record whose
    transaction failed stays in it, so who looks must not take it for a change.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self.fresh: list[tuple[int, int]] = []
        #: Called after something was put into ``fresh``.
        self.on_fresh: Callable[[], None] = _nothing

    @property
    def seq(self) -> int:
        return self._log.seq

    def row(
        self, op: Op, ino: int, parent: int, data: bytes, now_ns: int | None = None
    ) -> tuple[str, tuple[object, ...]]:
        """As ``Log.row``."""
        _, bindings = self._log.row(op, ino, parent, data, now_ns)
        self.fresh.append((self._log.seq, ino))
        self.on_fresh()
        return INSERT_WAITING, bindings


def _record(row: list[Any]) -> Record:
    seq, time_ns, op, ino, parent, data = row
    return Record(seq, time_ns, Op(op), ino, parent, data)


def _nothing() -> None:
    """Nobody wants to know."""


def pack_pair(old: bytes, new: bytes) -> bytes:
    """Old and new content of a CONTENT record."""
    return _PAIR.pack(len(old)) + old + new


def unpack_pair(data: bytes) -> tuple[bytes, bytes]:
    """(old, new) of a CONTENT record."""
    (length,) = _PAIR.unpack_from(data)
    return data[4 : 4 + length], data[4 + length :]


def pack_rename(renamed: Renamed) -> bytes:
    """The data of a RENAME record."""
    head = _RENAME.pack(
        renamed.new_parent, renamed.displaced, len(renamed.name), renamed.is_exchange
    )
    return head + renamed.name + renamed.new_name


def unpack_rename(data: bytes) -> Renamed:
    """What ``pack_rename`` packed."""
    new_parent, displaced, length, is_exchange = _RENAME.unpack_from(data)
    names = data[_RENAME.size :]
    return Renamed(new_parent, displaced, bool(is_exchange), names[:length], names[length:])
