"""The tree: inodes, names and attributes of every mount, in SQLite.

It makes statements and reads rows; it holds no state of its own but counters. A mutation collects
statements into a list and hands them to ``commit``, which executes them as one transaction; memory
is changed by the caller afterwards, so a failed commit leaves everything as it was.

Callers: ``TreeVolume`` and the tasks that work on the tree behind it, all in the event loop's
thread.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import apsw

from unifs.errors import NoSpace
from unifs.journal.content import large_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory
    from unifs.types import Attributes

#: mode uid gid nlink size atime mtime ctime (ns), and rdev; of a regular file the blocks that are
#: holes, in its place.
ATTRIBUTES = struct.Struct("<IIIIQqqqQ")
_pack = ATTRIBUTES.pack

Statement = tuple[str, tuple[Any, ...]]
Batch = list[Statement]

INSERT_INODE = "insert into inode values(?,?,?,?,null,?,?,null)"
UPDATE_INODE = "update inode set parent=?,epoch=?,attributes=?,content=? where ino=?"
SET_GONE = "update inode set parent=0,gone=?,attributes=? where ino=?"
KEEP_INODE = (
    "insert or ignore into inode_past select ino,?,epoch,attributes,content from inode where ino=?"
)
INSERT_DENTRY = "insert into dentry values(?,?,?,?,?)"
CHANGE_DENTRY = "update dentry set name=?,epoch=? where parent=? and name=?"
CHANGE_TARGET = "update dentry set ino=?,epoch=? where parent=? and name=?"
DELETE_DENTRY = "delete from dentry where parent=? and name=?"
KEEP_DENTRY = (
    "insert into dentry_past select parent,?,id,name,ino,epoch from dentry"
    " where parent=? and name=? and epoch<?"
)
LISTING = (
    "select d.id,d.name,d.ino,i.attributes from dentry d join inode i on i.ino=d.ino"
    " where d.parent=? and d.id>? order by d.id limit ?"
)
NAMES = "select id,name,ino from dentry where parent=? and id>? order by id limit ?"
FIND = "select ino,epoch from dentry where parent=? and name=?"
#: Inode and epoch of a name that is not there.
ABSENT = (0, 0)
#: Answers kept until the next commit: the kernel looks a name up, then asks to change it.
FOUND_MAX = 64


def clamp_time(time_ns: int) -> int:
    """A time as the row can hold it: years 1677 to 2262."""
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))


def pack_attributes(attributes: Attributes) -> bytes:
    """The attributes column."""
    a = attributes
    mode, size = a.st_mode, a.st_size
    if mode & 0o170000 == 0o100000:
        last = ((size + 511) >> 9) - a.st_blocks
        if last < 0:
            last = 0
    else:
        last = a.st_rdev
    return _pack(
        mode,
        a.st_uid,
        a.st_gid,
        a.st_nlink,
        size,
        a.st_atime_ns,
        a.st_mtime_ns,
        a.st_ctime_ns,
        last,
    )


def blocks_of(size_bytes: int) -> int:
    """How many blocks of 512 bytes hold that many bytes."""
    return (size_bytes + 511) >> 9


def fill_attributes(attributes: Attributes, ino: int, packed: bytes, timeout_s: float) -> None:
    """Set an attributes object from its column."""
    a = attributes
    (
        a.st_mode,
        a.st_uid,
        a.st_gid,
        a.st_nlink,
        size,
        a.st_atime_ns,
        a.st_mtime_ns,
        a.st_ctime_ns,
        last,
    ) = ATTRIBUTES.unpack(packed)
    is_regular = a.st_mode & 0o170000 == 0o100000
    a.st_rdev = 0 if is_regular else last
    a.st_ino = ino
    a.st_size = size
    a.st_blocks = blocks_of(size) - (last if is_regular else 0)
    a.st_blksize = 1 << 20
    a.entry_timeout = a.attr_timeout = timeout_s


class Tree:
    """Statements and queries over inode, dentry, link and xattr."""

    def __init__(self, database: Database, state: StateDirectory) -> None:
        self.database = database
        self._state = state
        self.epoch: int = database.get_meta("epoch", 1)
        self.last_ino: int = max(
            1,
            database.one("select coalesce(max(ino),1) from inode")[0],
            database.get_meta("last_ino", 1),
        )
        # Offsets 1 and 2 are "." and ".." for whoever counts them.
        self._last_dentry: int = max(
            database.one("select coalesce(max(id),2) from dentry")[0],
            database.get_meta("last_dentry", 2),
        )
        #: What ``find`` was told since the commit of that number, by (directory, name).
        self._found: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._found_at = -1

    # --- transactions -----------------------------------------------------------------------------

    def commit(self, batch: Batch, frees: bool = False) -> None:
        """Execute the statements as one transaction.

        NoSpace leaves nothing done; with ``frees`` the reserve is given up for a second attempt.
        JournalFailed once the database cannot be trusted. WouldBlock, before anything is done,
        while the WAL is above its limit.
        """
        try:
            self._execute(batch)
        except NoSpace:
            if not frees or not self._state.give_up_reserve():
                raise
            self._execute(batch)

    def _execute(self, batch: Batch) -> None:
        database = self.database
        database.begin()
        execute = database.execute
        try:
            for sql, bindings in batch:
                execute(sql, bindings)
            database.commit()
        except apsw.Error as error:
            raise database.broken(error) from error
        except BaseException:
            database.rollback()
            raise

    # --- statements -------------------------------------------------------------------------------

    def new_ino(self) -> int:
        self.last_ino += 1
        return self.last_ino

    def add_name(self, parent: int, name: bytes, ino: int) -> Statement:
        self._last_dentry += 1
        return INSERT_DENTRY, (parent, self._last_dentry, name, ino, self.epoch)

    def drop_name(self, batch: Batch, parent: int, name: bytes) -> None:
        key = (parent, name)
        self._keep_name(batch, key)
        batch.append((DELETE_DENTRY, key))

    def change_name(self, batch: Batch, parent: int, name: bytes, new_name: bytes) -> None:
        """A rename within a directory: the row keeps its id, and so its place in a listing."""
        self._keep_name(batch, (parent, name))
        batch.append((CHANGE_DENTRY, (new_name, self.epoch, parent, name)))

    def _keep_name(self, batch: Batch, key: tuple[int, bytes]) -> None:
        """Before a row of an earlier epoch changes; one of this epoch leaves no trace."""
        epoch = self.epoch
        if self._found_at == self.database.commits and self._found.get(key, ABSENT)[1] == epoch:
            return
        batch.append((KEEP_DENTRY, (epoch, *key, epoch)))

    def change_target(self, batch: Batch, parent: int, name: bytes, ino: int) -> None:
        """Another object under a name, which keeps its place in a listing."""
        epoch = self.epoch
        batch.append((KEEP_DENTRY, (epoch, parent, name, epoch)))
        batch.append((CHANGE_TARGET, (ino, epoch, parent, name)))

    def keep_inode(self, batch: Batch, ino: int, stored: bytes) -> None:
        """Before a row of an earlier epoch changes: its present form goes to the past."""
        batch.append((KEEP_INODE, (self.epoch, ino)))
        content = large_id(stored)
        if content:
            batch.append(("update content set refs=refs+1 where id=?", (content,)))

    @property
    def last_dentry(self) -> int:
        """No row has a higher id yet."""
        return self._last_dentry

    # --- queries ----------------------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> int:
        """The inode of a name, 0 if there is none."""
        commits = self.database.commits
        found = self._found
        if self._found_at != commits or len(found) >= FOUND_MAX:
            found.clear()
            self._found_at = commits
        key = (parent, name)
        row = found.get(key)
        if row is None:
            # All rows are fetched: a statement that is not finished keeps its snapshot, and the WAL
            # could never start over.
            rows: list[Any] = self.database.execute(FIND, key).fetchall()
            row = found[key] = rows[0] if rows else ABSENT
        return row[0]

    def inode_row(self, ino: int) -> Any:
        """(mount, parent, epoch, gone, attributes, content), or None."""
        return self.database.one(
            "select mount,parent,epoch,gone,attributes,content from inode where ino=?", (ino,)
        )

    def is_empty(self, ino: int) -> bool:
        return self.database.one("select 1 from dentry where parent=? limit 1", (ino,)) is None

    def names(self, parent: int, after: int, limit: int) -> list[Any]:
        """Rows (id, name, ino) of a directory, by id."""
        return self.database.execute(NAMES, (parent, after, limit)).fetchall()

    def listing(self, parent: int, after: int, limit: int) -> list[Any]:
        """Rows (id, name, ino, attributes) of a directory, by id."""
        return self.database.execute(LISTING, (parent, after, limit)).fetchall()

    def parents(self, ino: int, parent: int) -> Iterator[tuple[int, bytes]]:
        """Every (directory, name) of an inode whose row says ``parent`` (0: look at its links)."""
        if parent:
            query = "select parent,name from dentry where parent=? and ino=?"
            yield from self.database.all(query, (parent, ino))
        else:
            yield from self.database.all("select parent,name from link where ino=?", (ino,))

    def names_of(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (directory, name) of an inode."""
        row = self.inode_row(ino)
        return [] if row is None else list(self.parents(ino, row[1]))

    def path(self, ino: int) -> bytes | None:
        """One path of an inode below its volume's root, None where it has no name."""
        names: list[bytes] = []
        while (row := self.inode_row(ino)) is not None:
            known = next(self.parents(ino, row[1]), None)
            if known is None:
                is_root = self.database.one("select 1 from mount where root=?", (ino,))
                return b"/" + b"/".join(reversed(names)) if is_root else None
            names.append(known[1])
            ino = known[0]
        return None

    def is_below(self, ino: int, top: int | None) -> bool:
        """Whether an inode is, or lies below, ``top`` (None: anything)."""
        while top is not None and ino != top:
            row = self.inode_row(ino)
            if row is None or not row[1]:
                return False
            ino = row[1]
        return True

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        row = self.database.one("select value from xattr where ino=? and name=?", (ino, name))
        return None if row is None else bytes(row[0])

    def xattrs(self, ino: int) -> list[bytes]:
        return [row[0] for row in self.database.all("select name from xattr where ino=?", (ino,))]
