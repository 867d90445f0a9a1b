"""Drop: objects that the backend has no more leave the tree, with everything below them.

Called by whoever learns it (``Merge``, ``RemoteSync``, giving up, trimming); it asks nobody and
judges nothing: nothing of what is dropped may be due. An object goes with all of its names; one
that lies below and has another name elsewhere keeps that. Memory follows each commit.
"""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

from unifs.journal.content import large_id
from unifs.journal.log import Op
from unifs.vfs.remoterows import RemoteInode
from unifs.vfs.tree import ATTRIBUTES, SET_GONE, pack_attributes
from unifs.vfs.treenames import DELETE_LINK

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch, Statement, Tree

SUBTREE = (
    "with recursive below(ino) as (values(?) union all"
    " select d.ino from dentry d join below b on d.parent=b.ino) select ino from below"
)
#: Rows that one removal of a directory takes from the database in one transaction.
DROP_MAX = 1_000


def drop(volume: RemoteVolume, ino: int) -> None:
    """Remove an object and everything below it from the tree; nothing of it is due."""
    tree = volume.tree
    rows = dict.fromkeys(row[0] for row in tree.database.all(SUBTREE, (ino,)))
    row = tree.inode_row(ino)
    is_directory = row is not None and stat.S_ISDIR(ATTRIBUTES.unpack(row[4])[0])
    places = [] if row is None else list(tree.parents(ino, row[1]))
    batch: Batch = []
    contents: list[int] = []
    followers: list[Callable[[], None]] = []
    for place in places:
        tree.drop_name(batch, *place)
        above = volume.hot_or_row(place[0]) if is_directory else None
        if above is not None:
            batch.append(count_directories(above, -1))
            followers.append(partial(_count_one_less, above))
    for below in reversed(rows):
        names = _names(volume, below) if below != ino else []
        inside = [name for name in names if name[0] in rows]
        if len(inside) < len(names):
            left = len(names) - len(inside)
            take_names(tree, below, inside, left, batch)
            followers.append(partial(_count_names, volume, below, left))
        else:
            followers.append(_drop_rows(volume, below, batch, contents))
        if len(batch) >= DROP_MAX:
            tree.commit(batch, frees=True)
            _follow(followers)
            batch, followers = [], []
    commit_releasing(volume, batch, contents)
    _follow(followers)
    for place in places:
        volume.tell_entry(*place)


def _follow(followers: list[Callable[[], None]]) -> None:
    for follow in followers:
        follow()


def count_directories(parent: RemoteInode, more: int) -> Statement:
    """The statement for so many directories more in one; what memory counts is the caller's.

    None more is worth it, too: the row may lag behind what memory counted before.
    """
    attributes = parent.attributes
    return _links(parent.ino, pack_attributes(attributes), attributes.st_nlink + more)


def _links(ino: int, packed: bytes, links: int) -> Statement:
    """The statement for another link count beside the attributes of a row."""
    attributes = bytearray(packed)
    attributes[12:16] = links.to_bytes(4, "little")
    return "update inode set attributes=? where ino=?", (bytes(attributes), ino)


def _count_one_less(parent: RemoteInode) -> None:
    parent.attributes.st_nlink -= 1


def _names(volume: RemoteVolume, ino: int) -> list[tuple[int, bytes]]:
    """The names of an object that may have several; others have one, by which they were found."""
    row = volume.tree.inode_row(ino)
    return [] if row is None or row[1] else list(volume.tree.parents(ino, 0))


def take_names(
    tree: Tree, ino: int, names: list[tuple[int, bytes]], left: int, batch: Batch
) -> None:
    """Statements for names in directories that go, of an object that has ``left`` others.

    Their entries in the directories, and what memory counts, are the caller's.
    """
    batch.append(_links(ino, tree.inode_row(ino)[4], left))
    batch.extend((DELETE_LINK, (ino, *name)) for name in names)


def _count_names(volume: RemoteVolume, ino: int, left: int) -> None:
    hot = volume.inodes.hot.get(ino)
    if hot is not None:
        hot.attributes.st_nlink = left
        volume.tell_inode(ino)


def commit_releasing(volume: RemoteVolume, batch: Batch, contents: list[int]) -> None:
    """Commit a change after which nothing names ``contents`` any more.

    Their bytes go when a record of the same transaction is durable. It is nobody's: a power cut
    before it leaves rows that name bytes which are still there.
    """
    log = volume.writer.log
    if contents:
        batch.append(log.row(Op.SYNC, 0, 0, b""))
    volume.tree.commit(batch, frees=True)
    volume.writer.release(contents)


def _drop_rows(
    volume: RemoteVolume, ino: int, batch: Batch, contents: list[int]
) -> Callable[[], None]:
    """Statements, and what memory does once they are committed."""
    hot = volume.inodes.hot.get(ino)
    batch.append(("delete from remote where ino=?", (ino,)))
    batch.append(("delete from dentry where parent=?", (ino,)))
    batch.append(("delete from link where ino=?", (ino,)))
    if isinstance(hot, RemoteInode):
        if large_id(hot.stored):
            # As in ``commit_releasing``: its bytes go when it is forgotten.
            batch.append(volume.writer.log.row(Op.SYNC, 0, 0, b""))
        batch.append((SET_GONE, (volume.tree.epoch, ino)))
        return partial(_lose, volume, hot)
    row = volume.tree.inode_row(ino)
    if row is not None and large_id(row[5]):
        contents.append(large_id(row[5]))
    batch.append(("delete from xattr where ino=?", (ino,)))
    batch.append(("delete from inode where ino=?", (ino,)))
    return partial(_lose, volume, None)


def _lose(volume: RemoteVolume, hot: RemoteInode | None) -> None:
    volume.rows -= 1
    if hot is None:
        return
    hot.path = None
    hot.attributes.st_nlink = 0
    hot.is_gone = True
    volume.writer.touched.pop(hot.ino, None)
    if not hot.opens and not volume.inodes.count(hot.ino):
        volume.forgotten(hot.ino)
