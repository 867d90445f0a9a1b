"""Conflicts that both sides survived: where the two versions are, kept with the rows.

When somebody else took the place of a local change and both are kept, the local inode gets another
name (``vfs.remoteconflict``) and, in the same transaction, a record of why. The record is an
attribute of the inode in a namespace of its own that no user sees or sets: it moves with renames,
survives restarts and goes with the file. Belongs to the event loop's thread.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.state.database import Database
    from unifs.vfs.tree import Statement, Tree

#: Attributes of this namespace are the tree's own: they are never listed.
NAMESPACE = b"unifs."
ATTRIBUTE = b"unifs.conflict"
RECORDED = (
    "select x.ino,i.mount,x.value from xattr x join inode i on i.ino=x.ino"
    " where x.name=? and i.gone is null and x.ino>? order by x.ino limit ?"
)
PAGE = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """A local version that had to take another name. ``parent`` and ``name``: where it was."""

    ino: int
    mount: int
    parent: int
    name: bytes
    time_ns: int


def record(tree: Tree, ino: int, parent: int, name: bytes, time_ns: int) -> Statement:
    """The statement that notes a conflict in the transaction that makes it."""
    value = json.dumps({"parent": parent, "name": os.fsdecode(name), "time_ns": time_ns})
    row = (ino, ATTRIBUTE, value.encode("ascii"), tree.epoch)
    return "insert or replace into xattr values(?,?,?,?)", row


def settle(ino: int) -> Statement:
    """The statement that forgets it."""
    return "delete from xattr where ino=? and name=?", (ino, ATTRIBUTE)


def kept(database: Database) -> Iterator[Kept]:
    """Every conflict that nobody has resolved."""
    after = 0
    while rows := database.all(RECORDED, (ATTRIBUTE, after, PAGE)):
        after = rows[-1][0]
        yield from (_kept(*row) for row in rows)


def kept_of(database: Database, ino: int) -> Kept | None:
    """The conflict of one inode."""
    rows = database.all(RECORDED, (ATTRIBUTE, ino - 1, 1))
    return _kept(*rows[0]) if rows and rows[0][0] == ino else None


def _kept(ino: int, mount: int, value: bytes) -> Kept:
    table = json.loads(value)
    return Kept(ino, mount, table["parent"], os.fsencode(table["name"]), table["time_ns"])
