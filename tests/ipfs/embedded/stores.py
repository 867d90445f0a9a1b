"""Blockstores for tests: small segments, a journal that keeps containers in a directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import threading
from typing import TYPE_CHECKING

from unifs.errors import NotFound
from unifs.ipfs import dagpb
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.blocks import Blocks
from unifs.ipfs.embedded.segments import Descriptor, Place, Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from unifs.ipfs.embedded.marks import Root


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def raw(data: bytes) -> Cid:
    return Cid.raw(digest(data))


def put_raw(blocks: Blocks, data: bytes) -> Cid:
    cid = raw(data)
    blocks.put(cid, data)
    return cid


def put_node(blocks: Blocks, children: Iterable[Cid], label: bytes = b"") -> Cid:
    block = dagpb.encode([dagpb.PbLink(cid.binary, b"", 0) for cid in children], label)
    cid = Cid.dag_pb(digest(block))
    blocks.put(cid, block)
    return cid


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Every file ends at ``limit`` bytes, as on a full disk: short writes, then errors."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Kept:
    """Roots that a test keeps in its own way."""

    def __init__(self, roots: Callable[[], Iterable[Root]]) -> None:
        self.lock = threading.Lock()
        self.roots = self.all_roots = roots

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        yield


class Owner:
    """What the journal is to the collector, in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.live: dict[tuple[int, int], set[int]] = {}
        self.moves: list[tuple[int, Place, Place]] = []
        self.dead: list[int] = []
        directory.mkdir(exist_ok=True)

    def container(self, number: int, data: bytes) -> None:
        (self.directory / str(number)).write_bytes(data)

    def open_container(self, number: int) -> Descriptor:
        try:
            return Descriptor(os.open(self.directory / str(number), os.O_RDONLY))
        except FileNotFoundError as error:
            raise NotFound(str(error)) from error

    async def live_offsets(self, store: int, segment: int) -> set[int]:
        return self.live.get((store, segment), set())

    async def moved(self, store: int, moves: Sequence[tuple[Place, Place]]) -> None:
        for old, new in moves:
            self.moves.append((store, old, new))
            self.live[store, old.segment].discard(old.offset)
            self.live.setdefault((store, new.segment), set()).add(new.offset)

    def dead_containers(self) -> list[int]:
        return self.dead

    async def tell_again(self) -> None:
        """None of its tests has containers then."""

    def drop_container(self, container: int) -> None:
        (self.directory / str(container)).unlink()


class Store:
    """Blocks over an own store and a journal's, reopenable."""

    def __init__(self, directory: Path, limit_bytes: int = 4096) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        directory.mkdir(exist_ok=True)
        self.owner = Owner(directory / "data")
        self.open()

    def open(self) -> None:
        self.own = Segments(self.directory / "blocks", self.limit_bytes)
        self.contents = Segments(self.directory / "segments", self.limit_bytes)
        path = self.directory / "blocks.db"
        self.blocks = Blocks(path, [self.own, self.contents], self.owner.open_container)
        self.blocks.catch_up()

    def close(self) -> None:
        self.blocks.close()
        self.own.close()
        self.contents.close()

    def kill(self) -> None:
        """What the index had in memory is lost; the page cache is not."""
        self.blocks.index._pending.clear()
        self.blocks.index._dirty_upto.clear()
        self.blocks.index._pending_containers.clear()
        for segments in (self.own, self.contents):
            segments._open = None
            segments._files.clear()
        self.close()
