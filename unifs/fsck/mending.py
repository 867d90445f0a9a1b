"""What mends: the few changes of rows and files that all repairs are made of.

A ``Mending`` is one repair of one state directory, offline. The rule of all of them: what is in the
way leaves the tree, never the disk. A row that has to go is written into the report, an object
without a place gets one in the directory ``lost+found`` of /mfs, bytes that nobody names go to the
state directory's ``lost+found``. Each change that /mfs shows has a record in the journal, so that
the next root contains it.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from typing import TYPE_CHECKING, Any

from unifs.fsck.look import content_problem, mode_of, size_of
from unifs.fsck.stores import indexed_containers
from unifs.journal.content import (
    LARGE,
    REMOTE,
    SMALL,
    large_id,
    remote_size,
    small_content,
    symlink_blob,
)
from unifs.journal.log import Log, Op, pack_pair
from unifs.state.queries import literal
from unifs.vfs.tree import ATTRIBUTES, INSERT_DENTRY, INSERT_INODE
from unifs.vfs.volume import INO_SHIFT

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.fsck.look import Look, Shown
    from unifs.state.database import Database
    from unifs.vfs.storage import Storage

LOST_FOUND = b"lost+found"
#: Rows that a report holds; more are counted.
ROWS_MAX = 10_000


class Mending:
    """One repair. ``storage`` is there once recovery has run: contents can be moved then."""

    def __init__(self, look: Look, database: Database, lost_found: Path) -> None:
        self.look = look
        self.database = database
        self._log: Log | None = None
        self.lost_found = lost_found
        self.storage: Storage | None = None
        self.execute = database.execute
        #: Sentences for the report: what went where.
        self.kept: list[str] = []
        #: Rows that were removed or overwritten, as SQLite showed them.
        self.rows: list[str] = []
        self.rows_left_out = 0
        #: Files that were dealt with.
        self.done: set[str] = set()
        #: Files that have a name in lost+found already, and where.
        self._linked: dict[Path, Path] = {}
        self._indexed: set[int] | None = None
        self._stamp = time.time_ns()

    @property
    def epoch(self) -> int:
        """The epoch in which what is changed now got its form."""
        epoch = self.database.get_meta("epoch", 1)
        return epoch if isinstance(epoch, int) else 1

    # --- rows -------------------------------------------------------------------------------------

    def keep_rows(self, table: str, where: str, bindings: tuple[Any, ...]) -> None:
        """Write rows into the report before they change."""
        for row in self.database.all(f"select * from {table} where {where}", bindings):
            if len(self.rows) >= ROWS_MAX:
                self.rows_left_out += 1
                continue
            values = ",".join(literal(value) for value in row)
            self.rows.append(f"insert into {table} values({values});")

    def delete(self, table: str, where: str, *bindings: Any) -> None:
        """Remove rows, which the report keeps."""
        self.keep_rows(table, where, bindings)
        self.execute(f"delete from {table} where {where}", bindings)

    def update(self, table: str, change: str, where: str, *bindings: Any) -> None:
        """Change rows whose form the report keeps; the last bindings are those of ``where``."""
        count = where.count("?")
        self.keep_rows(table, where, bindings[len(bindings) - count :])
        self.execute(f"update {table} set {change} where {where}", bindings)

    def record(self, op: Op, ino: int, parent: int, data: bytes) -> None:
        """One record of the journal."""
        if self._log is None:
            # Not before: what it starts from is among what is mended first.
            self._log = self.storage.log if self.storage is not None else Log(self.database)
        self.execute(*self._log.row(op, ino, parent, data))

    def note_directory(self, parent: int) -> None:
        """The next root looks at this directory again."""
        row = self.database.one("select attributes from inode where ino=?", (parent,))
        if row is not None and isinstance(row[0], bytes):
            self.record(Op.SETATTR, parent, parent, row[0])

    # --- names ------------------------------------------------------------------------------------

    def new_ino(self) -> int:
        """A number that no row speaks of."""
        query = (
            "select max(m) from (select ino m from inode union all select ino from inode_past"
            " union all select ino from remote union all select ino from journal"
            " union all select ino from dentry union all select parent from dentry)"
            " where typeof(m)='integer' and m<?"
        )
        limit = 1 << INO_SHIFT
        last = self.database.get_meta("last_ino", 1)
        known = self.database.one(query, (limit,))[0] or 1
        made = 1 + max(known, last if isinstance(last, int) and last < limit else 1)
        self.database.set_meta("last_ino", made)
        return made

    def new_directory(self, ino: int, mount: int, parent: int) -> None:
        """A row for an empty directory."""
        packed = attributes_of(stat.S_IFDIR | 0o755)
        self.execute("delete from inode where ino=?", (ino,))
        self.execute(INSERT_INODE, (ino, mount, parent, self.epoch, packed, b""))

    def new_object(self, ino: int, mount: int, row: Any, content: bytes | None) -> None:
        """A row made of what is known: (attributes, content) of the past, and a content."""
        is_known = row is not None and mode_of(row[0])
        packed = row[0] if is_known else attributes_of(stat.S_IFREG | 0o644)
        blob = content if content is not None else row[1] if row is not None else b""
        if content_problem(blob, mode_of(packed)):
            blob = symlink_blob(b"lost") if stat.S_ISLNK(mode_of(packed)) else b""
        is_sized = blob[:1] in (bytes((SMALL,)), bytes((LARGE,)), bytes((REMOTE,)))
        size = self.size(blob) if is_sized else size_of(packed)
        attributes = bytearray(packed)
        attributes[16:24] = (size if blob else 0).to_bytes(8, "little")
        self.execute(INSERT_INODE, (ino, mount, 0, self.epoch, bytes(attributes), blob))

    def add_name(self, parent: int, name: bytes, ino: int) -> bytes:
        """A name in a directory, with a number behind it where it is taken; which it is."""
        free, number = name, 1
        while self.database.one("select 1 from dentry where parent=? and name=?", (parent, free)):
            number += 1
            free = name[:240] + b"-" + str(number).encode()
        query = "select coalesce(max(id),2) from dentry where typeof(id)='integer'"
        dentry = 1 + max(2, self.database.one(query)[0])
        self.execute(INSERT_DENTRY, (parent, dentry, free, ino, self.epoch))
        return free

    def _mfs(self) -> tuple[int, Shown] | None:
        mounts = self.look.mounts().items()
        return next(((number, each) for number, each in mounts if each.kind == "mfs"), None)

    @property
    def has_home(self) -> bool:
        """Whether ``home`` can be asked for: the mount table has been mended."""
        return self._mfs() is not None

    def home(self) -> tuple[int, int]:
        """(mount, inode) of the directory /mfs/lost+found, made where it is not there."""
        found = self._mfs()
        if found is None:
            raise AssertionError("the mount table has been mended before")
        mount, shown = found
        query = (
            "select d.ino,i.attributes from dentry d join inode i on i.ino=d.ino"
            " where d.parent=? and d.name=? and i.gone is null"
        )
        row = self.database.one(query, (shown.root, LOST_FOUND))
        if row is not None and stat.S_ISDIR(mode_of(row[1])):
            return mount, row[0]
        ino = self.new_ino()
        self.new_directory(ino, mount, shown.root)
        name = self.add_name(shown.root, LOST_FOUND, ino)
        self.record(Op.CREATE, ino, shown.root, name)
        self.settle(shown.root)
        return mount, ino

    def adopt(self, ino: int, name: bytes = b"") -> None:
        """Give an object a name in /mfs/lost+found."""
        mount, directory = self.home()
        if directory == ino:
            return
        free = self.add_name(directory, name or f"inode-{ino}".encode(), ino)
        self.move_mount(ino, mount)
        self.settle(ino)
        self.settle(directory)
        self.record(Op.CREATE, ino, directory, free)
        self.kept.append(f"inode {ino} is lost+found/{os.fsdecode(free)} in /mfs now")

    def move_mount(self, ino: int, mount: int) -> None:
        """An object, and all below it, belongs to this mount."""
        below = (
            "with recursive below(ino) as (values(?) union"
            " select d.ino from dentry d join below b on d.parent=b.ino) "
        )
        query = f"{below} select ino from inode where ino in (select ino from below) and mount<>?"
        for (each,) in self.database.all(query, (ino, mount)):
            self.execute("update inode set mount=? where ino=?", (mount, each))
            self.delete("remote", "ino=?", each)

    def displace(self, ino: int, why: str) -> None:
        """Take an object from its place, where something else was promised, to lost+found."""
        path = self.look.path(ino)
        for place in self.database.all("select parent,name from dentry where ino=?", (ino,)):
            self.drop_name(*place)
        self.adopt(ino)
        self.kept.append(f"{path} (inode {ino}) left its place: {why}")

    def drop_name(self, parent: object, name: object) -> None:
        """Remove a name; the report keeps it."""
        self.delete("dentry", "parent=? and name=?", parent, name)
        if isinstance(parent, int):
            self.note_directory(parent)

    def settle(self, ino: int) -> None:
        """Make an inode's row and links say what its names say."""
        row = self.database.one("select attributes from inode where ino=?", (ino,))
        if row is None or not mode_of(row[0]):
            return
        query = "select parent,name from dentry where ino=?"
        names = self.database.all(query, (ino,))
        is_root = self.database.one("select 1 from mount where root=?", (ino,)) is not None
        if not names and not is_root:
            return
        attributes = bytearray(row[0])
        links = len(names)
        if stat.S_ISDIR(mode_of(row[0])):
            links = 2 + self.subdirectories(ino)
        attributes[12:16] = links.to_bytes(4, "little")
        parent = names[0][0] if len(names) == 1 and not is_root else 0
        statement = "update inode set parent=?,gone=null,attributes=? where ino=?"
        self.execute(statement, (parent, bytes(attributes), ino))
        self.execute("delete from link where ino=?", (ino,))
        for place in names if len(names) > 1 else ():
            self.execute("insert into link values(?,?,?)", (ino, *place))

    def subdirectories(self, ino: int) -> int:
        """How many directories a directory names."""
        query = "select i.attributes from dentry d join inode i on i.ino=d.ino where d.parent=?"
        return sum(stat.S_ISDIR(mode_of(each)) for (each,) in self.database.all(query, (ino,)))

    # --- contents ---------------------------------------------------------------------------------

    def earlier_content(self, ino: int, mode: int, lost: object) -> bytes | None:
        """The newest content that the past or the journal knows and whose bytes are there.

        Behind what a backend has nothing is looked for: it would be sent over that.
        """
        query = "select content from inode_past where ino=? order by until desc"
        known = [row[0] for row in self.database.all(query, (ino,))]
        known += journal_contents(self.look, ino)
        for blob in known:
            if not blob or blob == lost or content_problem(blob, mode):
                continue
            if blob[0] == REMOTE or self.is_there(blob):
                return bytes(blob)
        return None

    def is_there(self, blob: bytes) -> bool:
        """Whether what a content column names can be read at all."""
        if blob[0] == SMALL:
            return self.look.holds_small(small_content(blob))
        if blob[0] == LARGE:
            query = "select extents from content where id=?"
            row = self.database.one(query, (large_id(blob),))
            return row is not None and isinstance(row[0], bytes) and len(row[0]) % 24 == 0
        return True

    def size(self, blob: bytes) -> int:
        """How many bytes a content has."""
        if blob[:1] == bytes((SMALL,)):
            return small_content(blob).length
        if blob[:1] == bytes((REMOTE,)):
            return remote_size(blob)
        row = self.database.one("select size from content where id=?", (large_id(blob),))
        return int(row[0]) if row is not None else 0

    def set_content(self, ino: int, blob: bytes, size: int) -> None:
        """An inode's content is this from now on; the report keeps the row."""
        self.keep_rows("inode", "ino=?", (ino,))
        query = "select attributes,content,parent from inode where ino=?"
        row = self.database.one(query, (ino,))
        attributes = bytearray(row[0])
        if stat.S_ISREG(mode_of(row[0])):
            old = row[1] if isinstance(row[1], bytes) else b""
            self.record(Op.CONTENT, ino, row[2], pack_pair(old, blob))
        attributes[16:24] = size.to_bytes(8, "little")
        if stat.S_ISREG(mode_of(row[0])):
            # Its holes are counted again when it is written next.
            attributes[48:56] = bytes(8)
        statement = "update inode set content=?,attributes=? where ino=?"
        self.execute(statement, (blob, bytes(attributes), ino))
        for parent, _ in self.database.all("select parent,name from dentry where ino=?", (ino,)):
            self.note_directory(parent)

    # --- files ------------------------------------------------------------------------------------

    def new_file(self, name: str) -> Path:
        """A path in lost+found that nobody has."""
        path = self.lost_found / f"{self._stamp}-{name}"
        number = 1
        while path.exists():
            number += 1
            path = self.lost_found / f"{self._stamp}-{name}-{number}"
        return path

    def sync(self, path: Path) -> None:
        """Bring a file's bytes to disk, where it is there."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def release(self, number: int) -> None:
        """A content that is gone holds its files no longer.

        What no other holds has a name in lost+found before that is committed: a start in between
        removes what no row names.
        """
        query = "select container from holding where content=?"
        held = [row[0] for row in self.database.all(query, (number,))]
        self.delete("holding", "content=?", number)
        if self._indexed is None:
            self._indexed = indexed_containers(self.look)
        for container in held:
            path = self.look.container(container)
            query = "select 1 from holding where container=?"
            is_needed = self.database.one(query, (container,)) is not None
            if is_needed or container in self._indexed or path in self._linked:
                continue
            if path.exists():
                self._linked[path] = self.link_file(path)

    def link_file(self, path: Path) -> Path:
        """One more name in lost+found for a file, or a copy where that cannot be; which it is."""
        target = self.new_file(path.name)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
            self.sync(target)
        return target

    def put_away(self, path: Path) -> None:
        """Move a file to lost+found."""
        linked = self._linked.pop(path, None)
        target = linked or self.new_file(path.name)
        if linked is None:
            path.rename(target)
        else:
            path.unlink()
        self.kept.append(f"{path.parent.name}/{path.name} is {target.name} in lost+found now")


def journal_contents(look: Look, ino: int) -> list[bytes]:
    """What records say an inode's content was, the newest first."""
    query = "select op,data from journal where ino=? and op in (2,10) order by seq desc"
    found: list[bytes] = []
    for op, data in look.all(query, (ino,)):
        if not isinstance(data, bytes):
            continue
        if op == Op.SYNC:
            found.append(data)
        elif len(data) >= 4:
            length = int.from_bytes(data[:4], "little")
            found += [data[4 + length :], data[4 : 4 + length]]
    return found


def attributes_of(mode: int) -> bytes:
    """The attributes column of an object of which nothing else is known: ours, changed now."""
    now = time.time_ns()
    links = 2 if stat.S_ISDIR(mode) else 1
    return ATTRIBUTES.pack(mode, os.getuid(), os.getgid(), links, 0, now, now, now, 0)
