"""A link by CID to bytes that another file of the tree holds, when that file goes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs.nodeworld import NodeSystem
from unifs.ipfs.cid import Cid
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[NodeSystem]:
    async with NodeSystem(tmp_path) as running:
        assert isinstance(running, NodeSystem)
        yield running


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_link_outlives_the_file_whose_bytes_it_shows(
    fs: NodeSystem, is_restarted: bool
) -> None:
    """No pin is there, and the container that the file leaves behind is still needed."""
    data = os.urandom(3 << 20)
    await fs.write("first", data)
    await fs.settle()
    inode = fs.vfs.inodes.get((await fs.stat("first")).ino)
    value = await complete(fs.volume.getxattr, inode, b"ipfs.cid")
    await fs.link(Cid.parse(bytes(value).decode()), "second")
    if is_restarted:
        await fs.remount()
    await fs.unlink("first")
    await fs.settle(keep_s=0.0)
    await fs.settle(keep_s=0.0)
    assert fs.keeper.dead_containers()
    await fs.keeper._let_go(fs.node)
    assert await fs.read("second") == data


async def test_where_nothing_is_linked_containers_go_at_once(fs: NodeSystem) -> None:
    await fs.write("first", os.urandom(3 << 20))
    await fs.settle()
    await fs.unlink("first")
    await fs.settle(keep_s=0.0)
    await fs.settle(keep_s=0.0)
    assert fs.keeper.dead_containers()
    await fs.keeper._let_go(fs.node)
    assert not fs.keeper.dead_containers()
