"""Collection over a whole tree: nothing that anybody can reach goes, and all the rest goes."""

from __future__ import annotations

import os
import random
from contextlib import aclosing
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from tests.vfs.nodeworld import NodeSystem
from unifs.errors import NotAvailableOffline
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.links import links, walk
from unifs.ipfs.node import AddOptions, HostSource
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.vfs.harness import File

DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[NodeSystem]:
    async with NodeSystem(tmp_path) as system:
        yield system


async def test_what_is_open_below_ipfs_stays_until_it_is_closed(fs: NodeSystem) -> None:
    cid = await fs.add(DATA)
    ino = await fs.look_up(str(cid), "file")
    handle = await complete(fs.vfs.open, ino, os.O_RDONLY, fs.caller)
    await fs.collect()
    assert bytes(await complete(fs.vfs.read, handle.fh, 1 << 20, 100)) == DATA[1 << 20 :][:100]
    await complete(fs.vfs.release, handle.fh)
    await fs.collect()
    assert not fs.has(cid)


async def test_a_directory_open_below_ipfs_stays_with_what_it_holds(fs: NodeSystem) -> None:
    cid = await fs.add(DATA)
    fh = fs.vfs.opendir(await fs.look_up(str(cid)), fs.caller)
    await fs.collect()
    assert fs.has(cid)
    fs.vfs.releasedir(fh)
    await fs.collect()
    assert not fs.has(cid)


@pytest.mark.parametrize("how", ["cat", "walk", "dag_export"])
async def test_what_somebody_reads_stays_until_he_has_read_it(fs: NodeSystem, how: str) -> None:
    cid = await fs.add(DATA)
    readers: dict[str, Any] = {
        "cat": lambda: fs.node.cat(f"/ipfs/{cid}/file"),
        "walk": lambda: fs.node.walk(f"/ipfs/{cid}"),
        "dag_export": lambda: fs.node.dag_export([cid]),
    }
    read: list[Any] = []
    async with aclosing(readers[how]()) as pieces:
        async for piece in pieces:
            read.append(piece)
            await fs.collect()
    if how == "cat":
        assert b"".join(read) == DATA
    assert len(read) >= 2
    await fs.collect()
    assert not fs.has(cid)


@pytest.mark.parametrize("is_written", [False, True])
async def test_an_unlinked_file_keeps_its_bytes_until_it_is_closed(
    fs: NodeSystem, is_written: bool
) -> None:
    if is_written:
        await fs.write("name", DATA)
    else:
        await fs.link(await fs.add(DATA, wrap=None), "name")
    await fs.settle()
    async with fs.open("name") as file:
        await fs.unlink("name")
        await fs.settle(keep_s=0.0)
        await fs.collect()
        assert await file.read(1 << 20, 1 << 20) == DATA[1 << 20 : 2 << 20]
    await fs.settle(keep_s=0.0)
    await fs.settle(keep_s=0.0)
    await fs.collect()
    assert sum(fs.storage.nodes.segments().values()) < 4096


async def test_a_link_costs_the_same_whatever_hangs_on_it(
    fs: NodeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = await fs.add(DATA)
    read: list[Cid] = []
    get = fs.storage.blocks.get

    def counted(cid: Cid) -> bytes:
        read.append(cid)
        return get(cid)

    monkeypatch.setattr(fs.storage.blocks, "get", counted)
    await fs.link(cid, "name")
    assert set(read) == {cid}
    await fs.collect()
    assert await fs.read("name/file") == DATA


async def test_a_link_to_what_is_not_here_is_refused(fs: NodeSystem) -> None:
    cid = await fs.add(DATA)
    await fs.collect()
    with pytest.raises(NotAvailableOffline):
        await fs.link(cid, "name")
    assert not await fs.exists("name")


async def test_a_hole_below_a_link_is_named_when_it_is_read(fs: NodeSystem) -> None:
    """The rest of the file can be read, and no hole is ever zeros."""
    cid = await fs.add(DATA, wrap=None)
    leaf = links(cid, await fs.node.block_get(cid))[1]
    fs.storage.blocks.delete(leaf.multihash)
    await fs.link(cid, "name")
    async with fs.open("name") as file:
        assert await file.read(0, 100) == DATA[:100]
        with pytest.raises(NotAvailableOffline, match=str(leaf)):
            await file.read(1 << 20, 100)


async def test_a_directory_with_a_hole_is_listed_and_the_rest_of_it_read(fs: NodeSystem) -> None:
    (fs.path / "many").mkdir()
    for name in ("here", "gone"):
        (fs.path / "many" / name).write_bytes(name.encode() * 100)
    added = await fs.node.add(HostSource(fs.path / "many"), AddOptions(pin=False))
    gone = Cid.raw(sha256(b"gone" * 100).digest())
    fs.storage.blocks.delete(gone.multihash)
    await fs.link(added.cid, "linked")
    assert sorted(await fs.listdir("linked")) == [b"gone", b"here"]
    assert (await fs.stat("linked/gone")).size == 400
    assert await fs.read("linked/here") == b"here" * 100
    with pytest.raises(NotAvailableOffline, match=str(gone)):
        await fs.read("linked/gone")


async def test_what_is_linked_while_a_collection_runs_stays(
    fs: NodeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection has read what the tree needs, and the link is no longer held."""
    cid = await fs.add(DATA)
    mark = fs.node.collector._mark

    async def link_then_mark(marks: object) -> None:
        await mark(marks)  # type: ignore[arg-type]
        await fs.link(cid, "name")

    monkeypatch.setattr(fs.node.collector, "_mark", link_then_mark)
    await fs.collect()
    assert await fs.read("name/file") == DATA
    monkeypatch.undo()
    await fs.unlink("name/file")
    await fs.rmdir("name")
    await fs.settle(keep_s=0.0)
    await fs.settle(keep_s=0.0)
    await fs.collect()
    assert not fs.has(cid)


@pytest.mark.parametrize("how", ["kill", "remount"])
async def test_what_a_pin_needs_survives_its_file_and_the_daemon(fs: NodeSystem, how: str) -> None:
    """Its leaves lie in a file that no content names, and nobody has copied them out yet."""
    await fs.write("name", DATA)
    cid = Cid.parse((await fs.getxattr("name", b"ipfs.cid")).decode())
    await fs.node.pins_add(cid)
    await fs.unlink("name")
    await fs.settle(keep_s=0.0)
    await fs.settle(keep_s=0.0)
    assert fs.writer.dead_containers
    await (fs.kill() if how == "kill" else fs.remount())
    assert fs.has(cid)
    await fs.collect()
    assert fs.has(cid)
    assert not list(fs.storage.state.data.iterdir())


NAMES = ("a", "b", "c", "d", "e")
SIZES = (0, 10, 900, 5000, 65_536, 65_537, 1_500_000)


class Work:
    """Random calls, and what must be there whatever was collected."""

    def __init__(self, fs: NodeSystem, chance: random.Random) -> None:
        self.fs = fs
        self.chance = chance
        self.files: dict[str, bytes] = {}
        #: What was added, by CID of the directory around it.
        self.added: dict[Cid, bytes] = {}
        self.pinned: set[Cid] = set()
        self.below_ipfs: list[tuple[int, bytes]] = []
        self.open: list[tuple[File, bytes]] = []

    async def step(self) -> None:
        kinds = (
            self.write,
            self.write,
            self.write,
            self.patch,
            self.unlink,
            self.rename,
            self.add,
            self.pin,
            self.pin_file,
            self.unpin,
            self.link,
            self.open_below_ipfs,
            self.open_file,
            self.close_one,
            self.settle,
            self.settle,
            self.collect,
            self.collect,
            self.restart,
        )
        await self.chance.choice(kinds)()

    def data(self) -> bytes:
        return self.chance.randbytes(self.chance.choice(SIZES))

    def name(self) -> str | None:
        return self.chance.choice(sorted(self.files)) if self.files else None

    def present(self) -> list[Cid]:
        return [cid for cid in self.added if self.fs.has(cid)]

    async def write(self) -> None:
        name = self.chance.choice(NAMES)
        self.files[name] = self.data()
        await self.fs.write(name, self.files[name], fsync=self.chance.random() < 0.3)

    async def patch(self) -> None:
        name = self.name()
        if name is not None and self.files[name]:
            offset = self.chance.randrange(len(self.files[name]))
            async with self.fs.open(name, os.O_RDWR) as file:
                await file.write(offset, b"patch")
            before = self.files[name]
            self.files[name] = before[:offset] + b"patch" + before[offset + 5 :]

    async def unlink(self) -> None:
        name = self.name()
        if name is not None:
            del self.files[name]
            await self.fs.unlink(name)

    async def rename(self) -> None:
        name, target = self.name(), self.chance.choice(NAMES)
        if name is not None and name != target:
            await self.fs.rename(name, target)
            self.files[target] = self.files.pop(name)

    async def add(self) -> None:
        data = self.data()
        cid = await self.fs.add(data, pin=self.chance.random() < 0.5)
        self.added[cid] = data
        if cid in {pin.cid for pin in await self.fs.node.pins_scan()}:
            self.pinned.add(cid)

    async def pin(self) -> None:
        if found := self.present():
            cid = self.chance.choice(found)
            await self.fs.node.pins_add(cid)
            self.pinned.add(cid)

    async def pin_file(self) -> None:
        """A file's own CID: its bytes lie where the tree has them."""
        name = self.name()
        if name is not None and self.files[name]:
            cid = Cid.parse((await self.fs.getxattr(name, b"ipfs.cid")).decode())
            await self.fs.node.pins_add(cid)
            self.pinned.add(cid)

    async def unpin(self) -> None:
        if self.pinned:
            cid = self.chance.choice(sorted(self.pinned, key=str))
            await self.fs.node.pins_remove(cid)
            self.pinned.discard(cid)

    async def link(self) -> None:
        name = self.chance.choice(NAMES)
        if name not in self.files and (found := self.present()):
            cid = self.chance.choice(found)
            await self.fs.link(await self.fs.node.resolve(f"/ipfs/{cid}/file"), name)
            self.files[name] = self.added[cid]

    async def open_below_ipfs(self) -> None:
        if found := self.present():
            cid = self.chance.choice(found)
            ino = await self.fs.look_up(str(cid), "file")
            handle = await complete(self.fs.vfs.open, ino, os.O_RDONLY, self.fs.caller)
            self.below_ipfs.append((handle.fh, self.added[cid]))

    async def open_file(self) -> None:
        """Open, and unlinked at once."""
        name = self.name()
        if name is not None:
            self.open.append((await self.fs.open_file(name), self.files[name]))
            del self.files[name]
            await self.fs.unlink(name)

    async def close_one(self) -> None:
        if self.below_ipfs:
            await complete(self.fs.vfs.release, self.below_ipfs.pop()[0])
        if self.open:
            await self.open.pop()[0].close()

    async def settle(self) -> None:
        await self.fs.settle(keep_s=self.chance.choice((0.0, 3600.0)))

    async def restart(self) -> None:
        while self.below_ipfs or self.open:
            await self.close_one()
        await (self.fs.kill() if self.chance.random() < 0.7 else self.fs.remount())

    async def collect(self) -> None:
        self.fs.storage.segments.roll()
        self.fs.storage.nodes.roll()
        await self.fs.collect()
        await self.check()

    async def check(self) -> None:
        for name, data in self.files.items():
            assert await self.fs.read(name) == data, name
        assert all(self.fs.has(cid) for cid in self.pinned)
        for fh, data in self.below_ipfs:
            read = await complete(self.fs.vfs.read, fh, 0, len(data) + 1)
            assert bytes(read) == data
        for file, data in self.open:
            assert await file.read(0, len(data) + 1) == data

    async def end(self) -> None:
        """Nobody needs anything any more."""
        while self.below_ipfs or self.open:
            await self.close_one()
        while self.files:
            await self.unlink()
        while self.pinned:
            await self.unpin()
        self.fs.storage.segments.roll()
        self.fs.storage.nodes.roll()
        for _ in range(3):
            await self.fs.settle(keep_s=0.0)
        await self.fs.collect()


@pytest.mark.parametrize("seed", range(40))
async def test_nothing_reachable_goes_and_all_the_rest_does(fs: NodeSystem, seed: int) -> None:
    chance = random.Random(seed)
    work = Work(fs, chance)
    for _ in range(chance.randint(5, 50)):
        await work.step()
    await work.check()
    await work.end()
    blocks = fs.storage.blocks
    reachable = {cid.multihash for root in fs.keeper.roots() for cid in walk(root.cid, blocks.get)}
    blocks.flush()
    assert {multihash for multihash, _ in blocks.iterate()} <= reachable
    assert not list(fs.storage.state.data.iterdir())
    assert sum(fs.storage.segments.segments().values()) < 200
