"""RemoteVolume: a mount whose truth lies at a backend, seen through the tree.

Names and attributes that the backend told are rows like any others; what is known of the object
behind a row (its path there, its version, when that was checked, how far a directory is listed)
stands in ``remote``. A look-up that the rows cannot answer waits for one ``stat``; a listing waits
for one page. Absence is answered only from a complete, fresh listing or by the backend itself.

Changes are TreeVolume's: committed here at once, with records that wait. ``journal.writeback``
brings them to the backend; ``RemoteSync`` is its view of this volume, ``Merge`` brings what the
backend says into the rows. Tasks live in ``serve``.

Rows of immutable mounts (/ipfs) are fresh for ever, others for the mount's time, or as long as the
backend's epoch stays the same. A handle pins the version that it opened: its reads never mix two.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from unifs.errors import NotFound, ReadOnly, Stale, UnifsError
from unifs.journal.log import Op, WaitingLog
from unifs.journal.writeback import Writeback
from unifs.journal.writeback_calls import Calls
from unifs.journal.writeback_due import WritebackLimits
from unifs.journal.writeback_late import Late
from unifs.types import NAME_MAX_BYTES
from unifs.vfs import remotecid
from unifs.vfs.remotebase import Bases
from unifs.vfs.remotecold import Cold
from unifs.vfs.remoteepoch import Epoch
from unifs.vfs.remotefile import RemoteDirectory, RemoteHandle
from unifs.vfs.remotemerge import Merge
from unifs.vfs.remotenames import check_name, check_rename
from unifs.vfs.remoterows import COMPLETE, RemoteInode, Remotes
from unifs.vfs.remotestatus import RemoteStatus, trim
from unifs.vfs.remotesync import RemoteSync
from unifs.vfs.remoteunderway import Attempts
from unifs.vfs.treevolume import TreeVolume
from unifs.waiting import WouldBlock, complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from unifs.cache.reads import ReadCache
    from unifs.mounts.base import Mount
    from unifs.types import Attributes, Caller, SetAttributes
    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.volume import Handle, Inode, Invalidator
    from unifs.vfs.writer import Writer

#: So many look-ups within so many seconds in an unlisted directory start a scan of it.
LOOKUPS_MAX = 8
LOOKUPS_S = 2.0
SCANS_MAX = 4
#: Rows that can be had again.
ROWS_MAX = 5_000_000
TRIM_ROWS = 500
TRIM_S = 5.0


class RemoteVolume(TreeVolume):
    """A remote mount."""

    keeps_history = False
    inode_type = RemoteInode
    handle_type = RemoteHandle
    directory_type = RemoteDirectory

    def __init__(
        self, name: str, mount_id: int, writer: Writer, factory: Callable[[], Attributes]
    ) -> None:
        super().__init__(name, mount_id, writer, factory)
        self.records = WaitingLog(writer.log)
        self.log = self.records
        self.remotes = Remotes(self.tree, mount_id)
        self.attempts = Attempts()
        self.mount: Mount
        self.cache: ReadCache
        self.sync: RemoteSync
        self.merge: Merge
        self.epoch: Epoch
        self.bases: Bases
        self.status: RemoteStatus
        self.writeback: Writeback
        #: Tells the kernel what changed at the backend; None where there is no kernel.
        self.invalidator: Invalidator | None = None
        #: How long what the backend said is believed.
        self.fresh_s = 30.0
        #: fsync waits for the backend too; ``moved_bytes`` tells whether anything moves there.
        self.waits_for_backend = False
        self.moved_bytes: Callable[[], int] = lambda: 0
        #: Hashes a large content now; None where that happens on its own only.
        self.seal: Callable[[TreeInode], Awaitable[None]] | None = None
        self.cold = Cold(self)
        self.rows = 0
        self.rows_max = ROWS_MAX
        #: Wall-clock time: what is remembered over a restart.
        self.now_ns: Callable[[], int] = time.time_ns
        self.nursery: trio.Nursery | None = None
        self._scanning: set[int] = set()

    def connect(
        self,
        mount: Mount,
        cache: ReadCache,
        fresh_s: float,
        limits: WritebackLimits | None = None,
        conflicts: str = "keep-both",
    ) -> None:
        """Tell the volume its backend; before the first request.

        ``conflicts``: keep-both, ours or theirs.
        """
        self.mount = mount
        self.cache = cache
        self.fresh_s = self.timeout_s = fresh_s
        limits = limits or WritebackLimits()
        late = Late(limits.late_s)
        self.sync = RemoteSync(self, conflicts, late)
        self.unsynced.hurry = self.sync.hurry_all
        self.merge = Merge(self)
        self.epoch = Epoch(self)
        self.bases = Bases(self)
        self.status = RemoteStatus(self)
        calls = Calls(self.sync, mount, late)
        self.writeback = Writeback(calls, self.sync, self.records, self.sync.flush, limits)
        self.sync.writeback = self.writeback
        self.rows = self.remotes.count()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Writeback, background scans and trimming run inside this context."""
        async with trio.open_nursery() as nursery:
            self.nursery = self.bases.nursery = nursery
            if not self.is_read_only():
                await complete(self.sync.tidy)
                await complete(self.sync.load)
                self.writeback.load()
                nursery.start_soon(self.writeback.run)
                nursery.start_soon(self.cold.run)
            nursery.start_soon(self._trim_rows)
            try:
                yield
            finally:
                self.nursery = self.bases.nursery = None
                nursery.cancel_scope.cancel()

    # --- inodes -----------------------------------------------------------------------------------

    def load_row(self, ino: int, row: Any) -> RemoteInode:
        inode = super().load_row(ino, row)
        assert isinstance(inode, RemoteInode)
        known = self.remotes.row(ino)
        if known is not None:
            inode.load(known)
        elif ino == self.root:
            inode.path = ""
        return inode

    def hot_or_row(self, ino: int) -> RemoteInode | None:
        """The inode, None where its row is gone."""
        try:
            inode = self.inodes.get(ino)
        except Stale:
            return None
        assert isinstance(inode, RemoteInode)
        return inode

    def is_read_only(self) -> bool:
        """Whether the backend takes no changes."""
        return self.mount.is_immutable or not self.mount.supports("put")

    def is_changed(self, inode: RemoteInode) -> bool:
        """Whether there is something here that the backend has not confirmed."""
        if inode.overlay is not None or inode.pending is not None or inode.path is None:
            return True
        return self.writeback.is_due(inode.ino)

    # --- freshness --------------------------------------------------------------------------------

    def is_fresh(self, checked_ns: int) -> bool:
        """Whether what was learnt then is still believed."""
        if self.mount.is_immutable:
            return checked_ns > 0
        return self.now_ns() - checked_ns < self.fresh_s * 1e9 or self.epoch.covers(checked_ns)

    def is_listed(self, inode: RemoteInode) -> bool:
        """Whether the rows are the whole directory, as far as is believed."""
        if inode.path is None or not stat.S_ISDIR(inode.attributes.st_mode):
            # An object store may have something there: below the file's key, not in the file.
            return True
        return inode.listing == COMPLETE and self.is_fresh(inode.listed_ns)

    # --- look-up ----------------------------------------------------------------------------------

    def lookup(self, parent: Inode, name: bytes) -> TreeInode:
        assert isinstance(parent, RemoteInode)
        inode = self.find(parent, name)
        if inode is not None:
            assert isinstance(inode, RemoteInode)
            if self.is_fresh(inode.checked_ns) or self.is_changed(inode):
                return self.counted(inode)
        elif self.is_listed(parent) or len(name) > NAME_MAX_BYTES:
            raise NotFound
        self.epoch.check()
        if parent.path is None:
            assert inode is not None
            return inode
        if inode is None:
            self._note_lookup(parent)
        raise WouldBlock(partial(self.merge.stat, parent, name), self.name)

    def _need(self, parent: Inode, name: bytes) -> TreeInode:
        assert isinstance(parent, RemoteInode)
        if self.find(parent, name) is None and not self.is_listed(parent):
            raise WouldBlock(partial(self.merge.stat, parent, name), self.name)
        return super()._need(parent, name)

    def _note_lookup(self, parent: RemoteInode) -> None:
        now = trio.current_time()
        parent.lookups = [at for at in parent.lookups if now - at < LOOKUPS_S]
        parent.lookups.append(now)
        if len(parent.lookups) < LOOKUPS_MAX or self.nursery is None:
            return
        if parent.ino not in self._scanning and len(self._scanning) < SCANS_MAX:
            self._scanning.add(parent.ino)
            parent.lookups = []
            self.nursery.start_soon(self._scan_behind, parent)

    async def _scan_behind(self, inode: RemoteInode) -> None:
        try:
            await self.merge.scan(inode)
        except UnifsError:
            # Whoever looks up next asks the backend and hears what is wrong.
            return
        finally:
            self._scanning.discard(inode.ino)

    def getattr(self, inode: Inode) -> Attributes:
        assert isinstance(inode, RemoteInode)
        is_fresh = inode.ino == self.root or inode.is_gone or self.is_fresh(inode.checked_ns)
        if is_fresh or self.is_changed(inode):
            return super().getattr(inode)
        self.epoch.check()
        raise WouldBlock(partial(self.merge.refresh, inode), self.name)

    def is_empty(self, inode: TreeInode) -> bool:
        assert isinstance(inode, RemoteInode)
        if not super().is_empty(inode):
            return False
        if not self.is_listed(inode):
            raise WouldBlock(partial(self.merge.scan, inode), self.name)
        return True

    # --- changing ---------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.is_read_only():
            raise ReadOnly

    def setattr(
        self, inode: Inode, changes: SetAttributes, handle: Handle | None, caller: Caller
    ) -> Attributes:
        self._check_writable()
        if changes.size_bytes is not None and isinstance(handle, RemoteHandle):
            handle.check_version()
        return super().setattr(inode, changes, handle, caller)

    def check_new(self, parent: Inode, name: bytes, kind: int = stat.S_IFREG) -> None:
        self._check_writable()
        super().check_new(parent, name, kind)
        check_name(self, parent, name, kind)

    def unlink(self, parent: Inode, name: bytes, caller: Caller) -> None:
        self._check_writable()
        super().unlink(parent, name, caller)

    def rmdir(self, parent: Inode, name: bytes, caller: Caller) -> None:
        self._check_writable()
        super().rmdir(parent, name, caller)

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        self._check_writable()
        check_rename(self, (parent, name), (new_parent, new_name))
        super().rename(parent, name, new_parent, new_name, flags)

    def note_displaced(self, target: TreeInode, parent: int, name: bytes, batch: Batch) -> None:
        batch.append(self.log.row(Op.UNLINK, target.ino, parent, name))

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        self._check_xattr(name)
        self._check_writable()
        super().setxattr(inode, name, value)

    def removexattr(self, inode: Inode, name: bytes) -> None:
        self._check_xattr(name)
        self._check_writable()
        super().removexattr(inode, name)

    # --- opening and bytes ------------------------------------------------------------------------

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._check_writable()
        return super().open(inode, flags, caller)

    def _resize(self, inode: TreeInode, size: int) -> None:
        assert isinstance(inode, RemoteInode)
        if size == 0 and inode.overlay is None:
            inode.based_on = inode.version
        super()._resize(inode, size)

    def read_linked(self, stored: bytes, offset: int, size: int) -> bytes | memoryview:
        raise AssertionError("a handle on the backend's bytes is pinned to a version")

    def materialize(self, inode: TreeInode) -> None:
        assert isinstance(inode, RemoteInode)
        self.bases.need(inode)

    def sealed(self, inode: TreeInode, size_bytes: int) -> None:
        """Bytes count until the backend has them."""

    def closed_small(self, inode: TreeInode, seq: int) -> None:
        """Bytes count until the backend has them."""

    def found_unsealed(self, inode: TreeInode) -> None:
        """Writeback's records tell what the backend does not have."""

    def closed(self, ino: int) -> None:
        """The last writer of a file is gone."""
        self.writeback.closed(ino)

    def lost_name(self, inode: RemoteInode) -> None:
        """Its last name went to somebody else's object."""
        self._lost_name(inode, self.now_ns())

    # --- telling the kernel -----------------------------------------------------------------------

    def tell_inode(self, ino: int) -> None:
        """An inode's bytes or attributes changed at the backend."""
        if self.invalidator is not None:
            self.invalidator.inode(ino)

    def tell_entry(self, parent: int, name: bytes) -> None:
        """A name changed at the backend."""
        if self.invalidator is not None:
            self.invalidator.entry(parent, name)

    def cid_of(self, inode: TreeInode) -> str:
        assert isinstance(inode, RemoteInode)
        return str(remotecid.cid_of(self, inode))

    def state_of(self, inode: TreeInode) -> str:
        """open, closed, sealed, synced or (immutable mounts) verified."""
        if self.mount.is_immutable:
            return "verified"
        if inode.is_dirty() or inode.writers:
            return "open"
        if self.writeback.is_due(inode.ino):
            return super().state_of(inode)
        return "synced"

    # --- bounds -----------------------------------------------------------------------------------

    async def _trim_rows(self) -> None:
        while True:
            await trio.sleep(TRIM_S)
            while self.rows > self.rows_max:
                try:
                    if not trim(self, TRIM_ROWS):
                        break
                except WouldBlock:
                    break
                await trio.lowlevel.checkpoint()

    def statistics(self) -> dict[str, int]:
        """Rows and unsynced bytes now and at most, and what writeback has to do."""
        return {
            "rows": self.rows,
            "rows_max": self.rows_max,
            "unsynced_bytes": self.unsynced.size_bytes,
            "unsynced_bytes_max": self.unsynced.max_bytes,
            **self.writeback.statistics(),
        }
