"""CAR archives out of and into the blockstore.

Called by ``node``. An export walks the DAGs twice: first their interior nodes only, so that what is
not complete here fails before the first byte. An import verifies each block; one that fails leaves
nothing but unpinned blocks, which the next collection takes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import NotAvailableOffline
from unifs.ipfs.car import CarReader, header, section_head
from unifs.ipfs.embedded.links import walk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence

    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks

#: Bytes of one piece of an export; a piece is one call of a thread.
_PIECE_BYTES: Final = 1 << 20


def missing(root: Cid, blocks: Blocks, limit: int) -> list[Cid]:
    """Up to ``limit`` blocks of a DAG that are not here; Corrupt if a node is damaged.

    What lies below a missing node cannot be known. Runs in a thread of the loop, and ends where
    that gives it up.
    """
    absent: list[Cid] = []

    def get(cid: Cid) -> bytes | None:
        try:
            return blocks.get(cid)
        except NotAvailableOffline:
            return None

    for cid in walk(root, get):
        trio.from_thread.check_cancelled()
        if not blocks.has(cid):
            absent.append(cid)
            if len(absent) == limit:
                break
    return absent


def require_complete(root: Cid, blocks: Blocks) -> None:
    """NotAvailableOffline, naming a block, unless the whole DAG is here. Blocks."""
    absent = missing(root, blocks, 1)
    if absent:
        raise NotAvailableOffline(
            f"{root} is not complete here: block {absent[0]} is missing",
            cid=str(root),
            missing=str(absent[0]),
        )


async def is_complete(blocks: Blocks, root: Cid) -> bool:
    """Whether the whole DAG is here; leaves are looked up, not read."""
    return not await trio.to_thread.run_sync(partial(missing, root, blocks, 1))


async def export(
    roots: Sequence[Cid], blocks: Blocks, limiter: trio.CapacityLimiter
) -> AsyncGenerator[bytes, None]:
    """A version 1 archive of whole DAGs: each block once, depth first. Identity blocks are in CIDs.

    NotAvailableOffline before the first byte if a DAG is not complete. A block lost or found
    damaged later ends the stream with an error, never with a short archive that looks whole.
    """
    for root in roots:
        await trio.to_thread.run_sync(partial(require_complete, root, blocks), limiter=limiter)
    yield header(roots)
    pieces = _pieces(roots, blocks)
    while piece := await trio.to_thread.run_sync(partial(next, pieces, b""), limiter=limiter):
        yield piece


def _pieces(roots: Sequence[Cid], blocks: Blocks) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    seen: set[bytes] = set()
    for root in roots:
        for cid in walk(root, blocks.get):
            if cid.is_identity or cid.multihash in seen:
                continue
            if len(roots) > 1:
                seen.add(cid.multihash)
            block = blocks.get(cid)
            parts += (section_head(cid, len(block)), block)
            size += len(block)
            if size >= _PIECE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    if parts:
        yield b"".join(parts)


class CarImport:
    """One import: feed it pieces, then ``finish``."""

    def __init__(self, blocks: Blocks, limiter: trio.CapacityLimiter) -> None:
        self.blocks_done = 0
        self.bytes_done = 0
        self._blocks = blocks
        self._limiter = limiter
        self._reader = CarReader()

    async def read(self, pieces: AsyncIterable[bytes]) -> tuple[Cid, ...]:
        """Keep every block; returns the roots that the archive names. Corrupt if it ends early."""
        async for piece in pieces:
            await trio.to_thread.run_sync(partial(self._feed, piece), limiter=self._limiter)
        self._reader.close()
        return self._reader.roots or ()

    def _feed(self, piece: bytes) -> None:
        for section in self._reader.feed(piece):
            self._blocks.put(section.cid, section.data)
            self.blocks_done += 1
            self.bytes_done += len(section.data)
