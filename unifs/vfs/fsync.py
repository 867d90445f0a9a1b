"""What fsync does: an inode's bytes and rows reach the disk, and recovery can tell that they did.

A small content needs one flush round: its segment is synced before the WAL. Of a large one, few
unsynced bytes are *carried* in the transaction (``journal.redo``), so that a sync of the WAL alone
makes all of it durable: an appended log pays one fdatasync a line. More of them need a round that
syncs the file too, where the commit's proof covers them, else two: the bytes, then the row that
says so.

Owned by the ``Writer``, called by handles; everything belongs to the event loop's thread. It never
changes what a row relies on before that row is replaced by a durable one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from unifs.errors import DiskFailed
from unifs.journal.content import CLOSED, LargeContent
from unifs.journal.log import Op
from unifs.journal.redo import Carried
from unifs.waiting import RETRY, WouldBlock, complete

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unifs.journal.content import Content
    from unifs.journal.overlay import Overlay
    from unifs.journal.redo import Mark
    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.writer import Writer

SET_DURABLE = "update content set durable_size=?,durable_extents=? where id=? and state=1"
SET_CARRIED = (
    "update content set proof=null,durable_size=size,durable_extents=extents where id=? and state=1"
)


class Durability:
    """Makes what a writer has committed survive a power cut."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.storage = writer.storage
        #: What the transactions of earlier fsyncs carry.
        self.carried = Carried(writer.storage.database)

    async def make_durable(self, inode: TreeInode) -> None:
        """As ``make_durable_nowait``, and waits."""
        await complete(self.make_durable_nowait, inode)

    def make_durable_nowait(self, inode: TreeInode) -> None:
        """fsync: what was written so far survives a power cut when this returns."""
        is_carried = not inode.is_gone and self._commit_synced(inode)
        content = self.writer.content_of(inode)
        if is_carried or not isinstance(content, LargeContent) or content.state != CLOSED:
            self.storage.flusher.flush_nowait()
        else:
            raise WouldBlock(partial(self._sync_large, inode, content))

    async def _sync_large(self, inode: TreeInode, content: LargeContent) -> None:
        overlay = inode.overlay
        if overlay is None or overlay.content is not content:
            await self._sync_form(content, None)
        elif overlay.unsynced is None or overlay.is_rewritten or overlay.container in self.carried:
            # What is carried would be laid over bytes that a proof speaks of.
            await self._sync_form(content, overlay)
        else:
            await self._sync_proven(content, overlay)

    # --- the commit -------------------------------------------------------------------------------

    def _commit_synced(self, inode: TreeInode) -> bool:
        """As ``commit``, with a record that says which content an fsync covers.

        Whether the transaction carries all bytes that are not durable yet.
        """
        batch: Batch = []
        content, blob = inode.content, inode.stored
        overlay = inode.overlay
        pieces = None if overlay is None else self._pieces(overlay, content)
        is_changed = inode.is_dirty() or inode.is_touched
        if is_changed:
            content, blob = self.writer.prepare(inode, batch, is_carried=pieces is not None)
            self.writer.rows(inode, blob, batch)
        if blob != inode.synced:
            batch.append(self.storage.log.row(Op.SYNC, inode.ino, inode.parent, blob))
        if overlay is not None and pieces is not None:
            assert isinstance(content, LargeContent)
            batch += self.carried.rows(overlay.container, pieces)
            if not overlay.is_dirty:
                batch.append((SET_CARRIED, (content.id,)))
        if batch:
            self.writer.tree.commit(batch, may_hold=False)
        if is_changed:
            self.writer.committed(inode, content, blob)
        inode.synced = blob
        if overlay is not None and pieces is not None:
            assert isinstance(content, LargeContent)
            self._carries(content, overlay, pieces)
        return pieces is not None

    def _pieces(self, overlay: Overlay, held: Content | None) -> list[tuple[int, bytes]] | None:
        """(offset, bytes) of all that is not durable, None where that is too much to carry.

        WouldBlock where it has to come from the disk.
        """
        contents = self.storage.contents
        if overlay.buffer is not None or overlay.unsynced is None:
            return None
        if not overlay.is_dirty and (overlay.content is None or overlay.content is not held):
            return None
        extents = overlay.extents
        ranges = overlay.unsynced_ranges()
        size = sum(end - start for start, end in ranges)
        if not self.carried.has_room(overlay.container, size):
            return None
        if not contents.containers.failed.isdisjoint(extents.containers):
            return None
        return [(start, bytes(contents.read_extents(extents, start, end))) for start, end in ranges]

    def _carries(
        self, content: LargeContent, overlay: Overlay, pieces: list[tuple[int, bytes]]
    ) -> None:
        """The transaction is committed: whatever of the WAL becomes durable after it has it too."""
        self.carried.added(overlay.container, pieces)
        overlay.synced(overlay.ranges_noted(), True)
        overlay.set_durable(overlay.commits, content.size, content.extents.pack())

    # --- the data ---------------------------------------------------------------------------------

    async def _sync_proven(self, content: LargeContent, overlay: Overlay) -> None:
        """One round: the row's proof tells recovery that the bytes arrived."""
        assert overlay.unsynced is not None
        form = (overlay.commits, content.size, content.extents.pack())
        before, ranges = overlay.proven, [held for held in overlay.unsynced if held[0] >= 0]
        overlay.proven = before + ranges
        overlay.confirm = partial(self._confirm, content, overlay)
        mark = overlay.ranges_noted()
        await self._flush_data(content)
        overlay.synced(mark, True)
        overlay.set_durable(*form)
        # The row that is durable now carries the form before it; what that form's proof covered
        # may change again.
        overlay.proven = [held for held in overlay.proven if held not in before or held in ranges]

    async def _sync_form(self, content: LargeContent, overlay: Overlay | None) -> None:
        """Two rounds: the bytes, then the row that says so."""
        size, extents = content.size, content.extents.pack()
        commits = overlay.commits if overlay is not None else 0
        is_listed = overlay is not None and overlay.unsynced is not None
        mark = overlay.ranges_noted() if overlay is not None else 0
        marks = self.carried.marks(content.extents.containers)
        await self._flush_data(content)
        form = (size, extents)
        if overlay is not None:
            overlay.synced(mark, is_listed)
            overlay.set_durable(commits, size, extents)
            # Another fsync of the file may have got further meanwhile.
            form = overlay.durable or form
        await complete(self._record_durable, (*form, content.id), marks)
        await self.storage.flusher.flush()

    def _record_durable(self, bindings: tuple[int, bytes, int], marks: dict[int, Mark]) -> None:
        self.writer.tree.commit([(SET_DURABLE, bindings), *self.carried.drop(marks)])
        self.carried.dropped(marks)

    async def _confirm(self, content: LargeContent, overlay: Overlay) -> object:
        """Before a proof is broken: its form becomes one that needs none."""
        proven = overlay.proven
        overlay.is_rewritten = True
        await self._sync_form(overlay.content or content, overlay)
        overlay.proven = [held for held in overlay.proven if held not in proven]
        return RETRY

    async def _flush_data(self, content: LargeContent) -> None:
        """A flush round over a content's containers; they stay open until it is over."""
        containers = self.storage.contents.containers
        names = set(content.extents.containers)
        if failed := names & containers.failed:
            raise DiskFailed(f"the disk refused data of containers {sorted(failed)} before")
        held = {containers.hold(name): name for name in names}
        descriptors = [*held]
        if containers.has_new:
            containers.has_new = False
            descriptors.append(containers.directory)

        def ended(errors: Mapping[int, OSError]) -> None:
            for descriptor, name in held.items():
                if descriptor in errors or containers.directory in errors:
                    containers.failed.add(name)
                containers.release(name)
            containers.has_new |= containers.directory in errors

        await self.storage.flusher.flush(descriptors, ended)
