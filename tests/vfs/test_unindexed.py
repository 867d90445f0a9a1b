"""What is kept by its CID stays when the block index has forgotten where it lies."""

from __future__ import annotations

import os
import random
from hashlib import sha256
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.vfs.harness import BOOT
from tests.vfs.nodeworld import NodeSystem
from unifs.fsck.offline import CLEAN, examine
from unifs.ipfs.cid import Cid
from unifs.vfs.unindexed import index_container

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.ipfs.embedded.node import EmbeddedNode

CHUNK = 1 << 20
LARGE = random.Random(6).randbytes(3 * CHUNK + 5)


async def sealed(fs: NodeSystem) -> Cid:
    """The CID of a large file."""
    await fs.write("file", LARGE)
    await fs.seal()
    row = fs.storage.database.one("select cid from content")
    return Cid.decode(row[0][8:])


async def removed(fs: NodeSystem, how: str) -> Cid:
    """A large file whose CID is pinned, or linked as "link", and which is removed for good."""
    cid = await sealed(fs)
    if how == "pin":
        await fs.node.pins_add(cid)
    elif how == "link":
        await fs.link(cid, "link")
    await fs.unlink("file")
    await fs.settle(keep_s=0.0)
    assert fs.writer.dead_containers == {1}
    return cid


async def released(fs: NodeSystem) -> None:
    """As the keeper does, a while later."""
    await fs.keeper.index_left()
    fs.keeper._collected_at = float("-inf")
    await fs.keeper._let_go(fs.node)
    assert list((fs.path / "data").iterdir()) == []


async def test_a_linked_file_outlives_its_source_and_a_kill(tmp_path: Path) -> None:
    """The index had the leaves in memory only, and the rows that would tell it again are gone."""
    async with NodeSystem(tmp_path) as fs:
        await removed(fs, "link")
        await fs.kill()
        await released(fs)
        assert await fs.read("link") == LARGE


@pytest.mark.parametrize("how", ["pin", "link"])
@pytest.mark.parametrize("is_repaired", [False, True])
async def test_what_is_kept_by_its_cid_outlives_the_block_index(
    tmp_path: Path, how: str, is_repaired: bool
) -> None:
    async with NodeSystem(tmp_path) as fs:
        cid = await removed(fs, how)
        await fs.stop()
        os.unlink(tmp_path / "blocks.db")
        if is_repaired:
            with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
                assert examine(tmp_path, repair=True).exit_code == CLEAN
        await fs.start()
        await released(fs)
        assert fs.has(cid)


async def test_a_repair_that_makes_the_index_anew_keeps_what_a_pin_needs(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        cid = await removed(fs, "pin")
        writer = fs.storage.blocks.index._writer
        writer.execute("insert into blocks values(x'1220',0,99,18,7)")
        await fs.stop()
        with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
            outcome = examine(tmp_path, repair=True)
            assert "INDEX_NOWHERE" in {each.code for each in outcome.found}
        await fs.start()
        await released(fs)
        assert fs.has(cid)


async def test_what_the_index_says_of_a_removed_container_is_not_said_of_the_next(
    tmp_path: Path,
) -> None:
    """A power cut took the index's commit, and numbers of containers come again."""
    async with NodeSystem(tmp_path) as fs:
        fs.storage.blocks.add_container(1, [(bytes(32), 0, 5)])
        await fs.stop()
        await fs.start()
        cid = await sealed(fs)
        await fs.kill()
        fs.storage.blocks.catch_up()
        assert fs.has(cid)


async def test_where_nothing_is_kept_by_its_cid_leftovers_go_at_once(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        await removed(fs, "not at all")
        await fs.kill()
        assert list((tmp_path / "data").iterdir()) == []


async def test_every_leaf_is_found_beside_holes(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        container = fs.storage.contents.containers.create()
        descriptor = fs.storage.contents.containers.descriptor(container)
        os.pwrite(descriptor, b"one", 5 * CHUNK + 7)
        os.pwrite(descriptor, b"two", 9 * CHUNK)
        os.ftruncate(descriptor, 12 * CHUNK + 9)
        index_container(fs.storage, container)
        found = {
            multihash[2:]: place.offset
            for multihash, place in fs.storage.blocks.index.container_blocks(container)
        }
        assert found == {
            sha256(bytes(CHUNK)).digest(): 0,
            sha256((bytes(7) + b"one").ljust(CHUNK, b"\0")).digest(): 5 * CHUNK,
            sha256(b"two".ljust(CHUNK, b"\0")).digest(): 9 * CHUNK,
            sha256(bytes(9)).digest(): 12 * CHUNK,
        }


@pytest.mark.parametrize("how", ["pin", "link"])
async def test_what_is_kept_while_containers_are_let_go_stays(tmp_path: Path, how: str) -> None:
    """Nothing was pinned or linked when that was looked at."""
    async with NodeSystem(tmp_path) as fs:
        cid = await removed(fs, "not at all")
        has_links = fs.keeper._has_links

        async def kept_meanwhile(node: EmbeddedNode) -> bool:
            found = await has_links(node)
            if how == "pin":
                await fs.node.pins_add(cid)
            else:
                await fs.link(cid, "link")
            return found

        with mock.patch.object(fs.keeper, "_has_links", kept_meanwhile):
            await fs.keeper._let_go(fs.node)
        await released(fs)
        assert fs.has(cid)


async def test_an_index_that_is_made_anew_beside_the_daemon_knows_everything(
    tmp_path: Path,
) -> None:
    async with NodeSystem(tmp_path) as fs:
        pinned = await removed(fs, "pin")
        await fs.write("there", LARGE[::-1])
        await fs.seal()
        (row,) = fs.storage.database.all("select cid from content")
        with mock.patch.object(fs.storage.blocks.index, "is_sound", return_value=False):
            verified = await fs.node.repo_verify()
        assert (verified.is_index_rebuilt, verified.damages) == (True, ())
        assert fs.has(pinned)
        assert fs.has(Cid.decode(row[0][8:]))
        await fs.collect()
        assert len(list((tmp_path / "data").iterdir())) == 1
        assert fs.has(pinned)
