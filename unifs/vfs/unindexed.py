"""Unindexed: containers that no row names and that the block index does not know of.

The index keeps in memory for a while where a sealed content's leaves lie. If the file goes and the
daemon is killed then, the rows that would tell it again are gone; and whoever loses the index loses
all that it knew. So where anything is kept by its CID, a start cannot tell such a file from what an
unfinished write left: its leaves are hashed, the index is told, and it goes like any other dead
container, once the node has what it needs of it. Called by ``storage``, ``keeper`` and
``unifs.fsck``; deletes nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unifs.ipfs.embedded.pins import has_pins
from unifs.ipfs.embedded.sections import read_exactly
from unifs.ipfs.unixfs.builder import hash_leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unifs.ipfs.unixfs.profiles import Profile
    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory
    from unifs.vfs.storage import Storage


def is_kept_by_cid(database: Database, state: StateDirectory) -> bool:
    """Whether a pin, or a file linked by its CID, may need blocks of contents that are gone."""
    return has_pins(state.path / "pins.db") or any(
        database.one(f"select 1 from {table} where substr(content,1,1)=x'04' limit 1") is not None
        for table in ("inode", "inode_past")
    )


def index_container(
    storage: Storage, container: int, check_cancelled: Callable[[], None] = lambda: None
) -> None:
    """Hash a container's leaves, tell the block index and commit it. Blocks; from any thread.

    A container that is gone has none. Not found is a last leaf that a later content had cut.
    """
    try:
        descriptor = os.open(storage.contents.containers.path(container), os.O_RDONLY)
    except FileNotFoundError:
        return
    profile = storage.profile
    try:
        leaves = list(_leaves(descriptor, profile, check_cancelled))
    finally:
        os.close(descriptor)
    storage.blocks.add_container(container, leaves, is_wrapped=not profile.has_raw_leaves)
    storage.blocks.flush()


def _leaves(
    descriptor: int, profile: Profile, check_cancelled: Callable[[], None]
) -> Iterator[tuple[bytes, int, int]]:
    """(digest, offset, length) of each leaf; of those in holes the first and the last one."""
    chunk, size = profile.chunk_bytes, os.fstat(descriptor).st_size
    start, has_hole = 0, False
    while start < size:
        check_cancelled()
        data = _next_data(descriptor, start, size)
        if data >= start + chunk and has_hole:
            # Either may be in the middle of a leaf, or the last leaf a hole as well.
            start = min(data, size - 1) // chunk * chunk
        has_hole = has_hole or data >= start + chunk
        length = min(chunk, size - start)
        yield hash_leaf(profile, read_exactly(descriptor, length, start)), start, length
        start += length


def _next_data(descriptor: int, start: int, size: int) -> int:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError:
        # Nothing but a hole up to the end.
        return size
