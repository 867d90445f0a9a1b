"""Directories: build, update, list and look up, whether one block or a HAMT.

The MFS root builder writes through ``build_directory`` and ``update_directory``; the /ipfs mount
and the control operations read through ``list_directory`` and ``lookup``. A directory is a set of
names: the same entries give the same CID in whatever order and by whatever history.

Names that a file system cannot show (empty, ``.``, ``..``, with ``/`` or a zero byte, longer than
255 bytes) and repeated names after the first are hidden from listings and counted; look-ups do not
find them. They never become entries here: a writer that gets one raises ``InvalidArgument``.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from unifs.errors import InvalidArgument, NotADirectory
from unifs.ipfs import dagpb
from unifs.ipfs.cid import DAG_PB, Cid
from unifs.ipfs.unixfs import hamt
from unifs.ipfs.unixfs.node import DataType, DirEntry, Link, decode_data, load
from unifs.types import NAME_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from unifs.ipfs.unixfs.node import Get, Put, UnixfsData
    from unifs.ipfs.unixfs.profiles import Profile

#: The data field of a directory's block, as it stands in the block.
_DIRECTORY_DATA: Final = b"\x0a\x02\x08\x01"


#: Decoded links kept per reader, about 15 MiB.
CACHED_LINKS_MAX: Final = 1 << 16

_NO_NAMES: Final = frozenset((b"", b".", b".."))


def is_showable(name: bytes) -> bool:
    """Whether a file system can have an entry of this name."""
    return (
        name not in _NO_NAMES
        and len(name) <= NAME_MAX_BYTES
        and b"/" not in name
        and b"\0" not in name
    )


# --- writing --------------------------------------------------------------------------------------


def _impossible(name: bytes) -> InvalidArgument:
    return InvalidArgument(
        f"{os.fsdecode(name)!r} cannot be a name: it is empty, longer than 255 bytes, . or .., or"
        " has a / or a zero byte in it"
    )


def build_directory(entries: Iterable[DirEntry], profile: Profile, put: Put | None) -> Link:
    """The directory with these entries, in any order: one block, or a HAMT by the profile's rule.

    ``put`` None only computes the CID. A repeated or impossible name raises ``InvalidArgument``.
    """
    by_name: dict[bytes, DirEntry] = {}
    for entry in entries:
        if not is_showable(entry.name):
            raise _impossible(entry.name)
        if entry.name in by_name:
            raise InvalidArgument(f"a directory has two entries {os.fsdecode(entry.name)!r}")
        by_name[entry.name] = entry
    return _build(by_name, profile, put)


def update_directory(
    root: Cid,
    changes: Mapping[bytes, Link | None],
    get: Get,
    put: Put | None,
    profile: Profile,
) -> Link:
    """The directory at ``root`` with names set to links or, by None, removed if they are there.

    For a root that was built with the same profile the result is the CID that ``build_directory``
    gives for the same entries; only the shards on the changed paths are read and written. A root of
    another fan-out or CID version is listed and built anew. ``profile`` must be the one that the
    directory was built with; a foreign HAMT below the threshold stays one until it shrinks.
    """
    for name in changes:
        if not is_showable(name):
            raise _impossible(name)
    links, data = _decode(root, get)
    is_own = data.fanout == profile.hamt_fanout and root.version == profile.cid_version
    if data.kind is DataType.HAMT_SHARD and is_own:
        shard = hamt.shard_of(root, links, data, hamt.Fanout(profile.hamt_fanout))
        return _update_hamt(shard, changes, get, put, profile)
    by_name = {entry.name: entry for entry in list_directory(root, get)}
    for name, link in changes.items():
        if link is None:
            by_name.pop(name, None)
        else:
            by_name[name] = DirEntry(name, link.cid, link.tsize)
    return _build(by_name, profile, put)


def _build(by_name: Mapping[bytes, DirEntry], profile: Profile, put: Put | None) -> Link:
    is_by_block = profile.hamt_rule == "block"
    size = len(_DIRECTORY_DATA) if is_by_block else 0
    total = 0
    parts: list[bytes] = []
    for name in sorted(by_name):
        entry = by_name[name]
        binary = entry.cid.binary
        part = dagpb.encode_link(binary, name, entry.tsize)
        parts.append(part)
        total += entry.tsize
        size += len(part) if is_by_block else len(name) + len(binary)
        if size > profile.hamt_threshold_bytes:
            return _build_hamt(by_name.values(), profile, put)
    parts.append(_DIRECTORY_DATA)
    block = b"".join(parts)
    cid = Cid.dag_pb(hashlib.sha256(block).digest(), profile.cid_version)
    if put is not None:
        put(cid, block)
    return Link(cid, total + len(block))


def _build_hamt(entries: Iterable[DirEntry], profile: Profile, put: Put | None) -> Link:
    return hamt.HamtWriter(profile, put).build(sorted([hamt.item(entry) for entry in entries]))


def _update_hamt(
    root: hamt.Shard,
    changes: Mapping[bytes, Link | None],
    get: Get,
    put: Put | None,
    profile: Profile,
) -> Link:
    fresh: dict[Cid, bytes] = {}
    writer = hamt.HamtWriter(profile, fresh.__setitem__)
    sizer = _link_bytes if profile.hamt_rule == "block" else _name_and_cid_bytes
    update = hamt.HamtUpdate(writer, get, sizer)
    buckets = update.apply(root, changes)

    def get_updated(cid: Cid) -> bytes | memoryview:
        block = fresh.get(cid)
        return get(cid) if block is None else block

    if update.size_delta < 0:
        # The entries became fewer or shorter: do those that are left still need a HAMT? The walk
        # ends at the threshold, so a large directory pays for 256 KiB of entries and not for all.
        size = len(_DIRECTORY_DATA) if profile.hamt_rule == "block" else 0
        by_name: dict[bytes, DirEntry] = {}
        for link in hamt.iterate(root.cid, buckets, writer.fanout, get_updated):
            entry = _entry(link)
            if not is_showable(entry.name):
                continue
            size += sizer(link.cid_binary, entry.name, entry.tsize)
            if size > profile.hamt_threshold_bytes:
                break
            by_name[entry.name] = entry
        else:
            return _build(by_name, profile, put)
    shard = writer.emit(buckets)
    if put is not None:
        for cid, block in fresh.items():
            put(cid, block)
    return shard


def _link_bytes(cid_binary: bytes, name: bytes, tsize: int | None) -> int:
    return len(dagpb.encode_link(cid_binary, name, tsize))


def _name_and_cid_bytes(cid_binary: bytes, name: bytes, _tsize: int | None) -> int:
    return len(name) + len(cid_binary)


def _entry(link: dagpb.PbLink) -> DirEntry:
    return DirEntry(link.name or b"", Cid.decode(link.cid_binary), link.tsize or 0)


# --- reading --------------------------------------------------------------------------------------


class Listing:
    """An iterator over a directory's entries. ``hidden`` counts the names left out so far."""

    def __init__(self, links: Iterable[dagpb.PbLink], may_repeat: bool) -> None:
        self._links = iter(links)
        self._seen: set[bytes] | None = set() if may_repeat else None
        self.hidden = 0

    def __iter__(self) -> Listing:
        return self

    def __next__(self) -> DirEntry:
        seen = self._seen
        for cid_binary, name, tsize in self._links:
            if name is None or not is_showable(name) or (seen is not None and name in seen):
                self.hidden += 1
                continue
            if seen is not None:
                seen.add(name)
            return DirEntry(name, Cid.decode(cid_binary), tsize or 0)
        raise StopIteration


class DirectoryReader:
    """One directory, decoded once: for look-up after look-up, and for listing.

    Keeps the names of a directory in one block, and up to 64 Ki links of a HAMT's shards. Raises
    ``NotADirectory`` at once for anything else; ``Corrupt`` and what ``get`` raises come from any
    method, for a HAMT also while a listing is iterated.
    """

    def __init__(self, root: Cid, get: Get) -> None:
        self.root = root
        self._get = get
        self._links, data = _decode(root, get)
        self._fanout: hamt.Fanout | None = None
        if data.kind is DataType.DIRECTORY:
            # Reversed, so that the first of several entries of one name is the one that stays.
            self._by_name = {link.name: link for link in reversed(self._links)}
        else:
            self._fanout = hamt.Fanout(data.fanout or 0)
            self._shard = hamt.shard_of(root, self._links, data, self._fanout)
            self._shards: OrderedDict[Cid, hamt.Shard] = OrderedDict()
            self._cached_links = 0

    def entries(self) -> Listing:
        """The entries. Their types and sizes are not known here: stat their CIDs."""
        if self._fanout is None:
            return Listing(self._links, may_repeat=True)
        # A HAMT repeats no name: each can stand on one path only, and the walk checks that.
        buckets = hamt.split(self._shard, self._fanout)
        return Listing(hamt.iterate(self.root, buckets, self._fanout, self._get), may_repeat=False)

    def lookup(self, name: bytes) -> DirEntry | None:
        """The entry of that name, or None; in a HAMT reads at most one block per level."""
        if not is_showable(name):
            return None
        if self._fanout is None:
            found = self._by_name.get(name)
        else:
            found = hamt.find(name, self._shard, self._fanout, self._read)
        return None if found is None else _entry(found)

    def _read(self, cid: Cid, depth: int) -> hamt.Shard:
        shard = self._shards.get(cid)
        if shard is not None:
            self._shards.move_to_end(cid)
            return shard
        assert self._fanout is not None, "only a HAMT has shards"
        shard = hamt.read_shard(cid, depth, self._get, self._fanout)
        self._shards[cid] = shard
        self._cached_links += len(shard.links)
        while self._cached_links > CACHED_LINKS_MAX:
            _, old = self._shards.popitem(last=False)
            self._cached_links -= len(old.links)
        return shard


def list_directory(root: Cid, get: Get) -> Listing:
    """The entries of the directory at ``root``; a HAMT's shards are read as the iteration goes."""
    return DirectoryReader(root, get).entries()


def lookup(root: Cid, name: bytes, get: Get) -> DirEntry | None:
    """The entry of that name, or None. For many look-ups keep a ``DirectoryReader``."""
    return DirectoryReader(root, get).lookup(name)


def _decode(root: Cid, get: Get) -> tuple[list[dagpb.PbLink], UnixfsData]:
    if root.codec != DAG_PB:
        raise NotADirectory(f"{root} is not a directory")
    node = dagpb.decode(load(root, get))
    data = decode_data(node.data)
    if data.kind is not DataType.DIRECTORY and data.kind is not DataType.HAMT_SHARD:
        raise NotADirectory(f"{root} is not a directory")
    return node.links, data
