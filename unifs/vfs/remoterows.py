"""Rows of ``remote``: what is known of the object behind an inode.

``RemoteInode`` is the hot form; ``Remotes`` makes statements and reads rows, and like ``Tree`` it
holds no state. Callers: ``RemoteVolume`` and what works behind it, in the event loop's thread.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unifs.journal.content import REMOTE, SMALL, remote_blob, small_content
from unifs.journal.writeback_order import Attempt, Known
from unifs.types import SetAttributes, Version
from unifs.vfs.tree import fill_attributes, pack_attributes
from unifs.vfs.treeinode import TreeInode

if TYPE_CHECKING:
    from unifs.types import Attributes, Node
    from unifs.vfs.tree import Statement, Tree
    from unifs.vfs.volume import Volume

    Form = tuple[Any, ...]

UNLISTED, PARTIAL, COMPLETE = 0, 1, 2

COLUMNS = "path,version,checked_ns,listing,cursor,listed_ns,synced,told,local,attempt"
INSERT = (
    "insert into remote(ino,mount,path,version,checked_ns,listing,cursor,listed_ns,synced,told,"
    "local,attempt,content) values(?,?,?,?,?,?,?,?,?,?,?,null,null)"
    " on conflict(ino) do update set path=excluded.path,version=excluded.version,"
    "checked_ns=excluded.checked_ns,listing=excluded.listing,cursor=excluded.cursor,"
    "listed_ns=excluded.listed_ns,synced=excluded.synced,told=excluded.told,local=excluded.local"
)
#: Everything below a directory, as a range of the index: "/" is 0x2f, "0" is 0x30.
BELOW = "mount=? and path>? and path<?"

#: mode uid gid mtime (ns): what set_attributes tells a backend.
TOLD = struct.Struct("<IIIq")


class RemoteInode(TreeInode):
    """A row of the tree and what is known of the object behind it."""

    __slots__ = (
        "based_on",
        "checked_ns",
        "cursor",
        "held",
        "is_local",
        "listed_ns",
        "listing",
        "lookups",
        "path",
        "told",
        "version",
    )

    def __init__(self, ino: int, volume: Volume, attributes: Attributes) -> None:
        super().__init__(ino, volume, attributes)
        #: Where the backend holds it now; None: nowhere.
        self.path: str | None = None
        self.version = Version("")
        self.checked_ns = 0
        self.listing = UNLISTED
        self.cursor: str | None = None
        self.listed_ns = 0
        #: ``content_key`` of the bytes that ``version`` has, where unifs wrote them.
        self.held: bytes | None = None
        self.told: bytes | None = None
        #: The row holds what the backend cannot give again.
        self.is_local = False
        #: The version on which local bytes are laid; handles pinned to it follow the local bytes.
        self.based_on: Version | None = None
        #: Times (monotonic) of late look-ups in an unlisted directory.
        self.lookups: list[float] = []

    def load(self, row: Any) -> None:
        """Take a row of ``COLUMNS``."""
        path, version, self.checked_ns, self.listing, self.cursor, self.listed_ns = row[:6]
        self.held, self.told = row[6:8]
        self.is_local = bool(row[8])
        self.path = None if path is None else os.fsdecode(path)
        self.version = Version(version or "")

    def take_version(self, node: Node) -> None:
        """The backend's bytes, as it tells of them, are the inode's."""
        attributes = self.attributes
        self.version = node.version or Version("")
        attributes.st_size = node.size_bytes
        attributes.st_blocks = (node.size_bytes + 511) >> 9
        if stat.S_ISREG(attributes.st_mode):
            self.stored = remote_blob(node.size_bytes, self.version)
            self.content = None

    def unlist(self) -> None:
        """The rows are not the whole directory, nor will a listing that is under way make them so.

        The row is the caller's.
        """
        self.listing, self.cursor, self.listed_ns = UNLISTED, None, 0

    def form(self) -> Form:
        """What an answer of the backend changes, for ``restore``; attributes last."""
        known = (self.version, self.stored, self.content, self.held, self.based_on, self.checked_ns)
        return (*known, pack_attributes(self.attributes))

    def restore(self, form: Form) -> None:
        """The rows have not followed what was changed since ``form``."""
        *known, packed = form
        self.version, self.stored, self.content, self.held, self.based_on, self.checked_ns = known
        fill_attributes(self.attributes, self.ino, packed, self.attributes.attr_timeout)

    def take(self, known: Known) -> None:
        """Take what ``known`` says where the two overlap."""
        self.path = known.path
        self.version = known.version or Version("")
        self.held, self.told = known.synced, known.told


def is_directory(inode: RemoteInode) -> bool:
    """Whether it is a directory."""
    return stat.S_ISDIR(inode.attributes.st_mode)


def is_same_kind(inode: RemoteInode, node: Node) -> bool:
    """Whether the backend has there what the inode is: a file, a directory, a symlink."""
    return stat.S_IFMT(inode.attributes.st_mode) == stat.S_IFMT(node.mode)


def is_pinned(inode: RemoteInode, node: Node) -> bool:
    """Whether open handles follow local bytes that this version would replace under them."""
    is_new = (node.version or Version("")) != inode.version
    is_ours = not inode.stored or inode.stored[0] != REMOTE
    return is_new and is_ours and inode.opens > 0 and stat.S_ISREG(inode.attributes.st_mode)


@dataclass(slots=True)
class Found:
    """A row of ``remote`` and its inode's number."""

    ino: int
    known: Known


class Remotes:
    """Statements and queries over ``remote`` for one mount."""

    def __init__(self, tree: Tree, mount_id: int) -> None:
        self._database = tree.database
        self.mount_id = mount_id

    def store(self, inode: RemoteInode) -> Statement:
        """The statement that writes a hot inode's knowledge; an attempt stays as it is."""
        path = None if inode.path is None else os.fsencode(inode.path)
        listing = (inode.listing, inode.cursor, inode.listed_ns)
        known = (inode.held, inode.told, int(inode.is_local))
        row = (inode.ino, self.mount_id, path, inode.version, inode.checked_ns, *listing, *known)
        return INSERT, row

    def row(self, ino: int) -> Any:
        """A row of ``COLUMNS``, or None."""
        return self._database.one(f"select {COLUMNS} from remote where ino=?", (ino,))

    def known(self, ino: int) -> Known | None:
        """What writeback plans with, or None where the backend never had it."""
        row = self.row(ino)
        return None if row is None else _known(row)

    def at(self, path: str) -> int:
        """The inode of the object that the backend holds at ``path``, 0 if none is known."""
        query = "select ino from remote where mount=? and path=?"
        row = self._database.one(query, (self.mount_id, os.fsencode(path)))
        return 0 if row is None else int(row[0])

    def among(self, paths: list[bytes]) -> list[bytes]:
        """Those of ``paths`` at which the backend holds an object that is known."""
        query = "select path from remote where mount=? and path in (%s)"
        return [row[0] for row in self._database.among(query, (self.mount_id,), paths)]

    def below(self, path: str, limit: int) -> list[int]:
        """Inodes of objects that the backend holds below a directory."""
        query = f"select ino from remote where {BELOW} limit ?"
        bindings = (self.mount_id, *bounds(path), limit)
        return [row[0] for row in self._database.all(query, bindings)]

    def move(self, ino: int, old: str, new: str, now_ns: int) -> list[Statement]:
        """Statements for an object, and all below it, that the backend holds elsewhere now.

        A listing of the new place that is under way does not have it: it counts as seen at
        ``now_ns``.
        """
        raw, encoded = os.fsencode(old), os.fsencode(new)
        whole = "update remote set path=?,checked_ns=max(checked_ns,?) where ino=?"
        below = f"update remote set path=cast(?||substr(path,?) as blob) where {BELOW}"
        return [
            (whole, (encoded, now_ns, ino)),
            (below, (encoded, len(raw) + 1, self.mount_id, *bounds(old))),
        ]

    def attempts(self) -> list[Found]:
        """Rows with an attempt of unknown outcome."""
        query = f"select ino,{COLUMNS} from remote where mount=? and attempt is not null"
        rows = self._database.all(query, (self.mount_id,))
        return [Found(row[0], _known(row[1:])) for row in rows]

    def count(self) -> int:
        """How many rows this mount has."""
        query = "select count(*) from remote where mount=?"
        return int(self._database.one(query, (self.mount_id,))[0])


def _known(row: Any) -> Known:
    path, version, _, _, _, _, synced, told, _, attempt = row
    return Known(
        path=None if path is None else os.fsdecode(path),
        version=Version(version) if version else None,
        synced=synced,
        told=told,
        attempt=None if attempt is None else Attempt.unpack(attempt),
    )


def bounds(path: str) -> tuple[bytes, bytes]:
    """The range of all paths below ``path``."""
    if not path:
        return b"", b"\xff"
    raw = os.fsencode(path)
    return raw + b"/", raw + b"0"


def content_key(blob: bytes) -> bytes:
    """Names the bytes of a content column, wherever they lie."""
    if blob and blob[0] == SMALL:
        return bytes((SMALL,)) + small_content(blob).digest
    return blob


def pack_told(attributes: Attributes) -> bytes:
    """The ``told`` column for these attributes."""
    a = attributes
    return TOLD.pack(a.st_mode & 0o7777, a.st_uid, a.st_gid, a.st_mtime_ns)


def told_of(attributes: Attributes) -> SetAttributes:
    """The same, as a backend takes it."""
    a = attributes
    return SetAttributes(
        mode=a.st_mode & 0o7777, uid=a.st_uid, gid=a.st_gid, mtime_ns=a.st_mtime_ns
    )


def join(parent: str, name: bytes) -> str:
    """The path of a name in a directory of the backend."""
    text = os.fsdecode(name)
    return f"{parent}/{text}" if parent else text
