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

from unifs.errors import NoSpace
from unifs.journal.content import large_id
from unifs.vfs.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory
    from unifs.types import Attributes
    from unifs.vfs.treeinode import TreeInode

#: mode uid gid nlink size atime mtime ctime (ns), and rdev; of a regular file the blocks that are
#: holes, in its place.
ATTRIBUTES = struct.Struct("<IIIIQqqqQ")
_pack = ATTRIBUTES.pack
_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1

Statement = tuple[str, tuple[Any, ...]]
Batch = list[Statement]

INSERT_INODE = "insert into inode values(?,?,?,?,null,?,?,null)"
UPDATE_INODE = "update inode set parent=?,epoch=?,attributes=?,content=? where ino=?"
#: The row keeps its last form: history shows it.
SET_GONE = "update inode set parent=0,gone=? where ino=?"
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
SET_XATTR = "insert or replace into xattr values(?,?,?,?)"
DROP_XATTR = "delete from xattr where ino=? and name=?"
KEEP_XATTR = (
    "insert or ignore into xattr_past select ino,?,epoch,name,value from xattr"
    " where ino=? and name=? and epoch<?"
)
#: Before the row of an inode without a name goes: attributes that an epoch which is shown has.
KEEP_XATTRS = (
    "insert or ignore into xattr_past select x.ino,i.gone,x.epoch,x.name,x.value"
    " from xattr x join inode i on i.ino=x.ino where x.ino=? and exists (select 1 from epoch e"
    " where e.epoch>=x.epoch and e.epoch<i.gone and e.epoch not in (select epoch from thinned))"
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
#: Of how many new directories, and of how many names in each, it is known what is not there:
#: 6 MiB at most.
NEW_DIRECTORIES_MAX, NEW_NAMES_MAX = 64, 1_000


def clamp_time(time_ns: int) -> int:
    """A time as the row can hold it: years 1677 to 2262."""
    if _TIME_MIN <= time_ns <= _TIME_MAX:
        return time_ns
    return _TIME_MIN if time_ns < 0 else _TIME_MAX


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


def with_bytes_of(packed: bytes, row: bytes) -> bytes:
    """An attributes column with what another one says of the bytes: size, holes and mtime."""
    fields = list(ATTRIBUTES.unpack(packed))
    before = ATTRIBUTES.unpack(row)
    for at in (4, 6, 8):
        fields[at] = before[at]
    return _pack(*fields)


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


#: Of the numbers that rows still speak of. An object outlives its inode's row until its backend has
#: confirmed the removal, and so do its records: after a kill nobody else may get its number. The
#: journal has no index for it: 60 ms for a million records.
LAST_INO = (
    "select coalesce(max(ino),1) from (select max(ino) as ino from inode"
    " union all select max(ino) from inode_past union all select max(ino) from remote"
    " union all select max(ino) from journal)"
)


class Tree:
    """Statements and queries over inode, dentry, link and xattr."""

    def __init__(self, database: Database, state: StateDirectory) -> None:
        self.database = database
        self._state = state
        self.tracking = Tracking(database)
        self.epoch: int = database.get_meta("epoch", 1)
        self.last_ino: int = max(
            1,
            database.one(LAST_INO)[0],
            database.get_meta("last_ino", 1),
        )
        # Offsets 1 and 2 are "." and ".." for whoever counts them.
        self._last_dentry: int = database.one("select coalesce(max(id),2) from dentry")[0]
        #: What ``find`` was told since the commit of that number, by (directory, name).
        self._found: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._found_at = -1
        #: Every name that a directory made since the start may have; of no other directory.
        self._names_of_new: dict[int, set[bytes]] = {}

    # --- transactions -----------------------------------------------------------------------------

    def commit(self, batch: Batch, frees: bool = False, may_hold: bool = True) -> None:
        """Execute the statements as one transaction. Not ``may_hold``: a sync follows at once.

        NoSpace leaves nothing done; with ``frees`` the reserve is given up for a second attempt.
        JournalFailed once the database cannot be trusted. WouldBlock, before anything is done,
        while the WAL is above its limit.
        """
        try:
            self.database.execute_batch(batch, may_hold)
        except NoSpace:
            if not frees or not self._state.give_up_reserve():
                raise
            self.database.execute_batch(batch, may_hold)

    # --- statements -------------------------------------------------------------------------------

    def new_ino(self) -> int:
        self.last_ino += 1
        return self.last_ino

    def add_name(self, parent: int, name: bytes, ino: int, epoch: int | None = None) -> Statement:
        """The statement for a new name, which is there from ``epoch`` on (None: from now on)."""
        self._last_dentry += 1
        self._name_comes(parent, name)
        since = self.epoch if epoch is None else epoch
        return INSERT_DENTRY, (parent, self._last_dentry, name, ino, since)

    def drop_name(self, batch: Batch, parent: int, name: bytes) -> None:
        key = (parent, name)
        self._keep_name(batch, key)
        batch.append((DELETE_DENTRY, key))

    def change_name(self, batch: Batch, parent: int, name: bytes, new_name: bytes) -> None:
        """A rename within a directory: the row keeps its id, and so its place in a listing."""
        self._keep_name(batch, (parent, name))
        batch.append((CHANGE_DENTRY, (new_name, self.epoch, parent, name)))
        self._name_comes(parent, new_name)

    def directory_made(self, ino: int) -> None:
        """A directory without names has been committed: whoever fills it looks for each name first,
        and need not be told by a query (2.5 µs) that it is not there."""
        known = self._names_of_new
        known[ino] = set()
        if len(known) > NEW_DIRECTORIES_MAX:
            del known[next(iter(known))]

    def _name_comes(self, parent: int, name: bytes) -> None:
        names = self._names_of_new.get(parent)
        if names is not None:
            names.add(name)
            if len(names) > NEW_NAMES_MAX:
                del self._names_of_new[parent]

    def _keep_name(self, batch: Batch, key: tuple[int, bytes]) -> None:
        """Before a row of an earlier epoch changes; one of this epoch leaves no trace."""
        epoch = self.epoch
        if self._found_at == self.database.commits and self._found.get(key, ABSENT)[1] == epoch:
            return
        if not self.tracking.keeps(key[0]):
            return
        batch.append((KEEP_DENTRY, (epoch, *key, epoch)))

    def change_target(self, batch: Batch, parent: int, name: bytes, ino: int) -> None:
        """Another object under a name, which keeps its place in a listing."""
        self._keep_name(batch, (parent, name))
        batch.append((CHANGE_TARGET, (ino, self.epoch, parent, name)))

    def keep_inode(self, batch: Batch, inode: TreeInode) -> None:
        """Before a row of an earlier epoch changes: its present form goes to the past."""
        if not self.tracking.keeps_inode(inode):
            return
        batch.append((KEEP_INODE, (self.epoch, inode.ino)))
        content = large_id(inode.stored)
        if content:
            batch.append(("update content set refs=refs+1 where id=?", (content,)))

    @property
    def last_dentry(self) -> int:
        """No row has a higher id yet."""
        return self._last_dentry

    # --- queries ----------------------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> int:
        """The inode of a name, 0 if there is none."""
        names = self._names_of_new.get(parent)
        if names is not None and name not in names:
            return 0
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
            rows: list[Any] = self.database.fetch(FIND, key)
            row = found[key] = rows[0] if rows else ABSENT
        return row[0]

    def among(self, parent: int, names: list[bytes]) -> list[bytes]:
        """Those of ``names`` that a directory has."""
        query = "select name from dentry where parent=? and name in (%s)"
        return [row[0] for row in self.database.among(query, (parent,), names)]

    def inode_row(self, ino: int) -> Any:
        """(mount, parent, epoch, gone, attributes, content), or None."""
        return self.database.one(
            "select mount,parent,epoch,gone,attributes,content from inode where ino=?", (ino,)
        )

    def is_empty(self, ino: int) -> bool:
        return self.database.one("select 1 from dentry where parent=? limit 1", (ino,)) is None

    def names(self, parent: int, after: int, limit: int) -> list[Any]:
        """Rows (id, name, ino) of a directory, by id."""
        return self.database.fetch(NAMES, (parent, after, limit))

    def listing(self, parent: int, after: int, limit: int) -> list[Any]:
        """Rows (id, name, ino, attributes) of a directory, by id."""
        return self.database.fetch(LISTING, (parent, after, limit))

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

    def keep_xattr(self, batch: Batch, inode: TreeInode, name: bytes) -> None:
        """Before an attribute of an earlier epoch changes: its present value goes to the past."""
        if self.tracking.keeps_inode(inode):
            batch.append((KEEP_XATTR, (self.epoch, inode.ino, name, self.epoch)))

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        row = self.database.one("select value from xattr where ino=? and name=?", (ino, name))
        return None if row is None else bytes(row[0])

    def xattrs(self, ino: int) -> list[bytes]:
        """Names; not those of the tree's own namespace (``vfs.conflicts``)."""
        query = "select name from xattr where ino=? and substr(name,1,6)<>x'756e6966732e'"
        return [row[0] for row in self.database.all(query, (ino,))]
