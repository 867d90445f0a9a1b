"""The mark phase of a collection: what can be reached from the roots, in bounded memory.

Interior nodes are remembered exactly (one forgotten would be walked twice, one invented would lose
what is below it); leaves go into a Bloom filter, where a false hit only keeps some garbage until
the next time. 2 bytes per leaf and about 120 per interior node. Used by ``collect`` alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unifs.errors import NotAvailableOffline
from unifs.ipfs.embedded.links import has_links, links

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks

#: 16 bits and 4 probes per leaf: 0.24 % of the garbage survives a collection.
_BITS_PER_LEAF: Final = 16
#: Reported missing blocks; a root without any of its blocks would fill a report otherwise.
_MISSING_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Root:
    """Something to keep: a block, and with ``is_recursive`` everything below it."""

    cid: Cid
    is_recursive: bool = True


class Marks:
    """What is reachable. One thread at a time."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._nodes: set[bytes] = set()
        self._bits = bytearray(max(1024, blocks.index.count() * _BITS_PER_LEAF // 8))
        self._queue: deque[Cid] = deque()
        #: Reachable blocks that are not here: their children cannot be known.
        self.missing: list[Cid] = []
        self.marked = 0

    def add_roots(self, roots: Iterable[Root]) -> None:
        """Note roots; those known already cost a look-up. ``run`` walks them."""
        for root in roots:
            if not root.is_recursive or not has_links(root.cid):
                self._mark_leaf(root.cid.multihash)
            elif root.cid.multihash not in self._nodes:
                self._queue.append(root.cid)

    def run(self, budget: int) -> bool:
        """Walk nodes with about ``budget`` links; whether anything is left to walk.

        Corrupt if a reachable node cannot be read right: what is below it is unknown then, and
        nothing may be collected.
        """
        while self._queue and budget > 0:
            cid = self._queue.pop()
            multihash = cid.multihash
            if multihash in self._nodes:
                continue
            budget -= 1
            try:
                block = cid.digest if cid.is_identity else self._blocks.get(cid)
            except NotAvailableOffline:
                if len(self.missing) < _MISSING_MAX:
                    self.missing.append(cid)
                self._nodes.add(multihash)
                continue
            children = links(cid, block)
            budget -= len(children)
            self._nodes.add(multihash)
            self.marked += 1
            for child in children:
                if has_links(child):
                    if child.multihash not in self._nodes:
                        self._queue.append(child)
                else:
                    self._mark_leaf(child.multihash)
        return bool(self._queue)

    def _mark_leaf(self, multihash: bytes) -> None:
        bits, size = self._bits, len(self._bits) * 8
        for probe in _probes(multihash, size):
            bits[probe >> 3] |= 1 << (probe & 7)
        self.marked += 1

    def __contains__(self, multihash: bytes) -> bool:
        if multihash in self._nodes:
            return True
        bits, size = self._bits, len(self._bits) * 8
        return all(bits[probe >> 3] >> (probe & 7) & 1 for probe in _probes(multihash, size))


def _probes(multihash: bytes, size: int) -> tuple[int, int, int, int]:
    """Four positions from the digest, which is as good as random; short hashes are all alike."""
    first = int.from_bytes(multihash[-8:], "little")
    second = int.from_bytes(multihash[-16:-8], "little") | 1
    return (
        first % size,
        (first + second) % size,
        (first + 2 * second) % size,
        (first + 3 * second) % size,
    )
