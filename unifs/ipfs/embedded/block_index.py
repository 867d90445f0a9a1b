"""The block index ``blocks.db``: which bytes of which file are the block with this multihash.

Derived, never authoritative: everything in it can be read again from the segments and from the
journal's sealed contents, so a damaged or missing file costs a rebuild and nothing else. One block
may have several places (an added file's segment, a container below /mfs): each is dropped with the
file that it lies in.

New places stay in memory and go to SQLite in batches; ``indexed_upto`` of a segment is committed
together with the places it stands for, so that what a crash took from memory is read again from
the segment. Called by ``blocks`` and ``collect``, from any thread; one lock per connection, the
writer's taken before the reader's.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, cast

import apsw

from unifs.errors import StateNewer
from unifs.ipfs.embedded.index_failures import mapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

SCHEMA_VERSION: Final = 1
#: Keys are random: a commit rewrites nearly every page of an index of 100,000 blocks, whether it
#: brings 2,000 rows or these (about 10 MiB of memory, and of pages).
PENDING_MAX: Final = 16_384
#: In pages, 16 MiB: a page that several commits changed is written once.
_CHECKPOINT_PAGES: Final = 4096

_SCHEMA: Final = """
CREATE TABLE blocks (
    multihash BLOB NOT NULL,    -- full multihash, so that CIDv0, CIDv1 and every codec meet here
    kind      INTEGER NOT NULL, -- PlaceKind
    holder    INTEGER NOT NULL, -- section: store << 32 | segment; else the container's id
    offset    INTEGER NOT NULL, -- of the block's bytes (wrapped: of the chunk's) in that file
    length    INTEGER NOT NULL, -- in bytes
    PRIMARY KEY (multihash, kind, holder, offset)
) WITHOUT ROWID;
CREATE INDEX blocks_by_container ON blocks (holder) WHERE kind > 0;
CREATE TABLE segments (
    holder INTEGER PRIMARY KEY, -- store << 32 | segment
    upto   INTEGER NOT NULL     -- sections that begin before this offset are in blocks (or were)
);
CREATE TABLE containers (
    id INTEGER PRIMARY KEY      -- all leaves of this container are in blocks
);
"""


class PlaceKind(IntEnum):
    """What a place points at. The order is the order of preference when reading."""

    SECTION = 0
    """The data of a section in a segment."""
    RANGE = 1
    """A range of a container that is the raw block."""
    WRAPPED = 2
    """A range of a container that is the chunk inside a dag-pb leaf block."""


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """One place of one block. ``holder``: for sections store << 32 | segment, else a container."""

    kind: PlaceKind
    holder: int
    offset: int
    length: int


#: multihash -> its places.
Pending = dict[bytes, dict[BlockPlace, None]]

#: From here on holders are of other stores than the first.
_FOREIGN = 1 << 32
#: A reader that finds so many copies of a block damaged gives up.
PLACES_MAX = 64


def section_holder(store: int, segment: int) -> int:
    return store << 32 | segment


def split_holder(holder: int) -> tuple[int, int]:
    """(store, segment) of a section's holder."""
    return holder >> 32, holder & 0xFFFF_FFFF


class BlockIndex:
    """Multihash → places. See the module's text."""

    def __init__(self, path: Path) -> None:
        """Open or create; a damaged file is replaced by an empty one (``was_rebuilt``).

        StateNewer if a newer unifs wrote it.
        """
        self.path = path
        self.was_rebuilt = not path.exists()
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        #: Places that no commit has, and those that a commit is taking now. A content may have
        #: thousands of copies, so a block's places are a dict and not a list.
        self._pending: Pending = {}
        self._flushing: Pending = {}
        self._pending_lock = threading.Lock()
        self._upto: dict[int, int] = {}
        self._dirty_upto: set[int] = set()
        self._pending_containers: set[int] = set()
        with mapped():
            try:
                self._open()
            except (apsw.CorruptError, apsw.NotADBError):
                self._discard()
                self._open()

    def _open(self) -> None:
        self._writer = apsw.Connection(str(self.path))
        try:
            self._prepare()
        except (apsw.CorruptError, apsw.NotADBError):
            raise
        except BaseException:
            self._writer.close(True)
            raise

    def _prepare(self) -> None:
        self._writer.set_busy_timeout(10_000)
        writer = self._writer
        writer.pragma("journal_mode", "wal")
        writer.pragma("synchronous", "normal")
        writer.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)
        version = writer.pragma("user_version")
        if version > SCHEMA_VERSION:
            raise StateNewer(f"{self.path.name} has version {version}; this is {SCHEMA_VERSION}")
        if version == 0:
            with writer:
                writer.execute(_SCHEMA)
                writer.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        rows = writer.execute("SELECT holder, upto FROM segments").fetchall()
        self._upto = dict(cast("list[tuple[int, int]]", rows))
        flags = apsw.SQLITE_OPEN_READONLY
        self._reader = apsw.Connection(str(self.path), flags=flags)
        self._reader.set_busy_timeout(10_000)

    def _discard(self) -> None:
        self._writer.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.was_rebuilt = True

    # --- reading --------------------------------------------------------------------------------

    def places(self, multihash: bytes) -> list[BlockPlace]:
        """All places of a block, the preferred one first; empty if it is not here."""
        return self._places(multihash, "multihash=?")

    def some_places(self, multihash: bytes) -> list[BlockPlace]:
        """As ``places``, but no more than a reader will ever try."""
        where = f"multihash=? ORDER BY kind,holder,offset LIMIT {PLACES_MAX}"
        return self._places(multihash, where)

    def own_sections(self, multihashes: Sequence[bytes]) -> dict[bytes, list[BlockPlace]]:
        """The places of many blocks in the node's own segments. One question to SQLite."""
        found: dict[bytes, list[BlockPlace]] = {}
        for multihash in multihashes:
            for place in (*self._pending.get(multihash, ()), *self._flushing.get(multihash, ())):
                if place.kind is PlaceKind.SECTION and place.holder < _FOREIGN:
                    found.setdefault(multihash, []).append(place)
        marks = ",".join("?" * len(multihashes))
        where = f"kind=0 AND holder<{_FOREIGN} AND multihash IN ({marks})"
        for multihash, place in self._select(where, tuple(multihashes)):
            found.setdefault(multihash, []).append(place)
        return found

    def _places(self, multihash: bytes, where: str) -> list[BlockPlace]:
        # Before the commit's rows: what leaves these meanwhile is among those.
        waiting = [*self._pending.get(multihash, ()), *self._flushing.get(multihash, ())]
        found = [place for _, place in self._select(where, (multihash,))]
        return list(dict.fromkeys([*found, *waiting])) if waiting else found

    def has(self, multihash: bytes) -> bool:
        if multihash in self._pending or multihash in self._flushing:
            return True
        with mapped(), self._read_lock:
            sql = "SELECT 1 FROM blocks WHERE multihash=? LIMIT 1"
            return self._reader.execute(sql, (multihash,)).fetchone() is not None

    def iterate(self, after: bytes = b"", limit: int = 4096) -> list[tuple[bytes, BlockPlace]]:
        """About ``limit`` committed (multihash, place), by multihash, those above ``after``.

        All places of one multihash come in one call; call ``flush`` first to see the pending ones.
        """
        entries = self._select("multihash>? ORDER BY multihash LIMIT ?", (after, limit))
        if len(entries) == limit:
            last = entries[-1][0]
            entries = [entry for entry in entries if entry[0] != last]
            entries += self._select("multihash=?", (last,))
        return entries

    def _select(
        self, where: str, values: tuple[bytes | int, ...]
    ) -> list[tuple[bytes, BlockPlace]]:
        sql = "SELECT multihash, kind, holder, offset, length FROM blocks WHERE " + where
        with mapped(), self._read_lock:
            rows = self._reader.execute(sql, values).fetchall()
        typed = cast("list[tuple[bytes, int, int, int, int]]", rows)
        return [
            (multihash, BlockPlace(PlaceKind(kind), holder, offset, length))
            for multihash, kind, holder, offset, length in typed
        ]

    def indexed_upto(self, holder: int) -> int:
        """The offset up to which a segment's sections are known here, pending ones included."""
        return self._upto.get(holder, 0)

    def containers(self) -> set[int]:
        """The containers whose leaves are committed here."""
        with mapped(), self._read_lock:
            rows = self._reader.execute("SELECT id FROM containers").fetchall()
        return {row[0] for row in cast("list[tuple[int]]", rows)}

    def container_blocks(self, container: int) -> list[tuple[bytes, BlockPlace]]:
        """(multihash, place) of the leaves that lie in a container; committed ones."""
        return self._select("holder=? AND kind>0", (container,))

    # --- writing --------------------------------------------------------------------------------

    def add(self, multihash: bytes, place: BlockPlace) -> None:
        """Note a place, in memory; ``flush`` commits. ``advance`` moves its segment's ``upto``."""
        with self._pending_lock:
            places = self._pending.get(multihash)
            if places is None:
                self._pending[multihash] = {place: None}
            else:
                places[place] = None

    def advance(self, holder: int, upto: int) -> None:
        """All sections of a segment that begin before ``upto`` have been added."""
        if upto > self._upto.get(holder, 0):
            self._upto[holder] = upto
            self._dirty_upto.add(holder)

    def add_container(self, container: int, leaves: Iterable[tuple[bytes, BlockPlace]]) -> None:
        """Note all leaves of a container."""
        for multihash, place in leaves:
            self.add(multihash, place)
        self._pending_containers.add(container)

    @property
    def pending(self) -> int:
        """How many blocks wait for the next ``flush``."""
        return len(self._pending)

    def flush(self) -> None:
        """Commit what is pending. Blocks for 4 µs a block; call it off the event loop."""
        with self._write_lock:
            # In this order: what upto or a container stands for is in the copy of pending.
            upto = {holder: self._upto[holder] for holder in tuple(self._dirty_upto)}
            containers = tuple(self._pending_containers)
            with self._pending_lock:
                pending = self._flushing = self._pending
                self._pending = {}
            if not (pending or upto or containers):
                return
            rows = (
                (multihash, place.kind, place.holder, place.offset, place.length)
                for multihash, places in pending.items()
                for place in places
            )
            try:
                with mapped(), self._writer:
                    sql = "INSERT OR IGNORE INTO blocks VALUES (?,?,?,?,?)"
                    self._writer.executemany(sql, rows)
                    self._writer.executemany("REPLACE INTO segments VALUES (?,?)", upto.items())
                    sql = "INSERT OR IGNORE INTO containers VALUES (?)"
                    self._writer.executemany(sql, ((container,) for container in containers))
            except BaseException:
                self._take_back(pending)
                raise
            self._flushing = {}
            for holder, value in upto.items():
                if self._upto.get(holder) == value:
                    self._dirty_upto.discard(holder)
            self._pending_containers.difference_update(containers)

    def _take_back(self, pending: Pending) -> None:
        """A commit failed: its places wait again."""
        with self._pending_lock:
            for multihash, places in pending.items():
                self._pending.setdefault(multihash, {}).update(places)
            self._flushing = {}

    def remove(self, entries: Iterable[tuple[bytes, BlockPlace]]) -> None:
        """Drop places. What is pending is committed first, so that nothing dropped comes back."""
        self.flush()
        sql = "DELETE FROM blocks WHERE multihash=? AND kind=? AND holder=? AND offset=?"
        with self._write_lock, mapped(), self._writer:
            self._writer.executemany(
                sql, ((m, place.kind, place.holder, place.offset) for m, place in entries)
            )

    def move(self, moves: Iterable[tuple[bytes, BlockPlace, BlockPlace]]) -> None:
        """Give blocks new places, atomically and for good: (multihash, old, new)."""
        self.flush()
        listed = list(moves)
        with self._write_lock, mapped(), self._lasting():
            self._writer.executemany(
                "INSERT OR IGNORE INTO blocks VALUES (?,?,?,?,?)",
                ((m, new.kind, new.holder, new.offset, new.length) for m, _, new in listed),
            )
            self._writer.executemany(
                "DELETE FROM blocks WHERE multihash=? AND kind=? AND holder=? AND offset=?",
                ((m, old.kind, old.holder, old.offset) for m, old, _ in listed),
            )

    def forget_container(self, container: int) -> None:
        """Drop all places in a container."""
        self.flush()
        with self._write_lock, mapped(), self._writer:
            sql = "DELETE FROM blocks WHERE holder=? AND kind>0"
            self._writer.execute(sql, (container,))
            self._writer.execute("DELETE FROM containers WHERE id=?", (container,))

    def forget_segment(self, holder: int) -> None:
        """A segment is gone; its number may come again. Its places were removed before."""
        self.flush()
        with self._write_lock, mapped(), self._lasting():
            self._upto.pop(holder, None)
            self._dirty_upto.discard(holder)
            self._writer.execute("DELETE FROM segments WHERE holder=?", (holder,))

    def fit(self, ends: Mapping[int, int]) -> None:
        """Drop places beyond the ends of the existing segments: a power cut may take a tail."""
        with self._write_lock, mapped(), self._lasting():
            for holder, upto in tuple(self._upto.items()):
                end = ends.get(holder, 0)
                if upto <= end:
                    continue
                sql = "DELETE FROM blocks WHERE kind=0 AND holder=? AND offset+length>?"
                self._writer.execute(sql, (holder, end))
                sql = "UPDATE segments SET upto=? WHERE holder=?"
                self._writer.execute(sql, (end, holder))
                self._upto[holder] = end
                if end == 0:
                    self._writer.execute("DELETE FROM segments WHERE holder=?", (holder,))
                    del self._upto[holder]

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        """A transaction that a power cut does not take, nor any before it."""
        self._writer.pragma("synchronous", "full")
        try:
            with self._writer:
                yield
        finally:
            self._writer.pragma("synchronous", "normal")

    def clear(self) -> None:
        """Empty the index, to be filled again from segments and contents."""
        with self._write_lock, self._read_lock, mapped():
            self._reader.close()
            self._discard()
            with self._pending_lock:
                self._pending, self._flushing = {}, {}
            self._dirty_upto.clear()
            self._pending_containers.clear()
            self._open()

    def is_sound(self) -> bool:
        """Whether SQLite finds the file undamaged. Reads all of it."""
        with self._read_lock, suppress(apsw.CorruptError, apsw.NotADBError):
            return bool(self._reader.pragma("quick_check") == "ok")
        return False

    def count(self) -> int:
        """How many places are known."""
        with mapped(), self._read_lock:
            rows = self._reader.execute("SELECT count(*) FROM blocks").fetchall()
        return cast("list[tuple[int]]", rows)[0][0] + len(self._pending)

    def close(self) -> None:
        """Commit and close; closed it is where that fails, too."""
        try:
            self.flush()
        finally:
            with self._write_lock, self._read_lock:
                self._reader.close()
                with suppress(apsw.Error):
                    # Closing does the same, but keeps the interpreter while it waits for the disk.
                    self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                self._writer.close()
