"""The blockstore: blocks by their hash, wherever they lie, verified before anybody sees them.

A block is a section of a segment (``stores[0]`` is the node's own and takes what ``put`` brings;
further ones belong to the journal), or a range of a container, the file of a large /mfs content,
whose bytes are then written to disk only once. ``block_index`` knows which; the segments and the
journal are the truth.

Verified at first use since the start (a bitmap in memory), or at every use (``verify="always"``).
A block that is not here is ``NotAvailableOffline``; one whose bytes are wrong at every place is
``Corrupt``, naming the place. Never NotFound, never other bytes.

What the collector needs to know of writers is kept in ``writers``, where every put passes.
Thread-safe; ``_put_lock`` orders append, index and ``upto``, nothing else is called under it but
``segments`` and ``block_index``.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from unifs.errors import Corrupt, DiskFailed, NotAvailableOffline, NotFound, UnifsError
from unifs.ipfs.cid import Cid, verify
from unifs.ipfs.embedded.block_index import (
    PENDING_MAX,
    BlockIndex,
    BlockPlace,
    PlaceKind,
    section_holder,
    split_holder,
)
from unifs.ipfs.embedded.sections import read_exactly
from unifs.ipfs.embedded.segment_file import Descriptor, named
from unifs.ipfs.embedded.verified import VerifiedPlaces
from unifs.ipfs.embedded.writers import Writers
from unifs.ipfs.unixfs.builder import leaf_block_parts
from unifs.ipfs.unixfs.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from unifs.ipfs.embedded.segments import Segments
    from unifs.ipfs.embedded.writers import Cutoff

#: The profile whose leaves are wrapped in dag-pb; the others' leaves are raw.
_WRAPPING: Final = PROFILES["unixfs-v0-2015"]
#: Blocks of ``put_all`` that the index is asked for at a time.
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Located:
    """Where to pread one block, for callers that do so themselves.

    ``fd`` stays valid as long as the object is referred to. ``length`` bytes at ``offset`` are the
    block, or, where ``place.kind`` is WRAPPED, the chunk inside it. Unless ``is_verified``, use
    ``Blocks.get`` instead, which verifies.
    """

    fd: Descriptor
    offset: int
    length: int
    is_verified: bool
    place: BlockPlace
    cid: Cid


@dataclass(frozen=True, slots=True)
class BlocksStatistics:
    """``pending`` blocks wait for the index's next commit; the other numbers are bytes."""

    pending: int
    own_bytes: int
    verified_bytes: int
    verified_bytes_max: int


class Blocks:
    """All blocks of this machine. The module's text has the contract."""

    def __init__(
        self,
        path: Path,
        stores: Sequence[Segments],
        open_container: Callable[[int], Descriptor] | None = None,
        verify: Literal["once", "always"] = "once",
    ) -> None:
        """Open the index at ``path`` over ``stores``.

        ``open_container(id)`` is called from any thread; it raises NotFound for a container that is
        gone. Its descriptors close themselves, so that none is closed (and its number given to
        another file) under a reader. Call ``catch_up`` afterwards.
        """
        self.stores = tuple(stores)
        self.own = self.stores[0]
        self.index = BlockIndex(path)
        self.writers = Writers()
        self._open_container = open_container
        self._is_always = verify == "always"
        self._verified = VerifiedPlaces()
        #: Segments that were not synced by an earlier process: their blocks are written again.
        self._doubtful = {section_holder(0, segment) for segment in self.own.failed()}
        self._put_lock = threading.Lock()
        self.index.fit(
            {
                section_holder(store, number): end
                for store, segments in enumerate(self.stores)
                for number, end in segments.segments().items()
            }
        )

    # --- writing --------------------------------------------------------------------------------

    def put(self, cid: Cid, data: bytes | memoryview) -> None:
        """Keep a block *that the caller has hashed*. Idempotent: one kept already is not written.

        Fits ``FileBuilder(put=…)``. In the page cache when it returns: durable after ``sync``.
        Blocks that only a container holds are written all the same: containers are the journal's.
        """
        self._put([(cid, data)])

    def put_all(self, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep many (CID, bytes): as ``put``, but the index is asked for a batch at a time."""
        for start in range(0, len(blocks), _BATCH):
            batch = blocks[start : start + _BATCH]
            self._put([(Cid.decode(binary), data) for binary, data in batch])

    def _put(self, batch: Sequence[tuple[Cid, bytes | memoryview]]) -> None:
        position = self.own.position()
        wanted = [(cid, data) for cid, data in batch if not cid.is_identity]
        for cid, _ in wanted:
            self.writers.before_put(cid.multihash, position)
        found = self.index.own_sections([cid.multihash for cid, _ in wanted])
        for cid, data in wanted:
            if all(place.holder in self._doubtful for place in found.get(cid.multihash, ())):
                self._append(cid, data)
                self.writers.wrote(cid.multihash)
        if self.index.pending >= PENDING_MAX:
            self.index.flush()

    def _append(self, cid: Cid, data: bytes | memoryview) -> None:
        with self._put_lock:
            place = self.own.append(cid.to_v1().binary, data)
            holder = section_holder(0, place.segment)
            found = BlockPlace(PlaceKind.SECTION, holder, place.offset, place.length)
            self.index.add(cid.multihash, found)
            self.index.advance(holder, place.offset + place.length)
            self._verified.add(found)

    def add_container(
        self, container: int, leaves: Iterable[tuple[bytes, int, int]], is_wrapped: bool = False
    ) -> None:
        """Make a sealed container's leaves blocks: (sha2-256 of the block, offset, length).

        ``is_wrapped``: the leaves are the chunks of dag-pb blocks (profile unixfs-v0-2015). In
        memory until the next flush; after a start, ``index.containers()`` says which are known.
        """
        kind = PlaceKind.WRAPPED if is_wrapped else PlaceKind.RANGE
        self.index.add_container(
            container,
            (
                (b"\x12\x20" + digest, BlockPlace(kind, container, offset, length))
                for digest, offset, length in leaves
            ),
        )

    def delete(self, multihash: bytes) -> None:
        """Drop a block from the index. Its bytes stay until their segment is compacted."""
        self.index.remove((multihash, place) for place in self.index.places(multihash))

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Blocks put inside are not collected before the block ends: pin or link the root in it."""
        with self.writers.session(self.own.position()):
            yield

    def cutoff(self, grace_s: float | None = None) -> Cutoff | None:
        """What a collection beginning now must leave alone: see ``Writers.cutoff``."""
        with self._put_lock:
            # No put stands between its append and its entry in the index.
            return self.writers.cutoff(self.own.position(), grace_s)

    def catch_up(self) -> int:
        """Index the sections appended to the stores since the last time; returns how many.

        1.5 µs a section. The journal's small contents become blocks here, without a commit of
        their own. The index is committed when enough has gathered, or by ``flush``.
        """
        return sum(self._catch_up(number) for number in range(len(self.stores)))

    def _catch_up(self, store: int) -> int:
        segments, count = self.stores[store], 0
        for segment, end in segments.segments().items():
            holder = section_holder(store, segment)
            upto = self.index.indexed_upto(holder)
            if upto >= end:
                continue
            with self._put_lock:
                entries = list(segments.iterate(segment, upto))
                for binary, place in entries:
                    multihash = binary if binary[0] == 0x12 else Cid.decode(binary).multihash
                    found = BlockPlace(PlaceKind.SECTION, holder, place.offset, place.length)
                    self.index.add(multihash, found)
                if entries:
                    end = max(end, entries[-1][1].offset + entries[-1][1].length)
                self.index.advance(holder, end)
            count += len(entries)
            if self.index.pending >= PENDING_MAX:
                self.index.flush()
        return count

    def lag_bytes(self) -> int:
        """How many bytes of sections ``catch_up`` has still to walk through."""
        return sum(
            max(0, end - max(18, self.index.indexed_upto(section_holder(store, number))))
            for store, segments in enumerate(self.stores)
            for number, end in segments.segments().items()
        )

    def sync(self) -> None:
        """Make all blocks put so far survive power loss. Blocks.

        After DiskFailed nothing put since is called durable until a restart, after which blocks of
        the segments concerned are written again when they are put again.
        """
        _sync(self.own)

    def sync_all(self) -> None:
        """As ``sync``, and what the journal has appended to its stores too."""
        for segments in self.stores:
            _sync(segments)

    def flush(self) -> None:
        """Commit what the index keeps in memory. Blocks."""
        self.index.flush()

    def rebuild(self) -> None:
        """Forget the index and read it again from the segments. Containers must be told again."""
        with self._put_lock:
            self.index.clear()
        self.catch_up()
        self.index.flush()

    # --- reading --------------------------------------------------------------------------------

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, by the index; its bytes are not looked at."""
        return cid.is_identity or self.index.has(cid.multihash)

    def size(self, cid: Cid) -> int:
        """The block's length in bytes; NotAvailableOffline if it is not here."""
        if cid.is_identity:
            return len(cid.digest)
        places = self._places(cid)
        if not places:
            raise _absent(cid)
        return places[0].length + _wrapping_bytes(places[0])

    def get(self, cid: Cid) -> bytes:
        """The block's bytes, verified. NotAvailableOffline; Corrupt naming a place; DiskFailed."""
        if cid.is_identity:
            return cid.digest
        failures: list[UnifsError] = []
        for place in self._places(cid):
            try:
                return self._read_verified(cid, place)
            except (Corrupt, NotFound, DiskFailed) as error:
                failures.append(error)
        raise _worst(cid, failures)

    def _places(self, cid: Cid) -> list[BlockPlace]:
        """All places; before saying that there is none, look at what the stores got just now."""
        places = self.index.some_places(cid.multihash)
        if not places and self.catch_up():
            places = self.index.some_places(cid.multihash)
        return places

    def _read_verified(self, cid: Cid, place: BlockPlace) -> bytes:
        if self._is_always or place not in self._verified:
            return self.read_checked(cid, place)
        return self.read_place(place)

    def read_checked(self, cid: Cid, place: BlockPlace) -> bytes:
        """The block's bytes from one place, hashed now; Corrupt, naming the place, if wrong."""
        data = self.read_place(place)
        try:
            verify(cid, data)
        except Corrupt as error:
            raise Corrupt(f"{error}, in {self.describe(place)}", **_context(place)) from error
        self._verified.add(place)
        return data

    def read_place(self, place: BlockPlace) -> bytes:
        """The block's bytes from one place, not verified. NotFound if its file is gone."""
        fd = self._descriptor(place)
        try:
            data = read_exactly(fd, place.length, place.offset)
        except OSError as error:
            raise named(error) from error
        if len(data) != place.length:
            raise Corrupt(f"{self.describe(place)} ends too early", **_context(place))
        if place.kind is PlaceKind.WRAPPED:
            prefix, suffix = leaf_block_parts(_WRAPPING, place.length)
            return b"".join((prefix, data, suffix))
        return data

    def locate(self, cid: Cid) -> Located:
        """Where the block's bytes lie, for a pread by the caller. NotAvailableOffline, NotFound.

        By the index as it is: ``get`` finds what the stores got just now too. Not for identity
        CIDs, which lie nowhere.
        """
        places = self.index.some_places(cid.multihash)
        if not places:
            raise _absent(cid)
        place = places[0]
        is_verified = not self._is_always and place in self._verified
        fd = self._descriptor(place)
        return Located(fd, place.offset, place.length, is_verified, place, cid)

    def forget_verified(self, place: BlockPlace) -> None:
        """The file that holds this place is gone; what takes its number is hashed anew."""
        self._verified.forget(place.holder, place.kind is PlaceKind.SECTION)

    def _descriptor(self, place: BlockPlace) -> Descriptor:
        if place.kind is PlaceKind.SECTION:
            store, segment = split_holder(place.holder)
            return self.stores[store].descriptor(segment)
        if self._open_container is None:
            raise NotFound(f"container {place.holder} cannot be opened here")
        return self._open_container(place.holder)

    def describe(self, place: BlockPlace) -> str:
        """A place in words for messages."""
        where = f"bytes {place.offset}–{place.offset + place.length}"
        if place.kind is not PlaceKind.SECTION:
            return f"container {place.holder}, {where}"
        store, segment = split_holder(place.holder)
        return f"{self.stores[store].directory.name}/{segment}.car, {where}"

    def iterate(self) -> Iterator[tuple[bytes, BlockPlace]]:
        """(multihash, place) of every place of every block, by multihash. Safe beside writers."""
        self.index.flush()
        after = b""
        while entries := self.index.iterate(after):
            yield from entries
            after = entries[-1][0]

    def statistics(self) -> BlocksStatistics:
        """Numbers for telemetry."""
        return BlocksStatistics(
            pending=self.index.pending,
            own_bytes=self.own.statistics().size_bytes,
            verified_bytes=self._verified.size_bytes,
            verified_bytes_max=self._verified.limit_bytes,
        )

    def close(self) -> None:
        """Commit the index and close it. The segments are their owner's to close."""
        self.index.close()


def _sync(segments: Segments) -> None:
    target = segments.sync_target()
    if target is not None:
        target.run()


def _wrapping_bytes(place: BlockPlace) -> int:
    if place.kind is not PlaceKind.WRAPPED:
        return 0
    return sum(map(len, leaf_block_parts(_WRAPPING, place.length)))


def _context(place: BlockPlace) -> dict[str, object]:
    return {"holder": place.holder, "offset": place.offset, "length": place.length}


def _absent(cid: Cid) -> NotAvailableOffline:
    return NotAvailableOffline(f"block {cid} is not on this machine", cid=str(cid))


def _worst(cid: Cid, failures: list[UnifsError]) -> UnifsError:
    """What to say when no place gave the block: damage before absence."""
    for failure in failures:
        if not isinstance(failure, NotFound):
            return failure
    return _absent(cid)
