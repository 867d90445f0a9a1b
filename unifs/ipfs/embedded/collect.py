"""Collection: what no root reaches leaves the index, and files that are mostly dead are rewritten.

Mark (``marks``), sweep the index, compact segments (``compact``), release containers. Started by
the node when its store comes near the storage limit, or by ``repo gc``. It works in short slices in
a thread with pauses between them, so that the event loop keeps its latency, and can be cancelled
between any two slices: everything done until then stands.

What protects a block that somebody needs:
- *Roots* are read at the start, and before each batch of the sweep those that may be new, under
  ``Kept.lock``. Whoever makes a new root of old blocks takes that lock once before it looks whether
  the blocks are there: so either the sweep sees the root, or the root's maker sees the loss.
- *Writers*: nothing that was put, or found present by a put, since the cutoff (``writers``).
- A reachable node that cannot be read right stops the collection: what it links to is unknown.

Small contents and containers belong to the journal (``ContentOwner``): it says which it still
needs; what only pins need is copied into the node's own segments before it goes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from unifs.errors import Corrupt, TryAgain
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.block_index import BlockPlace, PlaceKind, section_holder, split_holder
from unifs.ipfs.embedded.compact import ALIVE_MIN, commit_moves, copy_alive, rescue
from unifs.ipfs.embedded.marks import Marks, Root

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from contextlib import AbstractContextManager

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.segments import Place
    from unifs.ipfs.embedded.writers import Cutoff

T = TypeVar("T")

#: Links marked, and index rows swept, in one slice: 3–10 ms of Python in a thread.
_MARK_SLICE: Final = 2000
_SWEEP_SLICE: Final = 4000
#: Pause after a slice, as a multiple of its time: collection takes at most a third of a core.
_PAUSE_FACTOR: Final = 2.0
_PAUSE_MAX_S: Final = 0.1
#: Smaller open segments are not worth closing for the sake of what is dead in them.
_ROLL_MIN_BYTES: Final = 1 << 20
#: Collection begins at this part of the limit, so that it ends before the limit.
WATERMARK_PERCENT: Final = 90


class Kept(Protocol):
    """What must stay. The two that give roots are called in threads."""

    #: Held by the sweep for each of its batches.
    lock: threading.Lock

    def collecting(self) -> AbstractContextManager[None]:
        """Around a whole collection."""
        ...

    def all_roots(self) -> Iterable[Root]:
        """Everything, once at the beginning."""
        ...

    def roots(self) -> Iterable[Root]:
        """At least what has become a root since, before every batch: this has to be cheap."""
        ...


class ContentOwner(Protocol):
    """Whoever owns containers and the small contents in further stores: the journal.

    All methods are called on the event loop.
    """

    async def live_offsets(self, store: int, segment: int) -> AbstractSet[int]:
        """The data offsets of a segment's sections that rows still refer to.

        No row may come to refer to another one of them before ``moved``.
        """
        ...

    async def moved(self, store: int, moves: Sequence[tuple[Place, Place]]) -> None:
        """Contents have new places, which are durable. So is who refers to them, at the end."""
        ...

    def dead_containers(self) -> Iterable[int]:
        """Containers that no row refers to any more."""
        ...

    def drop_container(self, container: int) -> None:
        """Delete that file; the index has forgotten it."""
        ...

    async def tell_again(self) -> None:
        """The index was made anew: tell it what the containers hold."""
        ...


@dataclass(slots=True)
class Collection:
    """What one collection did. ``freed_bytes`` counts segments deleted less what was copied."""

    marked: int = 0
    removed_blocks: int = 0
    removed_bytes: int = 0
    freed_bytes: int = 0
    segments_removed: int = 0
    containers_removed: int = 0
    missing: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    duration_s: float = 0.0


class Collector:
    """Collects one blockstore. One collection at a time; a second call waits for the first."""

    def __init__(
        self,
        blocks: Blocks,
        kept: Kept,
        limit_bytes: int | None = None,
        owner: ContentOwner | None = None,
    ) -> None:
        """``limit_bytes`` is for the node's own segments."""
        self.blocks = blocks
        self.kept = kept
        self.limit_bytes = limit_bytes
        self.watermark_percent = WATERMARK_PERCENT
        self.owner = owner
        self._running = trio.Lock()

    def is_due(self) -> bool:
        """Whether the node's own segments have come near the limit."""
        if self.limit_bytes is None:
            return False
        own = self.blocks.own.statistics().size_bytes
        return own * 100 > self.limit_bytes * self.watermark_percent

    async def collect(self, grace_s: float | None = None) -> Collection:
        """Collect once; ``grace_s`` 0 also takes what was written a moment ago and never linked.

        TryAgain while large imports run, Corrupt if a reachable node is damaged.
        """
        async with self._running:
            with self.kept.collecting():
                return await self._collect(grace_s)

    async def release(self) -> None:
        """Let dead containers go, and copy first what is needed of them; remove nothing else."""
        async with self._running:
            with self.kept.collecting():
                await _in_thread(self.blocks.catch_up)
                await _in_thread(self.blocks.flush)
                marks = Marks(self.blocks)
                await self._mark(marks)
                await self._release_containers(marks, Collection())

    async def rebuild_index(self) -> None:
        """Make the block index anew; nothing is collected until it knows everything again."""
        async with self._running:
            await _in_thread(self.blocks.rebuild)
            if self.owner is not None:
                await self.owner.tell_again()

    async def _collect(self, grace_s: float | None) -> Collection:
        begin = time.monotonic()
        report = Collection()
        cutoff = self.blocks.cutoff(grace_s)
        if cutoff is None:
            raise TryAgain("an import is running that has met too many known blocks")
        await _in_thread(self.blocks.catch_up)
        await _in_thread(self.blocks.flush)
        marks = Marks(self.blocks)
        await self._mark(marks)
        alive = await self._sweep(marks, cutoff, report)
        await self._release_containers(marks, report)
        await self._compact_own(alive, cutoff, report)
        await self._compact_contents(marks, report)
        report.marked = marks.marked
        report.missing = [str(cid) for cid in marks.missing]
        report.duration_s = time.monotonic() - begin
        return report

    # --- mark -----------------------------------------------------------------------------------

    async def _mark(self, marks: Marks) -> None:
        await _in_thread(lambda: marks.add_roots(self.kept.all_roots()))
        while await _slice(partial(marks.run, _MARK_SLICE)):
            pass

    def _add_new_roots(self, marks: Marks) -> None:
        """Under the lock: what became a root since the marks were made."""
        marks.add_roots(self.kept.roots())
        while marks.run(_MARK_SLICE):
            pass

    # --- sweep ----------------------------------------------------------------------------------

    async def _sweep(self, marks: Marks, cutoff: Cutoff, report: Collection) -> dict[int, int]:
        """Drop unmarked blocks from the index; returns the living bytes of each own segment."""
        alive: dict[int, int] = {}
        after = b""
        while True:
            batch = await _in_thread(partial(self.blocks.index.iterate, after, _SWEEP_SLICE))
            if not batch:
                return alive
            await _slice(partial(self._sweep_batch, batch, marks, cutoff, alive, report))
            after = batch[-1][0]

    def _sweep_batch(
        self,
        batch: list[tuple[bytes, BlockPlace]],
        marks: Marks,
        cutoff: Cutoff,
        alive: dict[int, int],
        report: Collection,
    ) -> None:
        with self.kept.lock:
            self._add_new_roots(marks)
            dead = []
            for multihash, place in batch:
                store, segment = split_holder(place.holder)
                if place.kind is not PlaceKind.SECTION or store != 0:
                    continue
                if (
                    multihash in marks
                    or cutoff.protects(segment, place.offset)
                    or self.blocks.writers.is_touched(multihash, cutoff)
                ):
                    alive[segment] = alive.get(segment, 0) + place.length
                else:
                    dead.append((multihash, place))
            self.blocks.index.remove(dead)
            dead = self._still_dead(dead, cutoff, alive)
        report.removed_blocks += len(dead)
        report.removed_bytes += sum(place.length for _, place in dead)

    def _still_dead(
        self, dead: list[tuple[bytes, BlockPlace]], cutoff: Cutoff, alive: dict[int, int]
    ) -> list[tuple[bytes, BlockPlace]]:
        """Of what was just dropped: a put may have found it first, and written nothing.

        Its bytes are there until its segment is compacted, so it only has to be noted again.
        """
        index, writers = self.blocks.index, self.blocks.writers
        found = {held for held in dead if writers.is_touched(held[0], cutoff)}
        for multihash, place in found:
            index.add(multihash, place)
            segment = split_holder(place.holder)[1]
            alive[segment] = alive.get(segment, 0) + place.length
        if found:
            index.flush()
        return [held for held in dead if held not in found]

    # --- space ----------------------------------------------------------------------------------

    async def _release_containers(self, marks: Marks, report: Collection) -> None:
        if self.owner is None:
            return
        for container in list(self.owner.dead_containers()):
            release = partial(self._release, container, marks)
            report.damages += map(str, await _in_thread(release))
            self.owner.drop_container(container)
            report.containers_removed += 1

    def _release(self, container: int, marks: Marks) -> list[Corrupt]:
        """Copy first what is known to be needed, then, under the lock, what became so meanwhile."""
        rescue(self.blocks, container, marks.__contains__)
        with self.kept.lock:
            self._add_new_roots(marks)
            damages = rescue(self.blocks, container, marks.__contains__)
            self.blocks.index.forget_container(container)
        return damages

    async def _compact_own(self, alive: dict[int, int], cutoff: Cutoff, report: Collection) -> None:
        own = self.blocks.own
        opened, end = own.position()
        if end >= _ROLL_MIN_BYTES and alive.get(opened, 0) < end * ALIVE_MIN:
            own.roll()
        await _in_thread(self.blocks.sync)
        for segment, end in own.segments().items():
            is_old = cutoff.position > (segment, end - 1)
            if segment == own.open_segment() or not is_old:
                continue
            if alive.get(segment, 0) < end * ALIVE_MIN:
                await self._compact(0, segment, partial(self._own_fate, segment), end, report)

    def _own_fate(self, segment: int, multihash: bytes, place: Place) -> int | None:
        holder = section_holder(0, segment)
        for known in self.blocks.index.places(multihash):
            if known.holder == holder and known.offset == place.offset and not known.kind:
                return 0
        return None

    async def _compact_contents(self, marks: Marks, report: Collection) -> None:
        if self.owner is None:
            return
        for store in range(1, len(self.blocks.stores)):
            segments = self.blocks.stores[store]
            for segment, end in segments.segments().items():
                if segment == segments.open_segment():
                    continue
                live = await self.owner.live_offsets(store, segment)
                sweep = partial(self._sweep_contents, store, segment, live, marks)
                if await _in_thread(sweep) < end * ALIVE_MIN:
                    fate = partial(self._content_fate, store, live)
                    await self._compact(store, segment, fate, end, report)

    def _sweep_contents(
        self, store: int, segment: int, live: AbstractSet[int], marks: Marks
    ) -> int:
        """Drop what neither rows nor roots need from the index; returns the living bytes."""
        holder, size, dead = section_holder(store, segment), 0, []
        sections = [
            (Cid.decode(binary).multihash, place)
            for binary, place in self.blocks.stores[store].iterate(segment)
        ]
        with self.kept.lock:
            self._add_new_roots(marks)
            for multihash, place in sections:
                if place.offset in live or multihash in marks:
                    size += place.length
                else:
                    found = BlockPlace(PlaceKind.SECTION, holder, place.offset, place.length)
                    dead.append((multihash, found))
            self.blocks.index.remove(dead)
        return size

    def _content_fate(
        self, store: int, live: AbstractSet[int], multihash: bytes, place: Place
    ) -> int | None:
        if place.offset in live:
            return store
        holder = section_holder(store, place.segment)
        found = self.blocks.index.places(multihash)
        is_alone = all(known.holder == holder and known.offset == place.offset for known in found)
        return 0 if found and is_alone else None

    async def _compact(
        self,
        store: int,
        segment: int,
        fate: Callable[[bytes, Place], int | None],
        end: int,
        report: Collection,
    ) -> None:
        try:
            moves = await _in_thread(partial(copy_alive, self.blocks, store, segment, fate))
        except Corrupt as error:
            report.damages.append(str(error))
            return
        if store and self.owner is not None and moves.places:
            await self.owner.moved(store, moves.places)
        await _in_thread(partial(commit_moves, self.blocks, moves))
        report.segments_removed += 1
        report.freed_bytes += end - sum(new.length for _, _, new in moves.entries)


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


async def _slice(work: Callable[[], T]) -> T:
    """Run a slice in a thread, then leave the core to others for a while."""
    begin = time.monotonic()
    result = await _in_thread(work)
    await trio.sleep(min(_PAUSE_MAX_S, (time.monotonic() - begin) * _PAUSE_FACTOR))
    return result
