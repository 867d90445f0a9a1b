"""HAMT directories: a trie over the hash of each name, one dag-pb block per shard.

``directory.py`` is the only caller: it decides between one block and a HAMT, and hides names that a
file system cannot show. Nothing here does I/O beyond ``get`` and ``put``.

Rules that give the CID (boxo and the published vectors; where the specification's prose differs,
they win): the key of a name is the first half of murmur3-x64-128, most significant bits first; a
bucket's link is named by the bucket in upper-case hex, followed by the entry's name unless it links
a sub-shard; the bitmap is big-endian without leading zero bytes; a bucket with one entry holds it
in place, one with more links a sub-shard. So the shape depends on the set of names alone, and an
update of the paths that change yields the CID of a rebuild.

A shard from outside is refused (``Corrupt``) if its fan-out, bitmap, prefixes or the hash of a name
are not what these rules make. That also bounds every walk: a name fits on one path only, so a shard
linked from many buckets is found out at its first entry, and no key is longer than 64 bits.
"""

from __future__ import annotations

import hashlib
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from mmh3 import mmh3_x64_128_utupledigest

from unifs.errors import Corrupt, Unsupported
from unifs.ipfs import dagpb
from unifs.ipfs.cid import DAG_PB, Cid, encode_varint
from unifs.ipfs.dagpb import PbLink
from unifs.ipfs.unixfs.node import (
    HASH_MURMUR3,
    DataType,
    Link,
    decode_data,
    load,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from unifs.ipfs.unixfs.node import DirEntry, Get, Put, UnixfsData
    from unifs.ipfs.unixfs.profiles import Profile

    #: The size of an entry by a profile's rule: CID bytes, name, tsize → bytes.
    EntrySizer = Callable[[bytes, bytes, int | None], int]
    KeyedChange = tuple[int, bytes, Link | None]

KEY_BITS: Final = 64
FANOUT_MAX: Final = 1024


class Item(NamedTuple):
    """An entry with the key of its name. Items sort by key."""

    key: int
    name: bytes
    cid_binary: bytes
    tsize: int | None


#: The links of a shard by their buckets, in ascending order, named as in the block: an entry's link
#: by prefix and name, a sub-shard's by the prefix alone.
Buckets = dict[int, PbLink]


def name_key(name: bytes) -> int:
    """The 64-bit key of a name; its most significant bits choose the bucket at the root."""
    key: int = mmh3_x64_128_utupledigest(name)[0]
    return key


def item(entry: DirEntry) -> Item:
    """An entry with its key computed."""
    return Item(name_key(entry.name), entry.name, entry.cid.binary, entry.tsize)


class Fanout:
    """How keys of one fan-out are cut into buckets and how buckets are named."""

    __slots__ = ("bits", "mask", "prefix_chars", "prefixes", "size")

    def __init__(self, size: int) -> None:
        if not 8 <= size <= FANOUT_MAX or size & (size - 1):
            raise Corrupt(f"HAMT with fan-out {size}; a power of two from 8 to 1024 is needed")
        self.size = size
        self.mask = size - 1
        self.bits = size.bit_length() - 1
        self.prefix_chars = len(f"{self.mask:X}")
        self.prefixes = [b"%0*X" % (self.prefix_chars, bucket) for bucket in range(size)]

    def shift(self, depth: int) -> int:
        """How far a key is shifted right so that its lowest bits are the bucket at ``depth``."""
        return KEY_BITS - self.bits * (depth + 1)


# --- writing --------------------------------------------------------------------------------------


class HamtWriter:
    """Builds shards for one profile; ``put`` None only computes CIDs."""

    def __init__(self, profile: Profile, put: Put | None) -> None:
        self.fanout = Fanout(profile.hamt_fanout)
        self._version = profile.cid_version
        self._tail = b"\x28\x22\x30" + encode_varint(profile.hamt_fanout)
        self._put = put

    def build(self, items: Sequence[Item], depth: int = 0) -> Link:
        """The shard at ``depth`` over ``items``, sorted by key, all with the same path to it."""
        shift = self.fanout.shift(depth)
        if shift < 0:
            names = " and ".join(repr(entry.name) for entry in items[:2])
            raise Unsupported(f"the names {names} have the same hash: no HAMT can hold both")
        mask, prefixes = self.fanout.mask, self.fanout.prefixes
        buckets: Buckets = {}
        start, count = 0, len(items)
        while start < count:
            key, name, cid_binary, tsize = items[start]
            bucket = (key >> shift) & mask
            stop = start + 1
            while stop < count and (items[stop].key >> shift) & mask == bucket:
                stop += 1
            if stop - start == 1:
                buckets[bucket] = PbLink(cid_binary, prefixes[bucket] + name, tsize)
            else:
                shard = self.build(items[start:stop], depth + 1)
                buckets[bucket] = self.link(bucket, shard)
            start = stop
        return self.emit(buckets)

    def link(self, bucket: int, shard: Link) -> PbLink:
        """The link to a sub-shard in a bucket."""
        return PbLink(shard.cid.binary, self.fanout.prefixes[bucket], shard.tsize)

    def emit(self, buckets: Buckets) -> Link:
        """Make the block of one shard."""
        parts = [dagpb.encode_link(*link) for link in buckets.values()]
        bitmap = 0
        for bucket in buckets:
            bitmap |= 1 << bucket
        bitmap_bytes = bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "big")
        message = b"\x08\x05\x12" + encode_varint(len(bitmap_bytes)) + bitmap_bytes + self._tail
        parts.append(b"\x0a" + encode_varint(len(message)) + message)
        block = b"".join(parts)
        cid = Cid.dag_pb(hashlib.sha256(block).digest(), self._version)
        if self._put is not None:
            self._put(cid, block)
        return Link(cid, len(block) + sum([link.tsize or 0 for link in buckets.values()]))


class HamtUpdate:
    """Applies changes to one HAMT along their paths; unchanged shards are linked, not read.

    ``size_delta`` tells by how much the entries' size, as ``sizer`` tells it, has changed.
    """

    def __init__(self, writer: HamtWriter, get: Get, sizer: EntrySizer) -> None:
        self._writer = writer
        self._get = get
        self._sizer = sizer
        self.size_delta = 0

    def apply(self, root: Shard, changes: Mapping[bytes, Link | None]) -> Buckets:
        """The root's buckets after the changes; sub-shards are already put, the root is not."""
        keyed: list[KeyedChange] = [(name_key(name), name, link) for name, link in changes.items()]
        keyed.sort(key=itemgetter(0, 1))
        return self._apply(root, 0, keyed)

    def _apply(self, shard: Shard, depth: int, changes: list[KeyedChange]) -> Buckets:
        fanout = self._writer.fanout
        buckets = split(shard, fanout)
        shift, mask = fanout.shift(depth), fanout.mask
        start, count = 0, len(changes)
        while start < count:
            bucket = (changes[start][0] >> shift) & mask
            stop = start + 1
            while stop < count and (changes[stop][0] >> shift) & mask == bucket:
                stop += 1
            held = self._bucket(buckets.get(bucket), bucket, depth, changes[start:stop])
            if held is not None:
                buckets[bucket] = held
            else:
                buckets.pop(bucket, None)
            start = stop
        return dict(sorted(buckets.items()))

    def _bucket(
        self, held: PbLink | None, bucket: int, depth: int, changes: list[KeyedChange]
    ) -> PbLink | None:
        """What the bucket holds after its changes, None for nothing."""
        writer = self._writer
        prefix, chars = writer.fanout.prefixes[bucket], writer.fanout.prefix_chars
        items: dict[bytes, Item] = {}
        if held is not None:
            own = (held.name or b"")[chars:]
            if not own:
                cid = Cid.decode(held.cid_binary)
                shard = read_shard(cid, depth + 1, self._get, writer.fanout)
                inner = self._apply(shard, depth + 1, changes)
                only = next(iter(inner.values()), None)
                if len(inner) > 1 or (only is not None and len(only.name or b"") == chars):
                    return writer.link(bucket, writer.emit(inner))
                if only is None:
                    return None
                return only._replace(name=prefix + (only.name or b"")[chars:])
            items[own] = Item(name_key(own), own, held.cid_binary, held.tsize)
        self._change(items, changes)
        if len(items) > 1:
            return writer.link(bucket, writer.build(sorted(items.values()), depth + 1))
        for _key, name, cid_binary, tsize in items.values():
            return PbLink(cid_binary, prefix + name, tsize)
        return None

    def _change(self, items: dict[bytes, Item], changes: list[KeyedChange]) -> None:
        for key, name, link in changes:
            old = items.pop(name, None)
            if old is not None:
                self.size_delta -= self._sizer(old.cid_binary, old.name, old.tsize)
            if link is not None:
                new = Item(key, name, link.cid.binary, link.tsize)
                self.size_delta += self._sizer(new.cid_binary, new.name, new.tsize)
                items[name] = new


# --- reading --------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """A decoded shard: its links in the order of the bits in ``bitmap``."""

    cid: Cid
    links: list[PbLink]
    bitmap: int


def shard_of(cid: Cid, links: list[PbLink], data: UnixfsData, fanout: Fanout) -> Shard:
    """The shard that a block is, if its parameters and its bitmap fit; else ``Corrupt``."""
    if data.hash_type != HASH_MURMUR3:
        raise Corrupt(f"{cid}: HAMT with hash {data.hash_type}; only murmur3-x64-64 exists")
    if data.fanout != fanout.size:
        raise Corrupt(f"{cid}: a shard of fan-out {data.fanout} in a HAMT of {fanout.size}")
    bitmap = int.from_bytes(data.data or b"", "big")
    if bitmap >> fanout.size or bitmap.bit_count() != len(links):
        raise Corrupt(f"{cid}: the HAMT's bitmap does not match its {len(links)} links")
    return Shard(cid, links, bitmap)


def read_shard(cid: Cid, depth: int, get: Get, fanout: Fanout) -> Shard:
    """The shard that a HAMT of this fan-out links at ``depth``; below the root none is empty."""
    if fanout.shift(depth) < 0:
        raise _too_deep(cid)
    if cid.codec != DAG_PB:
        raise Corrupt(f"{cid}: no shard where a HAMT links one")
    node = dagpb.decode(load(cid, get))
    data = decode_data(node.data)
    if data.kind is not DataType.HAMT_SHARD or (depth and not node.links):
        raise Corrupt(f"{cid}: an empty shard, or none, where a HAMT links one")
    return shard_of(cid, node.links, data, fanout)


def split(shard: Shard, fanout: Fanout) -> Buckets:
    """A shard's links by bucket; each must be named for the bucket that the bitmap gives it."""
    buckets: Buckets = {}
    chars, prefixes, bitmap = fanout.prefix_chars, fanout.prefixes, shard.bitmap
    for link in shard.links:
        bucket = (bitmap & -bitmap).bit_length() - 1
        bitmap &= bitmap - 1
        if link.name is None or link.name[:chars] != prefixes[bucket]:
            raise _misnamed(shard.cid, link, bucket)
        buckets[bucket] = link
    return buckets


def iterate(cid: Cid, root: Buckets, fanout: Fanout, get: Get) -> Iterator[PbLink]:
    """All entries of a HAMT whose root is read already, by their own names, in the trie's order."""
    chars, bits = fanout.prefix_chars, fanout.bits
    pending = [(iter(root.items()), 0, 0)]
    while pending:
        walk, depth, path = pending[-1]
        shift = fanout.shift(depth)
        for bucket, (cid_binary, name, tsize) in walk:
            own = name[chars:] if name else b""
            here = path << bits | bucket
            if own:
                if name_key(own) >> shift != here:
                    raise Corrupt(f"{cid}: {own!r} stands where its hash does not lead")
                yield PbLink(cid_binary, own, tsize)
                continue
            shard = read_shard(Cid.decode(cid_binary), depth + 1, get, fanout)
            pending.append((iter(split(shard, fanout).items()), depth + 1, here))
            break
        else:
            pending.pop()


def find(
    name: bytes, root: Shard, fanout: Fanout, read: Callable[[Cid, int], Shard]
) -> PbLink | None:
    """The entry of that name, under its own name; ``read`` gives the shard of a CID at a depth."""
    key = name_key(name)
    shard, depth = root, 0
    while True:
        bucket = (key >> fanout.shift(depth)) & fanout.mask
        bit = 1 << bucket
        if not shard.bitmap & bit:
            return None
        link = shard.links[(shard.bitmap & (bit - 1)).bit_count()]
        prefix = fanout.prefixes[bucket]
        if link.name == prefix + name:
            return link._replace(name=name)
        if link.name is None or not link.name.startswith(prefix):
            raise _misnamed(shard.cid, link, bucket)
        if link.name != prefix:
            return None
        depth += 1
        if fanout.shift(depth) < 0:
            raise _too_deep(shard.cid)
        shard = read(Cid.decode(link.cid_binary), depth)


def _too_deep(cid: Cid) -> Corrupt:
    return Corrupt(f"{cid}: a HAMT deeper than its hash is long")


def _misnamed(cid: Cid, link: PbLink, bucket: int) -> Corrupt:
    return Corrupt(f"{cid}: a HAMT link is named {link.name!r} in bucket {bucket:X}")
