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
from unifs.ipfs.cid import Cid, encode_varint
from unifs.ipfs.unixfs.node import (
    HASH_MURMUR3,
    DataType,
    DirEntry,
    Link,
    UnixfsData,
    decode_data,
    encode_data,
    load,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unifs.ipfs.unixfs.node import Get, Put
    from unifs.ipfs.unixfs.profiles import Profile

    #: The size of an entry by a profile's rule: name, CID bytes, tsize → bytes.
    EntrySizer = Callable[[bytes, bytes, int], int]
    KeyedChange = tuple[int, bytes, Link | None]

KEY_BITS: Final = 64
FANOUT_MAX: Final = 1024


class Item(NamedTuple):
    """An entry with the key of its name. Items sort by key."""

    key: int
    name: bytes
    cid_binary: bytes
    tsize: int

    @property
    def entry(self) -> DirEntry:
        """The entry without its key."""
        return DirEntry(self.name, Cid.decode(self.cid_binary), self.tsize)


class SubShard(NamedTuple):
    """A link to a shard one level down."""

    cid_binary: bytes
    tsize: int


#: What each occupied bucket of a shard holds.
Buckets = dict[int, Item | SubShard]


def name_key(name: bytes) -> int:
    """The 64-bit key of a name; its most significant bits choose the bucket at the root."""
    key: int = mmh3_x64_128_utupledigest(name)[0]
    return key


def item(name: bytes, cid: Cid, tsize: int) -> Item:
    """An entry with its key computed."""
    return Item(name_key(name), name, cid.binary, tsize)


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
        self._put = put

    def build(self, items: Sequence[Item], depth: int = 0) -> SubShard:
        """The shard at ``depth`` over ``items``, sorted by key, all with the same path to it."""
        shift = self.fanout.shift(depth)
        if shift < 0:
            names = " and ".join(repr(entry.name) for entry in items[:2])
            raise Unsupported(f"the names {names} have the same hash: no HAMT can hold both")
        mask = self.fanout.mask
        buckets: Buckets = {}
        start, count = 0, len(items)
        while start < count:
            bucket = (items[start].key >> shift) & mask
            stop = start + 1
            while stop < count and (items[stop].key >> shift) & mask == bucket:
                stop += 1
            if stop - start == 1:
                buckets[bucket] = items[start]
            else:
                buckets[bucket] = self.build(items[start:stop], depth + 1)
            start = stop
        return self.emit(buckets)

    def emit(self, buckets: Buckets) -> SubShard:
        """Make the block of one shard. ``buckets`` are in ascending order."""
        prefixes = self.fanout.prefixes
        parts: list[bytes] = []
        bitmap = total = 0
        for bucket, held in buckets.items():
            bitmap |= 1 << bucket
            name = prefixes[bucket]
            if isinstance(held, Item):
                name += held.name
            total += held.tsize
            parts.append(dagpb.encode_link(held.cid_binary, name, held.tsize))
        message = encode_data(
            UnixfsData(
                DataType.HAMT_SHARD,
                bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "big"),
                hash_type=HASH_MURMUR3,
                fanout=self.fanout.size,
            )
        )
        parts.append(b"\x0a" + encode_varint(len(message)) + message)
        block = b"".join(parts)
        cid = Cid.dag_pb(hashlib.sha256(block).digest(), self._version)
        if self._put is not None:
            self._put(cid, block)
        return SubShard(cid.binary, total + len(block))


class HamtUpdate:
    """Applies changes to one HAMT along their paths; unchanged shards are linked, not read.

    ``size_delta`` tells by how much the entries' size (as ``sizer`` tells it) has changed.
    """

    def __init__(self, writer: HamtWriter, get: Get, sizer: EntrySizer) -> None:
        self._writer = writer
        self._get = get
        self._sizer = sizer
        self.size_delta = 0

    def apply(self, root: Cid, changes: dict[bytes, Link | None]) -> Buckets:
        """The root's buckets after the changes; sub-shards are already put, the root is not."""
        keyed: list[KeyedChange] = [(name_key(name), name, link) for name, link in changes.items()]
        keyed.sort(key=itemgetter(0, 1))
        return self._shard(root, 0, keyed)

    def _shard(self, cid: Cid, depth: int, changes: list[KeyedChange]) -> Buckets:
        fanout = self._writer.fanout
        buckets = read_shard(cid, self._get, fanout)
        if buckets is None or fanout.shift(depth) < 0:
            raise Corrupt(f"{cid}: not a shard of this HAMT")
        shift, mask = fanout.shift(depth), fanout.mask
        start, count = 0, len(changes)
        while start < count:
            bucket = (changes[start][0] >> shift) & mask
            stop = start + 1
            while stop < count and (changes[stop][0] >> shift) & mask == bucket:
                stop += 1
            held = self._bucket(buckets.get(bucket), depth, changes[start:stop])
            if held is not None:
                buckets[bucket] = held
            else:
                buckets.pop(bucket, None)
            start = stop
        return dict(sorted(buckets.items()))

    def _bucket(
        self, held: Item | SubShard | None, depth: int, changes: list[KeyedChange]
    ) -> Item | SubShard | None:
        if isinstance(held, SubShard):
            inner = self._shard(Cid.decode(held.cid_binary), depth + 1, changes)
            if len(inner) > 1:
                return self._writer.emit(inner)
            if not inner:
                return None
            (only,) = inner.values()
            return only if isinstance(only, Item) else self._writer.emit(inner)
        items = {} if held is None else {held.name: held}
        for key, name, link in changes:
            old = items.pop(name, None)
            if old is not None:
                self.size_delta -= self._sizer(old.name, old.cid_binary, old.tsize)
            if link is not None:
                new = Item(key, name, link.cid.binary, link.tsize)
                self.size_delta += self._sizer(new.name, new.cid_binary, new.tsize)
                items[name] = new
        if len(items) < 2:
            return next(iter(items.values()), None)
        return self._writer.build(sorted(items.values()), depth + 1)


# --- reading --------------------------------------------------------------------------------------


def read_shard(cid: Cid, get: Get, fanout: Fanout | None = None) -> Buckets | None:
    """The buckets of a shard in ascending order, or None if the block is no shard.

    ``fanout`` is the root's; None takes the shard's own. Raises ``Corrupt`` for a malformed shard.
    """
    node = dagpb.decode(load(cid, get))
    data = decode_data(node.data)
    if data.kind is not DataType.HAMT_SHARD:
        return None
    return parse_shard(cid, node.links, data, fanout or Fanout(data.fanout or 0))


def parse_shard(cid: Cid, links: list[dagpb.PbLink], data: UnixfsData, fanout: Fanout) -> Buckets:
    """Check a decoded shard against the rules and return its buckets in ascending order."""
    if data.hash_type != HASH_MURMUR3:
        raise Corrupt(f"{cid}: HAMT with hash {data.hash_type}; only murmur3-x64-64 exists")
    if data.fanout != fanout.size:
        raise Corrupt(f"{cid}: a shard of fan-out {data.fanout} in a HAMT of {fanout.size}")
    bitmap = int.from_bytes(data.data or b"", "big")
    if bitmap >> fanout.size or bitmap.bit_count() != len(links):
        raise Corrupt(f"{cid}: the HAMT's bitmap does not match its {len(links)} links")
    buckets: Buckets = {}
    chars, prefixes = fanout.prefix_chars, fanout.prefixes
    for binary, name, tsize in links:
        bucket = (bitmap & -bitmap).bit_length() - 1
        bitmap &= bitmap - 1
        if name is None or name[:chars] != prefixes[bucket]:
            raise Corrupt(f"{cid}: a HAMT link is named {name!r} in bucket {bucket:X}")
        if len(name) == chars:
            buckets[bucket] = SubShard(binary, tsize or 0)
        else:
            own = name[chars:]
            buckets[bucket] = Item(name_key(own), own, binary, tsize or 0)
    return buckets


def iterate(cid: Cid, root: Buckets, fanout: Fanout, get: Get) -> Iterator[Item]:
    """All entries of a HAMT whose root shard is read already, in the order of the trie."""
    pending: list[tuple[Iterator[tuple[int, Item | SubShard]], int, int]] = []
    pending.append((iter(root.items()), 0, 0))
    while pending:
        walk, depth, path = pending[-1]
        shift = fanout.shift(depth)
        for bucket, held in walk:
            here = path << fanout.bits | bucket
            if isinstance(held, Item):
                if held.key >> shift != here:
                    raise Corrupt(f"{cid}: {held.name!r} stands where its hash does not lead")
                yield held
                continue
            shard = _sub_shard(held, depth + 1, fanout, get)
            pending.append((iter(shard.items()), depth + 1, here))
            break
        else:
            pending.pop()


def find(name: bytes, root: Buckets, fanout: Fanout, get: Get) -> Item | None:
    """The entry with this name, reading one shard per level."""
    key = name_key(name)
    buckets, depth = root, 0
    while True:
        held = buckets.get((key >> fanout.shift(depth)) & fanout.mask)
        if held is None:
            return None
        if isinstance(held, Item):
            return held if held.name == name else None
        depth += 1
        buckets = _sub_shard(held, depth, fanout, get)


def _sub_shard(link: SubShard, depth: int, fanout: Fanout, get: Get) -> Buckets:
    cid = Cid.decode(link.cid_binary)
    if fanout.shift(depth) < 0:
        raise Corrupt(f"{cid}: a HAMT deeper than its hash is long")
    shard = read_shard(cid, get, fanout)
    if not shard:
        raise Corrupt(f"{cid}: an empty shard or none where a HAMT links one")
    return shard
