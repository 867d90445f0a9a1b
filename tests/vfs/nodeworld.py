"""A file system in this process with its node: /mfs with CIDs, /ipfs, collection and retention.

Composed as the daemon does; nothing happens behind the caller's back: ``settle`` runs what the
background tasks would.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import trio

from tests.vfs.harness import FileSystem
from unifs.cache.reads import ReadCache
from unifs.errors import NotAvailableOffline
from unifs.ipfs.embedded.links import walk
from unifs.ipfs.embedded.node import EmbeddedNode
from unifs.ipfs.embedded.pins import Pins
from unifs.ipfs.node import AddOptions, HostSource
from unifs.mounts.ipfs import IpfsMount
from unifs.types import PlainAttributes
from unifs.vfs.ipfsvolume import IpfsVolume
from unifs.vfs.keeper import Keeper
from unifs.vfs.mfsvolume import MfsVolume
from unifs.vfs.retention import Limits, Retention
from unifs.vfs.roots import MfsRoots
from unifs.vfs.sealing import Sealer
from unifs.vfs.storage import Storage
from unifs.vfs.treevolume import TreeLoader
from unifs.vfs.upkeep import Upkeep
from unifs.vfs.vfs import Vfs
from unifs.vfs.writer import Writer
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.ipfs.cid import Cid
    from unifs.ipfs.node import RepoCollected

#: Segments so small that a few files fill one.
SEGMENT_BYTES = 8 << 10


class Holding(trio.abc.Instrument):
    """Lets every task hold until its next checkpoint, as ``driver.loop`` does."""

    def __init__(self, system: NodeSystem) -> None:
        self._system = system
        #: How many batches were committed together with others.
        self.held = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._system.storage.database.held.is_allowed = True

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        held = self._system.storage.database.held
        held.is_allowed = False
        self.held += len(held.batches)
        held.settle()


class NodeSystem(FileSystem):
    """As ``FileSystem``, and /ipfs beside /mfs (``at_ipfs`` looks up there)."""

    mfs: MfsVolume

    def __init__(self, path: Path, *, holds: bool = False) -> None:
        """``holds``: what a task changes between two checkpoints is held, as by the daemon."""
        super().__init__(path, upkeep=False)
        self.holding = Holding(self) if holds else None

    async def start(self, boot: str | None = None) -> None:
        self.boot = boot or self.boot
        with mock.patch("unifs.state.directory.boot_id", return_value=self.boot):
            self.storage = Storage(self.path)
        for segments in (self.storage.segments, self.storage.nodes):
            segments.limit_bytes = SEGMENT_BYTES
        self.receipt = self.storage.receipt
        self.vfs = Vfs(self.path)
        self.writer = Writer(self.storage, self.vfs.inodes)
        self.loader = TreeLoader(self.writer, PlainAttributes)
        self.pins = Pins(self.path / "pins.db")
        self.keeper = Keeper(self.writer)
        self.node = EmbeddedNode(
            self.storage.blocks, self.pins, owner=self.keeper, tree_roots=self.keeper.roots
        )
        self.sealer = Sealer(self.writer, self.storage.blocks, self.storage.profile)
        volume = self.loader.add("mfs", "mfs", MfsVolume)
        assert isinstance(volume, MfsVolume)
        self.volume = self.mfs = volume
        self.roots = MfsRoots(volume, self.sealer, self.storage.blocks)
        volume.connect(self.sealer, self.roots, self.node)
        ipfs = self.loader.add("ipfs", "ipfs", IpfsVolume)
        assert isinstance(ipfs, IpfsVolume)
        self.ipfs = ipfs
        ipfs.connect(IpfsMount(self.node), ReadCache(None), 3600.0)
        self.vfs.namespace.add(self.vfs.namespace.root, b"mfs", volume.root)
        self.vfs.namespace.add(self.vfs.namespace.root, b"ipfs", ipfs.root)
        self.upkeep = Upkeep(self.writer)
        self.sealer.find_closed()
        self._ended = trio.Event()
        await self._nursery.start(self._session)
        if self.holding is not None:
            trio.lowlevel.add_instrument(self.holding)

    def _stop_holding(self) -> None:
        """From now on nobody lets go of what is held: it is committed at the end, or killed."""
        if self.holding is not None:
            trio.lowlevel.remove_instrument(self.holding)
            self.storage.database.held.is_allowed = False

    async def stop(self) -> None:
        self._stop_holding()
        await super().stop()
        self.pins.close()

    async def kill(self, *, start: bool = True, boot: str | None = None) -> None:
        self._stop_holding()
        self.pins.close()
        await super().kill(start=start, boot=boot)

    # --- the node ---------------------------------------------------------------------------------

    async def add(self, data: bytes, *, pin: bool = False, wrap: str | None = "file") -> Cid:
        """A file, in a directory of its own where ``wrap`` names it."""
        source = Path(self.path) / "added"
        source.write_bytes(data)
        added = await self.node.add(HostSource(source), AddOptions(pin=pin, wrap=wrap))
        return added.cid

    async def link(self, cid: Cid, name: str) -> None:  # type: ignore[override]
        """As ``files cp /ipfs/<cid> /mfs/<name>``."""
        root = self.vfs.inodes.get(self.mfs.root)
        await self.mfs.link_node(root, name.encode(), cid, self.caller)  # type: ignore[arg-type]

    async def look_up(self, *names: str) -> int:
        """The inode number of a path below /ipfs, looked up as the kernel does."""
        ino = self.ipfs.root
        for name in names:
            found = await complete(self.vfs.lookup, ino, name.encode(), self.caller)
            ino = found.st_ino
        return ino

    def has(self, cid: Cid) -> bool:
        """Whether all of a DAG is here."""
        blocks = self.storage.blocks
        try:
            return all(blocks.has(below) for below in walk(cid, blocks.get))
        except NotAvailableOffline:
            return False

    async def collect(self) -> RepoCollected:
        return await self.node.repo_gc()

    async def settle(self, keep_s: float = 3600.0) -> None:
        """What the tasks behind the tree come to: sealed, built, flushed, pruned, released."""
        await self.keeper.index_left()
        for inode in list(self.writer.unsealed.values()):
            if inode.writers == 0:
                await self.sealer.seal(inode)
        await self.roots.build()
        await self.storage.flusher.flush()
        self.tick()
        limits = Limits() if keep_s else Limits(0, 0, 0)
        retention = Retention(self.writer, limits)
        with mock.patch.object(Retention, "is_low", return_value=False):
            while retention.prune():
                pass
        await self.storage.flusher.flush()
        self.tick()
