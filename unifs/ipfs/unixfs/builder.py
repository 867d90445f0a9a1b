"""Files as balanced DAGs, streaming: leaves go in, in order, and every node comes out once.

The blockstore's ``add`` and the sealing of /mfs contents call this. Whoever keeps a chunk where it
already lies (a container) hands in only its digest; then this module makes the interior nodes
alone. Memory is one list of at most ``width`` children per level. It never reads, never stores:
blocks go to the ``put`` that the caller gives.

A leaf is hashed with ``hash_leaf``, which releases the GIL for the whole chunk, so several threads
can hash leaves of one file out of order and one of them feeds ``FileBuilder`` in order.

Byte-exact rules: chunk links carry an *empty* name; a file of one chunk is its leaf; all leaves
have the same depth; a node's tsize is the length of its block and its children's tsizes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from unifs.ipfs.cid import Cid, encode_varint
from unifs.ipfs.dagpb import encode_link
from unifs.ipfs.unixfs.node import DataType, Link, UnixfsData, encode_data

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.ipfs.cid import Bytes
    from unifs.ipfs.unixfs.node import Put
    from unifs.ipfs.unixfs.profiles import Profile


class Readable(Protocol):
    """A file to import: a binary file object will do."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer as far as there are bytes; 0 at the end of the file."""


def leaf_block_parts(profile: Profile, length_bytes: int) -> tuple[bytes, bytes]:
    """What stands before and behind a chunk of this length in its leaf block.

    Both are empty for raw leaves. The block is ``prefix + chunk + suffix``; its hash is that of the
    three in turn, so a chunk needs no copy to be hashed or written.
    """
    if profile.has_raw_leaves:
        return b"", b""
    size = encode_varint(length_bytes)
    suffix = b"\x18" + size
    head = b"\x08\x02" + (b"\x12" + size if length_bytes else b"")
    message = len(head) + length_bytes + len(suffix)
    return b"\x0a" + encode_varint(message) + head, suffix


def hash_leaf(profile: Profile, chunk: Bytes) -> bytes:
    """The sha2-256 digest of the leaf block that holds this chunk."""
    if profile.has_raw_leaves:
        return hashlib.sha256(chunk).digest()
    prefix, suffix = leaf_block_parts(profile, len(chunk))
    hasher = hashlib.sha256(prefix)
    hasher.update(chunk)
    hasher.update(suffix)
    return hasher.digest()


def leaf_cid(profile: Profile, digest: bytes) -> Cid:
    """The CID of the profile's leaf block with this digest."""
    return Cid.raw(digest) if profile.has_raw_leaves else Cid.dag_pb(digest, profile.cid_version)


class _Level:
    """The children that a node one level up is going to link."""

    __slots__ = ("last", "links", "size_bytes", "sizes", "tsize")

    def __init__(self) -> None:
        self.links: list[bytes] = []
        self.sizes: list[bytes] = []
        self.tsize = 0
        self.size_bytes = 0
        self.last: Cid | None = None

    def add(self, cid: Cid, tsize: int, size_bytes: int) -> None:
        self.links.append(encode_link(cid.binary, b"", tsize))
        self.sizes.append(b"\x20" + encode_varint(size_bytes))
        self.tsize += tsize
        self.size_bytes += size_bytes
        self.last = cid


class FileBuilder:
    """Builds one file's DAG from its leaves, in order; ``finish`` makes the root.

    ``put`` receives each block once, children before parents. Leaves given by digest are the
    caller's to store. All chunks but the last must have the profile's length for the CID to be the
    profile's; nothing here depends on it.
    """

    def __init__(self, profile: Profile, put: Put | None) -> None:
        self._profile = profile
        self._put = put
        self._levels: list[_Level] = [_Level()]

    def add_leaf(self, chunk: Bytes) -> None:
        """Hash a chunk, store its block, and link it."""
        digest = hash_leaf(self._profile, chunk)
        if self._put is not None:
            prefix, suffix = leaf_block_parts(self._profile, len(chunk))
            block = b"".join((prefix, chunk, suffix)) if prefix else bytes(chunk)
            self._put(leaf_cid(self._profile, digest), block)
        self.leaf_digest(digest, len(chunk))

    def leaf_digest(self, digest: bytes, length_bytes: int) -> None:
        """Link a leaf whose block the caller has hashed (``hash_leaf``) and keeps."""
        self.leaf(leaf_cid(self._profile, digest), length_bytes)

    def leaf(self, cid: Cid, length_bytes: int) -> None:
        """Link the profile's leaf that has this CID and holds a chunk of this length."""
        prefix, suffix = leaf_block_parts(self._profile, length_bytes)
        self._append(0, cid, len(prefix) + length_bytes + len(suffix), length_bytes)

    def finish(self) -> Link:
        """The root. A file without leaves is the profile's empty leaf, which is stored."""
        if not self._levels[0].links and len(self._levels) == 1:
            self.add_leaf(b"")
        height = 0
        while True:
            level = self._levels[height]
            is_top = height == len(self._levels) - 1
            if is_top and len(level.links) == 1 and level.last is not None:
                return Link(level.last, level.tsize, level.size_bytes)
            if level.links:
                self._close(height)
            height += 1

    def _append(self, height: int, cid: Cid, tsize: int, size_bytes: int) -> None:
        if height == len(self._levels):
            self._levels.append(_Level())
        level = self._levels[height]
        level.add(cid, tsize, size_bytes)
        if len(level.links) == self._profile.width:
            self._close(height)

    def _close(self, height: int) -> None:
        level = self._levels[height]
        self._levels[height] = _Level()
        message = b"\x08\x02\x18" + encode_varint(level.size_bytes) + b"".join(level.sizes)
        level.links.append(b"\x0a" + encode_varint(len(message)) + message)
        block = b"".join(level.links)
        cid = Cid.dag_pb(hashlib.sha256(block).digest(), self._profile.cid_version)
        if self._put is not None:
            self._put(cid, block)
        self._append(height + 1, cid, level.tsize + len(block), level.size_bytes)


def rebuild(profile: Profile, leaves: Iterable[tuple[Cid, int]], put: Put | None) -> Link:
    """The root over leaves that are known by CID and length, in order, without their bytes.

    2 µs per leaf. Interior nodes go to ``put``; so does the leaf of an empty file.
    """
    builder = FileBuilder(profile, put)
    for cid, length_bytes in leaves:
        builder.leaf(cid, length_bytes)
    return builder.finish()


def import_file(source: Readable, profile: Profile, put: Put | None) -> Link:
    """Cut a file into the profile's chunks and build its DAG. ``put`` None only computes the CID.

    Reads from the source's position to its end. With ``put`` each block is a ``bytes`` of its own
    that the caller may keep. Without, 1 GiB costs 1.02 to 1.05 times its sha2-256: one buffer of a
    chunk stays in the processor's cache.
    """
    builder = FileBuilder(profile, put)
    buffer = memoryview(bytearray(profile.chunk_bytes))
    while filled := _fill(source, buffer):
        builder.add_leaf(buffer[:filled])
        if filled < len(buffer):
            break
    return builder.finish()


def _fill(source: Readable, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer):
        count = source.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def build_symlink(target: bytes, profile: Profile, put: Put | None) -> Link:
    """The one block of a symbolic link."""
    message = encode_data(UnixfsData(DataType.SYMLINK, target))
    block = b"\x0a" + encode_varint(len(message)) + message
    cid = Cid.dag_pb(hashlib.sha256(block).digest(), profile.cid_version)
    if put is not None:
        put(cid, block)
    return Link(cid, len(block), len(target))
