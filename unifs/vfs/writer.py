"""The write side of the tree: when what is in memory becomes rows, and in which order.

``Writer`` owns every uncommitted thing: created inodes without rows, overlays, directory times. Its
commit points are called by handles and name operations; ``vfs.upkeep`` calls them for what nobody
closes. Everything here belongs to the event loop's thread.

Invariants: a batch is built and committed without a checkpoint in between; memory changes after the
commit; what close() acknowledged has its record. A predecessor's bytes are released only when its
successor is sealed (``guards``), a removed content only when its removal is durable.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from unifs.journal.content import LINKED, REMOTE, LargeContent, SmallContent, large_id
from unifs.journal.log import Op, pack_pair
from unifs.journal.overlay import COMMITS_SMALL_MAX, PROOF_BYTES, Overlay
from unifs.journal.proof import prove
from unifs.vfs.fsync import Durability
from unifs.vfs.tree import INSERT_INODE, UPDATE_INODE, blocks_of, pack_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.journal.content import Content
    from unifs.vfs.inodes import Inodes
    from unifs.vfs.storage import Storage
    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode

log = logging.getLogger(__name__)

#: A directory with more changed names is built anew, whatever its size.
NAMES_MAX = 10_000
_NONE: set[bytes] = set()

INSERT_CONTENT = (
    "insert into content(boot,size,extents,proof,durable_size,durable_extents,id,refs,state)"
    " values(?,?,?,?,?,?,?,1,1)"
)
UPDATE_CONTENT = (
    "update content set boot=?,size=?,extents=?,proof=?,durable_size=?,durable_extents=? where id=?"
)


class Writer:
    """Commits inodes."""

    def __init__(self, storage: Storage, inodes: Inodes) -> None:
        self.storage = storage
        self.inodes = inodes
        self.tree = storage.tree
        self.log = storage.log
        self.contents = storage.contents
        self.overlays = storage.overlays
        self.durability = Durability(self)
        #: Created, no rows yet, by (directory, name).
        self.pending: dict[tuple[int, bytes], TreeInode] = {}
        #: Inodes whose times are newer than their rows.
        self.touched: dict[int, TreeInode] = {}
        #: Inodes with an overlay.
        self.open: dict[int, TreeInode] = {}
        #: Inodes whose closed large content is to be sealed.
        self.unsealed: dict[int, TreeInode] = {}
        #: Of these inodes: the records from here on tell recovery what stands in for their bytes.
        self.unsealed_since: dict[int, int] = {}
        #: Inodes without a name that the kernel has forgotten: their rows can go.
        self.forgotten: list[TreeInode] = []
        #: (inode whose present content must be sealed first, content that it replaced).
        self.replaced: list[tuple[TreeInode, int]] = []
        #: (transaction that must be durable first, content without a row that names it).
        self.released: list[tuple[int, int]] = []
        #: (transaction that must be durable first, container that a content has no use for now).
        self.unneeded: list[tuple[int, int]] = []
        #: Containers that no content names any more; ``vfs.keeper`` deletes them.
        self.dead_containers = storage.dead_containers
        #: What changed since the last root: mount number -> directory -> names (None: any).
        self.changed: dict[int, dict[int, set[bytes] | None]] = {}

    def touch(self, inode: TreeInode, now_ns: int) -> None:
        """A name in this directory changed: its times move; the row follows at the next tick."""
        attributes = inode.attributes
        attributes.st_mtime_ns = attributes.st_ctime_ns = now_ns
        inode.is_touched = True
        self.touched[inode.ino] = inode
        # The new name's inode may have taken its place in the table.
        self.inodes.hot[inode.ino] = inode

    def set_blocks(self, inode: TreeInode) -> None:
        """Count the blocks of a changed file: what is a hole takes none."""
        overlay = inode.overlay
        if overlay is None:
            return
        if overlay.buffer is not None:
            inode.attributes.st_blocks = blocks_of(inode.attributes.st_size)
            return
        blocks = blocks_of(overlay.extents.held_bytes())
        if overlay.base is not None and overlay.hides_holes:
            # Where a sealed content has holes, its extents lie over holes of files. What is written
            # from now on leaves none: to look once is enough where there are none.
            descriptor = self.contents.containers.descriptor
            names = set(overlay.extents.containers)
            allocated = sum(os.fstat(descriptor(name)).st_blocks for name in names)
            overlay.hides_holes = allocated < blocks
            blocks = min(blocks, allocated)
        inode.attributes.st_blocks = blocks

    # --- overlays ---------------------------------------------------------------------------------

    def content_of(self, inode: TreeInode) -> Content | None:
        """The committed content, decoded at first use."""
        if inode.content is None and inode.stored:
            inode.content = self.contents.decode(inode.stored)
        return inode.content

    def overlay_of(self, inode: TreeInode) -> Overlay:
        """The inode's overlay, made on its content at the first change.

        WouldBlock where a small base has to come from the disk first. What a file without a name
        has committed stays as it is: the past may show it, or a power cut bring it back.
        """
        overlay = inode.overlay
        if overlay is not None and overlay.content is not None and inode.is_gone:
            if overlay.container in overlay.content.extents.containers:
                overlay = self.overlays.on_overlay(overlay)
                self.detach(inode)
                self.attach(inode, overlay)
        elif overlay is None:
            if inode.stored and inode.stored[0] in (LINKED, REMOTE):
                inode.volume.materialize(inode)  # type: ignore[attr-defined]
            content = self.content_of(inode)
            if isinstance(content, SmallContent):
                whole = self.contents.read_small(content, 0, content.length)
                overlay = self.overlays.on_small(bytes(whole))
            elif isinstance(content, LargeContent):
                overlay = self.overlays.on_large(content)
            else:
                overlay = Overlay()
            self.attach(inode, overlay)
        return overlay

    def attach(self, inode: TreeInode, overlay: Overlay) -> None:
        """From now on this overlay is what the inode's readers and writers see."""
        inode.overlay = overlay
        inode.changed_at = time.monotonic()
        self.open[inode.ino] = inode

    def overlay_to_cut(self, inode: TreeInode, size: int) -> Overlay:
        """The overlay in which the file may be cut to ``size``.

        What a row names is not cut from under it: an overlay that has one is committed and frozen,
        and a new one begins.
        """
        overlay = inode.overlay
        is_cut = size < inode.attributes.st_size
        is_freed = is_cut and not (inode.is_gone and size)
        if is_freed and overlay is not None and overlay.content is not None:
            if overlay.is_dirty and size:
                self.commit(inode)
            self.detach(inode)
        if size == 0 and inode.overlay is None:
            # Cut off everything without reading it.
            overlay = Overlay()
            self.attach(inode, overlay)
            return overlay
        return self.overlay_of(inode)

    def detach(self, inode: TreeInode) -> None:
        """The overlay is committed and nobody writes: the content speaks for itself."""
        overlay = inode.overlay
        if overlay is None:
            return
        inode.overlay = None
        del self.open[inode.ino]
        content = overlay.content
        if content is None and overlay.container:
            volume = inode.volume
            volume.unsynced.reached(inode, inode.unsynced_bytes)  # type: ignore[attr-defined]
        named = content.extents.containers if content is not None else ()
        if overlay.container in named:
            self.contents.containers.release(overlay.container)
        else:
            # Nothing was committed, or only cuts.
            self.overlays.discard(overlay)

    # --- commit -----------------------------------------------------------------------------------

    def commit(self, inode: TreeInode, is_interim: bool = False) -> None:
        """Rows for everything uncommitted of this inode; returns when they are committed.

        On failure (NoSpace, JournalFailed) the inode stays dirty and a later commit tries again.
        ``is_interim``: the next commit follows at once, and what it makes takes the place of what
        was acknowledged before this one.
        """
        if inode.is_gone:
            self._forgo(inode)
            return
        batch: Batch = []
        content, blob = self.prepare(inode, batch)
        self.rows(inode, blob, batch)
        self.tree.commit(batch)
        before = inode.before()
        self.committed(inode, content, blob)
        if is_interim:
            inode.acknowledged = before

    def ready(self, inode: TreeInode) -> None:
        """WouldBlock where a commit of this inode would wait; for who changes memory before it."""
        self.storage.database.admit()
        if inode.overlay is not None and inode.overlay.buffer is None:
            self._proof(inode.overlay)

    def undo(self, inode: TreeInode) -> None:
        """Forget what an overlay holds beyond the committed content."""
        if inode.overlay is not None:
            inode.overlay.is_dirty = False
            self.detach(inode)

    def _forgo(self, inode: TreeInode) -> None:
        """Nobody can find this inode after a crash: nothing to record."""
        if inode.overlay is not None:
            inode.overlay.is_dirty = False

    def prepare(
        self, inode: TreeInode, batch: Batch, is_carried: bool = False
    ) -> tuple[Content | None, bytes]:
        """Bring a dirty overlay's bytes to where a row can name them; (content, its column).

        ``is_carried``: the batch has all bytes that are not durable, so that the form it makes is.
        """
        overlay = inode.overlay
        if overlay is None or not overlay.is_dirty:
            return inode.content, inode.stored
        if overlay.buffer is not None:
            if not overlay.buffer:
                return None, b""
            if overlay.commits < COMMITS_SMALL_MAX or not inode.opens:
                small = self._append(overlay.digest(), overlay.buffer)
                return small, small.blob
            self.overlays.spill(overlay)
        large = self._large_rows(inode, overlay, is_carried, batch)
        return large, large.blob

    def _append(self, digest: bytes, buffer: bytearray) -> SmallContent:
        place = self.contents.segments.append_raw(digest, memoryview(buffer))
        small = SmallContent(place.segment, place.offset, place.length, digest)
        small.is_verified = True
        return small

    def _large_rows(
        self, inode: TreeInode, overlay: Overlay, is_carried: bool, batch: Batch
    ) -> LargeContent:
        """Statements for the overlay's content row, new at its first commit, updated later."""
        size = inode.attributes.st_size
        extents = overlay.extents.copy()
        packed = extents.pack()
        proof = None if is_carried else self._proof(overlay)
        durable = (size, packed) if is_carried else overlay.durable or (None, None)
        large = overlay.content
        named: set[int] = set()
        statement = UPDATE_CONTENT
        if large is None:
            self.contents.last_id += 1
            large = LargeContent(self.contents.last_id, size, extents)
            large.base = overlay.base
            statement = INSERT_CONTENT
        else:
            named.update(large.extents.containers)
        batch.append((statement, (self.contents.boot, size, packed, proof, *durable, large.id)))
        names = set(extents.containers)
        for container in names - named:
            batch.append(("insert or ignore into holding values(?,?)", (large.id, container)))
        for container in named - names:
            statement = "delete from holding where content=? and container=?"
            batch.append((statement, (large.id, container)))
        after = LargeContent(large.id, size, extents)
        after.base = large.base
        # One that it does not name goes with the overlay.
        after.own = overlay.container if overlay.container in names else 0
        return after

    def _proof(self, overlay: Overlay) -> bytes | None:
        if overlay.unsynced is None:
            return None
        ranges = overlay.unsynced_ranges()
        if sum(end - start for start, end in ranges) > PROOF_BYTES:
            # fsync asks the overlay, not the row, whether there is a proof.
            overlay.give_up_proof()
            return None
        extents, contents = overlay.extents, self.contents
        return prove(ranges, lambda start, end: contents.read_extents(extents, start, end))

    def rows(self, inode: TreeInode, blob: bytes, batch: Batch) -> None:
        """Statements for the inode's own rows and the journal's record of them."""
        self.set_blocks(inode)
        tree = self.tree
        log_ = inode.volume.log  # type: ignore[attr-defined]
        packed = pack_attributes(inode.attributes)
        ino = inode.ino
        if inode.pending is not None:
            parent, name = inode.pending
            mount = inode.volume.mount_id  # type: ignore[attr-defined]
            batch.append((INSERT_INODE, (ino, mount, parent, tree.epoch, packed, blob)))
            batch.append(tree.add_name(parent, name, ino))
            made_ns = inode.attributes.st_ctime_ns
            batch.append(log_.row(Op.CREATE, ino, parent, name, made_ns))
            return
        if inode.epoch != tree.epoch:
            tree.keep_inode(batch, inode)
        batch.append((UPDATE_INODE, (inode.parent, tree.epoch, packed, blob, ino)))
        if blob != inode.stored or inode.overlay is not None:
            data = pack_pair(inode.before(), blob)
            batch.append(log_.row(Op.CONTENT, ino, inode.parent, data))
        else:
            batch.append(log_.row(Op.SETATTR, ino, inode.parent, packed))

    def committed(self, inode: TreeInode, content: Content | None, blob: bytes) -> None:
        """The batch is committed: memory follows."""
        overlay = inode.overlay
        if inode.pending is not None:
            del self.pending[inode.pending]
            inode.parent = inode.pending[0]
            inode.pending = None
        inode.epoch = self.tree.epoch
        inode.seq = self.log.seq
        inode.acknowledged = None
        if inode.is_touched:
            inode.is_touched = False
            del self.touched[inode.ino]
        if inode.stored:
            before = large_id(inode.stored)
            if before and before != large_id(blob):
                self.replaced.append((inode, before))
        inode.stored = blob
        inode.content = content
        if overlay is not None and overlay.is_dirty:
            overlay.is_dirty = False
            overlay.commits += 1
            if isinstance(content, LargeContent):
                overlay.content = content
                self.unsealed[inode.ino] = inode
                # Behind the content's own record there may be one that an fsync covers it.
                self.unsealed_since.setdefault(inode.ino, self.log.seq - 1)
            elif inode.unsynced_bytes:
                inode.volume.closed_small(inode, inode.seq)  # type: ignore[attr-defined]
        self.mark_changed(inode)

    def rested(self, inode: TreeInode) -> None:
        """The inode's content needs no sealing any more; it may have no name left."""
        self.unsealed.pop(inode.ino, None)
        since = self.unsealed_since.pop(inode.ino, None)
        if not inode.is_gone or since is None:
            return
        for guard in inode.living_guards():
            if guard.ino in self.unsealed_since:
                # Recovery may give the name back to this one, then from it to the one before.
                self.unsealed_since[guard.ino] = min(since, self.unsealed_since[guard.ino])

    def release(self, contents: Iterable[int]) -> None:
        """Since the last transaction a row less names each: bytes go once that is durable."""
        commits = self.storage.database.commits
        self.released.extend((commits, content) for content in contents if content)

    def dropped(self, containers: Iterable[int]) -> None:
        """As ``release``, of containers that the last transaction has taken from a content."""
        commits = self.storage.database.commits
        self.unneeded.extend((commits, container) for container in containers)

    def needed_since(self) -> int:
        """Recovery after a power cut may need every record with a higher seq."""
        return min([self.storage.flusher.sealed_seq, *self.unsealed_since.values()])

    def mark_changed(self, inode: TreeInode) -> None:
        """The directories that name this inode differ from the last root."""
        mount = inode.volume.mount_id  # type: ignore[attr-defined]
        if inode.parent:
            self.mark(mount, inode.parent, inode.name)
        else:
            for parent, name in self.tree.parents(inode.ino, 0):
                self.mark(mount, parent, name)

    def mark(self, mount: int, directory: int, name: bytes | None) -> None:
        """A name in a directory differs from the last root; None: it is not known which."""
        changed = self.changed.get(mount)
        if changed is None:
            changed = self.changed[mount] = {}
        if name is None:
            changed[directory] = None
            return
        names = changed.get(directory, _NONE)
        if names is _NONE:
            changed[directory] = {name}
        elif names is not None:
            names.add(name)
            if len(names) > NAMES_MAX:
                changed[directory] = None
