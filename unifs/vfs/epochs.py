"""Ending an epoch: from here on, what changes is the past of the next one. And what it is called.

Called by who builds a root, by retention where no root is built, and by who sets a checkpoint;
fsck asks what can be a checkpoint's name.
"""

from __future__ import annotations

import os
import re
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from unifs.errors import UnifsError, from_os_error
from unifs.vfs.tree import pack_attributes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.writer import Writer

INSERT_EPOCH = "insert or ignore into epoch values(?,?,?,null)"
SECOND_NS = 1_000_000_000
CHECKPOINT_NAME_BYTES_MAX = 200
UPDATE_TIMES = "update inode set attributes=?,epoch=? where ino=?"
#: Inodes whose times are newer than their rows: 80 ms and 16 ms.
DIRECTORIES_MAX, FILES_MAX = 10_000, 2_000


def is_checkpoint_name(name: str) -> bool:
    """Whether its letters can be those of a checkpoint's name."""
    is_known = re.fullmatch(r"\w[\w.+ -]*", name) is not None
    return is_known and len(name.encode()) <= CHECKPOINT_NAME_BYTES_MAX


def time_of(text: str) -> int | None:
    """The nanoseconds of ``2026-11-21T18:02:08Z`` (seconds, minutes or the time may be missing);
    None where the text is no time.
    """
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?Z)?", text):
        return None
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp()) * SECOND_NS


async def seal_closed(writer: Writer, seal: Callable[[TreeInode], Awaitable[None]]) -> None:
    """Bring to the disk what no fsync has covered: a power cut would take it from the past too.

    Raises the first failure, with the name of the file.
    """
    for inode in list(writer.unsealed.values()):
        if not inode.is_gone and writer.tree.tracking.keeps_inode(inode):
            await seal_file(writer, seal, inode)


async def seal_file(
    writer: Writer, seal: Callable[[TreeInode], Awaitable[None]], inode: TreeInode
) -> None:
    """Seal what one file has; a failure tells its name."""
    try:
        await seal(inode)
    except (UnifsError, OSError) as error:
        named = from_os_error(error) if isinstance(error, OSError) else error
        if not isinstance(named, UnifsError):
            raise
        path = os.fsdecode(writer.tree.path(inode.ino) or b"a file")
        raise type(named)(f"{path} cannot be brought to the disk: {named}") from error


def time_rows(writer: Writer, touched: list[TreeInode]) -> Batch:
    """Statements for times that moved; an inode that is to be committed anyway has none."""
    tree = writer.tree
    batch: Batch = []
    for inode in touched:
        if inode.is_dirty():
            continue
        if inode.epoch != tree.epoch:
            tree.keep_inode(batch, inode)
        batch.append((UPDATE_TIMES, (pack_attributes(inode.attributes), tree.epoch, inode.ino)))
    return batch


def times_written(writer: Writer, touched: list[TreeInode]) -> None:
    """The statements of ``time_rows`` are committed: memory follows."""
    for inode in touched:
        del writer.touched[inode.ino]
        inode.is_touched = False
        if not inode.is_dirty():
            inode.epoch = writer.tree.epoch


def next_epoch(writer: Writer, seq: int, frees: bool = False) -> int:
    """End the epoch, whose last journal record is ``seq``; its number.

    Rows get the times that their inodes have now: what is committed later is not in the epoch. Of
    more than ``FILES_MAX`` files that were read in its last second, the times of reading are not.
    """
    tree = writer.tree
    directories: list[TreeInode] = []
    files: list[TreeInode] = []
    for inode in writer.touched.values():
        (directories if stat.S_ISDIR(inode.attributes.st_mode) else files).append(inode)
    touched = directories[:DIRECTORIES_MAX] + files[:FILES_MAX]
    batch = time_rows(writer, touched)
    ended = tree.epoch
    batch.append((INSERT_EPOCH, (ended, seq, time.time_ns())))
    batch.append(("insert or replace into meta values(?,?)", ("epoch", ended + 1)))
    tree.commit(batch, frees=frees)
    times_written(writer, touched)
    tree.epoch = ended + 1
    return ended
