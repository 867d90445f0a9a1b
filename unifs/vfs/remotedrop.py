"""Drop: names that the backend has no more leave the tree, with everything below them.

Called by whoever learns it (``Merge``, ``RemoteSync``, giving up, trimming); it asks nobody and
judges nothing: nothing of what is dropped may be due.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from unifs.journal.content import large_id
from unifs.journal.log import Op
from unifs.vfs.remoterows import RemoteInode
from unifs.vfs.tree import SET_GONE

if TYPE_CHECKING:
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

SUBTREE = (
    "with recursive below(ino) as (values(?) union all"
    " select d.ino from dentry d join below b on d.parent=b.ino) select ino from below"
)
#: Rows that one removal of a directory takes from the database in one transaction.
DROP_MAX = 1_000


def drop(volume: RemoteVolume, parent: int, name: bytes, ino: int) -> None:
    """Remove a name and everything below it from the tree; nothing of it is due."""
    tree = volume.tree
    rows = tree.database.all(SUBTREE, (ino,))
    batch: Batch = []
    tree.drop_name(batch, parent, name)
    contents: list[int] = []
    for (below,) in reversed(rows):
        _drop_rows(volume, below, batch, contents)
        if len(batch) >= DROP_MAX:
            tree.commit(batch, frees=True)
            batch = []
    commit_releasing(volume, batch, contents)
    volume.rows -= len(rows)
    above = volume.inodes.hot.get(parent)
    hot = volume.inodes.hot.get(ino)
    if above is not None and hot is not None and stat.S_ISDIR(hot.attributes.st_mode):
        above.attributes.st_nlink -= 1
    volume.tell_entry(parent, name)


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


def _drop_rows(volume: RemoteVolume, ino: int, batch: Batch, contents: list[int]) -> None:
    hot = volume.inodes.hot.get(ino)
    batch.append(("delete from remote where ino=?", (ino,)))
    batch.append(("delete from dentry where parent=?", (ino,)))
    batch.append(("delete from link where ino=?", (ino,)))
    if isinstance(hot, RemoteInode):
        hot.path = None
        hot.attributes.st_nlink = 0
        hot.is_gone = True
        volume.writer.touched.pop(ino, None)
        if large_id(hot.stored):
            # As in ``commit_releasing``: its bytes go when it is forgotten.
            batch.append(volume.writer.log.row(Op.SYNC, 0, 0, b""))
        batch.append((SET_GONE, (volume.tree.epoch, ino)))
        if not hot.opens and not volume.inodes.count(ino):
            volume.forgotten(ino)
        return
    row = volume.tree.inode_row(ino)
    if row is not None and large_id(row[5]):
        contents.append(large_id(row[5]))
    batch.append(("delete from xattr where ino=?", (ino,)))
    batch.append(("delete from inode where ino=?", (ino,)))
