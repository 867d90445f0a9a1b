"""Contents: the immutable bytes that inodes point to, and where they lie.

Five kinds stand in an inode's row, told apart by their first byte:

* nothing: an empty file;
* small (1): at most ``SMALL_BYTES`` in a CAR section of a segment, named by its sha2-256;
* large (2): a row of ``content`` whose extents lie in containers, files below ``data/``;
* symlink (3): the target itself;
* linked (4): a CID whose blocks the node keeps; it stays that CID until first written;
* expanded (5): of a directory that was linked, whose names have rows now;
* remote (6): size and version of bytes that only the mount's backend and the cache have.

Reads are inline where the page cache has the bytes (``preadv(RWF_NOWAIT)``: 1 µs for 4 KiB,
against 57 µs for a thread) and raise WouldBlock where the disk must be waited for. A small content
is hashed at its first read since start, a sealed large one leaf by leaf; what was hashed when it
was sealed is not hashed again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import Corrupt
from unifs.ipfs.embedded.segments import Place
from unifs.ipfs.unixfs.builder import leaf_block_parts
from unifs.journal.containers import Containers, is_container_name
from unifs.journal.extents import HOLE, ExtentMap
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.ipfs.embedded.segments import Segments
    from unifs.ipfs.unixfs.profiles import Profile
    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory

SMALL_BYTES = 64 << 10

SMALL, LARGE, SYMLINK, LINKED, EXPANDED, REMOTE = 1, 2, 3, 4, 5, 6
CLOSED, SEALED = 1, 2

#: Ids of large contents that each start of the daemon has for itself.
IDS_OF_A_START = 1 << 32

_SMALL = struct.Struct("<BIQI32s")
_LARGE = struct.Struct("<BQ")
_REMOTE = struct.Struct("<BQ")
#: Of the columns that name bytes on this machine, by their kind.
COLUMN_BYTES = {SMALL: _SMALL.size, LARGE: _LARGE.size}


class SmallContent:
    """Bytes of a segment, named by their sha2-256."""

    __slots__ = ("blob", "is_verified", "length", "offset", "segment")

    def __init__(self, segment: int, offset: int, length: int, digest: bytes) -> None:
        self.segment = segment
        self.offset = offset
        self.length = length
        self.is_verified = False
        self.blob = _SMALL.pack(SMALL, segment, offset, length, digest)

    @property
    def digest(self) -> bytes:
        """sha2-256 of the bytes."""
        return self.blob[-32:]

    def place(self) -> Place:
        """Where its bytes lie."""
        return Place(self.segment, self.offset, self.length)


class LargeContent:
    """A row of the content table. ``verified`` has a byte per leaf; None: there are no hashes."""

    __slots__ = (
        "base",
        "blob",
        "cid",
        "extents",
        "id",
        "leaves",
        "own",
        "size",
        "state",
        "verified",
    )

    def __init__(self, content_id: int, size: int, extents: ExtentMap) -> None:
        self.id = content_id
        self.size = size
        self.extents = extents
        self.state = CLOSED
        self.cid: bytes | None = None
        self.leaves = b""
        self.verified: bytearray | None = None
        #: The nearest sealed content that this one was laid over, while this one is not sealed.
        self.base: LargeContent | None = None
        #: The container that was made for this content and that no other content names, 0 where
        #: that is not known. What its extents do not cover reads as zeros there.
        self.own = 0
        self.blob = large_blob(content_id)


Content = SmallContent | LargeContent


def symlink_blob(target: bytes) -> bytes:
    """The content column of a symlink."""
    return bytes((SYMLINK,)) + target


def linked_blob(cid: bytes) -> bytes:
    """The content column of a file linked by its CID."""
    return bytes((LINKED,)) + cid


def remote_blob(size: int, version: str) -> bytes:
    """The content column of a file whose bytes are at its backend."""
    return _REMOTE.pack(REMOTE, size) + version.encode("utf-8", "surrogateescape")


def remote_size(blob: bytes) -> int:
    """The size in a remote file's content column."""
    return int(_REMOTE.unpack_from(blob)[1])


def small_content(blob: bytes) -> SmallContent:
    """The small content in a content column."""
    _, segment, offset, length, digest = _SMALL.unpack(blob)
    return SmallContent(segment, offset, length, digest)


def large_blob(content_id: int) -> bytes:
    """The content column of a large content."""
    return _LARGE.pack(LARGE, content_id)


def large_id(blob: bytes) -> int:
    """The content id in a content column, 0 where it is not a large content."""
    if blob and blob[0] == LARGE:
        return int(_LARGE.unpack(blob)[1])
    return 0


def first_id(database: Database) -> int:
    """From where on the ids of this start's large contents go: no start has had any of those.

    The rows do not tell: what a backend has is told by ids whose rows may be gone.
    """
    newest = database.one("select max(id) from content")[0]
    known = database.get_meta("content_id")
    if newest is None and known is None:
        return 0
    return int(max(newest or 0, known or 0)) + IDS_OF_A_START


class Contents:
    """Reads contents and knows where new ones go. Belongs to the event loop's thread."""

    def __init__(
        self, database: Database, segments: Segments, state: StateDirectory, profile: Profile
    ) -> None:
        self._database = database
        self.segments = segments
        #: How files become CIDs: what one leaf hash covers, and what stands around a leaf's bytes.
        self.profile = profile
        self.boot = state.boot_id.encode()
        listed = (path.name for path in state.data.iterdir())
        names = [int(name, 16) for name in listed if is_container_name(name)]
        queries = [f"select coalesce(max(container),0) from {name}" for name in ("holding", "redo")]
        rows = [database.one(query)[0] for query in queries]
        self.containers = Containers(state.data, max([*rows, *names]))
        self.last_id: int = database.get_meta("content_id", 0)
        self._buffer = memoryview(bytearray(1 << 20))
        #: Threads that wait for the disk on behalf of readers.
        self.disk = trio.CapacityLimiter(16)

    def decode(self, blob: bytes) -> Content | None:
        """The content that an inode's column names; None for an empty file, a symlink or a link."""
        if not blob or blob[0] > LARGE:
            return None
        if blob[0] == SMALL:
            return small_content(blob)
        return self.large(large_id(blob))

    def large(self, content_id: int) -> LargeContent:
        """The large content of that id; Corrupt if its row is gone."""
        query = "select size,state,extents,cid,leaves from content where id=?"
        row = self._database.one(query, (content_id,))
        if row is None:
            raise Corrupt(f"content {content_id} has no row")
        content = LargeContent(content_id, row[0], ExtentMap.unpack(row[2]))
        content.state, content.cid, content.leaves = row[1], row[3], row[4] or b""
        if content.leaves:
            content.verified = bytearray(len(content.leaves) // 32)
        return content

    # --- reading ----------------------------------------------------------------------------------

    def read_small(self, content: SmallContent, offset: int, size: int) -> bytes | memoryview:
        """Up to ``size`` bytes, verified; WouldBlock where the disk must be waited for."""
        size = min(size, content.length - offset)
        if size <= 0:
            return b""
        descriptor = self.segments.descriptor(content.segment)
        if not content.is_verified:
            whole = self.read_at(descriptor, content.offset, content.length)
            if hashlib.sha256(whole).digest() != content.digest:
                raise Corrupt(
                    f"segment {content.segment} at {content.offset}: bytes do not match their hash"
                )
            content.is_verified = True
            return whole[offset : offset + size]
        return self.read_at(descriptor, content.offset + offset, size)

    def read_at(self, descriptor: int, offset: int, size: int) -> memoryview:
        """Exactly ``size`` bytes from the page cache; WouldBlock loads them.

        Corrupt if the file has less.
        """
        view = self._buffer[:size]
        try:
            count = os.preadv(descriptor, [view], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            count = -1
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # tmpfs: there is nothing to wait for.
            count = os.preadv(descriptor, [view], offset)
        if count == size:
            return view
        if count >= 0 and offset + count >= os.fstat(descriptor).st_size:
            raise Corrupt(f"{size} bytes expected at {offset}, the file ends after {count}")
        raise WouldBlock(partial(self._load, descriptor, offset, size))

    async def _load(self, descriptor: int, offset: int, size: int) -> object:
        # Nothing has run since the caller looked at the descriptor: it is still the right one.
        duplicate = os.dup(descriptor)
        await trio.to_thread.run_sync(_read_ahead, duplicate, offset, size, limiter=self.disk)
        return RETRY

    def read_extents(self, extents: ExtentMap, offset: int, end: int) -> bytes | memoryview:
        """The bytes of ``[offset, end)``; holes read as zeros."""
        if end - offset > len(self._buffer):
            step = len(self._buffer)
            starts = range(offset, end, step)
            return b"".join(
                bytes(self.read_extents(extents, start, min(start + step, end))) for start in starts
            )
        container = extents.single(offset, end)
        if container != HOLE:
            return self.read_at(self.containers.descriptor(container), offset, end - offset)
        parts: list[bytes] = []
        for holder, start, stop in extents.pieces(offset, end):
            if holder == HOLE:
                parts.append(bytes(stop - start))
            else:
                part = self.read_at(self.containers.descriptor(holder), start, stop - start)
                parts.append(bytes(part))
        return b"".join(parts)

    def read_large(self, content: LargeContent, offset: int, size: int) -> bytes | memoryview:
        """Up to ``size`` bytes; leaves of a sealed content are hashed at their first use."""
        end = min(offset + size, content.size)
        if offset >= end:
            return b""
        verified = content.verified
        if verified is not None:
            leaf_bytes = self.profile.chunk_bytes
            for leaf in range(offset // leaf_bytes, (end - 1) // leaf_bytes + 1):
                if not verified[leaf]:
                    raise WouldBlock(partial(self._verify, content, leaf))
        return self.read_extents(content.extents, offset, end)

    async def _verify(self, content: LargeContent, leaf: int) -> object:
        start = leaf * self.profile.chunk_bytes
        end = min(start + self.profile.chunk_bytes, content.size)
        pieces = self.duplicate(content.extents, start, end)
        job = partial(hash_pieces, self.profile, end - start, pieces)
        digest = await trio.to_thread.run_sync(job, limiter=self.disk)
        if digest != content.leaves[leaf * 32 : leaf * 32 + 32]:
            raise Corrupt(f"content {content.id} at {start}: bytes do not match their hash")
        if content.verified is not None:
            content.verified[leaf] = 1
        return RETRY

    def duplicate(self, extents: ExtentMap, offset: int, end: int) -> list[tuple[int, int, int]]:
        """Pieces of a range with descriptors of their own (-1: hole); their reader closes them."""
        pieces: list[tuple[int, int, int]] = []
        for holder, start, stop in extents.pieces(offset, end):
            descriptor = -1 if holder == HOLE else os.dup(self.containers.descriptor(holder))
            pieces.append((descriptor, start, stop))
        return pieces

    def close(self) -> None:
        self.containers.close()


def _read_ahead(descriptor: int, offset: int, size: int) -> None:
    """Bring a range into the page cache, in a thread; closes the descriptor."""
    try:
        os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def read_pieces(pieces: list[tuple[int, int, int]], is_fresh: bool = False) -> Iterator[bytes]:
    """The bytes of ``Contents.duplicate``'s pieces, in a thread; closes their descriptors.

    ``is_fresh``: from the disk; the kernel is asked to forget those that it has written out.
    """
    try:
        for descriptor, start, end in pieces:
            if descriptor < 0:
                yield bytes(end - start)
                continue
            if is_fresh:
                os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
            while start < end:
                part = os.pread(descriptor, end - start, start)
                if not part:
                    raise Corrupt(f"a container ends at {start}, before {end}")
                start += len(part)
                yield part
    finally:
        for descriptor, _, _ in pieces:
            if descriptor >= 0:
                os.close(descriptor)


def hash_pieces(profile: Profile, length: int, pieces: list[tuple[int, int, int]]) -> bytes:
    """The digest of the leaf block whose chunk the pieces are, in a thread."""
    prefix, suffix = leaf_block_parts(profile, length)
    digest = hashlib.sha256(prefix)
    for part in read_pieces(pieces):
        digest.update(part)
    digest.update(suffix)
    return digest.digest()
