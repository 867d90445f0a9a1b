"""The end of a listing: what none of its pages had is gone.

``Merge`` calls ``end_listing`` when the last page is in the tree. A directory of a million names is
looked through in parts, with the event loop free in between; whoever gives the listing up meanwhile
(a row is dropped, the directory moves) keeps it from being called complete.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio

from unifs.vfs.remoterows import COMPLETE, PARTIAL
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.vfs.remotemerge import Merge
    from unifs.vfs.remoterows import RemoteInode

VANISHED = (
    "select d.ino,r.path from dentry d join remote r on r.ino=d.ino"
    " where d.parent=? and d.id>? and d.id<=? and r.path is not null and r.checked_ns<?"
)
UPTO = "select max(id) from (select id from dentry where parent=? and id>? order by id limit ?)"
#: Names looked through at a time: 8 ms.
NAMES_MAX: Final = 10_000


async def end_listing(merge: Merge, inode: RemoteInode, path: str) -> None:
    """Drop the names that no page had, and call the directory listed."""
    last = 0
    while upto := merge.tree.database.one(UPTO, (inode.ino, last, NAMES_MAX))[0]:
        await complete(_vanish, merge, inode, path, (last, upto))
        last = upto
        await trio.lowlevel.checkpoint()
    await complete(_complete, merge, inode, path)


def _is_ending(inode: RemoteInode, path: str) -> bool:
    """Whether the pages that were taken are still the whole directory."""
    return inode.listing == PARTIAL and inode.cursor is None and inode.path == path


def _vanish(merge: Merge, inode: RemoteInode, path: str, ids: tuple[int, int]) -> None:
    """Names between two ids that no page had, but for those that are on their way there."""
    if not _is_ending(inode, path):
        return
    attempts = merge.attempts
    rows = merge.tree.database.all(VANISHED, (inode.ino, *ids, inode.listed_ns))
    found = [(ino, os.fsdecode(below)) for ino, below in rows]
    merge.vanish(
        [
            ino
            for ino, below in found
            # What the backend holds elsewhere, a link or what is renamed here, no page tells.
            if below.rpartition("/")[0] == path
            and not attempts.is_moving(below)
            and not attempts.is_at(below)
        ]
    )


def _complete(merge: Merge, inode: RemoteInode, path: str) -> None:
    if _is_ending(inode, path):
        inode.listing, inode.listed_ns = COMPLETE, merge.volume.now_ns()
        merge.tree.commit([merge.remotes.store(inode)])
