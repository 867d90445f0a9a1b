"""The blockstore as a whole, in the words of the node protocol: its numbers, what a collection did,
what a verification found. Used by ``node``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.ipfs.embedded.verify import Verification, verify_blocks
from unifs.ipfs.node import RepoCollected, RepoDamage, RepoStat, RepoVerified

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.collect import Collection


def stat(blocks: Blocks, limit_bytes: int | None, pins: int) -> RepoStat:
    """The blockstore in numbers. Blocks."""
    statistics = [segments.statistics() for segments in blocks.stores]
    return RepoStat(
        blocks=blocks.index.count(),
        own_bytes=statistics[0].size_bytes,
        content_bytes=sum(store.size_bytes for store in statistics[1:]),
        segments=sum(store.segments for store in statistics),
        limit_bytes=limit_bytes,
        pins=pins,
    )


def collected(report: Collection) -> RepoCollected:
    """What a collection did."""
    return RepoCollected(
        report.removed_blocks,
        report.removed_bytes,
        report.freed_bytes,
        report.duration_s,
        tuple(report.missing),
        tuple(report.damages),
    )


async def verify(
    blocks: Blocks,
    rebuild: Callable[[], Awaitable[None]],
    progress: Callable[[int], None] | None,
) -> RepoVerified:
    """Hash everything again; ``progress`` gets the number of blocks read so far."""

    def tell(state: Verification) -> None:
        if progress is not None:
            progress(state.blocks)

    found = await verify_blocks(blocks, rebuild, tell)
    return RepoVerified(
        found.blocks,
        found.size_bytes,
        tuple(RepoDamage(item.cid, item.where, item.reason) for item in found.damages),
        found.is_index_rebuilt,
    )
