"""The embedded node: the node protocol over blocks, pins and collection of one state directory.

The composition root makes one and hands it to the /ipfs mount and the control operations. It takes
part in no network: content that is not here is NotAvailableOffline.

Everything blocking runs in threads, at most ``_THREADS`` at a time. Order for power loss: blocks,
then the index, then the pin.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

import unifs
from unifs.errors import NotAvailableOffline, TooLarge, UnifsError
from unifs.ipfs.cid import RAW, Cid
from unifs.ipfs.embedded import archives, repository
from unifs.ipfs.embedded.collect import Collector
from unifs.ipfs.embedded.files import OpenFiles
from unifs.ipfs.embedded.import_tree import TreeImport
from unifs.ipfs.embedded.importer import Importer
from unifs.ipfs.embedded.keeping import Keeping, pin_entry
from unifs.ipfs.embedded.links import has_links, links
from unifs.ipfs.node import (
    Added,
    AddOptions,
    AddProgress,
    HostSource,
    Imported,
    LsEntry,
    NodeId,
    NodeStat,
    PinEntry,
    PinVerdict,
    RepoCollected,
    RepoStat,
    RepoVerified,
    StreamSource,
    WalkItem,
    parse_path,
)
from unifs.ipfs.unixfs.directory import build_directory, list_directory
from unifs.ipfs.unixfs.node import DirEntry
from unifs.ipfs.unixfs.profiles import BLOCK_MAX_BYTES, DEFAULT_PROFILE, Profile
from unifs.ipfs.unixfs.reader import UnixfsStat, resolve, stat_node

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.collect import ContentOwner
    from unifs.ipfs.embedded.files import EmbeddedFile
    from unifs.ipfs.embedded.marks import Root
    from unifs.ipfs.embedded.pins import PinMode, Pins

T = TypeVar("T")
log = logging.getLogger(__name__)

_THREADS: Final = 4
_CAT_BYTES: Final = 1 << 20
_LS_PAGE: Final = 256
#: How often the journal's new contents are indexed, and the storage limit looked at.
_CATCH_UP_S: Final = 1.0
_LIMIT_CHECK_S: Final = 10.0


class EmbeddedNode:
    """``unifs.ipfs.node.Node`` without a network. See there for what each method promises."""

    kind: Final = "embedded"

    def __init__(
        self,
        blocks: Blocks,
        pins: Pins,
        profile: Profile = DEFAULT_PROFILE,
        limit_bytes: int | None = None,
        owner: ContentOwner | None = None,
        tree_roots: Callable[[], Iterable[Root]] | None = None,
    ) -> None:
        """``owner`` is the journal; ``tree_roots`` gives what trees need, and runs in threads.

        ``blocks`` and ``pins`` stay the caller's to close.
        """
        self.blocks = blocks
        self.pins = pins
        self.profile = profile
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._files = OpenFiles(blocks, self._limiter)
        self.keeping = Keeping(blocks, pins, tree_roots)
        self.collector = Collector(blocks, self.keeping, limit_bytes, owner)

    async def _thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    # --- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Index the journal's contents as they come, and collect near the limit, inside this."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            nursery.start_soon(self._keep_below_limit)
            yield
            nursery.cancel_scope.cancel()

    async def _keep_up(self) -> None:
        failing = ""
        while True:
            await trio.sleep(_CATCH_UP_S)
            if not (self.blocks.lag_bytes() or self.blocks.index.pending):
                continue
            try:
                await self._thread(self._index)
            except UnifsError as error:
                # Nothing is lost: it stays in memory and in the segments, and is tried again.
                if error.code != failing:
                    log.warning("indexing failed error_code=%s error=%s", error.code, error)
                failing = error.code
            else:
                failing = ""

    def _index(self) -> None:
        """Commit when nothing new comes: until then the segments say the same after a crash."""
        if not self.blocks.catch_up():
            self.blocks.flush()

    async def _keep_below_limit(self) -> None:
        while True:
            await trio.sleep(_LIMIT_CHECK_S)
            if not self.collector.is_due():
                continue
            try:
                report = await self.collector.collect()
            except UnifsError as error:
                log.warning("collection failed error_code=%s error=%s", error.code, error)
                continue
            log.info("collected blocks=%d bytes=%d", report.removed_blocks, report.freed_bytes)

    async def id(self) -> NodeId:
        """Who the node is."""
        return NodeId(self.kind, f"unifs/{unifs.__version__}", self.profile.name)

    # --- adding ---------------------------------------------------------------------------------

    async def add(
        self,
        source: HostSource | StreamSource,
        options: AddOptions,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> Added:
        """Import; durable, and pinned where asked for, when it returns."""
        profile = options.profile or self.profile
        blocks = None if options.only_hash else self.blocks
        importer = Importer(profile, blocks, self._limiter, progress)
        with self.blocks.importing():
            tree = TreeImport(importer, isinstance(source, HostSource) and source.has_hidden)
            if isinstance(source, HostSource):
                link = await tree.add(os.fsencode(source.path))
            else:
                link = await importer.add_stream(source.pieces)
            size_bytes = importer.bytes_done
            if options.wrap is not None:
                entry = DirEntry(os.fsencode(options.wrap), link.cid, link.tsize)
                make = partial(build_directory, [entry], profile, importer.put)
                link = await self._thread(make)
                tree.directories += 1
            if not options.only_hash:
                await self._thread(self._make_durable)
                if options.pin:
                    pin = partial(self.keeping.pin, link.cid, "recursive", options.pin_name)
                    await self._thread(pin)
        return Added(
            link.cid, size_bytes, link.tsize, importer.files, tree.directories, tree.skipped
        )

    def _make_durable(self) -> None:
        self.blocks.sync_all()
        self.blocks.flush()

    # --- reading --------------------------------------------------------------------------------

    async def resolve(self, path: str) -> Cid:
        """The CID that a path leads to."""
        root, names = parse_path(path)
        if not names:
            return root
        return await self._thread(partial(resolve, root, names, self.blocks.get))

    async def stat(self, path: str) -> NodeStat:
        """What is at a path."""
        cid = await self.resolve(path)
        return await self._thread(partial(self._stat, cid))

    def _stat(self, cid: Cid) -> NodeStat:
        return NodeStat(cid, stat_node(cid, self.blocks.get), self.blocks.size(cid))

    def open(self, cid: Cid) -> EmbeddedFile:
        """The file with this root; WouldBlock where its root block has to be waited for."""
        return self._files.open(cid)

    def read_nowait(self, cid: Cid, offset: int, size: int) -> bytes | bytearray:
        """Bytes of the file with this root; WouldBlock if that would wait."""
        return self._files.read_nowait(cid, offset, size)

    async def cat(
        self, path: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """A file's bytes in order."""
        cid = await self.resolve(path)
        with self._reading(cid):
            file = await self._files.load(cid)
            end = file.size_bytes if length is None else min(file.size_bytes, offset + length)
            while offset < end:
                # Pieces end where 1 MiB leaves end, so that no leaf is read for two pieces.
                size = min(end - offset, _CAT_BYTES - offset % _CAT_BYTES)
                yield await file.read(offset, size)
                offset += size

    async def ls(self, path: str) -> AsyncIterator[list[LsEntry]]:
        """A directory in pages."""
        cid = await self.resolve(path)
        listing = await self._thread(partial(list_directory, cid, self.blocks.get))
        while page := await self._thread(partial(self._page, listing)):
            yield page

    def _page(self, listing: Iterable[DirEntry]) -> list[LsEntry]:
        entries = []
        for entry in listing:
            node = self._stat_if_here(entry.cid)
            entries.append(LsEntry(entry.name, entry.cid, entry.tsize, node))
            if len(entries) == _LS_PAGE:
                break
        return entries

    def _stat_if_here(self, cid: Cid) -> UnixfsStat | None:
        try:
            if cid.codec == RAW:
                return UnixfsStat("raw", self.blocks.size(cid))
            return stat_node(cid, self.blocks.get)
        except NotAvailableOffline:
            return None

    async def walk(self, path: str) -> AsyncIterator[WalkItem]:
        """Everything at and below a path, parents first."""
        root = await self.resolve(path)
        pending = [(b"", root)]
        with self._reading(root):
            while pending:
                where, cid = pending.pop()
                node = await self._thread(partial(stat_node, cid, self.blocks.get))
                yield WalkItem(where, cid, node)
                if node.kind in ("directory", "hamt"):
                    below = await self._thread(partial(self._entries, cid))
                    prefix = where + b"/" if where else b""
                    pending += [(prefix + entry.name, entry.cid) for entry in reversed(below)]

    def _entries(self, cid: Cid) -> list[DirEntry]:
        return list(list_directory(cid, self.blocks.get))

    @contextmanager
    def _reading(self, *roots: Cid) -> Iterator[None]:
        """What somebody reads is not collected under his hands."""
        for cid in roots:
            self.hold_nowait(cid)
        try:
            yield
        finally:
            for cid in roots:
                self.let_go(cid)

    # --- blocks ---------------------------------------------------------------------------------

    async def block_get(self, cid: Cid) -> bytes:
        """One block, verified."""
        return await self._thread(partial(self.blocks.get, cid))

    async def block_put(self, data: bytes, codec: int = RAW, pin: bool = False) -> Cid:
        """Keep a block; TooLarge above 2 MiB, Corrupt if it does not parse as its codec.

        InvalidCid for a codec that nobody knows.
        """
        if len(data) > BLOCK_MAX_BYTES:
            raise TooLarge(f"a block of {len(data)} bytes; at most {BLOCK_MAX_BYTES}")
        digest = hashlib.sha256(data).digest()
        cid = Cid.decode(Cid(1, codec, b"\x12\x20" + digest).binary)
        if has_links(cid):
            links(cid, data)
        with self.blocks.importing():
            await self._thread(partial(self.blocks.put, cid, data))
            await self._thread(self._make_durable)
            if pin:
                await self.pins_add(cid)
        return cid

    async def block_stat(self, cid: Cid) -> int:
        """The block's length in bytes."""
        return await self._thread(partial(self.blocks.size, cid))

    # --- archives -------------------------------------------------------------------------------

    async def dag_export(self, roots: Sequence[Cid]) -> AsyncIterator[bytes]:
        """A CAR with all blocks of these DAGs."""
        await self._thread(self.blocks.catch_up)
        with self._reading(*roots):
            async with aclosing(archives.export(roots, self.blocks, self._limiter)) as pieces:
                async for piece in pieces:
                    yield piece

    async def dag_import(
        self, pieces: AsyncIterable[bytes], pin_roots: bool = True, pin_name: str | None = None
    ) -> Imported:
        """Take in a CAR, each block verified; with an error nothing is pinned."""
        reading = archives.CarImport(self.blocks, self._limiter)
        with self.blocks.importing():
            roots = await reading.read(pieces)
            await self._thread(self._make_durable)
            if pin_roots:
                await self._thread(partial(self.keeping.pin_all, roots, pin_name))
        pinned = roots if pin_roots else ()
        return Imported(roots, reading.blocks_done, reading.bytes_done, pinned)

    # --- pins -----------------------------------------------------------------------------------

    async def pins_add(
        self, cid: Cid, mode: PinMode = "recursive", name: str | None = None
    ) -> PinEntry:
        """Pin; NotAvailableOffline, naming a block, if the DAG is not complete here."""
        await self._thread(self.blocks.catch_up)
        await self._thread(self._make_durable)
        return pin_entry(await self._thread(partial(self.keeping.pin, cid, mode, name)))

    async def pins_remove(self, cid: Cid) -> PinEntry:
        """Take a pin away; NotFound if the root is not pinned."""
        return pin_entry(await self._thread(partial(self.pins.remove, cid)))

    async def pins_scan(
        self, mode: PinMode | None = None, name: str | None = None
    ) -> list[PinEntry]:
        """All pins, the oldest first."""
        return [pin_entry(pin) for pin in await self._thread(partial(self.pins.scan, mode, name))]

    async def pins_verify(self) -> AsyncIterator[PinVerdict]:
        """For every pin whether all of it is here; every block is hashed."""
        for pin in await self._thread(self.pins.scan):
            yield await self._thread(partial(self.keeping.verify, pin))

    @asynccontextmanager
    async def hold(self, cid: Cid) -> AsyncIterator[None]:
        """Keep a DAG from being collected while it is linked elsewhere (``files cp /ipfs/…``).

        NotAvailableOffline if its root block is not here; what is below is not looked at. Where
        this ends without an error, there is a row that names the DAG.
        """
        await self._thread(self.blocks.catch_up)
        with self._reading(cid):
            await self._thread(partial(self.keeping.require_root, cid))
            yield
            self.keeping.linked(cid)

    def hold_nowait(self, cid: Cid) -> None:
        """Keep a DAG from being collected until ``let_go``; it need not be here."""
        self.keeping.hold_nowait(cid)

    def let_go(self, cid: Cid) -> None:
        """The end of one ``hold_nowait``."""
        self.keeping.let_go(cid)

    # --- the repository -------------------------------------------------------------------------

    async def repo_stat(self) -> RepoStat:
        """The blockstore in numbers."""
        pins = len(await self._thread(self.pins.scan))
        work = partial(repository.stat, self.blocks, self.collector.limit_bytes, pins)
        return await self._thread(work)

    async def repo_gc(self) -> RepoCollected:
        """Collect now, also what was written a moment ago and is not pinned."""
        return repository.collected(await self.collector.collect(grace_s=0))

    async def repo_verify(self, progress: Callable[[int], None] | None = None) -> RepoVerified:
        """Hash everything again."""
        return await repository.verify(self.blocks, self.collector.rebuild_index, progress)
