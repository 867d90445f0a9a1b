"""Forgetting all rows of a remote mount: it is taken out of the tree, or shows another backend now.

Called by ``remotes`` while nobody can reach the volume. What waits for the backend is given up with
it, so the caller has asked first. Done in steps, each a transaction; begun and not ended, it begins
again at the next call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from unifs.journal.content import large_id
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

STEP_ROWS = 500
WAITING = (
    "select count(distinct j.ino) from journal j left join inode i on i.ino=j.ino"
    " left join remote r on r.ino=j.ino"
    " where j.state is not null and coalesce(i.mount,r.mount)=?"
)
GIVE_UP = (
    "update journal set state=null where state is not null and ino in"
    " (select j.ino from journal j left join inode i on i.ino=j.ino"
    " left join remote r on r.ino=j.ino"
    " where j.state is not null and coalesce(i.mount,r.mount)=?)"
)
ROWS = (
    "select i.ino,i.content,r.content from inode i left join remote r on r.ino=i.ino"
    " where i.ino>? and i.mount=? and i.ino<>? and i.gone is null order by i.ino limit ?"
)


def waiting_of(volume: RemoteVolume) -> int:
    """How many inodes of a volume that is not served have changes for its backend."""
    return int(volume.tree.database.one(WAITING, (volume.mount_id,))[0])


async def forget_all(volume: RemoteVolume) -> None:
    """Forget everything, with room for others between the steps."""
    after: int | None = 0
    while after is not None:
        after = await complete(forget_step, volume, after)
        await trio.lowlevel.checkpoint()


def forget_now(volume: RemoteVolume) -> None:
    """Forget everything, before the tree is served."""
    after: int | None = 0
    while after is not None:
        after = forget_step(volume, after)


def forget_step(volume: RemoteVolume, after: int) -> int | None:
    """Forget some rows with numbers above ``after``; the last of them, None when it is done."""
    tree, writer = volume.tree, volume.writer
    batch: Batch = []
    contents: list[int] = []
    if not after:
        batch.append((GIVE_UP, (volume.mount_id,)))
    rows = tree.database.all(ROWS, (after, volume.mount_id, volume.root, STEP_ROWS))
    for ino, content, attempted in rows:
        contents += [large_id(bytes(blob)) for blob in (content, attempted) if blob]
        for statement in ("xattr where ino", "link where ino", "dentry where parent"):
            batch.append((f"delete from {statement}=?", (ino,)))
        batch.append(("delete from remote where ino=?", (ino,)))
        batch.append(("delete from inode where ino=?", (ino,)))
    if not rows:
        batch.append(("delete from dentry where parent=?", (volume.root,)))
        query = "select content from remote where mount=?"
        left = tree.database.all(query, (volume.mount_id,))
        contents += [large_id(bytes(blob)) for (blob,) in left if blob]
        batch.append(("delete from remote where mount=?", (volume.mount_id,)))
    tree.commit(batch, frees=True)
    for ino, _, _ in rows:
        inode = writer.inodes.hot.pop(ino, None)
        if inode is not None:
            writer.touched.pop(ino, None)
            writer.unsealed.pop(ino, None)
            writer.unsealed_since.pop(ino, None)
    writer.release(contents)
    if rows:
        return int(rows[-1][0])
    writer.inodes.drop(volume.root)
    volume.rows = 0
    return None
