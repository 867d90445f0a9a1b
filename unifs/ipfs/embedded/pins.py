"""Pins: the roots that a person or a program wants kept, in a small database of their own.

The truth about pins (unlike ``blocks.db``, nothing can rebuild it), so every change is durable when
it returns (``synchronous=FULL``). A root is pinned *recursive* (with everything below) or *direct*
(one block); recursive includes direct. Called by the node, in threads; one lock. Whether the blocks
are here is not looked at: the node walks the DAG after adding a pin and takes it back on failure.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

import apsw

from unifs.errors import Corrupt, DiskFailed, Exists, NoSpace, NotFound, StateNewer
from unifs.ipfs.cid import Cid

if TYPE_CHECKING:
    from pathlib import Path

    PinMode = Literal["recursive", "direct"]

SCHEMA_VERSION: Final = 1
NAME_MAX_CHARS: Final = 255

_SCHEMA: Final = """
CREATE TABLE pins (
    cid       BLOB PRIMARY KEY,    -- binary, as the user gave it (version and codec are kept)
    recursive INTEGER NOT NULL,    -- 1: everything below as well; 0: this one block
    name      TEXT NOT NULL,       -- free text, "" if none; not unique
    created_s INTEGER NOT NULL     -- since the epoch
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned root. ``created_s`` counts from the epoch."""

    cid: Cid
    mode: PinMode
    name: str
    created_s: int


class Pins:
    """The pins of one state directory. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or create; StateNewer if a newer unifs wrote it, Corrupt if it is damaged."""
        self._lock = threading.Lock()
        #: Changes with every pin added or removed, so that a collection sees that it must look.
        self.generation = 0
        try:
            self._db = apsw.Connection(str(path))
            self._db.set_busy_timeout(10_000)
            self._db.pragma("journal_mode", "wal")
            self._db.pragma("synchronous", "full")
            version = self._db.pragma("user_version")
            if version > SCHEMA_VERSION:
                raise StateNewer(f"{path.name} has version {version}; this is {SCHEMA_VERSION}")
            if version == 0:
                with self._db:
                    self._db.execute(_SCHEMA)
                    self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except apsw.Error as error:
            raise _named(error) from error

    def add(self, cid: Cid, mode: PinMode = "recursive", name: str | None = None) -> Pin:
        """Pin a root; durable when it returns. Idempotent; a name given replaces the old one.

        A direct pin becomes recursive when asked for; Exists for a direct pin of a root that is
        pinned recursively.
        """
        with self._lock:
            old = self._get(cid)
            if old is not None and old.mode == "recursive" and mode == "direct":
                raise Exists(f"{cid} is pinned recursively already")
            kept = old.name if old is not None else ""
            created = old.created_s if old is not None else int(time.time())
            pin = Pin(cid, mode, kept if name is None else name[:NAME_MAX_CHARS], created)
            if pin != old:
                row = (cid.binary, int(mode == "recursive"), pin.name, created)
                self._change("REPLACE INTO pins VALUES (?,?,?,?)", row)
            return pin

    def remove(self, cid: Cid) -> Pin:
        """Take a pin away; returns what it was. NotFound if the root is not pinned itself."""
        with self._lock:
            pin = self._get(cid)
            if pin is None:
                raise NotFound(f"{cid} is not pinned")
            self._change("DELETE FROM pins WHERE cid=?", (cid.binary,))
            return pin

    def restore(self, cid: Cid, pin: Pin | None) -> None:
        """Bring back what ``get`` said before an ``add`` that turned out to be impossible."""
        with self._lock:
            if pin is None:
                self._change("DELETE FROM pins WHERE cid=?", (cid.binary,))
            else:
                row = (cid.binary, int(pin.mode == "recursive"), pin.name, pin.created_s)
                self._change("REPLACE INTO pins VALUES (?,?,?,?)", row)

    def get(self, cid: Cid) -> Pin | None:
        """The pin of exactly this root, or None."""
        with self._lock:
            return self._get(cid)

    def _get(self, cid: Cid) -> Pin | None:
        pins = self._select(" WHERE cid=?", (cid.binary,))
        return pins[0] if pins else None

    def scan(self, mode: PinMode | None = None, name: str | None = None) -> list[Pin]:
        """All pins, the oldest first; of one mode or with one name where given."""
        with self._lock:
            pins = self._select(" ORDER BY created_s, cid", ())
        return [
            pin
            for pin in pins
            if (mode is None or pin.mode == mode) and (name is None or pin.name == name)
        ]

    def _select(self, rest: str, values: tuple[bytes, ...]) -> list[Pin]:
        sql = "SELECT cid, recursive, name, created_s FROM pins"
        try:
            rows = self._db.execute(sql + rest, values).fetchall()
        except apsw.Error as error:
            raise _named(error) from error
        return [
            Pin(Cid.decode(binary), "recursive" if recursive else "direct", name, created_s)
            for binary, recursive, name, created_s in cast(
                "list[tuple[bytes, int, str, int]]", rows
            )
        ]

    def _change(self, sql: str, values: tuple[bytes | int | str, ...]) -> None:
        try:
            self._db.execute(sql, values)
        except apsw.Error as error:
            raise _named(error) from error
        self.generation += 1

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()


def has_pins(path: Path) -> bool:
    """Whether the database at ``path`` has any; True as well where it cannot be read."""
    if not path.exists():
        return False
    try:
        with closing(apsw.Connection(str(path))) as connection:
            connection.set_busy_timeout(10_000)
            return bool(connection.execute("SELECT 1 FROM pins LIMIT 1").fetchall())
    except apsw.Error:
        return True


def _named(error: apsw.Error) -> Exception:
    if isinstance(error, apsw.FullError):
        return NoSpace("no space to write down a pin")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return Corrupt("the database of pins is damaged")
    return DiskFailed(f"the database of pins: {error}")
