"""What a check sees of a state directory, and what it says.

A ``Look`` reads rows (through any connection to tree.db) and files; it changes nothing but a
temporary table of its own connection. A ``Finding`` is one inconsistency with a code that stays the
same for ever, one sentence, and what mends it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unifs.errors import InvalidCid
from unifs.ipfs.cid import Cid
from unifs.journal.content import (
    EXPANDED,
    LARGE,
    LINKED,
    REMOTE,
    SMALL,
    SYMLINK,
    SmallContent,
    large_id,
    small_content,
)
from unifs.types import SYMLINK_MAX_BYTES
from unifs.vfs.tree import ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from unifs.fsck.mending import Mending
    from unifs.state.queries import Queries

#: Names above one that are looked at before a path counts as a loop; PATH_MAX allows fewer.
DEPTH_MAX = 4096
#: Rows that one query looks at: no read transaction beside a daemon takes longer than 20 ms.
KEYS = 10_000
KINDS = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
)
#: Bytes of a small content's column; of a large one's.
_SMALL_BYTES, _LARGE_BYTES = len(SmallContent(0, 0, 0, bytes(32)).blob), 9


@dataclass(frozen=True, slots=True)
class Finding:
    """One inconsistency. ``key`` is that of the row in the check's table, 0 where it has none.

    ``mend`` None: nothing here can mend it, or what mends another one of its check.
    """

    code: str
    sentence: str
    key: int = 0
    mend: Callable[[Mending], None] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One question. ``find`` gets a range of keys, (after, upto], of ``table``'s ``key``.

    Without a table it is asked once. ``is_for_rest``: holds only where nothing is on its way: after
    a clean stop, or after recovery. ``needs_recovery``: holds at every commit, but after a power
    cut only once recovery has run. ``needs_names``: asks the table ``named``.
    """

    find: Callable[[Look, int, int], Iterator[Finding]]
    table: str = ""
    key: str = ""
    is_for_rest: bool = False
    needs_recovery: bool = False
    needs_names: bool = False
    #: Reads all of a table in one statement: not beside a daemon.
    is_long: bool = False
    #: What it finds is wrong though rows change meanwhile: it need not be asked again.
    is_exact: bool = False

    def run(self, look: Look) -> Iterator[Finding]:
        """Everything that it finds."""
        look.check_cancelled()
        if self.needs_names:
            look.gather()
        if not self.table:
            yield from self.find(look, 0, 0)
            return
        for after, upto in look.ranges(self.table, self.key):
            yield from self.find(look, after, upto)


@dataclass(frozen=True, slots=True)
class Shown:
    """A row of the mount table."""

    name: str
    kind: str
    root: int


class Look:
    """Reads for the checks. Belongs to one thread at a time."""

    def __init__(
        self, rows: Queries, path: Path, check_cancelled: Callable[[], None] = lambda: None
    ) -> None:
        """``check_cancelled`` is called before each long step; it raises where it should end."""
        self.check_cancelled = check_cancelled
        self.all = rows.all
        self.one = rows.one
        #: The state directory.
        self.state = path
        #: Hash contents too.
        self.is_thorough = False
        #: Nobody reads the sentences: no path is looked for.
        self.is_silent = False
        self._segments: dict[tuple[str, int], int | None] = {}

    def close(self) -> None:
        """Let go of all descriptors."""
        for descriptor in self._segments.values():
            if descriptor is not None:
                os.close(descriptor)
        self._segments.clear()

    # --- the tree ---------------------------------------------------------------------------------

    def mounts(self) -> dict[int, Shown]:
        """The mount table's sound rows, by number."""
        rows = self.all("select id,name,kind,root from mount")
        return {
            number: Shown(name, kind, root)
            for number, name, kind, root in rows
            if isinstance(name, str) and isinstance(kind, str) and isinstance(root, int)
        }

    def path(self, ino: int) -> str:
        """One path of an inode for a sentence; its number where it has none."""
        if self.is_silent:
            return ""
        names: list[bytes] = []
        at: Any = ino
        for _ in range(DEPTH_MAX):
            mount = self.one("select name from mount where root=?", (at,))
            if mount is not None:
                return "/".join(["", str(mount[0]), *map(os.fsdecode, reversed(names))])
            row = self.one("select parent from inode where ino=?", (at,))
            if row is None or not isinstance(row[0], int):
                break
            found = self._name_in(row[0], at) if row[0] else None
            found = found or self.one("select parent,name from link where ino=?", (at,))
            if found is None or not isinstance(found[1], bytes):
                break
            at = found[0]
            names.append(found[1])
        tail = "/".join(["", *map(os.fsdecode, reversed(names))]) if names else ""
        return f"inode {at}{tail}"

    def _name_in(self, parent: int, ino: int) -> tuple[int, Any] | None:
        """A directory and a name that an inode has in it."""
        query = (
            "select max(id),max(case when ino=? then id end) from"
            f" (select id,ino from dentry where parent=? and id>? order by id limit {KEYS})"
        )
        last: Any = -(1 << 63)
        while last is not None:
            last, found = self.one(query, (ino, parent, last))
            if found is not None:
                row = self.one("select name from dentry where parent=? and id=?", (parent, found))
                return (parent, row[0]) if row is not None else None
        return None

    def place(self, parent: object, name: object) -> str:
        """A name in a directory, for a sentence."""
        text = os.fsdecode(name) if isinstance(name, bytes) else repr(name)
        return f"{self.path(parent)}/{text}" if isinstance(parent, int) else f"{parent!r}/{text}"

    def gather(self, inos: Iterable[int] | None = None) -> None:
        """Count the names of every inode, or of these, into the temporary table ``named``."""
        self.all("create temp table if not exists named(ino integer primary key, n, low, high)")
        self.all("create temp table if not exists suspect(ino integer primary key)")
        self.all("delete from temp.named")
        self.all("delete from temp.suspect")
        for ino in inos or ():
            self.all("insert into temp.suspect values(?)", (ino,))
        is_one = "typeof(ino)='integer'" if inos is None else "ino in (select ino from suspect)"
        insert = (
            "insert into temp.named select ino,count(*),min(parent),max(parent) from dentry"
            f" where {is_one} and {{page}} group by ino on conflict(ino) do update set"
            " n=n+excluded.n,low=min(low,excluded.low),high=max(high,excluded.high)"
        )
        for _ in self.pages(insert, "dentry", "parent,id"):
            pass

    def ranges(self, table: str, key: str) -> Iterator[tuple[int, int]]:
        """Ranges (after, upto] that cover all whole-numbered keys of a table."""
        query = f"select min({key}) from {table} where {key}>? and typeof({key})='integer'"
        after = -(1 << 63)
        is_first = True
        while True:
            self.check_cancelled()
            least = self.one(query.replace(">", ">=") if is_first else query, (after,))[0]
            if least is None:
                return
            is_first = False
            after, upto = max(least - 1, -(1 << 63)), min(least + KEYS, (1 << 63) - 1)
            yield after, upto
            after = upto

    def pages(self, query: str, table: str, key: str) -> Iterator[list[Any]]:
        """What a query finds in a table, ``KEYS`` rows after ``KEYS`` rows.

        ``key`` are the columns of an index that no two rows share. The query has ``{page}`` where
        it says which rows it looks at; each page is a statement of its own.
        """
        marks = f"({','.join('?' * (key.count(',') + 1))})"
        last: tuple[Any, ...] = ()
        while True:
            self.check_cancelled()
            page = f"({key})>{marks}" if last else "1"
            tail = f"where {page} order by {key} limit 1 offset {KEYS - 1}"
            end = self.one(f"select {key} from {table} {tail}", last) or ()
            page += f" and ({key})<={marks}" if end else ""
            yield self.all(query.format(page=page), (*last, *end))
            if not end:
                return
            last = end

    # --- contents ---------------------------------------------------------------------------------

    def container(self, number: int) -> Path:
        """The file of a container."""
        return self.state / "data" / f"{number:016x}"

    def holds_small(self, content: SmallContent) -> bool:
        """Whether a section with that digest and length is where the column says."""
        descriptor = self.segment("segments", content.segment)
        if descriptor is None or content.offset < 36:
            return False
        size = os.fstat(descriptor).st_size
        if content.offset + content.length > size:
            return False
        head = os.pread(descriptor, 36, content.offset - 36)
        return head == b"\x01\x55\x12\x20" + content.digest

    def segment(self, store: str, number: int) -> int | None:
        """A descriptor of a segment, None where there is no such file."""
        key = (store, number)
        if key not in self._segments:
            if len(self._segments) >= 256:
                self.close()
            try:
                flags = os.O_RDONLY | os.O_CLOEXEC
                self._segments[key] = os.open(self.state / store / f"{number}.car", flags)
            except FileNotFoundError:
                self._segments[key] = None
        return self._segments[key]


#: What a CID may stand for.
LINKABLE = (stat.S_IFREG, stat.S_IFDIR)


def mode_of(attributes: object) -> int:
    """The mode in an attributes column, 0 where it is none."""
    if not isinstance(attributes, bytes) or len(attributes) != ATTRIBUTES.size:
        return 0
    mode = int.from_bytes(attributes[:4], "little")
    return mode if stat.S_IFMT(mode) in KINDS else 0


def size_of(attributes: bytes) -> int:
    """The size in an attributes column."""
    return int.from_bytes(attributes[16:24], "little")


def content_problem(blob: object, mode: int) -> str:
    """Why a content column cannot be that of an inode with this mode; "" where it can."""
    if not isinstance(blob, bytes):
        return "is no content"
    kind, file_type = (blob[0] if blob else 0), stat.S_IFMT(mode)
    fits = {
        0: file_type != stat.S_IFLNK,
        SMALL: len(blob) == _SMALL_BYTES and file_type == stat.S_IFREG,
        LARGE: len(blob) == _LARGE_BYTES and file_type == stat.S_IFREG,
        SYMLINK: len(blob) <= SYMLINK_MAX_BYTES + 1 and file_type == stat.S_IFLNK,
        LINKED: kind == LINKED and is_cid(blob[9:]) and file_type in LINKABLE,
        EXPANDED: len(blob) == 1 and file_type == stat.S_IFDIR,
        REMOTE: len(blob) >= _LARGE_BYTES and file_type == stat.S_IFREG,
    }
    if not fits.get(kind, False):
        return f"is no content of a {kind_name(mode)}"
    if kind == SMALL and small_content(blob).offset >= 1 << 63:
        return "lies nowhere"
    if kind == LARGE and not 0 < large_id(blob) < 1 << 63:
        return "has no number"
    return ""


def is_cid(binary: bytes) -> bool:
    """Whether these bytes are a CID."""
    try:
        Cid.decode(binary)
    except InvalidCid:
        return False
    return True


def kind_name(mode: int) -> str:
    """A file type in words."""
    names = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return names.get(stat.S_IFMT(mode), "special file")
