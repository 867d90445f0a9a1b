"""CIDs of files of a remote mount: those of their bytes, where the bytes have been on this machine.

What was written here has the CID of its content, as in /mfs. When its bytes move to the cache, and
when somebody had them all read and hashed (``hash_remote``), the CID is kept in the row beside the
version that it is of, so that another version never has it. Nothing is read from a backend because
somebody asks for a CID, and no CID is believed that a backend tells.

``RemoteVolume``, ``Cold`` and control operations call it; it belongs to the event loop's thread.
"""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from unifs.cache.source import Source
from unifs.errors import InvalidArgument, NoAttribute, Stale, TryAgain
from unifs.ipfs.cid import Cid
from unifs.ipfs.unixfs.builder import FileBuilder, build_symlink, hash_leaf
from unifs.journal.content import REMOTE, SEALED, LargeContent, SmallContent
from unifs.waiting import RETRY, WouldBlock, complete

if TYPE_CHECKING:
    from unifs.types import Version
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Statement

#: How long a CID may take to be computed before the caller is told to try again.
CID_S: Final = 5.0


def cid_of(volume: RemoteVolume, inode: RemoteInode) -> Cid:
    """The CID of the inode's bytes as they are now.

    NoAttribute for directories and special files, for bytes that nobody has closed yet, and for
    those that only the backend has and nobody has hashed. WouldBlock, for at most ``CID_S`` and
    then TryAgain, while a large content is sealed.
    """
    mode = stat.S_IFMT(inode.attributes.st_mode)
    profile = volume.contents.profile
    if mode == stat.S_IFLNK:
        return build_symlink(inode.stored[1:], profile, None).cid
    if mode != stat.S_IFREG or inode.overlay is not None or inode.is_dirty():
        raise NoAttribute
    if inode.stored and inode.stored[0] == REMOTE:
        return _recorded(volume, inode)
    content = volume.writer.content_of(inode)
    if isinstance(content, SmallContent):
        return small_cid(volume, content)
    if isinstance(content, LargeContent):
        if content.state == SEALED and content.cid is not None:
            return Cid.decode(content.cid[8:])
        raise WouldBlock(partial(_seal, volume, inode), volume.name)
    return FileBuilder(profile, None).finish().cid


async def _seal(volume: RemoteVolume, inode: RemoteInode) -> object:
    if volume.seal is not None:
        with trio.move_on_after(CID_S):
            await volume.seal(inode)
            return RETRY
    raise TryAgain("the bytes are being hashed")


def small_cid(volume: RemoteVolume, content: SmallContent) -> Cid:
    """The CID of a small content; WouldBlock where its bytes have to be read for it."""
    profile = volume.contents.profile
    if profile.has_raw_leaves:
        return Cid.raw(content.digest)
    builder = FileBuilder(profile, None)
    builder.add_leaf(bytes(volume.contents.read_small(content, 0, content.length)))
    return builder.finish().cid


# --- what is recorded -----------------------------------------------------------------------------


def record(ino: int, version: Version, cid: Cid) -> Statement:
    """The statement that keeps the CID of one version's bytes."""
    blob = bytes((len(cid.binary),)) + cid.binary + version.encode("utf-8", "surrogateescape")
    return "update inode set cid=? where ino=?", (blob, ino)


def _recorded(volume: RemoteVolume, inode: RemoteInode) -> Cid:
    row = volume.tree.database.one("select cid from inode where ino=?", (inode.ino,))
    if row is None or row[0] is None:
        raise NoAttribute
    blob = bytes(row[0])
    end = 1 + blob[0]
    if blob[end:].decode("utf-8", "surrogateescape") != inode.version:
        raise NoAttribute
    return Cid.decode(blob[1:end])


def known_cid(volume: RemoteVolume, inode: RemoteInode) -> Cid | None:
    """As ``cid_of`` without waiting; None where there is none, or none yet."""
    try:
        return cid_of(volume, inode)
    except (NoAttribute, WouldBlock):
        return None


# --- hashing --------------------------------------------------------------------------------------


async def hash_remote(volume: RemoteVolume, inode: RemoteInode) -> Cid:
    """Read all bytes of a file that only the backend has, and keep their CID.

    Through the read cache, one chunk at a time, hashed in threads. Stale if the file changes
    meanwhile. InvalidArgument where it is no file.
    """
    if not stat.S_ISREG(inode.attributes.st_mode):
        raise InvalidArgument("only files have a CID here")
    try:
        return await complete(cid_of, volume, inode)
    except NoAttribute:
        if not inode.stored or inode.stored[0] != REMOTE or inode.overlay is not None:
            raise
    stored, version = inode.stored, inode.version
    size = inode.attributes.st_size
    source = Source.of(volume.name, volume.mount, inode.path or "", version, size)
    profile = volume.contents.profile
    builder = FileBuilder(profile, None)
    for start in range(0, size, profile.chunk_bytes):
        length = min(profile.chunk_bytes, size - start)
        piece = bytes(await complete(volume.cache.read_nowait, source, start, length))
        digest = await trio.to_thread.run_sync(hash_leaf, profile, piece)
        builder.leaf_digest(digest, length)
    cid = builder.finish().cid
    if inode.is_gone or inode.stored != stored or inode.version != version:
        raise Stale("the file changed while it was read")
    await complete(volume.tree.commit, [record(inode.ino, version, cid)])
    return cid
