"""Collection over a whole tree: nothing that anybody can reach goes, and all the rest goes."""

from __future__ import annotations

import os
import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from tests.vfs.nodeworld import NodeSystem
from unifs.errors import NotAvailableOffline
from unifs.ipfs.embedded.links import links
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.ipfs.cid import Cid

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
    readers = {
        "cat": lambda: fs.node.cat(f"/ipfs/{cid}/file"),
        "walk": lambda: fs.node.walk(f"/ipfs/{cid}"),
        "dag_export": lambda: fs.node.dag_export([cid]),
    }
    read = []
    async with aclosing(readers[how]()) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            read.append(piece)
            await fs.collect()
    if how == "cat":
        assert b"".join(read) == DATA  # type: ignore[arg-type]
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
