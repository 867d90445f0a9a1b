"""Reading back: is what the backend gives what was written?

The state after *synced*: the bytes of a file are read from its backend, past every cache, and
compared with those of this machine, or hashed against the CID that was recorded for that version.
Where neither is left, the backend's own answer (all bytes of the version that it confirmed) is all
there is to ask. Used by control operations; belongs to the event loop.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from unifs.errors import Corrupt, NotFound, Stale
from unifs.ipfs.unixfs.builder import FileBuilder, hash_leaf
from unifs.journal.content import LARGE, REMOTE, SMALL
from unifs.vfs.remotecid import known_cid
from unifs.vfs.remotereaders import MountReader, reader_of

if TYPE_CHECKING:
    from unifs.mounts.base import ContentReader
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume

FILES = "select ino from inode where mount=? and gone is null and ino>? order by ino limit 256"


async def read_back(volume: RemoteVolume, below: int | None) -> int:
    """Read every file at and below an inode from the backend; how many.

    Corrupt, naming the file, where the backend gives other bytes; what the mount raises where it
    gives none. A file that changes meanwhile is not verified: Stale.
    """
    count = after = 0
    while rows := volume.tree.database.all(FILES, (volume.mount_id, after)):
        after = rows[-1][0]
        for (ino,) in rows:
            inode = volume.hot_or_row(ino)
            if inode is None or not stat.S_ISREG(inode.attributes.st_mode):
                continue
            if volume.tree.is_below(ino, below):
                await _read_file(volume, inode)
                count += 1
    return count


async def _read_file(volume: RemoteVolume, inode: RemoteInode) -> None:
    path, version, stored = inode.path, inode.version, inode.stored
    if path is None or volume.state_of(inode) not in ("synced", "verified"):
        raise Stale(f"{_name(volume, inode)} changed while it was verified")
    reader = MountReader(volume.mount, path, version, inode.attributes.st_size)
    try:
        is_same = await _compare(volume, inode, reader)
    except NotFound:
        raise Corrupt(f"{_name(volume, inode)} is not at its backend") from None
    if inode.version != version or inode.stored != stored:
        raise Stale(f"{_name(volume, inode)} changed while it was verified")
    if not is_same:
        raise Corrupt(f"{_name(volume, inode)}: the backend has other bytes")


async def _compare(volume: RemoteVolume, inode: RemoteInode, reader: ContentReader) -> bool:
    kind = inode.stored[0] if inode.stored else 0
    chunk = volume.contents.profile.chunk_bytes
    if kind in (SMALL, LARGE):
        ours = await reader_of(volume.contents, volume.writer.content_of(inode))
        if ours.size_bytes != reader.size_bytes:
            return False
        for start in range(0, reader.size_bytes, chunk):
            if await reader.read(start, chunk) != await ours.read(start, chunk):
                return False
        return True
    recorded = known_cid(volume, inode) if kind == REMOTE else None
    builder = FileBuilder(volume.contents.profile, None)
    for start in range(0, reader.size_bytes, chunk):
        piece = await reader.read(start, chunk)
        builder.leaf_digest(hash_leaf(volume.contents.profile, piece), len(piece))
    return recorded is None or builder.finish().cid == recorded


def _name(volume: RemoteVolume, inode: RemoteInode) -> str:
    path = volume.tree.path(inode.ino)
    return f"/{volume.name}{(path or b'?').decode('utf-8', 'backslashreplace')}"
