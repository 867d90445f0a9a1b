"""Bringing one inode back to a form that it, or another, once had.

Both functions are one transaction each, recorded in the journal like any change and kept as history
like any change; memory follows the commit. Bytes are not copied: the row names the content that the
past names. Callers: ``vfs.rollback``, on the event loop.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

from unifs.errors import Busy
from unifs.journal.content import CLOSED, LargeContent, large_id
from unifs.journal.log import Op, pack_pair
from unifs.types import PlainCaller
from unifs.vfs.historyfile import past_content
from unifs.vfs.tree import (
    ATTRIBUTES,
    DROP_XATTR,
    SET_XATTR,
    UPDATE_INODE,
    blocks_of,
    fill_attributes,
    pack_attributes,
)

if TYPE_CHECKING:
    from unifs.vfs.history import Form
    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.treevolume import TreeVolume

ONE_MORE = "update content set refs=refs+1 where id=?"


def is_same(inode: TreeInode, form: Form, xattrs: dict[bytes, bytes]) -> bool:
    """Whether an inode is as it was, but for times of reading and of change and its names."""
    if inode.is_dirty():
        return False
    old, new = (
        ATTRIBUTES.unpack(form.attributes),
        ATTRIBUTES.unpack(pack_attributes(inode.attributes)),
    )
    is_directory = stat.S_ISDIR(new[0])
    if old[:3] != new[:3] or old[6] != new[6] or (not is_directory and old[4] != new[4]):
        return False
    if not is_directory and (inode.stored != form.content or old[8] != new[8]):
        return False
    return xattrs == _xattrs(inode)


def put_back(volume: TreeVolume, inode: TreeInode, form: Form, xattrs: dict[bytes, bytes]) -> None:
    """Give a live inode the content, attributes and extended attributes of a form of its kind.

    Its names stay; with several it changes under each. Busy while somebody has it open for writing;
    WouldBlock before anything has changed.
    """
    if inode.writers:
        raise Busy("it is open for writing")
    writer, tree = volume.writer, volume.tree
    if inode.is_dirty():
        writer.commit(inode)
    writer.detach(inode)
    tree.database.admit()
    is_file = stat.S_ISREG(form.mode)
    blob = form.content if is_file else inode.stored
    is_changed = blob != inode.stored
    batch: Batch = []
    if inode.epoch != tree.epoch:
        tree.keep_inode(batch, inode)
    if is_changed and large_id(blob):
        batch.append((ONE_MORE, (large_id(blob),)))
    attributes = inode.attributes
    before = pack_attributes(attributes)
    links, size = attributes.st_nlink, attributes.st_size
    fill_attributes(attributes, inode.ino, form.attributes, volume.timeout_s)
    attributes.st_nlink, attributes.st_ctime_ns = links, time.time_ns()
    if stat.S_ISDIR(form.mode):
        attributes.st_size = size
    _fit_size(volume, inode, blob)
    packed = pack_attributes(attributes)
    batch.append((UPDATE_INODE, (inode.parent, tree.epoch, packed, blob, inode.ino)))
    if is_changed:
        data = pack_pair(inode.before(), blob)
        batch.append(volume.log.row(Op.CONTENT, inode.ino, inode.parent, data))
    batch.append(volume.log.row(Op.SETATTR, inode.ino, inode.parent, packed))
    _xattr_rows(volume, inode, xattrs, batch)
    try:
        tree.commit(batch)
    except BaseException:
        fill_attributes(attributes, inode.ino, before, volume.timeout_s)
        raise
    writer.committed(inode, None, blob)
    # What nobody had sealed yet is the past's now, which waits for nothing.
    volume.unsynced.reached(inode, inode.unsynced_bytes)
    _to_seal(volume, inode)


def make_from(
    volume: TreeVolume, parent: TreeInode, name: bytes, form: Form, xattrs: dict[bytes, bytes]
) -> TreeInode:
    """A new file, symlink, special file or linked directory with all that a form had. Exists.

    It has one name; ``volume.link`` gives it others.
    """
    volume.check_new(parent, name)
    volume.tree.database.admit()
    inode = volume.new_inode(parent, form.mode, PlainCaller())
    fill_attributes(inode.attributes, inode.ino, form.attributes, volume.timeout_s)
    inode.attributes.st_nlink = 2 if stat.S_ISDIR(form.mode) else 1
    inode.attributes.st_ctime_ns = time.time_ns()
    inode.stored = form.content
    _fit_size(volume, inode, form.content)
    also: Batch = []
    if large_id(form.content):
        also.append((ONE_MORE, (large_id(form.content),)))
    inode.parent = parent.ino
    _xattr_rows(volume, inode, xattrs, also, is_new=True)
    volume.make_inode(parent, name, inode, also)
    _to_seal(volume, inode)
    return inode


def _xattrs(inode: TreeInode) -> dict[bytes, bytes]:
    database = inode.volume.tree.database  # type: ignore[attr-defined]
    return dict(database.all("select name,value from xattr where ino=?", (inode.ino,)))


def _fit_size(volume: TreeVolume, inode: TreeInode, blob: bytes) -> None:
    """A content that was sealed later than its row was written tells the size."""
    content = past_content(volume.contents, volume.tree.database, blob)
    if isinstance(content, LargeContent) and content.size != inode.attributes.st_size:
        inode.attributes.st_size = content.size
        inode.attributes.st_blocks = blocks_of(content.size)


def _to_seal(volume: TreeVolume, inode: TreeInode) -> None:
    """A content that nobody sealed while it was the past's is sealed now."""
    content = volume.writer.content_of(inode)
    if isinstance(content, LargeContent) and content.state == CLOSED:
        volume.writer.unsealed[inode.ino] = inode
        volume.writer.unsealed_since[inode.ino] = 0


def _xattr_rows(
    volume: TreeVolume,
    inode: TreeInode,
    xattrs: dict[bytes, bytes],
    batch: Batch,
    is_new: bool = False,
) -> None:
    """Statements and records for every extended attribute that differs."""
    known = {} if is_new else _xattrs(inode)
    for name in sorted(known.keys() | xattrs.keys()):
        value = xattrs.get(name)
        if known.get(name) == value:
            continue
        volume.tree.keep_xattr(batch, inode, name)
        if value is None:
            batch.append((DROP_XATTR, (inode.ino, name)))
        else:
            batch.append((SET_XATTR, (inode.ino, name, value, volume.tree.epoch)))
        batch.append(volume.log.row(Op.XATTR, inode.ino, inode.parent, name))
