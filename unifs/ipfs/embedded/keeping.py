"""What is kept and why: pins, what somebody reads or links at the moment, and what trees need; as
the roots of the collection.

A root is written down first; then whoever made it waits for the batch that a sweep may be at
(``lock``), and only then looks at blocks. So a collection running meanwhile either sees the root,
or what it took before is found missing, and the root is taken back.

What trees need is read once, when a collection begins. It can be much, and what is added later is
kept from the collection otherwise: an import protects what it puts, and a linked DAG is held while
its row is made and, by ``_late``, until the collection ends.

``hold_nowait`` and ``let_go`` belong to the event loop's thread; the rest blocks, in threads.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unifs.errors import NotAvailableOffline, TryAgain, UnifsError
from unifs.ipfs.embedded.archives import require_complete
from unifs.ipfs.embedded.links import has_links, walk
from unifs.ipfs.embedded.marks import Root
from unifs.ipfs.node import PinEntry, PinVerdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.pins import Pin, PinMode, Pins

_LISTED_MAX: Final = 1000
#: DAGs that may be linked while one collection runs; 10 MB.
LATE_MAX: Final = 100_000


class Keeping:
    """Pins and holds over one blockstore."""

    def __init__(
        self,
        blocks: Blocks,
        pins: Pins,
        tree_roots: Callable[[], Iterable[Root]] | None = None,
    ) -> None:
        """``tree_roots`` gives what trees need, and runs in threads."""
        self.lock = threading.Lock()
        self._blocks = blocks
        self._pins = pins
        self._tree_roots = tree_roots
        self._held: dict[Cid, int] = {}
        self._known: tuple[int, list[Root]] = (-1, [])
        #: What was linked since the running collection read what trees need; None: none runs.
        self._late: set[Cid] | None = None
        #: Moments at which a DAG may have got a row that names it, since the start.
        self.links = 0

    # --- for the collection ---------------------------------------------------------------------

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around a collection, from before it reads ``all_roots`` until it has ended."""
        self._late = set()
        try:
            yield
        finally:
            self._late = None

    def all_roots(self) -> Iterator[Root]:
        """Everything that is kept. Asked for once, when a collection begins."""
        yield from self.roots()
        if self._tree_roots is not None:
            yield from self._tree_roots()

    def roots(self) -> list[Root]:
        """What may have become a root since. Asked for before every batch of a sweep."""
        generation = self._pins.generation
        if self._known[0] != generation:
            pins = [Root(pin.cid, pin.mode == "recursive") for pin in self._pins.scan()]
            self._known = (generation, pins)
        return [*self._known[1], *map(Root, [*self._held, *(self._late or ())])]

    def moment(self) -> tuple[int, int, bool]:
        """Another one where something may have become a root since."""
        return self._pins.generation, self.links, self.is_holding

    def still(self, moment: tuple[int, int, bool], work: Callable[[], None]) -> bool:
        """Do ``work`` unless something may have become a root since that moment; whether it was
        done. Whoever makes a root meanwhile finds what is missing then."""
        with self.lock:
            if self.moment() != moment:
                return False
            work()
            return True

    # --- keeping --------------------------------------------------------------------------------

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

    def hold_nowait(self, cid: Cid) -> None:
        """Keep a DAG until ``let_go`` is called as often; nobody looks whether it is here."""
        self._held[cid] = self._held.get(cid, 0) + 1

    def let_go(self, cid: Cid) -> None:
        """The end of a ``hold_nowait``."""
        count = self._held[cid] - 1
        if count:
            self._held[cid] = count
        else:
            del self._held[cid]

    @property
    def is_holding(self) -> bool:
        """Whether somebody reads a DAG, or is about to link one."""
        return bool(self._held)

    def linked(self, cid: Cid) -> None:
        """A held DAG has got a row that names it, in the event loop's thread."""
        self.links += 1
        if self._late is not None:
            self._late.add(cid)

    def require_root(self, cid: Cid) -> None:
        """NotAvailableOffline unless the root block of a held DAG is here, and stays."""
        if self._late is not None and len(self._late) >= LATE_MAX:
            raise TryAgain("too much is linked while a collection runs")
        with self.lock:
            # The sweep's next batch sees the hold.
            pass
        self._blocks.get(cid)

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
