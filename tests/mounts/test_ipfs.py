"""/ipfs over the embedded node: what is not here, what is no CID, large and partial directories."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.contract.test_reading import scanned
from tests.ipfs.embedded.stores import Store, digest, put_raw, raw
from unifs.cache.reads import ReadCache
from unifs.cache.source import Source
from unifs.errors import InvalidArgument, NotAvailableOffline, NotFound, Stale, Unsupported
from unifs.ipfs import dagpb
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.node import EmbeddedNode
from unifs.ipfs.embedded.pins import Pins
from unifs.ipfs.node import AddOptions, HostSource
from unifs.ipfs.unixfs.directory import build_directory
from unifs.ipfs.unixfs.node import DirEntry
from unifs.ipfs.unixfs.profiles import PROFILES
from unifs.mounts import ipfs
from unifs.mounts.ipfs import IpfsMount
from unifs.types import Version
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROFILE = PROFILES["unixfs-v1-2025"]
BYTES = bytes(index * 7 % 251 for index in range(2_500_000))


class World:
    """A node, and /ipfs over it."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.store = Store(tmp_path / "state", limit_bytes=16 << 20)
        self.pins = Pins(tmp_path / "pins.db")
        self.node = EmbeddedNode(self.store.blocks, self.pins, owner=self.store.owner)
        self.mount = IpfsMount(self.node)

    def close(self) -> None:
        self.pins.close()
        self.store.close()

    async def add(self, name: str, pin: bool = False) -> str:
        added = await self.node.add(HostSource(self.tmp_path / name), AddOptions(pin=pin))
        return str(added.cid)

    async def add_file(self, data: bytes, pin: bool = False) -> str:
        (self.tmp_path / "file").write_bytes(data)
        return await self.add("file", pin)

    def directory(self, entries: list[DirEntry]) -> str:
        return str(build_directory(entries, PROFILE, self.store.blocks.put).cid)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    async with made.mount.serve():
        yield made
    made.close()


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "README",
        "Qm",
        "bafybeigdyrzt",
        "ipfs:QmZ",
        "ipns:a",
        "..",
        "\udcff\udcfe",
        "z" * 255,
        " ",
    ],
)
async def test_a_name_that_is_no_cid_is_absent_at_once(world: World, name: str) -> None:
    with pytest.raises(NotFound):
        await world.mount.stat(name)
    with pytest.raises(NotFound):
        await world.mount.scan(f"{name}/a", None)


async def test_what_is_not_on_this_machine_is_not_called_absent(world: World) -> None:
    for cid in (raw(b"never added"), Cid.dag_pb(raw(b"no such node").digest)):
        with pytest.raises(NotAvailableOffline):
            await world.mount.stat(str(cid))
        with pytest.raises(NotAvailableOffline):
            await world.mount.read("", Version(str(cid)), 0, 10)
    directory = str(Cid.dag_pb(raw(b"no such node").digest))
    with pytest.raises(NotAvailableOffline):
        await world.mount.stat(f"{directory}/below")
    with pytest.raises(NotAvailableOffline):
        await world.mount.scan(directory, None)


async def test_the_root_lists_pins_and_what_was_used_lately(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await scanned(world.mount, "") == []
    pinned = [await world.add_file(b"pinned %d" % number, pin=True) for number in range(5)]
    used = await world.add_file(b"only used")
    await world.add_file(b"neither")
    await world.mount.stat(used)
    monkeypatch.setattr(ipfs, "ROOT_PAGE", 2)
    entries = await scanned(world.mount, "")
    assert [entry.name.decode() for entry in entries] == sorted([*pinned, used])
    for entry in entries:
        assert entry.node == await world.mount.stat(entry.name.decode())
    await world.node.pins_remove(Cid.parse(pinned[0]))
    assert pinned[0] in [entry.name.decode() for entry in await scanned(world.mount, "")]


async def test_recently_used_roots_are_bounded(world: World) -> None:
    roots = [await world.add_file(b"%d" % number) for number in range(ipfs.RECENT_MAX + 5)]
    for root in roots:
        await world.mount.stat(root)
    listed = {entry.name.decode() for entry in await scanned(world.mount, "")}
    assert listed == set(roots[5:])


async def test_a_version_is_the_files_own_cid_wherever_it_stands(world: World) -> None:
    for name in ("one", "two"):
        (world.tmp_path / name).mkdir()
        (world.tmp_path / name / f"of-{name}").write_bytes(BYTES)
    first, second = await world.add("one"), await world.add("two")
    a = await world.mount.stat(f"{first}/of-one")
    b = await world.mount.stat(f"{second}/of-two")
    assert a == b
    assert a.version == await world.add_file(BYTES)
    assert a.version is not None
    assert await world.mount.read("", a.version, 1_048_570, 20) == BYTES[1_048_570:1_048_590]
    with pytest.raises(Stale):
        await world.mount.read(f"{first}/of-one", Version('"etag"'), 0, 1)


async def test_the_cache_lets_the_node_answer_from_the_page_cache(world: World) -> None:
    root = await world.add_file(BYTES)
    node = await world.mount.stat(root)
    assert node.version is not None
    source = Source.of("ipfs", world.mount, root, node.version, node.size_bytes)
    cache = ReadCache(None)
    async with cache.serve():
        assert (
            bytes(await complete(cache.read_nowait, source, 500, 2_000_000)) == BYTES[500:2_000_500]
        )
        assert bytes(cache.read_nowait(source, 700, 100)) == BYTES[700:800]
        assert bytes(await complete(cache.read_nowait, source, len(BYTES) - 1, 10)) == BYTES[-1:]
        assert cache.statistics().fetches == 0


async def test_symlinks_keep_their_targets(world: World) -> None:
    (world.tmp_path / "d").mkdir()
    os.symlink(b"../\xff/else", os.fsencode(world.tmp_path) + b"/d/link")
    root = await world.add("d")
    node = await world.mount.stat(f"{root}/link")
    assert stat.S_ISLNK(node.mode)
    assert node.target == b"../\xff/else"
    (entry,) = await scanned(world.mount, root)
    assert entry.node == node


async def test_a_hamt_directory_reads_like_any_other(world: World) -> None:
    cid = put_raw(world.store.blocks, b"same")
    names = [b"%05d-%s" % (number, b"x" * 60) for number in range(6000)]
    root = world.directory([DirEntry(name, cid, 4) for name in names])
    assert (await world.node.stat(root)).node.kind == "hamt"
    entries = await scanned(world.mount, root)
    assert sorted(entry.name for entry in entries) == names
    assert (await world.mount.stat(f"{root}/{names[77].decode()}")).size_bytes == 4
    with pytest.raises(NotFound):
        await world.mount.stat(f"{root}/absent")


async def test_a_partial_directory_is_listed_as_far_as_it_is_known_then_ends_in_words(
    world: World,
) -> None:
    here = put_raw(world.store.blocks, b"here")
    node = dagpb.encode([], b"\x08\x01")
    gone = Cid.dag_pb(digest(node))
    entries = [
        DirEntry(b"a-here", here, 4),
        DirEntry(b"b-node", gone, 1000),
        DirEntry(b"c-raw", raw(b"bytes elsewhere"), 15),
    ]
    root = world.directory(entries)
    first = await world.mount.scan(root, None)
    assert first.after is not None
    last = await world.mount.scan(root, first.after)
    assert last.after is not None
    for _ in range(2):
        with pytest.raises(NotAvailableOffline, match="1 entries"):
            await world.mount.scan(root, last.after)
    seen = [*first.entries, *last.entries]
    assert [(entry.name, entry.node.size_bytes) for entry in seen] == [
        (b"a-here", 4),
        (b"c-raw", 15),
    ]
    with pytest.raises(NotAvailableOffline):
        await world.mount.stat(f"{root}/b-node")
    world.store.blocks.put(gone, node)
    again = await world.mount.scan(root, last.after)
    assert again.after is not None
    page = await world.mount.scan(root, again.after)
    assert [entry.name for entry in page.entries] == [b"a-here", b"b-node", b"c-raw"]
    with pytest.raises(NotFound):
        await world.mount.stat(f"{root}/no-such-name")


async def test_listings_left_in_the_middle_are_bounded_and_resume(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipfs, "STREAMS_MAX", 2)
    cid = put_raw(world.store.blocks, b"x")
    roots = [
        world.directory([DirEntry(b"%d-%03d" % (top, number), cid, 1) for number in range(600)])
        for top in range(4)
    ]
    firsts = {root: await world.mount.scan(root, None) for root in roots}
    assert len(world.mount._listings) == 2
    for root, first in firsts.items():
        names = [entry.name for entry in first.entries]
        after = first.after
        while after is not None:
            page = await world.mount.scan(root, after)
            names += [entry.name for entry in page.entries]
            after = page.after
        assert len(names) == len(set(names)) == 600
    with pytest.raises(InvalidArgument):
        await world.mount.scan(roots[0], "made up")


async def test_what_is_neither_file_nor_directory_is_refused_by_name(world: World) -> None:
    cid = await world.node.block_put(b"\xa0", codec=0x71)
    with pytest.raises(Unsupported):
        await world.mount.stat(str(cid))
