"""The embedded node: add and read back, archives, pins, the repository, through its protocol.

Longer than most because it goes through the whole protocol with one node and one store.
"""

from __future__ import annotations

import io
import os
import pathlib
import random
import stat
from typing import TYPE_CHECKING

import pytest
import trio

from unifs.errors import (
    Corrupt,
    DiskFailed,
    InvalidCid,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotAvailableOffline,
    NotFound,
    TooLarge,
    TryAgain,
    Unsupported,
)
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded import import_tree, importer, large_directory
from unifs.ipfs.embedded.node import EmbeddedNode
from unifs.ipfs.embedded.pins import Pins
from unifs.ipfs.node import AddOptions, AddProgress, HostSource, StreamSource, parse_path
from unifs.ipfs.unixfs.builder import import_file
from unifs.ipfs.unixfs.directory import build_directory
from unifs.ipfs.unixfs.profiles import PROFILES
from unifs.waiting import RETRY, WouldBlock, complete

from .stores import Store, digest, file_size_limit, put_raw, raw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unifs.ipfs import node as protocol

V1 = PROFILES["unixfs-v1-2025"]
V0 = PROFILES["unixfs-v0-2015"]
KEEP = AddOptions()
LOOSE = AddOptions(pin=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state", limit_bytes=16 << 20)
    yield made
    made.close()


@pytest.fixture
def node(store: Store) -> Iterator[EmbeddedNode]:
    pins = Pins(store.directory / "pins.db")
    yield EmbeddedNode(store.blocks, pins, owner=store.owner)
    pins.close()


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Pieces:
    """Bytes as they come over a socket. Not a generator: nobody has to close it."""

    def __init__(self, data: bytes, size: int) -> None:
        self._left = [data[start : start + size] for start in range(0, len(data), size)][::-1]

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def pieces(data: bytes, size: int = 100_003) -> Pieces:
    return Pieces(data, size)


async def cat(node: EmbeddedNode, path: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([piece async for piece in node.cat(path, offset, length)])


async def export(node: EmbeddedNode, *roots: Cid) -> bytes:
    return b"".join([piece async for piece in node.dag_export(roots)])


def make_tree(top: Path) -> dict[str, bytes]:
    files = {
        "small": b"small",
        "empty": b"",
        "exact": content(1 << 20, 2),
        "large": content((3 << 20) + 17, 3),
        "d/inner": b"inner",
        "d/e/deep": b"deep" * 1000,
        ".hidden": b"hidden",
        os.fsdecode(b"not\xffutf8\n-"): b"odd",
    }
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (top / "link").symlink_to("d/inner")
    (top / "nothing").mkdir()
    return files


# --- add and cat --------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("size", [0, 1, 262_144, 1 << 20, (1 << 20) + 1, (20 << 20) + 12345])
async def test_what_is_added_is_read_back(
    node: EmbeddedNode, tmp_path: Path, profile: protocol.Profile, size: int
) -> None:
    data = content(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = import_file(io.BytesIO(data), profile, None)
    options = AddOptions(profile=profile)
    by_path = await node.add(HostSource(path), options)
    by_stream = await node.add(StreamSource(pieces(data)), options)
    hashed = await node.add(HostSource(path), AddOptions(profile=profile, only_hash=True))
    assert by_path.cid == by_stream.cid == hashed.cid == expected.cid
    assert (by_path.size_bytes, by_path.tsize, by_path.files) == (size, expected.tsize, 1)
    assert await cat(node, str(by_path.cid)) == data
    assert await cat(node, f"/ipfs/{by_path.cid}", size // 3, 70_000) == data[size // 3 :][:70_000]
    assert await cat(node, str(by_path.cid), size + 5) == b""


async def test_only_hash_keeps_nothing(node: EmbeddedNode, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    added = await node.add(HostSource(tmp_path / "tree"), AddOptions(only_hash=True))
    assert not node.blocks.has(added.cid)
    assert (await node.repo_stat()).blocks == 0
    assert await node.pins_scan() == []
    kept = await node.add(HostSource(tmp_path / "tree"), KEEP)
    assert kept.cid == added.cid


async def test_of_a_file_alone_it_is_told_how_much_there_is(
    node: EmbeddedNode, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(content(9 << 20))
    told: list[AddProgress] = []
    await node.add(HostSource(tmp_path / "d" / "file"), AddOptions(), told.append)
    assert {each.bytes_total for each in told} == {9 << 20}
    assert told[-1].bytes_done == 9 << 20
    told.clear()
    await node.add(HostSource(tmp_path / "d"), AddOptions(), told.append)
    assert {each.bytes_total for each in told} == {None}, "nobody has looked through it"


async def test_a_directory_is_added_whole(node: EmbeddedNode, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    files = make_tree(top)
    os.mkfifo(top / "d" / "fifo")
    told: list[AddProgress] = []
    added = await node.add(HostSource(top), KEEP, told.append)
    assert (added.files, added.directories) == (len(files), 4)
    assert added.skipped == [b"d/fifo"]
    assert added.size_bytes == sum(map(len, files.values()))
    for name, data in files.items():
        assert await cat(node, f"/ipfs/{added.cid}/{name}") == data
    link = await node.stat(f"{added.cid}/link")
    assert (link.node.kind, link.node.target) == ("symlink", b"d/inner")
    finished = {item.path for item in told if item.cid is not None}
    assert finished == {os.fsencode(name) for name in files} | {b"", b"d", b"d/e", b"nothing"}
    assert told[-1].cid == added.cid
    assert told[-1].bytes_done == added.size_bytes


async def test_hidden_files_can_be_left_out(node: EmbeddedNode, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    added = await node.add(HostSource(tmp_path / "tree", has_hidden=False), LOOSE)
    with pytest.raises(NotFound):
        await node.resolve(f"{added.cid}/.hidden")
    assert await cat(node, f"{added.cid}/small") == b"small"


async def test_wrapping_gives_the_file_a_name(node: EmbeddedNode) -> None:
    added = await node.add(StreamSource(pieces(b"data")), AddOptions(wrap="name.txt"))
    assert await cat(node, f"{added.cid}/name.txt") == b"data"
    assert [pin.cid for pin in await node.pins_scan()] == [added.cid]


async def test_a_symlink_alone_is_added_as_one(node: EmbeddedNode, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("anywhere")
    added = await node.add(HostSource(tmp_path / "link"), KEEP)
    assert (await node.stat(str(added.cid))).node.target == b"anywhere"


async def test_files_that_cannot_tell_their_size(node: EmbeddedNode) -> None:
    source = pathlib.Path("/proc/filesystems")
    added = await node.add(HostSource(source), KEEP)
    assert await cat(node, str(added.cid)) == await trio.Path(source).read_bytes()


async def test_devices_and_fifos_are_no_files(node: EmbeddedNode, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (pathlib.Path("/dev/null"), tmp_path / "fifo"):
        with pytest.raises(Unsupported, match="no regular file"):
            await node.add(HostSource(path), KEEP)


async def test_a_file_that_cannot_be_read_is_named(node: EmbeddedNode) -> None:
    with pytest.raises(DiskFailed, match=r"^/proc/\d+/mem: Input/output error$"):
        await node.add(HostSource(pathlib.Path("/proc/self/mem")), AddOptions())
    with pytest.raises(NotFound, match=r"^/a/b: No such file or directory$"):
        importer.open_file(b"/a/b")


async def test_a_missing_source_is_not_found(node: EmbeddedNode, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await node.add(HostSource(tmp_path / "none"), KEEP)


async def test_a_file_that_shrinks_is_not_added(
    node: EmbeddedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(9 << 20))
    real = os.preadv

    def shrink(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(path, 4 << 20)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrink)
    with pytest.raises(TryAgain):
        await node.add(HostSource(path), KEEP)
    assert await node.pins_scan() == []


async def test_a_full_disk_is_said_and_costs_nothing_that_was_there(
    node: EmbeddedNode, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(6 << 20))
    kept = await node.add(StreamSource(pieces(b"kept")), KEEP)
    with file_size_limit(2 << 20), pytest.raises(NoSpace):
        await node.add(HostSource(path), KEEP)
    assert [pin.cid for pin in await node.pins_scan()] == [kept.cid]
    assert await cat(node, str((await node.add(HostSource(path), KEEP)).cid)) == content(6 << 20)
    store.kill()
    store.open()
    assert store.own.damages == []
    assert store.blocks.get(kept.cid) == b"kept"


async def test_large_directories_are_built_in_a_worker_process(
    node: EmbeddedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_directory, "PROCESS_ENTRIES_MIN", 100)
    top = tmp_path / "many"
    top.mkdir()
    for number in range(150):
        (top / f"{number}").write_bytes(b"%d" % number)
    added = await node.add(HostSource(top), KEEP)
    monkeypatch.setattr(large_directory, "PROCESS_ENTRIES_MIN", 1000)
    assert (await node.add(HostSource(top), KEEP)).cid == added.cid
    assert await cat(node, f"{added.cid}/77") == b"77"


async def test_a_cancelled_add_pins_nothing_and_leaves_only_garbage(
    node: EmbeddedNode, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(40 << 20))
    with trio.CancelScope() as scope:
        await node.add(HostSource(path), KEEP, lambda progress: scope.cancel())
    assert scope.cancelled_caught
    assert await node.pins_scan() == []
    await node.repo_gc()
    assert (await node.repo_stat()).blocks == 0


async def test_a_collection_in_the_middle_of_an_add_takes_nothing_of_it(
    node: EmbeddedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_BATCH_BYTES", 1 << 20)
    data = content(5 << 20)
    source = pieces(data, 1 << 20)
    stored: list[int] = []

    class Collecting(Pieces):
        async def __anext__(self) -> bytes:
            await node.repo_gc()
            stored.append((await node.repo_stat()).blocks)
            return await source.__anext__()

    added = await node.add(StreamSource(Collecting(b"", 1)), KEEP)
    assert max(stored) >= 2, "there was something to collect"
    assert await cat(node, str(added.cid)) == data


async def test_adds_and_collections_at_the_same_time(node: EmbeddedNode, tmp_path: Path) -> None:
    roots: list[Cid] = []

    async def add(number: int) -> None:
        top = tmp_path / f"{number}"
        make_tree(top)
        (top / "own").write_bytes(content(2 << 20, number))
        roots.append((await node.add(HostSource(top), KEEP)).cid)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(add, number)
        for _ in range(5):
            await node.repo_gc()
    await node.repo_gc()
    for root in roots:
        assert len(await export(node, root)) > 2 << 20
    assert [verdict.missing for verdict in [v async for v in node.pins_verify()]] == [()] * 6


# --- paths ----------------------------------------------------------------------------------------


def test_paths_are_parsed_strictly() -> None:
    cid = raw(b"x")
    assert parse_path(str(cid)) == (cid, [])
    assert parse_path(f"/ipfs/{cid}/a//b/") == (cid, [b"a", b"b"])
    assert parse_path(f"ipfs://{cid}/a%20b%ff") == (cid, [b"a b\xff"])
    assert parse_path(f"{cid}/" + os.fsdecode(b"\xff%20")) == (cid, [b"\xff%20"])
    for wrong in ("", "/ipfs/", "/", "nonsense", "/ipfs//a", f"{cid}x"):
        with pytest.raises(InvalidCid):
            parse_path(wrong)
    with pytest.raises(Unsupported):
        parse_path("/ipns/example.org/x")


async def test_resolving_tells_absent_names_from_absent_blocks(
    node: EmbeddedNode, tmp_path: Path
) -> None:
    make_tree(tmp_path / "tree")
    added = await node.add(HostSource(tmp_path / "tree"), KEEP)
    with pytest.raises(NotFound):
        await node.resolve(f"{added.cid}/none")
    with pytest.raises(NotADirectory):
        await node.resolve(f"{added.cid}/small/below")
    absent = Cid.dag_pb(digest(b"absent"))
    with pytest.raises(NotAvailableOffline):
        await node.resolve(f"{absent}/none")
    for call in (node.stat(str(absent)), node.block_get(absent), cat(node, str(absent))):
        with pytest.raises(NotAvailableOffline):
            await call
    with pytest.raises(IsADirectory):
        await cat(node, f"{added.cid}/d")


async def test_a_hole_in_a_file_is_an_error_and_never_zeros(node: EmbeddedNode) -> None:
    data = content(3 << 20)
    added = await node.add(StreamSource(pieces(data)), KEEP)
    node.blocks.delete(raw(data[1 << 20 : 2 << 20]).multihash)
    read = node.cat(str(added.cid))
    assert await anext(read) == data[: 1 << 20]
    with pytest.raises(NotAvailableOffline):
        await anext(read)
    assert await cat(node, str(added.cid), 2 << 20) == data[2 << 20 :]


async def test_ls_names_types_and_pages(node: EmbeddedNode, tmp_path: Path) -> None:
    files = make_tree(tmp_path / "tree")
    added = await node.add(HostSource(tmp_path / "tree"), KEEP)
    listed = {e.name: e async for page in node.ls(str(added.cid)) for e in page}
    assert set(listed) == {os.fsencode(p) for p in os.listdir(tmp_path / "tree")}
    kinds = {name: entry.node.kind for name, entry in listed.items() if entry.node}
    assert (kinds[b"d"], kinds[b"small"], kinds[b"large"]) == ("directory", "raw", "file")
    assert listed[b"large"].node is not None
    assert listed[b"large"].node.size_bytes == len(files["large"])
    node.blocks.delete(listed[b"d"].cid.multihash)
    again = {e.name: e async for page in node.ls(str(added.cid)) for e in page}
    assert again[b"d"].node is None
    with pytest.raises(NotADirectory):
        [page async for page in node.ls(f"{added.cid}/small")]


async def test_a_sharded_directory_is_listed_in_pages(node: EmbeddedNode) -> None:
    leaf = put_raw(node.blocks, b"x")
    entries = [protocol_entry(f"name-{n:05d}".encode() * 4, leaf) for n in range(3000)]
    link = build_directory(entries, V1, node.blocks.put)
    sizes = [len(page) async for page in node.ls(str(link.cid))]
    assert sum(sizes) == 3000
    assert max(sizes) == 256


def protocol_entry(name: bytes, cid: Cid) -> import_tree.DirEntry:
    return import_tree.DirEntry(name, cid, 1)


async def test_walk_gives_parents_first(node: EmbeddedNode, tmp_path: Path) -> None:
    files = make_tree(tmp_path / "tree")
    added = await node.add(HostSource(tmp_path / "tree"), KEEP)
    items = [item async for item in node.walk(str(added.cid))]
    paths = [item.path for item in items]
    assert paths[0] == b""
    assert set(paths) == {
        *map(os.fsencode, files),
        *(b"", b"d", b"d/e", b"nothing", b"link"),
    }
    assert paths.index(b"d") < paths.index(b"d/e") < paths.index(b"d/e/deep")


# --- reading at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
async def test_reads_wait_only_for_what_was_not_verified(
    node: EmbeddedNode, store: Store, profile: protocol.Profile
) -> None:
    data = content((4 << 20) + 100)
    added = await node.add(StreamSource(pieces(data)), AddOptions(profile=profile))
    with pytest.raises(WouldBlock) as blocked:
        node.open(added.cid)
    assert await blocked.value.wait() is RETRY
    file = node.open(added.cid)
    assert file.size_bytes == len(data)
    if profile.has_raw_leaves:
        assert node.read_nowait(added.cid, 1_000_000, 131_072) == data[1_000_000:][:131_072]
        assert file.read_nowait(1_000_001, 1000) == data[1_000_001:1_001_001]
        assert file.read_nowait(len(data) - 5, 100) == data[-5:]
    assert file.read_nowait(len(data), 10) == b""
    for offset in range(0, len(data), 999_983):
        got = await complete(node.read_nowait, added.cid, offset, 200_000)
        assert got == data[offset : offset + 200_000]


async def test_containers_are_read_without_copies(node: EmbeddedNode, store: Store) -> None:
    data = content((3 << 20) + 5)
    store.owner.container(1, data)
    from unifs.ipfs.unixfs.builder import FileBuilder, hash_leaf

    for profile in (V1, V0):
        size = profile.chunk_bytes
        chunks = [(at, data[at : at + size]) for at in range(0, len(data), size)]
        leaves = [(hash_leaf(profile, chunk), at, len(chunk)) for at, chunk in chunks]
        node.blocks.add_container(1, leaves, is_wrapped=not profile.has_raw_leaves)
        builder = FileBuilder(profile, node.blocks.put)
        for leaf_digest, _, length in leaves:
            builder.leaf_digest(leaf_digest, length)
        root = builder.finish().cid
        assert await cat(node, str(root)) == data
        got = node.read_nowait(root, 500_000, 1_000_000)
        assert got == data[500_000:1_500_000]
    store.owner.container(1, b"rot" + data[3:])
    assert (await node.repo_verify()).damages != ()


@pytest.mark.parametrize("size", [4096, 131_072, 1_500_000])
async def test_every_range_of_a_file_can_be_read_at_once(node: EmbeddedNode, size: int) -> None:
    data = content((5 << 20) + 333)
    added = await node.add(StreamSource(pieces(data)), KEEP)
    await node._files.load(added.cid)
    order = list(range(0, len(data) + 1, size // 3 * 2 + 1))
    random.Random(size).shuffle(order)
    for offset in order:
        assert node.read_nowait(added.cid, offset, size) == data[offset : offset + size]
    await node.pins_remove(added.cid)
    file = node.open(added.cid)
    assert (await node.repo_gc()).freed_bytes > 5 << 20
    assert file.read_nowait(0, 4096) == data[:4096], "its reader holds the segment"


async def test_rot_is_an_error_for_the_reader(node: EmbeddedNode, store: Store) -> None:
    data = content(2 << 20)
    added = await node.add(StreamSource(pieces(data)), KEEP)
    place = node.blocks.index.places(raw(data[: 1 << 20]).multihash)[0]
    node.blocks.forget_verified(place)
    path = store.own.directory / "1.car"
    with path.open("r+b") as file:
        file.seek(place.offset + 1000)
        file.write(b"rot")
    with pytest.raises(Corrupt, match=r"blocks/1\.car"):
        await complete(node.read_nowait, added.cid, 0, 4096)
    damages = (await node.repo_verify()).damages
    assert [damage.cid for damage in damages] == [raw(data[: 1 << 20])]
    verdicts = [verdict async for verdict in node.pins_verify()]
    assert verdicts[0].damaged == (raw(data[: 1 << 20]),)


# --- blocks ---------------------------------------------------------------------------------------


async def test_blocks_in_and_out(node: EmbeddedNode) -> None:
    cid = await node.block_put(b"data", pin=True)
    assert cid == raw(b"data")
    assert await node.block_get(cid) == b"data"
    assert await node.block_stat(cid) == 4
    with pytest.raises(TooLarge):
        await node.block_put(bytes((2 << 20) + 1))
    with pytest.raises(Corrupt):
        await node.block_put(b"no dag-pb", codec=0x70)
    with pytest.raises(InvalidCid):
        await node.block_put(b"x", codec=0x3FFFF1)
    await node.repo_gc()
    assert await node.block_get(cid) == b"data"


async def test_the_journals_contents_are_found_at_once(node: EmbeddedNode, store: Store) -> None:
    store.contents.append_raw(digest(b"just closed"), b"just closed")
    assert await cat(node, str(raw(b"just closed"))) == b"just closed"


async def test_a_pin_of_a_fresh_content_survives_power_loss(
    node: EmbeddedNode, store: Store
) -> None:
    place = store.contents.append_raw(digest(b"content"), b"content")
    await node.pins_add(raw(b"content"))
    assert store.contents.is_synced(place)


# --- archives -------------------------------------------------------------------------------------


async def test_an_archive_goes_round(node: EmbeddedNode, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    added = await node.add(HostSource(tmp_path / "tree"), KEEP)
    archive = await export(node, added.cid)
    other = Store(tmp_path / "other", limit_bytes=1 << 20)
    pins = Pins(tmp_path / "other.db")
    there = EmbeddedNode(other.blocks, pins)
    imported = await there.dag_import(pieces(archive, 70_001), pin_name="moved")
    assert imported.roots == imported.pinned == (added.cid,)
    assert await export(there, added.cid) == archive
    assert [(pin.cid, pin.name) for pin in await there.pins_scan()] == [(added.cid, "moved")]
    pins.close()
    other.close()


async def test_several_roots_share_their_blocks(node: EmbeddedNode) -> None:
    first = (await node.add(StreamSource(pieces(b"one")), AddOptions(wrap="a"))).cid
    second = (await node.add(StreamSource(pieces(b"one")), AddOptions(wrap="b"))).cid
    archive = await export(node, first, second)
    assert archive.count(raw(b"one").binary + b"one") == 1


async def test_an_archive_cut_at_every_byte_pins_nothing(
    node: EmbeddedNode, tmp_path: Path
) -> None:
    added = await node.add(StreamSource(pieces(b"data" * 9)), AddOptions(wrap="n", pin=False))
    archive = await export(node, added.cid)
    assert len(archive) < 300
    await node.repo_gc()
    assert (await node.repo_stat()).blocks == 0
    for end in range(len(archive)):
        with pytest.raises((Corrupt, NotAvailableOffline)):
            await node.dag_import(pieces(archive[:end], 64))
        assert await node.pins_scan() == []
    await node.repo_gc()
    assert (await node.repo_stat()).blocks == 0
    assert (await node.dag_import(pieces(archive))).pinned == (added.cid,)
    assert await cat(node, f"{added.cid}/n") == b"data" * 9


async def test_an_archive_with_a_wrong_byte_is_refused(node: EmbeddedNode) -> None:
    added = await node.add(StreamSource(pieces(b"data" * 9)), AddOptions(wrap="n", pin=False))
    archive = bytearray(await export(node, added.cid))
    archive[-1] ^= 1
    await node.repo_gc()
    with pytest.raises(Corrupt):
        await node.dag_import(pieces(bytes(archive)))
    assert await node.pins_scan() == []


async def test_an_incomplete_dag_is_neither_exported_nor_pinned(node: EmbeddedNode) -> None:
    data = content(3 << 20)
    added = await node.add(StreamSource(pieces(data)), LOOSE)
    lost = raw(data[1 << 20 : 2 << 20])
    node.blocks.delete(lost.multihash)
    with pytest.raises(NotAvailableOffline, match=str(lost)):
        await anext(aiter(node.dag_export([added.cid])))
    with pytest.raises(NotAvailableOffline, match=str(lost)):
        await node.pins_add(added.cid)
    assert await node.pins_scan() == []
    assert (await node.pins_add(added.cid, "direct")).mode == "direct"
    with pytest.raises(NotAvailableOffline):
        await node.pins_add(added.cid, "recursive")
    assert [pin.mode for pin in await node.pins_scan()] == ["direct"]


# --- the repository -------------------------------------------------------------------------------


async def test_collection_frees_what_is_unpinned(node: EmbeddedNode, store: Store) -> None:
    kept = await node.add(StreamSource(pieces(content(5 << 20, 1))), KEEP)
    gone = await node.add(StreamSource(pieces(content(50 << 20, 2))), KEEP)
    await node.pins_remove(gone.cid)
    before = (await node.repo_stat()).own_bytes
    report = await node.repo_gc()
    assert report.removed_bytes > 50 << 20
    assert (await node.repo_stat()).own_bytes < before - (32 << 20)
    assert await cat(node, str(kept.cid)) == content(5 << 20, 1)
    with pytest.raises(NotAvailableOffline):
        await cat(node, str(gone.cid))
    assert (await node.repo_verify()).damages == ()


async def test_what_is_held_is_not_collected(node: EmbeddedNode) -> None:
    added = await node.add(StreamSource(pieces(b"held")), AddOptions(wrap="n", pin=False))
    async with node.hold(added.cid):
        await node.repo_gc()
        assert await cat(node, f"{added.cid}/n") == b"held"
    await node.repo_gc()
    with pytest.raises(NotAvailableOffline):
        async with node.hold(added.cid):
            pytest.fail("an incomplete DAG is held")


async def test_serving_indexes_contents_and_keeps_below_the_limit(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    pins = Pins(store.directory / "pins.db")
    node = EmbeddedNode(store.blocks, pins, limit_bytes=40 << 20)
    store.blocks.writers.grace_s = 0
    async with node.serve():
        store.contents.append_raw(digest(b"new"), b"new")
        for seed in range(4):
            await node.add(StreamSource(pieces(content(16 << 20, seed))), LOOSE)
        with trio.fail_after(1000):
            while node.collector.is_due() or store.blocks.lag_bytes():  # noqa: ASYNC110
                await trio.sleep(1)
    assert store.own.statistics().size_bytes < 36 << 20
    assert store.blocks.index.has(raw(b"new").multihash)
    pins.close()


async def test_the_node_says_who_it_is(node: EmbeddedNode) -> None:
    who = await node.id()
    assert (who.kind, who.peer_id, who.profile) == ("embedded", None, "unixfs-v1-2025")
    embedded: protocol.Node = node
    assert embedded.profile is V1


def test_batches_of_small_files_are_bounded() -> None:
    files = [(b"%d" % n, size) for n, size in enumerate([10] * 200 + [1 << 21] + [1 << 20] * 20)]
    batches = list(import_tree._batches(files))
    assert sorted(name for batch in batches for name in batch) == sorted(n for n, _ in files)
    assert max(map(len, batches)) <= 64
    assert [b"200"] in batches
    assert importer.SMALL_BYTES == 1 << 20
    assert stat.S_ISREG(os.stat(__file__).st_mode)
