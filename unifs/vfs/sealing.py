"""Sealing: a closed large content becomes durable, immutable, and gets its CID.

``Sealer`` (in the event loop) picks contents that have come to rest; ``SealJob`` (in a thread,
which is fine because its time is I/O and hashing, both without the GIL) does the work on
duplicated descriptors:

1. more than ``CONTAINERS_MAX`` containers: the live ranges of the smallest move to its own;
2. a leaf that lies in several containers is completed in its own, so that each leaf lies in one
   and the block index can point at it; what is taken from a base is hashed first, so that rot in
   the base is found and never sealed under a new CID;
3. leaves that changed are hashed, the others keep their hashes; the DAG above them is built;
4. containers and DAG nodes are fdatasynced.

Only then the rows say *sealed*, in one transaction with the journal's SEAL record. Written to is
only the content's own container: others hold what earlier contents name.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from unifs.errors import Corrupt, DiskFailed, Stale, TryAgain, UnifsError
from unifs.ipfs.unixfs.builder import FileBuilder, hash_leaf
from unifs.journal.content import SEALED, LargeContent, large_blob
from unifs.journal.extents import HOLE, ExtentMap
from unifs.journal.log import Op
from unifs.journal.overlay import write_all
from unifs.vfs.treeinode import share
from unifs.vfs.unsynced import Unsynced
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.unixfs.profiles import Profile
    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.writer import Writer

log = logging.getLogger(__name__)

#: Reading a content never looks at more files than this, once it is sealed.
CONTAINERS_MAX = 4
QUIET_S = 1.0
OPEN_S = 30.0
LOOK_S = 0.5

SET_SEALED = (
    "update content set state=2,extents=?,cid=?,leaves=?,proof=null,durable_size=null,"
    "durable_extents=null where id=? and state=1"
)


@dataclass(slots=True)
class SealJob:
    """One content on its way to sealed. ``run`` belongs to a thread; it closes ``descriptors``."""

    profile: Profile
    blocks: Blocks
    size: int
    extents: ExtentMap
    #: container -> duplicated descriptor
    descriptors: dict[int, int]
    #: The containers' directory: a file without a durable name is gone after a power cut.
    directory: int
    #: The container that may be written to: zeros where the extents do not name it.
    own: int
    base: LargeContent | None
    #: Asked before each leaf; the daemon ends and must not wait for gigabytes to be hashed.
    is_stopping: Callable[[], bool]
    #: The CID column: Tsize, 8 bytes little-endian, then the binary CID.
    cid: bytes = b""
    leaves: bytearray = field(default_factory=bytearray)
    #: Containers whose data the disk refused.
    failed: set[int] = field(default_factory=set)
    _buffer: bytearray = field(default_factory=bytearray)
    _zero_digests: dict[int, bytes] = field(default_factory=dict)

    def run(self) -> SealJob:
        """Do all of it. Corrupt where the base's bytes are not what they were."""
        try:
            self._buffer = bytearray(self.profile.chunk_bytes)
            os.ftruncate(self.descriptors[self.own], self.size)
            self._merge()
            builder = FileBuilder(self.profile, self.blocks.put)
            chunk = self.profile.chunk_bytes
            for index in range((self.size + chunk - 1) // chunk):
                if self.is_stopping():
                    raise TryAgain("sealing goes on at the next start")
                start = index * chunk
                end = min(start + chunk, self.size)
                digest = self._leaf(index, start, end)
                self.leaves += digest
                builder.leaf_digest(digest, end - start)
            link = builder.finish()
            self.cid = link.tsize.to_bytes(8, "little") + link.cid.binary
            self._sync_data()
            self.blocks.sync()
        finally:
            for descriptor in self.descriptors.values():
                os.close(descriptor)
        return self

    def _sync_data(self) -> None:
        for container in set(self.extents.containers):
            try:
                os.fdatasync(self.descriptors[container])
            except OSError as error:
                self.failed.add(container)
                raise DiskFailed(f"container {container}: {error.strerror}") from error
        os.fsync(self.directory)

    def _merge(self) -> None:
        while len(containers := set(self.extents.containers) - {self.own}) >= CONTAINERS_MAX:
            smallest = min(containers, key=self.extents.held_by)
            for holder, start, end in list(self.extents.pieces(0, self.size)):
                if holder == smallest:
                    self._copy(holder, start, end)

    def _copy(self, source: int, start: int, end: int) -> None:
        offset = start
        while offset < end:
            view = memoryview(self._buffer)[: end - offset]
            count = os.preadv(self.descriptors[source], [view], offset)
            if not count:
                raise Corrupt(f"container {source} ends at {offset}, before {end}")
            write_all(self.descriptors[self.own], view[:count], offset)
            offset += count
        self.extents.lay(start, end, self.own)

    def _leaf(self, index: int, start: int, end: int) -> bytes:
        """The digest of a leaf, which lies in one container when this returns."""
        base = self.base
        holder = self.extents.single(start, end)
        if base is not None and end <= base.size:
            is_same_length = min(start + self.profile.chunk_bytes, base.size) == end
            is_untouched = holder not in (HOLE, self.own) and is_same_length
            if is_untouched and base.extents.single(start, end) == holder:
                return base.leaves[index * 32 : index * 32 + 32]
        if holder == HOLE and self.extents.is_hole(start, end):
            self.extents.lay(start, end, self.own)
            return self._zeros(end - start)
        if holder == HOLE:
            self._complete(index, start, end)
            holder = self.own
        view = memoryview(self._buffer)[: end - start]
        self._read(holder, view, start)
        return hash_leaf(self.profile, view)

    def _zeros(self, length: int) -> bytes:
        """The digest of a leaf of zeros, computed once for each length."""
        digest = self._zero_digests.get(length)
        if digest is None:
            digest = self._zero_digests[length] = hash_leaf(self.profile, bytes(length))
        return digest

    def _complete(self, index: int, start: int, end: int) -> None:
        """Bring every piece of a leaf into the content's own container."""
        pieces = list(self.extents.pieces(start, end))
        if any(holder not in (HOLE, self.own) for holder, _, _ in pieces):
            self._check_base(index, start)
        for holder, first, last in pieces:
            if holder not in (HOLE, self.own):
                self._copy(holder, first, last)
        self.extents.lay(start, end, self.own)

    def _check_base(self, index: int, start: int) -> None:
        base = self.base
        if base is None or base.verified is None or start >= base.size or base.verified[index]:
            return
        end = min(start + self.profile.chunk_bytes, base.size)
        view = memoryview(self._buffer)[: end - start]
        for holder, first, last in base.extents.pieces(start, end):
            part = view[first - start : last - start]
            if holder == HOLE:
                part[:] = bytes(last - first)
            elif holder in self.descriptors:
                self._read(holder, part, first)
            else:
                # That range of the base is gone from this content as well: nothing is taken from
                # it.
                return
        if hash_leaf(self.profile, view) != base.leaves[index * 32 : index * 32 + 32]:
            raise Corrupt(f"content {base.id} at {start}: bytes do not match their hash")

    def _read(self, holder: int, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(self.descriptors[holder], [view[done:]], offset + done)
            if not count:
                raise Corrupt(f"container {holder} ends at {offset + done}")
            done += count


class Sealer:
    """Seals what has come to rest. Belongs to the event loop's thread."""

    def __init__(self, writer: Writer, blocks: Blocks, profile: Profile) -> None:
        self.writer = writer
        self.blocks = blocks
        self.profile = profile
        self.sealed = 0
        self.is_stopping = False
        self._thread = trio.CapacityLimiter(1)
        self._since: dict[int, float] = {}
        self._running: dict[int, trio.Event] = {}
        self._hurried = trio.Event()
        #: What the volume counts whose contents are sealed; ``connect`` makes it the volume's own.
        self.unsynced = Unsynced("")

    def connect(self, unsynced: Unsynced) -> None:
        """Seal early where much of a volume waits for it."""
        self.unsynced = unsynced
        unsynced.hurry = self.hurry

    def find_closed(self) -> None:
        """After a start: contents that an earlier daemon closed and did not seal."""
        database = self.writer.storage.database
        known = set(self.blocks.index.containers())
        for content_id, extents in database.all("select id,extents from content where state=2"):
            # The index is derived, and what it learnt last may be lost in a crash.
            if not known.issuperset(ExtentMap.unpack(extents).containers):
                self._index(self.writer.contents.large(content_id))
        for (content_id,) in database.all("select id from content where state=1"):
            row = database.one(
                "select ino from inode where content=? and gone is null", (large_blob(content_id),)
            )
            if row is not None:
                try:
                    inode: TreeInode = self.writer.inodes.get(row[0])  # type: ignore[assignment]
                except Stale:
                    # Its mount is not shown now; the start that shows it again comes here again.
                    continue
                self.writer.content_of(inode)
                self.writer.unsealed[inode.ino] = inode
                self.writer.unsealed_since[inode.ino] = 0
                inode.volume.found_unsealed(inode)  # type: ignore[attr-defined]

    async def run(self) -> None:
        """Look every ``LOOK_S``, or when somebody cannot wait, until cancelled."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._hurried.wait()
            is_hurried = self._hurried.is_set() or self.unsynced.is_pressed()
            if is_hurried:
                self._hurried = trio.Event()
                await self._hurry_all()
            self.unsynced.flushed(self.writer.storage.flusher.sealed_seq)
            now = time.monotonic()
            for inode in list(self.writer.unsealed.values()):
                if is_hurried or self._is_due(inode, now):
                    await self._try(inode)

    def hurry(self) -> None:
        """Seal everything now, whatever is still being written."""
        self._hurried.set()

    async def _hurry_all(self) -> None:
        """Commit what is open, so that it can be sealed, and flush what is small."""
        for inode in list(self.writer.open.values()):
            if inode.is_dirty() and not inode.is_gone:
                await self._try(inode)
        try:
            await self.writer.storage.flusher.flush()
        except UnifsError as error:
            log.warning("flush failed: error=%s", error)

    def _is_due(self, inode: TreeInode, now: float) -> bool:
        since = self._since.setdefault(inode.ino, now)
        if inode.writers == 0 and inode.overlay is None:
            return now - since >= QUIET_S
        return now - since >= OPEN_S

    async def _try(self, inode: TreeInode) -> None:
        try:
            await self.seal(inode)
        except (Corrupt, DiskFailed) as error:
            log.error("content is damaged and stays unsealed: ino=%d error=%s", inode.ino, error)
            inode.volume.sealed(inode, inode.unsynced_bytes)  # type: ignore[attr-defined]
            self._done(inode)
        except (UnifsError, OSError) as error:
            log.warning("sealing failed: ino=%d error=%s", inode.ino, error)
            self._since[inode.ino] = time.monotonic()

    def _done(self, inode: TreeInode) -> None:
        self.writer.rested(inode)
        self._since.pop(inode.ino, None)

    async def seal(self, inode: TreeInode) -> None:
        """Seal the inode's present content; returns when its rows say so.

        What is written meanwhile goes to a new overlay. Errors leave it closed.
        """
        running = self._running.get(inode.ino)
        if running is not None:
            await running.wait()
            return
        if inode.is_dirty() and not inode.is_gone:
            await complete(self.writer.commit, inode)
        content = inode.content
        if inode.is_gone or not isinstance(content, LargeContent) or content.state == SEALED:
            self._done(inode)
            return
        self.writer.detach(inode)
        done = self._running[inode.ino] = trio.Event()
        try:
            await self._seal(inode, content)
        finally:
            del self._running[inode.ino]
            done.set()

    async def _seal(self, inode: TreeInode, content: LargeContent) -> None:
        containers = self.writer.contents.containers
        held: list[int] = []
        written_bytes = inode.unsynced_bytes
        try:
            own = content.own
            if not own:
                # Closed by an earlier daemon, or all of it is a base's or a hole.
                own = content.own = containers.create()
                held.append(own)
            for name in {own, *content.extents.containers} - set(held):
                containers.hold(name)
                held.append(name)
            descriptors = {name: os.dup(containers.descriptor(name)) for name in held}
            job = SealJob(
                profile=self.profile,
                blocks=self.blocks,
                size=content.size,
                extents=content.extents.copy(),
                descriptors=descriptors,
                directory=containers.directory,
                own=own,
                base=content.base,
                is_stopping=lambda: self.is_stopping,
            )
            try:
                with self.blocks.importing():
                    await trio.to_thread.run_sync(job.run, limiter=self._thread)
                    await complete(self._record, inode, content, job)
                inode.volume.sealed(inode, written_bytes)  # type: ignore[attr-defined]
            finally:
                # The kernel forgets what it could not write: another try would seem to succeed.
                containers.failed |= job.failed
        finally:
            for name in held:
                containers.release(name)

    def _record(self, inode: TreeInode, content: LargeContent, job: SealJob) -> None:
        """Rows first, then memory, then the block index (which can be rebuilt from the rows)."""
        database = self.writer.storage.database
        if database.one("select state from content where id=?", (content.id,)) is None:
            self._done(inode)
            return
        bindings = (job.extents.pack(), job.cid, bytes(job.leaves), content.id)
        batch: Batch = [(SET_SEALED, bindings)]
        batch.append(("delete from holding where content=?", (content.id,)))
        names = set(job.extents.containers)
        batch.extend(("insert into holding values(?,?)", (content.id, name)) for name in names)
        data = content.id.to_bytes(8, "little")
        batch.append(self.writer.log.row(Op.SEAL, inode.ino, inode.parent, data))
        carried = self.writer.durability.carried
        marks = carried.marks(names)
        self.writer.tree.commit(batch + carried.drop(marks))
        carried.dropped(marks)
        self.writer.dropped({job.own, *content.extents.containers} - names)
        content.extents, content.cid, content.leaves = job.extents, job.cid, bytes(job.leaves)
        content.verified = bytearray(b"\1" * (len(job.leaves) // 32))
        content.state, content.base = SEALED, None
        if database.one("select refs from content where id=?", (content.id,))[0] > 1:
            share(content, self.writer.inodes.hot.values())
        if inode.content is content:
            inode.acknowledged = None
        self.sealed += 1
        if inode.content is content:
            self._done(inode)
        else:
            self._since.pop(inode.ino, None)
        self._index(content)

    def _index(self, content: LargeContent) -> None:
        """Tell the block index where the leaves lie."""
        chunk = self.profile.chunk_bytes
        by_container: dict[int, list[tuple[bytes, int, int]]] = {}
        for index in range(len(content.leaves) // 32):
            start = index * chunk
            end = min(start + chunk, content.size)
            holder = content.extents.single(start, end)
            digest = content.leaves[index * 32 : index * 32 + 32]
            by_container.setdefault(holder, []).append((digest, start, end - start))
        for container, leaves in by_container.items():
            self.blocks.add_container(container, leaves, is_wrapped=not self.profile.has_raw_leaves)
