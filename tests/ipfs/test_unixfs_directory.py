"""Directories: the CID is a function of the entries alone; foreign ones are listed or refused."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifs.errors import Corrupt, InvalidArgument, NotADirectory, Unsupported
from unifs.ipfs import dagpb
from unifs.ipfs.cid import RAW, Cid, identity
from unifs.ipfs.dagpb import PbLink
from unifs.ipfs.unixfs import hamt
from unifs.ipfs.unixfs.directory import (
    DirectoryReader,
    build_directory,
    list_directory,
    lookup,
    update_directory,
)
from unifs.ipfs.unixfs.node import DataType, DirEntry, Link, UnixfsData, encode_data
from unifs.ipfs.unixfs.profiles import DEFAULT_PROFILE, PROFILES, UNIXFS_V1_2025
from unifs.ipfs.unixfs.reader import stat_node

from .conftest import Blocks

if TYPE_CHECKING:
    from unifs.ipfs.unixfs.profiles import Profile

LEAF = identity(RAW, b"x")
LINKS = [Link(identity(RAW, bytes((n,)) * n), n) for n in range(5)]
#: Few entries make a HAMT, and a fan-out of 8 makes it deep.
SMALL = [
    replace(profile, name=f"small {name} {fanout}", hamt_threshold_bytes=120, hamt_fanout=fanout)
    for name, profile in PROFILES.items()
    for fanout in (8, 256)
]
_NAMES = st.integers(0, 60).map(lambda n: b"n%d" % n)


def build(entries: dict[bytes, Link], profile: Profile, blocks: Blocks | None = None) -> Link:
    listed = [DirEntry(name, link.cid, link.tsize) for name, link in entries.items()]
    return build_directory(listed, profile, blocks.put if blocks else None)


# --- one CID per set of entries -------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.sampled_from(SMALL),
    st.dictionaries(_NAMES, st.sampled_from(LINKS), max_size=40),
    st.lists(st.dictionaries(_NAMES, st.none() | st.sampled_from(LINKS), max_size=25), max_size=4),
)
def test_updates_give_the_cid_of_a_rebuild(
    profile: Profile, entries: dict[bytes, Link], batches: list[dict[bytes, Link | None]]
) -> None:
    blocks = Blocks()
    root = build(entries, profile, blocks)
    for changes in batches:
        root = update_directory(root.cid, changes, blocks.get, blocks.put, profile)
        for name, link in changes.items():
            if link is None:
                entries.pop(name, None)
            else:
                entries[name] = link
        assert root == build(entries, profile)
        listing = list_directory(root.cid, blocks.get)
        listed = {entry.name: Link(entry.cid, entry.tsize) for entry in listing}
        assert (listed, listing.hidden) == (entries, 0)


@pytest.mark.parametrize("profile", SMALL, ids=lambda profile: profile.name)
def test_there_and_back_again(profile: Profile, blocks: Blocks) -> None:
    """From nothing to a deep HAMT and back, one entry at a time, in any order."""
    names = [b"name-%d" % n for n in range(40)]
    shuffled = random.Random(1).sample(names, len(names))
    empty = build({}, profile, blocks)
    root, roots = empty, []
    for name in names:
        roots.append(root)
        root = update_directory(root.cid, {name: LINKS[1]}, blocks.get, blocks.put, profile)
    kinds = {stat_node(link.cid, blocks.get).kind for link in [*roots, root]}
    assert kinds == {"directory", "hamt"}
    other = empty
    for name in shuffled:
        other = update_directory(other.cid, {name: LINKS[1]}, blocks.get, blocks.put, profile)
    assert other == root
    for name in reversed(names):
        root = update_directory(root.cid, {name: None}, blocks.get, blocks.put, profile)
        assert root == roots.pop(), name


def test_an_update_reads_and_writes_one_path(blocks: Blocks) -> None:
    profile = replace(DEFAULT_PROFILE, hamt_threshold_bytes=10_000)
    entries = {b"file-%d" % n: LINKS[1] for n in range(5_000)}
    root = build(entries, profile, blocks)
    written = Blocks()
    blocks.asked.clear()
    link = update_directory(root.cid, {b"new": LINKS[2]}, blocks.get, written.put, profile)
    assert len(blocks.asked) <= 3
    assert len(written.held) <= 3
    assert link == build({**entries, b"new": LINKS[2]}, profile)


def test_an_update_of_another_profiles_hamt_builds_anew(blocks: Blocks) -> None:
    entries = {b"n%d" % n: LINKS[1] for n in range(60)}
    foreign = replace(SMALL[0], hamt_fanout=16)
    root = build(entries, foreign, blocks)
    link = update_directory(root.cid, {b"n0": None}, blocks.get, blocks.put, SMALL[0])
    del entries[b"n0"]
    assert link == build(entries, SMALL[0])


def test_names_that_cannot_be_are_refused(blocks: Blocks) -> None:
    root = build({}, DEFAULT_PROFILE, blocks).cid
    for name in (b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256):
        with pytest.raises(InvalidArgument):
            build({name: LINKS[0]}, DEFAULT_PROFILE)
        with pytest.raises(InvalidArgument):
            update_directory(root, {name: LINKS[0]}, blocks.get, blocks.put, DEFAULT_PROFILE)
    entry = DirEntry(b"twice", LEAF, 1)
    with pytest.raises(InvalidArgument, match="twice"):
        build_directory([entry, entry], DEFAULT_PROFILE, None)
    odd = {b"n" * 255: LINKS[0], b"\xff\xfe": LINKS[1], b"a\nb": LINKS[2], b"-x": LINKS[3]}
    link = build(odd, DEFAULT_PROFILE, blocks)
    assert {entry.name for entry in list_directory(link.cid, blocks.get)} == odd.keys()


def test_names_with_one_hash_fit_no_hamt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamt, "name_key", lambda _name: 7)
    with pytest.raises(Unsupported, match="same hash"):
        build({b"n%d" % n: LINKS[0] for n in range(60)}, SMALL[0])


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", SMALL, ids=lambda profile: profile.name)
def test_every_name_is_found_and_no_other(profile: Profile, blocks: Blocks) -> None:
    entries = {b"file-%d" % n: LINKS[n % 5] for n in range(300)}
    root = build(entries, profile, blocks).cid
    reader = DirectoryReader(root, blocks.get)
    for name, link in entries.items():
        assert reader.lookup(name) == DirEntry(name, link.cid, link.tsize)
        assert reader.lookup(name + b"-") is None
    asked = len(blocks.asked)
    assert lookup(root, b"file-7", blocks.get) == DirEntry(b"file-7", LINKS[2].cid, 2)
    assert len(blocks.asked) - asked <= 5, "one block per level"
    assert reader.lookup(b"file-7/") is None


def test_a_file_is_no_directory(blocks: Blocks) -> None:
    for cid in (LEAF, identity(0x70, bytes.fromhex("0a0408021800"))):
        with pytest.raises(NotADirectory):
            list_directory(cid, blocks.get)
        with pytest.raises(NotADirectory):
            lookup(cid, b"x", blocks.get)


def _put(blocks: Blocks, links: list[PbLink], data: UnixfsData) -> Cid:
    block = dagpb.encode(links, encode_data(data))
    cid = Cid.dag_pb(hashlib.sha256(block).digest())
    blocks.put(cid, block)
    return cid


def test_impossible_and_repeated_names_are_hidden_and_counted(blocks: Blocks) -> None:
    first, second = LINKS[1].cid.binary, LINKS[2].cid.binary
    impossible = [b"", b".", b"..", b"a/b", b"\0", b"n" * 256, None]
    links = [PbLink(first, b"twice", 1), *(PbLink(first, name, 1) for name in impossible)]
    links += [PbLink(second, b"twice", None), PbLink(second, b"last", None)]
    root = _put(blocks, links, UnixfsData(DataType.DIRECTORY))
    listing = list_directory(root, blocks.get)
    assert [(e.name, e.cid, e.tsize) for e in listing] == [
        (b"twice", LINKS[1].cid, 1),
        (b"last", LINKS[2].cid, 0),
    ]
    assert listing.hidden == len(impossible) + 1
    reader = DirectoryReader(root, blocks.get)
    found = reader.lookup(b"twice")
    assert found is not None
    assert found.cid == LINKS[1].cid
    for name in impossible:
        assert name is None or reader.lookup(name) is None
    updated = update_directory(root, {}, blocks.get, blocks.put, DEFAULT_PROFILE)
    expected = {b"twice": Link(LINKS[1].cid, 1), b"last": Link(LINKS[2].cid, 0)}
    assert updated == build(expected, DEFAULT_PROFILE)


def _shard(links: dict[int, tuple[bytes, bytes]], blocks: Blocks, **changes: object) -> Cid:
    """A shard of fan-out 256: bucket → (name behind the prefix, CID bytes)."""
    pb_links = [PbLink(cid, b"%02X" % bucket + own, 1) for bucket, (own, cid) in links.items()]
    bitmap = sum(1 << bucket for bucket in links)
    bits = bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "big")
    data = UnixfsData(DataType.HAMT_SHARD, bits, hash_type=0x22, fanout=256)
    return _put(blocks, pb_links, replace(data, **changes))  # type: ignore[arg-type]


NAME = b"some-name"
KEY = hamt.name_key(NAME)
BUCKET, BELOW = KEY >> 56, (KEY >> 48) & 0xFF
HELD = (NAME, LEAF.binary)


def test_a_hand_made_hamt_is_read(blocks: Blocks) -> None:
    root = _shard({BUCKET: HELD}, blocks)
    assert [entry.name for entry in list_directory(root, blocks.get)] == [NAME]
    padded = _shard({BUCKET: HELD}, blocks, data=bytes(1) + (1 << BUCKET).to_bytes(31, "big"))
    assert lookup(padded, NAME, blocks.get) == DirEntry(NAME, LEAF, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hash_type": 0x12}, "murmur3"),
        ({"hash_type": None}, "murmur3"),
        ({"fanout": None}, "fan-out 0"),
        ({"fanout": 255}, "fan-out 255"),
        ({"fanout": 4}, "fan-out 4"),
        ({"fanout": 2048}, "fan-out 2048"),
        ({"fanout": 1 << 40}, "fan-out"),
        ({"data": None}, "bitmap"),
        ({"data": b"\x03"}, "bitmap"),
        ({"data": b"\x01" + bytes(32)}, "bitmap"),
        ({"data": (1 << (BUCKET ^ 1)).to_bytes(32, "big")}, "named"),
    ],
)
def test_a_malformed_shard_is_corrupt(
    changes: dict[str, object], reason: str, blocks: Blocks
) -> None:
    root = _shard({BUCKET: HELD}, blocks, **changes)
    with pytest.raises(Corrupt, match=reason):
        list(list_directory(root, blocks.get))
    other = BUCKET ^ 1 if reason == "named" else BUCKET
    name = next(n for n in (b"%d" % i for i in range(9999)) if hamt.name_key(n) >> 56 == other)
    with pytest.raises(Corrupt, match=reason):
        lookup(root, name, blocks.get)
    with pytest.raises(Corrupt, match=reason):
        update_directory(root, {NAME: None}, blocks.get, blocks.put, UNIXFS_V1_2025)


def test_a_name_in_the_wrong_place_is_corrupt(blocks: Blocks) -> None:
    root = _shard({BUCKET ^ 1: HELD}, blocks)
    with pytest.raises(Corrupt, match="where its hash does not lead"):
        list(list_directory(root, blocks.get))


def test_a_shard_linked_from_everywhere_is_found_out_at_once(blocks: Blocks) -> None:
    """256⁸ entries by eight blocks: without the check of hashes a listing would never end."""
    cid = _shard({KEY & 0xFF: HELD}, blocks)
    for depth in range(6, -1, -1):
        wanted = (KEY >> (56 - 8 * depth)) & 0xFF
        cid = _shard(dict.fromkeys(sorted((wanted, wanted ^ 1)), (b"", cid.binary)), blocks)
    entries = list_directory(cid, blocks.get)
    with pytest.raises(Corrupt, match="where its hash does not lead"):
        list(entries)
    assert len(blocks.asked) <= 24


def test_sub_shards_that_are_none_are_corrupt(blocks: Blocks) -> None:
    empty = _shard({}, blocks)
    narrow = _shard({BELOW: HELD}, blocks, fanout=512)
    plain = _put(blocks, [], UnixfsData(DataType.DIRECTORY))
    for cid, reason in [
        (empty, "empty shard"),
        (plain, "or none"),
        (LEAF, "no shard"),
        (narrow, "fan-out 512"),
    ]:
        root = _shard({BUCKET: (b"", cid.binary)}, blocks)
        with pytest.raises(Corrupt, match=reason):
            list(list_directory(root, blocks.get))
        with pytest.raises(Corrupt, match=reason):
            lookup(root, NAME, blocks.get)
    assert list(list_directory(empty, blocks.get)) == []


def test_a_hamt_that_links_itself_ends_as_corrupt() -> None:
    """No honest hash allows it; a ``get`` that does not check could show one."""
    cid = Cid.dag_pb(bytes(32))
    links = [PbLink(cid.binary, b"%02X" % bucket, 1) for bucket in range(256)]
    data = UnixfsData(DataType.HAMT_SHARD, b"\xff" * 32, hash_type=0x22, fanout=256)
    block = dagpb.encode(links, encode_data(data))
    with pytest.raises(Corrupt, match="deeper than its hash"):
        list(list_directory(cid, lambda _: block))
    with pytest.raises(Corrupt, match="deeper than its hash"):
        lookup(cid, NAME, lambda _: block)


def test_fan_outs_from_8_to_1024(blocks: Blocks) -> None:
    entries = {b"file-%d" % n: LINKS[1] for n in range(200)}
    for fanout in (8, 16, 32, 64, 128, 256, 512, 1024):
        profile = replace(SMALL[0], hamt_fanout=fanout)
        root = build(entries, profile, blocks).cid
        assert {entry.name for entry in list_directory(root, blocks.get)} == entries.keys()
        assert all(lookup(root, name, blocks.get) for name in entries)
