"""What becomes of a local change whose place somebody else took at the backend.

Each policy is one transaction that leaves the inode due; writeback then goes on with what it finds.
Nothing of the backend is overwritten or removed here.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

from unifs.journal.log import Op, Renamed, pack_rename
from unifs.journal.writeback_order import NOWHERE
from unifs.types import NAME_MAX_BYTES, Version
from unifs.vfs.conflicts import record
from unifs.vfs.remotedrop import count_directories, take_names
from unifs.vfs.remoterows import RemoteInode
from unifs.vfs.tree import SET_GONE
from unifs.vfs.treenames import DELETE_LINK, INSERT_LINK

if TYPE_CHECKING:
    from unifs.types import Node
    from unifs.vfs.remotesync import RemoteSync
    from unifs.vfs.tree import Batch

log = logging.getLogger(__name__)

#: The object is at no place of the backend.
NOWHERE_NOW = "update remote set path=null,version='',synced=null,told=null where ino=?"


def keep_both(sync: RemoteSync, ino: int, path: str, node: Node) -> None:
    """The local inode with its open handles gets another name, the remote object the old one."""
    volume, tree = sync.volume, sync.tree
    wanted = sync.wanted(ino)
    inode = volume.hot_or_row(ino)
    if wanted is None or inode is None:
        return
    new_name = _free_name(sync, wanted.parent, wanted.name)
    parent = volume.hot_or_row(wanted.parent)
    assert parent is not None
    batch: Batch = []
    tree.drop_name(batch, wanted.parent, wanted.name)
    batch.append(tree.add_name(wanted.parent, new_name, ino))
    if not inode.parent:
        place = (wanted.parent, wanted.name)
        batch.append((DELETE_LINK, (ino, *place)))
        batch.append((INSERT_LINK, (ino, wanted.parent, new_name)))
    made = volume.merge.new(parent, node, path)
    volume.merge.insert(made, wanted.name, batch)
    more = int(stat.S_ISDIR(node.mode))
    batch.append(count_directories(parent, more))
    known = sync.known(ino) or NOWHERE
    is_theirs_now = known.path == path
    # What ours was to replace is not there any more either: theirs alone has the place.
    other = sync.displace(path, ino, batch)
    if is_theirs_now:
        batch.append((NOWHERE_NOW, (ino,)))
    renamed = Renamed(wanted.parent, 0, False, wanted.name, new_name)
    batch.append(volume.log.row(Op.RENAME, ino, wanted.parent, pack_rename(renamed)))
    batch.append(record(tree, ino, wanted.parent, wanted.name, volume.now_ns()))
    tree.commit(batch)
    _displaced(sync, other, path)
    parent.attributes.st_nlink += more
    if is_theirs_now:
        inode.path, inode.version, inode.held, inode.told = None, Version(""), None, None
    volume.inodes.add(made)
    log.warning("conflict: both are kept: ino=%d path=%r new_name=%r", ino, path, new_name)
    volume.tell_entry(wanted.parent, wanted.name)
    volume.tell_entry(wanted.parent, new_name)


def take_ours(sync: RemoteSync, ino: int, path: str, node: Node) -> None:
    """The local change will replace what somebody else put there."""
    known = sync.known(ino) or NOWHERE
    batch: Batch = []
    # What ours replaces may be gone from the tree and not from there: a save that renames.
    there = ino if known.path == path else sync.at(path)
    if there == ino or (there and sync.wanted(there) is None):
        statement = "update remote set version=?,synced=null where ino=?"
        batch.append((statement, (node.version or "", there)))
    elif not there:
        sync.orphan(path, node.version, batch)
    if batch:
        sync.tree.commit(batch)
        sync.note_late(path)
    hot = sync.volume.inodes.hot.get(ino)
    if known.path == path and hot is not None:
        assert isinstance(hot, RemoteInode)
        hot.version, hot.held = node.version or Version(""), None
    log.warning("conflict: ours is kept: ino=%d path=%r", ino, path)


def step_aside(sync: RemoteSync, ino: int, path: str) -> None:
    """The tree has the inode elsewhere by now: theirs keeps the place, ours goes to the new one."""
    known = sync.known(ino) or NOWHERE
    if known.path == path:
        sync.tree.commit([(NOWHERE_NOW, (ino,))])
        inode = sync.volume.inodes.hot.get(ino)
        if inode is not None:
            inode.take(NOWHERE)  # type: ignore[attr-defined]
    sync.unlist(path.rpartition("/")[0])


def take_bytes(sync: RemoteSync, ino: int, path: str, node: Node) -> None:
    """Only attributes were changed here: the bytes are theirs, the attributes stay ours and due."""
    inode = sync.volume.hot_or_row(ino)
    if inode is None:
        return
    if stat.S_IFMT(node.mode) != stat.S_IFMT(inode.attributes.st_mode):
        take_theirs(sync, ino, path, node)
        return
    sync.volume.merge.adopt_bytes(inode, node)
    log.warning("conflict: their bytes, our attributes: ino=%d path=%r", ino, path)


def take_theirs(sync: RemoteSync, ino: int, path: str, node: Node) -> None:
    """The remote object takes the name; the local inode keeps others, or lives while it is open."""
    volume, tree = sync.volume, sync.tree
    wanted = sync.wanted(ino)
    inode = volume.hot_or_row(ino)
    if wanted is None or inode is None:
        return
    parent = volume.hot_or_row(wanted.parent)
    assert parent is not None
    batch: Batch = []
    place = (wanted.parent, wanted.name)
    tree.drop_name(batch, *place)
    others = [other for other in tree.names_of(ino) if other != place]
    if others:
        take_names(tree, ino, [place], len(others), batch)
        batch.append((NOWHERE_NOW, (ino,)))
    else:
        batch.append(("delete from remote where ino=?", (ino,)))
        batch.append((SET_GONE, (tree.epoch, ino)))
    made = volume.merge.new(parent, node, path)
    volume.merge.insert(made, wanted.name, batch)
    batch.append(volume.log.row(Op.UNLINK, ino, wanted.parent, wanted.name))
    more = int(stat.S_ISDIR(node.mode)) - int(wanted.is_directory)
    batch.append(count_directories(parent, more))
    other = sync.displace(path, ino, batch)
    tree.commit(batch)
    _displaced(sync, other, path)
    parent.attributes.st_nlink += more
    inode.take(NOWHERE)
    inode.attributes.st_nlink = len(others)
    if not others:
        volume.lost_name(inode)
    volume.inodes.add(made)
    log.warning("conflict: theirs is kept: ino=%d path=%r", ino, path)
    volume.tell_entry(wanted.parent, wanted.name)


def _displaced(sync: RemoteSync, ino: int, path: str) -> None:
    """Memory follows ``RemoteSync.displace``: its removal may have been sent, and arrive late."""
    if ino:
        sync.forget_place(ino)
        sync.note_late(path)


def _free_name(sync: RemoteSync, parent: int, name: bytes) -> bytes:
    """``<stem>.conflict-<host>-<time>``, with the extension kept and a number where it is taken."""
    stem, extension = os.path.splitext(name)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(sync.volume.now_ns() / 1e9))
    host = socket.gethostname().partition(".")[0] or "localhost"
    mark = f".conflict-{host}-{moment}".encode()
    number = 1
    while True:
        tail = mark + (f"-{number}".encode() if number > 1 else b"") + extension
        candidate = stem[: NAME_MAX_BYTES - len(tail)] + tail
        is_pending = (parent, candidate) in sync.volume.writer.pending
        if not is_pending and not sync.tree.find(parent, candidate):
            return candidate
        number += 1
