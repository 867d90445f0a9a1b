"""Verification of a whole blockstore: every place of every block is read and hashed anew.

Behind ``repo verify``. Reads in slices, in a thread; names what is wrong and changes nothing, apart
from rebuilding the index where SQLite finds its file damaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import DiskFailed, UnifsError
from unifs.ipfs.cid import DAG_PB, RAW, Cid
from unifs.ipfs.embedded.block_index import PlaceKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.ipfs.embedded.block_index import BlockPlace
    from unifs.ipfs.embedded.blocks import Blocks

#: Blocks hashed in one call of a thread; progress is told between calls.
_SLICE: Final = 64


@dataclass(frozen=True, slots=True)
class DamagedPlace:
    """One thing that is wrong: the block (None for bytes that are no block), where, and why."""

    cid: Cid | None
    where: str
    reason: str


@dataclass(slots=True)
class Verification:
    """What a verification found. ``blocks`` counts places read."""

    blocks: int = 0
    size_bytes: int = 0
    damages: list[DamagedPlace] = field(default_factory=list)
    is_index_rebuilt: bool = False


async def verify_blocks(
    blocks: Blocks,
    rebuild: Callable[[], Awaitable[None]],
    progress: Callable[[Verification], None] | None = None,
) -> Verification:
    """Hash everything. ``rebuild`` makes a damaged index anew; ``progress`` is called on the event
    loop with the state so far.
    """
    found = Verification()
    if not await trio.to_thread.run_sync(blocks.index.is_sound):
        await rebuild()
        found.is_index_rebuilt = True
    await trio.to_thread.run_sync(blocks.catch_up)
    await trio.to_thread.run_sync(blocks.flush)
    await trio.to_thread.run_sync(partial(_gaps, blocks, found))
    after = b""
    while True:
        batch = await trio.to_thread.run_sync(partial(blocks.index.iterate, after, _SLICE))
        if not batch:
            return found
        await trio.to_thread.run_sync(partial(_hash, blocks, batch, found))
        after = batch[-1][0]
        if progress is not None:
            progress(found)


def _gaps(blocks: Blocks, found: Verification) -> None:
    for segments in blocks.stores:
        for segment in segments.segments():
            for gap in segments.gaps(segment):
                where = (
                    f"{segments.directory.name}/{segment}.car, {gap.length} bytes at {gap.offset}"
                )
                found.damages.append(DamagedPlace(None, where, "no block can be read there"))


def _hash(blocks: Blocks, batch: list[tuple[bytes, BlockPlace]], found: Verification) -> None:
    for multihash, place in batch:
        cid = Cid(1, DAG_PB if place.kind is PlaceKind.WRAPPED else RAW, multihash)
        found.blocks += 1
        found.size_bytes += place.length
        try:
            blocks.read_checked(cid, place)
        except (UnifsError, OSError) as error:
            if place not in blocks.index.places(multihash):
                continue  # collected meanwhile
            reason = "the disk refuses to read it" if isinstance(error, DiskFailed) else str(error)
            found.damages.append(DamagedPlace(cid, blocks.describe(place), reason))
