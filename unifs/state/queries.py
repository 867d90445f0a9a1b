"""Asking tree.db: queries on any connection, and connections that only read.

``Queries`` is what ``Database`` and every ``Reader`` can be asked; failures have names of
``unifs.errors``. A ``Reader`` belongs to the thread that opened it. It sees what is committed: what
the loop holds back for a moment (``state.held``) is told to no other task or thread as done.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import apsw

from unifs.errors import Corrupt, DiskFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Locks between connections of this process only, and the WAL's index in memory: no system call
#: per statement (a look-up 4.9 → 3.4 µs, a rename 33 → 29 µs). All connections to tree.db name it.
VFS: Final = "unix-excl"


class Queries:
    """What can be asked of a connection. DiskFailed and Corrupt where it cannot be read."""

    _connection: apsw.Connection

    def one(self, sql: str, bindings: Sequence[Any] = ()) -> Any:
        """The first row, or None."""
        try:
            return self._connection.execute(sql, bindings).fetchone()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise reading_failed(error) from error

    def all(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        """All rows."""
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise reading_failed(error) from error


class Reader(Queries):
    """A connection of its own for a thread that only reads; whoever opens it closes it."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=VFS)
        except apsw.Error as error:
            raise reading_failed(error) from error

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """What is asked inside sees one state; keep it short, for the WAL cannot start over."""
        self.all("begin")
        try:
            yield
        finally:
            self.all("rollback")


def reading_failed(error: apsw.Error | UnicodeDecodeError) -> Exception:
    """What a query's failure is called; one that is no fault of the disk stays what it is."""
    if isinstance(error, UnicodeDecodeError):
        return Corrupt("a text in the database is damaged: `unifs fsck --repair` mends it")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return Corrupt(f"the database is damaged: {error}")
    if isinstance(error, apsw.IOError | apsw.CantOpenError | apsw.FullError):
        return DiskFailed(f"the database cannot be read: {error}")
    return error


def literal(value: object) -> str:
    """A value as it stands in a statement."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    return str(value)
