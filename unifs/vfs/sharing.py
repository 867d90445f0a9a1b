"""Sharing: a new file with the bytes of another, of which none is copied.

``unifs ctl files cp`` calls it on the event loop. Both rows name one content, as a present and a
past one do; whoever writes to either file writes to an overlay of its own. Only a sealed content is
shared: it is durable, and no writer is at it.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from unifs.journal.content import SEALED, LargeContent, large_id
from unifs.vfs.historyrestore import ONE_MORE
from unifs.vfs.paths import copied_mode
from unifs.vfs.remotevolume import RemoteVolume
from unifs.vfs.tree import blocks_of
from unifs.vfs.treevolume import TreeVolume

if TYPE_CHECKING:
    from unifs.types import Caller
    from unifs.vfs.treeinode import TreeInode


def settle(source: TreeInode) -> bool:
    """Commit what a file's writers have left; whether its content can be shared once it is sealed.

    WouldBlock before anything has changed.
    """
    if not stat.S_ISREG(source.attributes.st_mode) or source.writers:
        return False
    if source.is_dirty():
        _volume(source).writer.commit(source)
    return bool(large_id(source.stored))


def share(source: TreeInode, parent: TreeInode, name: bytes, caller: Caller) -> bool:
    """Make a file ``name`` that has the content of ``source``; False where that cannot be shared.

    Exists; NoSpace where the new file's mount has too much that its backend does not have yet;
    WouldBlock before anything has changed.
    """
    if not settle(source):
        return False
    content = _volume(source).writer.content_of(source)
    if not isinstance(content, LargeContent) or content.state != SEALED:
        return False
    volume = _volume(parent)
    # Whoever waited has an inode of before: what it named may have been let go of.
    row = volume.tree.inode_row(source.ino)
    if row is None or row[3] is not None or row[5] != source.stored:
        return False
    volume.check_new(parent, name)
    is_sent = isinstance(volume, RemoteVolume)
    if is_sent:
        volume.unsynced.admit(content.size)
    volume.tree.database.admit()
    mode = copied_mode(source.attributes.st_mode)
    inode = volume.new_inode(parent, stat.S_IFREG | mode, caller)
    inode.attributes.st_size = content.size
    inode.attributes.st_blocks = blocks_of(content.size)
    inode.stored = source.stored
    volume.make_inode(parent, name, inode, [(ONE_MORE, (large_id(source.stored),))])
    if is_sent:
        volume.unsynced.wrote(inode, content.size)
    return True


def _volume(inode: TreeInode) -> TreeVolume:
    assert isinstance(inode.volume, TreeVolume)
    return inode.volume
