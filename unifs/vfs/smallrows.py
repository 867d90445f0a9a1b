"""Where small contents are named: the rows and journal records that hold a place in a segment.

``vfs.keeper`` looks here for what is alive in a segment, and for what has to follow when one is
compacted. A look runs in a thread on a connection of its own: SQLite searches without the GIL, a
bounded range of keys per read transaction, and between two the WAL can start over.

A look is not one snapshot. It is right nevertheless: no row ever comes to name a place that none
named before, and where one row hands a place on to another (the present to the past, to a record,
to a backend's attempt) the giver's table comes first in ``TABLES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unifs.journal.content import SMALL
from unifs.journal.log import Op
from unifs.state.queries import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Keys looked at in one read transaction: 10,000 rows of inode take 3 ms from the page cache, and
#: from a disk of 100 MB/s 20.
KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Table:
    """A table that holds small contents in ``column``; ``key`` is dense, not always unique."""

    name: str
    key: str
    column: str = "content"
    where: str = ""


INODE = Table("inode", "ino")
PAST = Table("inode_past", "ino")
REMOTE = Table("remote", "ino")
#: Recovery goes back to what these say.
JOURNAL = Table("journal", "seq", "data", f" and op in ({Op.CONTENT.value},{Op.SYNC.value})")
#: In the order in which a place can wander.
TABLES = (INODE, PAST, REMOTE, JOURNAL)


@dataclass(frozen=True, slots=True)
class Named:
    """A row that names a place in the segment: its key, its column, and for a record its op."""

    key: int
    column: bytes
    op: int = 0


def rows_naming(database: Path, table: Table, segment: int, after: int) -> Iterator[list[Named]]:
    """Rows of ``table`` with a key above ``after`` that name a place in ``segment``. Blocks.

    One list per read transaction; of the journal also records that only look as if they did.
    """
    prefix = bytes((SMALL,)) + segment.to_bytes(4, "little")
    op = "op" if table is JOURNAL else "0"
    names = "instr(data,?)" if table is JOURNAL else f"substr({table.column},1,5)=?"
    query = (
        f"select {table.key},{table.column},{op} from {table.name}"
        f" where {table.key}>? and {table.key}<=?{table.where} and {names}"
    )
    first = f"select min({table.key}) from {table.name} where {table.key}>?"
    connection = Reader(database)
    try:
        while True:
            least: Any = connection.all(first, (after,))[0][0]
            if least is None:
                return
            after = least - 1
            rows: list[Any] = connection.all(query, (after, after + KEYS, prefix))
            yield [Named(key, column, op) for key, column, op in rows]
            after += KEYS
    finally:
        connection.close()
