"""Places: where and what an inode of a remote volume is in the tree, and where at the backend.

Implements ``journal.writeback_order.Objects``; it reads rows and changes nothing.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

from unifs.errors import Stale
from unifs.journal.content import REMOTE, SYMLINK
from unifs.journal.log import Op, unpack_rename
from unifs.journal.writeback_order import ASIDE, NOWHERE, Known, Wanted
from unifs.types import Node, SetAttributes
from unifs.vfs.remoterows import TOLD, content_key
from unifs.vfs.tree import ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Collection

    from unifs.vfs.remotevolume import RemoteVolume

NAMED = "select op,parent,data from journal where ino=? and state is not null order by seq desc"


class Places:
    """The rows of one volume as writeback plans with them."""

    def __init__(self, volume: RemoteVolume) -> None:
        self.volume = volume
        self.tree = volume.tree
        self.remotes = volume.remotes
        self.root = volume.root

    def can(self, capability: str) -> bool:
        return self.volume.mount.supports(capability)

    def known(self, ino: int) -> Known | None:
        return self.remotes.known(ino)

    def at(self, path: str) -> int:
        return self.remotes.at(path)

    def below(self, path: str, limit: int) -> list[int]:
        return self.remotes.below(path, limit)

    def attempting(self, path: str) -> Collection[int]:
        return self.volume.attempts.at(path)

    def late(self, path: str) -> int:
        return next(iter(self.volume.attempts.below(path)), 0)

    def moving(self, path: str) -> int:
        return self.volume.attempts.moving(path)

    def aside(self, path: str) -> str:
        # Not beside it: its directory may be what waits for it to leave. A container, of which no
        # object can be moved out, is never in its own way.
        top = f"{path.partition('/')[0]}/" if self.volume.mount.has_containers else ""
        return f"{top}{ASIDE}{secrets.token_hex(8)}"

    def heir(self, path: str) -> int:
        above, _, name = path.rpartition("/")
        parent = self.remotes.at(above) if above else self.root
        return self.tree.find(parent, os.fsencode(name)) if parent else 0

    def wanted(self, ino: int) -> Wanted | None:
        row = self.tree.inode_row(ino)
        if row is None or row[3] is not None:
            return None
        place = self._name(ino, row[1])
        if place is None:
            return None
        mode, uid, gid, _, _, _, mtime_ns, _, _ = ATTRIBUTES.unpack(row[4])
        content = bytes(row[5])
        key: bytes | None = content_key(content)
        if stat.S_ISDIR(mode) or (content and content[0] == REMOTE):
            key = None
        # A directory's time moves with every name in it; no backend is told of that.
        told = TOLD.pack(mode & 0o7777, uid, gid, 0 if stat.S_ISDIR(mode) else mtime_ns)
        return Wanted(*place, mode, key, told)

    def node(self, ino: int) -> Node:
        row = self.tree.inode_row(ino)
        if row is None:
            raise Stale
        mode, _, _, _, size, _, mtime_ns, _, rdev = ATTRIBUTES.unpack(row[4])
        content = bytes(row[5])
        target = content[1:] if content and content[0] == SYMLINK else None
        return Node(mode, size, None, mtime_ns, True, target, rdev)

    def attributes(self, ino: int) -> SetAttributes:
        row = self.tree.inode_row(ino)
        if row is None:
            raise Stale
        mode, uid, gid, _, _, _, mtime_ns, _, _ = ATTRIBUTES.unpack(row[4])
        if stat.S_ISDIR(mode):
            return SetAttributes(mode=mode & 0o7777, uid=uid, gid=gid)
        return SetAttributes(mode=mode & 0o7777, uid=uid, gid=gid, mtime_ns=mtime_ns)

    def _name(self, ino: int, parent: int) -> tuple[int, bytes] | None:
        """The (directory, name) under which the backend is to have an inode."""
        row = self.remotes.row(ino)
        path = b"" if row is None or row[0] is None else bytes(row[0])
        if not parent:
            return self._linked_name(ino, path)
        name = path.rpartition(b"/")[2]
        if name and self.tree.find(parent, name) == ino:
            return parent, name
        for op, directory, data in self.tree.database.all(NAMED, (ino,)):
            if op in (Op.CREATE, Op.LINK):
                name = bytes(data)
            elif op == Op.RENAME:
                directory, name = unpack_rename(data).new_parent, unpack_rename(data).new_name
            else:
                continue
            if directory == parent and self.tree.find(parent, name) == ino:
                return parent, name
        return next(iter(self.tree.parents(ino, parent)), None)

    def _linked_name(self, ino: int, path: bytes) -> tuple[int, bytes] | None:
        names = sorted(self.tree.parents(ino, 0))
        for parent, name in names:
            above = "" if parent == self.root else (self.known(parent) or NOWHERE).path
            if above is not None and path == os.fsencode(f"{above}/" if above else "") + name:
                return parent, name
        return names[0] if names else None
