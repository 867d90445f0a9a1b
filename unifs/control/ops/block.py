"""Single blocks."""

from collections.abc import AsyncIterator

from unifs.control.daemon_protocol import Answer, Daemon
from unifs.control.ops.node_path import NodePath, node_path
from unifs.control.registry import Download, operation


class BlockStat(Answer):
    """One block."""

    cid: str
    size_bytes: int


@operation("block.get")
async def get(daemon: Daemon, cid: NodePath) -> Download:
    """Write one block's bytes, verified."""
    found = await daemon.node.resolve(await node_path(daemon, cid))
    data = await daemon.node.block_get(found)

    async def once() -> AsyncIterator[bytes]:
        yield bytes(data)

    return Download(once(), size_bytes=len(data))


@operation("block.stat")
async def stat(daemon: Daemon, cid: NodePath) -> BlockStat:
    """Tell a block's size."""
    found = await daemon.node.resolve(await node_path(daemon, cid))
    return BlockStat(cid=str(found), size_bytes=await daemon.node.block_stat(found))
