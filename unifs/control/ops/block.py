"""Single blocks."""

from collections.abc import AsyncIterator
from typing import Annotated

from unifs.control.daemon_protocol import Answer, Daemon
from unifs.control.registry import Download, Param, operation

BlockCid = Annotated[str, Param("the block's CID")]


class BlockStat(Answer):
    """One block."""

    cid: str
    size_bytes: int


@operation("block.get")
async def get(daemon: Daemon, cid: BlockCid) -> Download:
    """Write one block's bytes, verified."""
    from unifs.ipfs.cid import Cid

    data = await daemon.node.block_get(Cid.parse(cid))

    async def once() -> AsyncIterator[bytes]:
        yield bytes(data)

    return Download(once(), size_bytes=len(data))


@operation("block.stat")
async def stat(daemon: Daemon, cid: BlockCid) -> BlockStat:
    """Tell a block's size."""
    from unifs.ipfs.cid import Cid

    parsed = Cid.parse(cid)
    return BlockStat(cid=str(parsed), size_bytes=await daemon.node.block_stat(parsed))
