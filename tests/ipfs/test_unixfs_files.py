"""Files: what is imported is read back at any offset, and foreign DAGs are read or refused."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifs.errors import (
    Corrupt,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotAvailableOffline,
    NotFound,
    Unsupported,
)
from unifs.ipfs import dagpb
from unifs.ipfs.cid import DAG_PB, RAW, Cid, identity
from unifs.ipfs.dagpb import PbLink
from unifs.ipfs.unixfs.builder import (
    build_symlink,
    hash_leaf,
    import_file,
    leaf_block_parts,
    leaf_cid,
    rebuild,
)
from unifs.ipfs.unixfs.directory import build_directory
from unifs.ipfs.unixfs.node import DataType, DirEntry, UnixfsData, encode_data
from unifs.ipfs.unixfs.profiles import DEFAULT_PROFILE, PROFILES, UNIXFS_V0_2015, UNIXFS_V1_2025
from unifs.ipfs.unixfs.reader import FileReader, resolve, stat_node

from .conftest import Blocks

if TYPE_CHECKING:
    from unifs.ipfs.unixfs.profiles import Profile

CHUNK, WIDTH = 7, 3
#: The shapes of the real profiles, small enough for several levels.
SMALL = [
    replace(profile, name=f"small {name}", chunk_bytes=CHUNK, width=WIDTH)
    for name, profile in PROFILES.items()
]
#: Around every size at which the DAG changes its shape: k·chunk and widthⁿ·chunk, ± 1.
SIZES = sorted(
    {0, 1} | {k * CHUNK + d for k in (1, 2, 3, 4, 9, 10, 12, 27, 28, 81, 82) for d in (-1, 0, 1)}
)


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def dag_pb(blocks: Blocks, links: list[PbLink], data: UnixfsData) -> Cid:
    block = dagpb.encode(links, encode_data(data))
    cid = Cid.dag_pb(hashlib.sha256(block).digest())
    blocks.put(cid, block)
    return cid


def raw(blocks: Blocks, content: bytes) -> Cid:
    cid = Cid.raw(hashlib.sha256(content).digest())
    blocks.put(cid, content)
    return cid


def file_of(blocks: Blocks, inline: bytes, parts: list[tuple[Cid, int]]) -> Cid:
    sizes = tuple(size for _, size in parts)
    links = [PbLink(cid.binary, b"", None) for cid, _ in parts]
    data = UnixfsData(DataType.FILE, inline or None, len(inline) + sum(sizes), sizes)
    return dag_pb(blocks, links, data)


# --- import and read ------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", SMALL, ids=lambda profile: profile.name)
def test_reading_undoes_importing(profile: Profile) -> None:
    for size in SIZES:
        content, blocks = content_of(size), Blocks()
        link = import_file(io.BytesIO(content), profile, blocks.put)
        assert link.size_bytes == stat_node(link.cid, blocks.get).size_bytes == size
        reader = FileReader(link.cid, blocks.get)
        assert reader.read(0, size + 1) == content
        for offset in {0, 1, CHUNK - 1, CHUNK, CHUNK * WIDTH - 1, CHUNK * WIDTH, size - 1, size}:
            for length in (0, 1, CHUNK, CHUNK + 1, CHUNK * WIDTH + 1):
                if offset >= 0:
                    assert reader.read(offset, length) == content[offset : offset + length]


@given(
    st.sampled_from(SMALL),
    st.binary(max_size=300),
    st.lists(st.tuples(st.integers(0, 310), st.integers(0, 310)), max_size=8),
)
def test_any_range_of_any_file(
    profile: Profile, content: bytes, ranges: list[tuple[int, int]]
) -> None:
    blocks = Blocks()
    link = import_file(io.BytesIO(content), profile, blocks.put)
    reader = FileReader(link.cid, blocks.get)
    for offset, size in ranges:
        assert reader.read(offset, size) == content[offset : offset + size]
        leaves = list(reader.leaves(offset, size))
        assert sum(leaf.length for leaf in leaves) == len(content[offset : offset + size])
        at = offset
        for leaf in leaves:
            assert leaf.file_offset == at
            assert 0 <= leaf.inner_offset <= leaf.inner_offset + leaf.length <= leaf.leaf_bytes
            at += leaf.length


@pytest.mark.parametrize("profile", SMALL, ids=lambda profile: profile.name)
def test_a_known_list_of_leaves_gives_the_same_root(profile: Profile) -> None:
    for size in SIZES:
        content, blocks, interiors = content_of(size), Blocks(), Blocks()
        link = import_file(io.BytesIO(content), profile, blocks.put)
        chunks = [content[at : at + CHUNK] for at in range(0, size, CHUNK)]
        leaves = [(leaf_cid(profile, hash_leaf(profile, chunk)), len(chunk)) for chunk in chunks]
        assert rebuild(profile, leaves, interiors.put) == link
        stored = blocks.held.keys() - {cid for cid, _ in leaves}
        assert interiors.held.keys() == stored, "exactly the nodes that are no leaves"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 262_144])
def test_a_leaf_block_is_remade_around_its_chunk(size: int, blocks: Blocks) -> None:
    chunk = content_of(size)
    link = import_file(io.BytesIO(chunk), UNIXFS_V0_2015, blocks.put)
    prefix, suffix = leaf_block_parts(UNIXFS_V0_2015, size)
    assert blocks.held[link.cid] == prefix + chunk + suffix
    assert link.tsize == len(prefix) + size + len(suffix)
    assert leaf_block_parts(UNIXFS_V1_2025, size) == (b"", b"")


def test_a_source_that_gives_little_at_a_time() -> None:
    class Slow(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return super().readinto(buffer[:3])

    content = content_of(100)
    expected = import_file(io.BytesIO(content), SMALL[0], None)
    assert import_file(Slow(content), SMALL[0], None) == expected


# --- what reading costs ---------------------------------------------------------------------------


def test_a_random_read_asks_for_one_leaf_and_keeps_the_nodes() -> None:
    content, blocks = content_of(CHUNK * 27), Blocks()
    link = import_file(io.BytesIO(content), SMALL[0], blocks.put)
    reader = FileReader(link.cid, blocks.get)
    reader.read(0, len(content))
    blocks.asked.clear()
    assert reader.read(100, 3) == content[100:103]
    assert reader.read(101, 2) == content[101:103]
    assert len(blocks.asked) == 1


def test_raw_leaves_are_located_without_being_read() -> None:
    content, blocks = content_of(CHUNK * 9), Blocks()
    link = import_file(io.BytesIO(content), SMALL[0], blocks.put)
    leaves = list(FileReader(link.cid, blocks.get).leaves(0, len(content)))
    assert len(leaves) == 9
    assert not {leaf.cid for leaf in leaves} & set(blocks.asked)


def test_dag_pb_leaves_that_are_known_are_not_read() -> None:
    profile = next(profile for profile in SMALL if not profile.has_raw_leaves)
    content, blocks = content_of(CHUNK * 4), Blocks()
    link = import_file(io.BytesIO(content), profile, blocks.put)
    chunks = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    known = {leaf_cid(profile, hash_leaf(profile, chunk)) for chunk in chunks}
    reader = FileReader(link.cid, blocks.get, known.__contains__)
    assert [leaf.cid in known for leaf in reader.leaves(0, len(content))] == [True] * 4
    assert not known & set(blocks.asked)
    assert reader.read(0, len(content)) == content


def test_a_missing_leaf_hurts_only_its_own_range(blocks: Blocks) -> None:
    content = content_of(CHUNK * 3)
    link = import_file(io.BytesIO(content), SMALL[0], blocks.put)
    reader = FileReader(link.cid, blocks.get)
    middle = next(reader.leaves(CHUNK, 1)).cid
    del blocks.held[middle]
    assert reader.read(0, CHUNK) == content[:CHUNK]
    assert reader.read(2 * CHUNK, CHUNK) == content[2 * CHUNK :]
    with pytest.raises(NotAvailableOffline):
        reader.read(CHUNK - 1, 2)


# --- foreign shapes -------------------------------------------------------------------------------


def test_mixed_depth_inline_data_and_empty_parts(blocks: Blocks) -> None:
    leaf = raw(blocks, b"leaf")
    wrapped = dag_pb(blocks, [], UnixfsData(DataType.FILE, b"wrapped", 7))
    old = dag_pb(blocks, [], UnixfsData(DataType.RAW, b"old", 3))
    empty = raw(blocks, b"")
    inner = file_of(blocks, b"inner-", [(leaf, 4), (empty, 0), (old, 3)])
    inline = identity(RAW, b"tiny")
    parts = [(inner, 13), (empty, 0), (wrapped, 7), (inline, 4), (inner, 13)]
    root = file_of(blocks, b"root-", parts)
    content = b"root-inner-leafoldwrappedtinyinner-leafold"
    reader = FileReader(root, blocks.get)
    assert reader.size_bytes == len(content)
    for offset in range(len(content) + 1):
        for size in (1, 3, 9, 50):
            assert reader.read(offset, size) == content[offset : offset + size]


def test_a_trickle_dag(blocks: Blocks) -> None:
    content = content_of(60)
    leaves = [(raw(blocks, content[at : at + 4]), 4) for at in range(0, 60, 4)]
    deep = file_of(blocks, b"", leaves[6:9])
    deeper = file_of(blocks, b"", [*leaves[9:12], (file_of(blocks, b"", leaves[12:]), 12)])
    root = file_of(blocks, b"", [*leaves[:6], (deep, 12), (deeper, 24)])
    assert FileReader(root, blocks.get).read(0, 99) == content


@pytest.mark.parametrize("profile", SMALL, ids=lambda profile: profile.name)
def test_blocks_may_be_views_of_something_larger(profile: Profile, blocks: Blocks) -> None:
    content = content_of(100)
    link = import_file(io.BytesIO(content), profile, blocks.put)

    def get(cid: Cid) -> memoryview:
        return memoryview(b"before" + blocks.get(cid) + b"behind")[6:-6]

    assert stat_node(link.cid, get).size_bytes == 100
    assert FileReader(link.cid, get).read(3, 90) == content[3:93]


def test_an_identity_file_needs_no_block(blocks: Blocks) -> None:
    for cid in (identity(RAW, b"abc"), identity(DAG_PB, bytes.fromhex("0a09080212036162631803"))):
        assert FileReader(cid, blocks.get).read(1, 9) == b"bc"
        assert stat_node(cid, blocks.get).size_bytes == 3
    assert blocks.asked == []


def _named(cid: Cid) -> list[PbLink]:
    return [PbLink(cid.binary, b"name", None)]


LEAF = identity(RAW, b"abcd")
LINK = [PbLink(LEAF.binary, b"", None)]


@pytest.mark.parametrize(
    ("links", "data", "reason"),
    [
        (LINK, UnixfsData(DataType.FILE, None, 4), "1 links but 0 block sizes"),
        ([], UnixfsData(DataType.FILE, None, 4, (4,)), "0 links but 1 block sizes"),
        (LINK, UnixfsData(DataType.FILE, None, 5, (4,)), "says 5 bytes, its parts have 4"),
        (LINK, UnixfsData(DataType.FILE, None, None, (4,)), "says None bytes"),
        (LINK, UnixfsData(DataType.FILE, b"x", 4, (4,)), "says 4 bytes, its parts have 5"),
        (_named(LEAF), UnixfsData(DataType.FILE, None, 4, (4,)), "has a name"),
        (LINK, UnixfsData(DataType.FILE, None, 1 << 63, (1 << 63,)), "a file of"),
        (LINK, UnixfsData(DataType.SYMLINK, b"t"), "with children"),
    ],
)
def test_a_node_that_does_not_add_up_is_corrupt(
    links: list[PbLink], data: UnixfsData, reason: str, blocks: Blocks
) -> None:
    root = dag_pb(blocks, links, data)
    with pytest.raises(Corrupt, match=reason):
        stat_node(root, blocks.get)
    if data.kind is DataType.FILE:
        with pytest.raises(Corrupt, match=reason):
            FileReader(root, blocks.get)


@pytest.mark.parametrize("claimed", [3, 5])
def test_a_leaf_of_another_length_is_corrupt(claimed: int, blocks: Blocks) -> None:
    wrapped = dag_pb(blocks, [], UnixfsData(DataType.FILE, b"abcd", 4))
    inner = file_of(blocks, b"", [(LEAF, 4)])
    for child in (LEAF, wrapped, inner):
        reader = FileReader(file_of(blocks, b"", [(child, claimed)]), blocks.get)
        with pytest.raises(Corrupt, match=f"4 bytes where its parent says {claimed}"):
            reader.read(0, 9)


def test_a_cycle_ends_as_corrupt() -> None:
    """No honest hash allows a cycle; a ``get`` that does not check could show one."""
    cid = Cid.dag_pb(bytes(32))
    data = encode_data(UnixfsData(DataType.FILE, None, 4, (4,)))
    block = dagpb.encode([PbLink(cid.binary, b"", None)], data)
    reader = FileReader(cid, lambda _: block)
    with pytest.raises(Corrupt, match="deeper than 64"):
        reader.read(0, 4)


def test_64_levels_are_read_and_65_are_not(blocks: Blocks) -> None:
    cid = LEAF
    for _ in range(64):
        cid = file_of(blocks, b"", [(cid, 4)])
    assert FileReader(cid, blocks.get).read(0, 4) == b"abcd"
    deeper = FileReader(file_of(blocks, b"", [(cid, 4)]), blocks.get)
    with pytest.raises(Corrupt, match="deeper than 64"):
        deeper.read(0, 4)


def test_a_dag_that_repeats_itself_into_exbibytes_is_read_by_range(blocks: Blocks) -> None:
    cid, size = raw(blocks, bytes(range(64))), 64
    for _ in range(56):
        cid, size = file_of(blocks, b"", [(cid, size), (cid, size)]), 2 * size
    reader = FileReader(cid, blocks.get)
    assert reader.size_bytes == 1 << 62
    assert reader.read((1 << 61) + 63, 2) == b"\x3f\x00"
    assert len(blocks.asked) <= 58


def test_a_block_beyond_8_mib_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="a block of 8388609 bytes"):
        stat_node(Cid.raw(bytes(32)), lambda _: bytes((8 << 20) + 1))


def test_what_is_no_file_says_so(blocks: Blocks) -> None:
    directory = build_directory([], DEFAULT_PROFILE, blocks.put).cid
    symlink = build_symlink(b"a/b", DEFAULT_PROFILE, blocks.put).cid
    with pytest.raises(IsADirectory):
        FileReader(directory, blocks.get)
    with pytest.raises(NotADirectory, match="symlink"):
        FileReader(symlink, blocks.get)
    with pytest.raises(Unsupported, match="codec 0x71"):
        FileReader(Cid(1, 0x71, Cid.raw(bytes(32)).multihash), blocks.get)
    with pytest.raises(Unsupported, match="codec 0x71"):
        stat_node(Cid(1, 0x71, Cid.raw(bytes(32)).multihash), blocks.get)
    with pytest.raises(Unsupported, match="metadata"):
        stat_node(dag_pb(blocks, [], UnixfsData(DataType.METADATA)), blocks.get)


# --- stat and paths -------------------------------------------------------------------------------


def test_stat_of_every_kind(blocks: Blocks) -> None:
    symlink = build_symlink(b"a/b", UNIXFS_V0_2015, blocks.put)
    stat = stat_node(symlink.cid, blocks.get)
    assert (stat.kind, stat.target, stat.size_bytes) == ("symlink", b"a/b", 3)
    assert symlink.cid.version == 0
    assert stat_node(raw(blocks, b"abc"), blocks.get).kind == "raw"
    directory = build_directory([DirEntry(b"x", LEAF, 4)], DEFAULT_PROFILE, blocks.put)
    assert (stat_node(directory.cid, blocks.get).kind, directory.size_bytes) == ("directory", 0)
    carried = dag_pb(
        blocks, [], UnixfsData(DataType.FILE, b"", 0, (), None, None, 0xFFFF_F9ED, -1_500_000_000)
    )
    stat = stat_node(carried, blocks.get)
    assert (stat.kind, stat.mode, stat.mtime_ns) == ("file", 0o4755, -1_500_000_000)


def test_the_specifications_symlink(blocks: Blocks) -> None:
    link = build_symlink(b"foo", UNIXFS_V0_2015, blocks.put)
    assert str(link.cid) == "QmTB8BaCJdCH5H3k7GrxJsxgDNmNYGGR71C58ERkivXoj5"
    assert link.tsize == 9


def test_paths(blocks: Blocks) -> None:
    put, get = blocks.put, blocks.get
    symlink = build_symlink(b"file", DEFAULT_PROFILE, put)
    inner = build_directory(
        [DirEntry(b"file", LEAF, 4), DirEntry(b"link", symlink.cid, symlink.tsize)],
        DEFAULT_PROFILE,
        put,
    )
    root = build_directory([DirEntry(b"inner", inner.cid, inner.tsize)], DEFAULT_PROFILE, put).cid
    assert resolve(root, [], get) == root
    assert resolve(root, [b"inner", b"file"], get) == LEAF
    assert resolve(root, [b"", b".", b"inner", b"..", b"inner", b"link"], get) == symlink.cid
    with pytest.raises(NotFound, match="no entry 'other'"):
        resolve(root, [b"inner", b"other"], get)
    with pytest.raises(NotADirectory):
        resolve(root, [b"inner", b"file", b"x"], get)
    with pytest.raises(NotADirectory):
        resolve(root, [b"inner", b"link", b"x"], get)
    with pytest.raises(InvalidArgument, match="above"):
        resolve(root, [b"inner", b"..", b"..", b"inner"], get)


@given(st.binary(max_size=120))
def test_any_block_is_a_node_or_refused(block: bytes) -> None:
    cid = Cid.dag_pb(hashlib.sha256(block).digest())
    try:
        stat = stat_node(cid, lambda _: block)
    except (Corrupt, Unsupported):
        return
    assert stat.size_bytes >= 0
