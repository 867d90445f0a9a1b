"""Sealing: a closed large content becomes durable, immutable, and gets its CID.

``Sealer`` (in the event loop) picks contents that have come to rest; ``SealJob`` (in a thread,
which is fine because its time is I/O and hashing, both without the GIL) does the work on
duplicated descriptors:

1. more than ``CONTAINERS_MAX`` containers: the live ranges of the smallest move to the newest;
2. a leaf that lies in several containers is completed in the newest, so that each leaf lies in one
   and the block index can point at it; what is taken from a base is hashed first, so that rot in
   the base is found and never sealed under a new CID;
3. leaves that changed are hashed, the others keep their hashes; the DAG above them is built;
4. containers and DAG nodes are fdatasynced.

Only then the rows say *sealed*, in one transaction with the journal's SEAL record.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from unifs.errors import Corrupt, Stale, TryAgain, UnifsError
from unifs.ipfs.unixfs.builder import FileBuilder, hash_leaf
from unifs.journal.content import SEALED, LargeContent, large_blob
from unifs.journal.extents import HOLE, ExtentMap
from unifs.journal.log import Op
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
    base: LargeContent | None
    #: Asked before each leaf; the daemon ends and must not wait for gigabytes to be hashed.
    is_stopping: Callable[[], bool]
    #: The CID column: Tsize, 8 bytes little-endian, then the binary CID.
    cid: bytes = b""
    leaves: bytearray = field(default_factory=bytearray)
    _buffer: bytearray = field(default_factory=bytearray)
    _zero_digests: dict[int, bytes] = field(default_factory=dict)

    def run(self) -> SealJob:
        """Do all of it. Corrupt where the base's bytes are not what they were."""
        try:
            self._buffer = bytearray(self.profile.chunk_bytes)
            newest = max(self.descriptors)
            os.ftruncate(self.descriptors[newest], self.size)
            self._merge(newest)
            builder = FileBuilder(self.profile, self.blocks.put)
            chunk = self.profile.chunk_bytes
            for index in range((self.size + chunk - 1) // chunk):
                if self.is_stopping():
                    raise TryAgain("sealing goes on at the next start")
                start = index * chunk
                end = min(start + chunk, self.size)
                digest = self._leaf(index, start, end, newest)
                self.leaves += digest
                builder.leaf_digest(digest, end - start)
            link = builder.finish()
            self.cid = link.tsize.to_bytes(8, "little") + link.cid.binary
            for container in set(self.extents.containers):
                os.fdatasync(self.descriptors[container])
            self.blocks.sync()
        finally:
            for descriptor in self.descriptors.values():
                os.close(descriptor)
        return self

    def _merge(self, newest: int) -> None:
        while len(containers := set(self.extents.containers) - {newest}) >= CONTAINERS_MAX:
            smallest = min(containers, key=self.extents.held_by)
            for holder, start, end in list(self.extents.pieces(0, self.size)):
                if holder == smallest:
                    self._copy(holder, newest, start, end)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        offset = start
        while offset < end:
            view = memoryview(self._buffer)[: end - offset]
            count = os.preadv(self.descriptors[source], [view], offset)
            if not count:
                raise Corrupt(f"container {source} ends at {offset}, before {end}")
            os.pwrite(self.descriptors[target], view[:count], offset)
            offset += count
        self.extents.lay(start, end, target)

    def _leaf(self, index: int, start: int, end: int, newest: int) -> bytes:
        """The digest of a leaf, which lies in one container when this returns."""
        base = self.base
        holder = self.extents.single(start, end)
        if base is not None and end <= base.size:
            is_same_length = min(start + self.profile.chunk_bytes, base.size) == end
            is_untouched = holder not in (HOLE, newest) and is_same_length
            if is_untouched and base.extents.single(start, end) == holder:
                return base.leaves[index * 32 : index * 32 + 32]
        if holder == HOLE and self.extents.is_hole(start, end):
            self.extents.lay(start, end, newest)
            return self._zeros(end - start)
        if holder == HOLE:
            self._complete(index, start, end, newest)
            holder = newest
        view = memoryview(self._buffer)[: end - start]
        self._read(holder, view, start)
        return hash_leaf(self.profile, view)

    def _zeros(self, length: int) -> bytes:
        """The digest of a leaf of zeros, computed once for each length."""
        digest = self._zero_digests.get(length)
        if digest is None:
            digest = self._zero_digests[length] = hash_leaf(self.profile, bytes(length))
        return digest

    def _complete(self, index: int, start: int, end: int, newest: int) -> None:
        """Bring every piece of a leaf into the newest container."""
        pieces = list(self.extents.pieces(start, end))
        if any(holder not in (HOLE, newest) for holder, _, _ in pieces):
            self._check_base(index, start)
        for holder, first, last in pieces:
            if holder not in (HOLE, newest):
                self._copy(holder, newest, first, last)
        self.extents.lay(start, end, newest)

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

    async def run(self) -> None:
        """Look every ``LOOK_S`` until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            now = time.monotonic()
            for inode in list(self.writer.unsealed.values()):
                if self._is_due(inode, now):
                    await self._try(inode)

    def _is_due(self, inode: TreeInode, now: float) -> bool:
        since = self._since.setdefault(inode.ino, now)
        if inode.writers == 0 and inode.overlay is None:
            return now - since >= QUIET_S
        return now - since >= OPEN_S

    async def _try(self, inode: TreeInode) -> None:
        try:
            await self.seal(inode)
        except Corrupt as error:
            log.error("content is damaged and stays unsealed: ino=%d error=%s", inode.ino, error)
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
        names = sorted(set(content.extents.containers))
        held = {name: containers.hold(name) for name in names}
        try:
            if not names:
                # All of it is a hole: there is no container yet that could hold its zeros.
                names = [containers.create()]
                held = {names[0]: containers.descriptor(names[0])}
            descriptors = {name: os.dup(descriptor) for name, descriptor in held.items()}
            job = SealJob(
                profile=self.profile,
                blocks=self.blocks,
                size=content.size,
                extents=content.extents.copy(),
                descriptors=descriptors,
                base=content.base,
                is_stopping=lambda: self.is_stopping,
            )
            with self.blocks.importing():
                await trio.to_thread.run_sync(job.run, limiter=self._thread)
                await complete(self._record, inode, content, job)
        finally:
            for name in names:
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
        self.writer.tree.commit(batch)
        content.extents, content.cid, content.leaves = job.extents, job.cid, bytes(job.leaves)
        content.verified = bytearray(b"\1" * (len(job.leaves) // 32))
        content.state, content.base = SEALED, None
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
