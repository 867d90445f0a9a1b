"""What is kept and why: pins and holds, as roots of the collection.

A root is written down first, under ``lock``, which a sweep holds for each of its batches; only then
is its DAG looked through. So a collection running meanwhile either sees the root, or what it took
before is found missing, and the root is taken back.

Used by ``node``, in threads; all methods block.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from unifs.errors import NotAvailableOffline, UnifsError
from unifs.ipfs.embedded.archives import require_complete
from unifs.ipfs.embedded.links import has_links, walk
from unifs.ipfs.embedded.marks import Root
from unifs.ipfs.node import PinEntry, PinVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.pins import Pin, PinMode, Pins

_LISTED_MAX: Final = 1000


class Keeping:
    """Pins and holds over one blockstore. Thread-safe."""

    def __init__(self, blocks: Blocks, pins: Pins) -> None:
        self.lock = threading.Lock()
        self._blocks = blocks
        self._pins = pins
        self._held: dict[Cid, int] = {}
        self._known: tuple[int, list[Root]] = (-1, [])

    def roots(self) -> list[Root]:
        """Everything that is kept here. Asked for before every batch of a sweep."""
        generation = self._pins.generation
        if self._known[0] != generation:
            pins = [Root(pin.cid, pin.mode == "recursive") for pin in self._pins.scan()]
            self._known = (generation, pins)
        return [*self._known[1], *map(Root, list(self._held))]

    def pin(self, cid: Cid, mode: PinMode, name: str | None) -> Pin:
        """Pin a root; NotAvailableOffline, naming a block, if it is not all here."""
        with self.lock:
            before = self._pins.get(cid)
            pin = self._pins.add(cid, mode, name)
        try:
            if mode == "direct":
                self._blocks.get(cid)
            elif before is None or before.mode == "direct":
                require_complete(cid, self._blocks)
        except BaseException:
            self._pins.restore(cid, before)
            raise
        return pin

    def pin_all(self, roots: Sequence[Cid], name: str | None) -> None:
        """Pin all roots or, if one is not complete, none."""
        for root in roots:
            require_complete(root, self._blocks)
        for root in roots:
            self.pin(root, "recursive", name)

    def hold(self, cid: Cid, change: int) -> None:
        """Count up or down how often a DAG is held for the moment."""
        with self.lock:
            count = self._held.get(cid, 0) + change
            if count:
                self._held[cid] = count
            else:
                self._held.pop(cid)

    def verify(self, pin: Pin) -> PinVerdict:
        """Hash everything that a pin promises."""
        missing: list[Cid] = []
        damaged: list[Cid] = []

        def get(cid: Cid) -> bytes | None:
            try:
                return self._blocks.get(cid)
            except NotAvailableOffline:
                missing.append(cid)
            except UnifsError:
                damaged.append(cid)
            return None

        below = walk(pin.cid, get) if pin.mode == "recursive" else iter((pin.cid,))
        for cid in below:
            if pin.mode == "direct" or not has_links(cid):
                get(cid)
            if max(len(missing), len(damaged)) >= _LISTED_MAX:
                break
        return PinVerdict(pin_entry(pin), tuple(missing), tuple(damaged))


def pin_entry(pin: Pin) -> PinEntry:
    """A pin as the node protocol tells it."""
    return PinEntry(pin.cid, pin.mode, pin.name, pin.created_s)
