"""The MFS root: the tree of a volume as one UnixFS DAG, built behind the writers.

Changes mark directories; a build starts after a second of quiet, every ten seconds under load, or
when somebody asks for a directory's CID. It reads the rows of changed directories and of the
directories above them in one read transaction on a connection of its own, in a thread; directories
with many entries are built in a worker process, because Python-bound work in a thread lifts the
p99 of an inline commit from 39 µs to 4.9 ms. Nodes are durable before the rows name them; one
build is one epoch.

What the root shows: regular files by the CID of their sealed content, directories, symlinks. FIFOs,
sockets and devices have no UnixFS node and are left out; a hard link is two entries. A file whose
large content is not sealed yet (it is open for writing) is left out, and its directory stays
changed, until it is.
"""

from __future__ import annotations

import logging
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import apsw
import trio
import trio_parallel

from unifs.errors import UnifsError
from unifs.ipfs.cid import Cid
from unifs.ipfs.unixfs.builder import (
    FileBuilder,
    build_symlink,
    hash_leaf,
    leaf_block_parts,
    leaf_cid,
)
from unifs.ipfs.unixfs.directory import build_directory
from unifs.ipfs.unixfs.node import DirEntry
from unifs.journal.content import (
    LARGE,
    LINKED,
    SMALL,
    SYMLINK,
    SmallContent,
    large_id,
    small_content,
)
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.unixfs.node import Link
    from unifs.ipfs.unixfs.profiles import Profile
    from unifs.vfs.sealing import Sealer
    from unifs.vfs.tree import Batch
    from unifs.vfs.treevolume import TreeVolume

log = logging.getLogger(__name__)

QUIET_S = 1.0
AGE_S = 10.0
LOOK_S = 0.25
#: Directories with more entries are built in a worker process: above, pickling costs less than
#: what the event loop would lose to the GIL.
INLINE_ENTRIES_MAX = 2_000

ROWS = (
    "select d.name,i.ino,i.attributes,i.content,i.cid from dentry d join inode i on i.ino=d.ino"
    " where d.parent=?"
)


def pack_link(link: Link) -> bytes:
    """A CID column: Tsize, 8 bytes little-endian, then the binary CID."""
    return link.tsize.to_bytes(8, "little") + link.cid.binary


def unpack_link(column: bytes) -> tuple[Cid, int]:
    """(CID, Tsize) of a CID column."""
    return Cid.decode(column[8:]), int.from_bytes(column[:8], "little")


@dataclass(slots=True)
class RootJob:
    """One build. ``run`` belongs to a thread."""

    database: Path
    blocks: Blocks
    profile: Profile
    read_small: Callable[[SmallContent], bytes]
    root: int
    changed: set[int]
    build: Callable[[list[DirEntry]], Link]
    #: Directory -> its new link.
    links: dict[int, Link] = field(default_factory=dict)
    #: Changed directories that name a file whose CID is not known yet.
    unfinished: set[int] = field(default_factory=set)
    _rows: dict[int, list[tuple[bytes, int, bytes, bytes, bytes | None]]] = field(
        default_factory=dict
    )

    def run(self) -> RootJob:
        """Read the rows, build bottom-up, make the nodes durable."""
        connection = apsw.Connection(str(self.database), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.execute("begin")
            order = self._closure(connection)
            large = self._large(connection)
            connection.execute("commit")
        finally:
            connection.close()
        for directory in order:
            entries = []
            for name, ino, attributes, content, cid in self._rows.pop(directory):
                made = self._entry(directory, ino, attributes, content, cid, large)
                if made is not None:
                    entries.append(DirEntry(name, *made))
            self.links[directory] = self.build(entries)
        self.blocks.sync()
        return self

    def _closure(self, connection: apsw.Connection) -> list[int]:
        """Directories to build, children first: changed ones, those above, unbuilt ones below."""
        depth: dict[int, int] = {}
        parents = "select parent,gone from inode where ino=?"
        for start in self.changed | {self.root}:
            chain = [start]
            while chain[-1] != self.root:
                row: Any = connection.execute(parents, (chain[-1],)).fetchone()
                if row is None or row[1] is not None or not row[0]:
                    chain = []
                    break
                chain.append(row[0])
            for level, directory in enumerate(reversed(chain)):
                depth[directory] = level
        todo = list(depth)
        while todo:
            directory = todo.pop()
            rows: list[Any] = connection.execute(ROWS, (directory,)).fetchall()
            self._rows[directory] = rows
            for _, ino, attributes, _, cid in rows:
                if cid is None and _mode(attributes) == stat.S_IFDIR and ino not in depth:
                    depth[ino] = depth[directory] + 1
                    todo.append(ino)
        return sorted(depth, key=lambda directory: -depth[directory])

    def _large(self, connection: apsw.Connection) -> dict[int, bytes]:
        wanted = {
            large_id(content)
            for rows in self._rows.values()
            for _, _, _, content, _ in rows
            if content and content[0] == LARGE
        }
        query = "select cid from content where id=? and cid is not null"
        rows = {key: connection.execute(query, (key,)).fetchone() for key in wanted}
        return {key: row[0] for key, row in rows.items() if row is not None}

    def _entry(
        self,
        directory: int,
        ino: int,
        attributes: bytes,
        content: bytes,
        cid: bytes | None,
        large: dict[int, bytes],
    ) -> tuple[Cid, int] | None:
        """(CID, Tsize) of one name, None where it has none."""
        kind = _mode(attributes)
        if kind == stat.S_IFDIR:
            link = self.links.get(ino)
            if link is not None:
                return link.cid, link.tsize
            return unpack_link(cid) if cid is not None else None
        if not content:
            if kind != stat.S_IFREG:
                return None
            empty = FileBuilder(self.profile, self.blocks.put).finish()
            return empty.cid, empty.tsize
        if content[0] == SYMLINK:
            link = build_symlink(content[1:], self.profile, self.blocks.put)
            return link.cid, link.tsize
        if content[0] == SMALL:
            return self._small(small_content(content))
        if content[0] == LINKED:
            return unpack_link(content[1:])
        column = large.get(large_id(content))
        if column is None:
            self.unfinished.add(directory)
            return None
        return unpack_link(column)

    def _small(self, content: SmallContent) -> tuple[Cid, int]:
        if self.profile.has_raw_leaves:
            return Cid.raw(content.digest), content.length
        # The wrapped leaf is a block of its own kind; the node keeps it.
        data = self.read_small(content)
        cid = leaf_cid(self.profile, hash_leaf(self.profile, data))
        prefix, suffix = leaf_block_parts(self.profile, len(data))
        self.blocks.put(cid, prefix + data + suffix)
        return cid, len(prefix) + len(data) + len(suffix)


def _mode(attributes: bytes) -> int:
    return stat.S_IFMT(int.from_bytes(attributes[:4], "little"))


def build_entries(
    entries: list[DirEntry], profile: Profile
) -> tuple[Link, list[tuple[Cid, bytes]]]:
    """A directory and its blocks: what a worker process answers."""
    blocks: list[tuple[Cid, bytes]] = []
    link = build_directory(entries, profile, lambda cid, data: blocks.append((cid, bytes(data))))
    return link, blocks


class MfsRoots:
    """Builds the roots of one volume. Belongs to the event loop's thread."""

    def __init__(self, volume: TreeVolume, sealer: Sealer, blocks: Blocks) -> None:
        self.volume = volume
        self.sealer = sealer
        self.blocks = blocks
        self.writer = volume.writer
        self.builds = 0
        self._running: trio.Event | None = None
        self._seen_seq = 0
        self._quiet_since = 0.0
        self._changed_since: float | None = None
        self._seq = self._epoch = 0
        self._find_changed()

    def _find_changed(self) -> None:
        """After a start: directories in which something changed since the last build."""
        storage = self.writer.storage
        row = storage.database.one("select seq,root from epoch order by epoch desc limit 1")
        changed = self.writer.changed.setdefault(self.volume.mount_id, set())
        for record in storage.log.records(0 if row is None else row[0]):
            if record.parent:
                changed.add(record.parent)
        if row is None:
            changed.add(self.volume.root)

    def current(self) -> tuple[Cid, int] | None:
        """(root CID, epoch) of the last build."""
        query = "select root,epoch from epoch order by epoch desc limit 1"
        row = self.writer.storage.database.one(query)
        return None if row is None else (Cid.decode(row[0]), row[1])

    def built_seq(self) -> int:
        """The last journal record that a root contains."""
        query = "select seq from epoch order by epoch desc limit 1"
        row = self.writer.storage.database.one(query)
        return 0 if row is None else int(row[0])

    def changed(self) -> set[int]:
        return self.writer.changed.setdefault(self.volume.mount_id, set())

    async def run(self) -> None:
        """Build when it is time, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            now = time.monotonic()
            seq = self.writer.log.seq
            if seq != self._seen_seq:
                self._seen_seq, self._quiet_since = seq, now
            if not self.changed():
                self._changed_since = None
                continue
            if self._changed_since is None:
                self._changed_since = now
            if now - self._quiet_since >= QUIET_S or now - self._changed_since >= AGE_S:
                self._changed_since = now
                try:
                    await self.build()
                except (UnifsError, OSError) as error:
                    log.warning("the root could not be built: error=%s", error)

    async def build(self) -> None:
        """Bring the root up to date with everything committed before this call."""
        while self._running is not None:
            await self._running.wait()
        if not self.changed():
            return
        done = self._running = trio.Event()
        changed = self.writer.changed.pop(self.volume.mount_id)
        try:
            job = await self._run_job(changed)
            await complete(self._record, job)
            self.changed().update(job.unfinished)
        except BaseException:
            self.changed().update(changed)
            raise
        finally:
            self._running = None
            done.set()

    async def _run_job(self, changed: set[int]) -> RootJob:
        for inode in list(self.writer.unsealed.values()):
            if inode.writers == 0:
                await self.sealer.seal(inode)
        storage = self.writer.storage
        self._seq, self._epoch = storage.log.seq, self.writer.tree.epoch
        await complete(self._next_epoch)
        job = RootJob(
            database=storage.state.database,
            blocks=self.blocks,
            profile=storage.profile,
            read_small=lambda small: storage.segments.read(small.place()),
            root=self.volume.root,
            changed=changed,
            build=self._build_directory,
        )
        return await trio.to_thread.run_sync(job.run)

    def _next_epoch(self) -> None:
        """What is committed from now on belongs to the epoch after the one that is built."""
        tree = self.writer.tree
        tree.commit([("insert or replace into meta values(?,?)", ("epoch", tree.epoch + 1))])
        tree.epoch += 1

    def _build_directory(self, entries: list[DirEntry]) -> Link:
        """In the job's thread; large ones are sent to a worker process by way of the loop."""
        profile = self.writer.storage.profile
        if len(entries) <= INLINE_ENTRIES_MAX:
            return build_directory(entries, profile, self.blocks.put)
        answer: tuple[Link, list[tuple[Cid, bytes]]] = trio.from_thread.run(
            trio_parallel.run_sync, build_entries, entries, profile
        )
        link, blocks = answer
        for cid, data in blocks:
            self.blocks.put(cid, data)
        return link

    def _record(self, job: RootJob) -> None:
        tree = self.writer.tree
        batch: Batch = [
            ("update inode set cid=? where ino=?", (pack_link(link), directory))
            for directory, link in job.links.items()
        ]
        root = job.links[self.volume.root].cid.binary
        row = (self._epoch, self._seq, time.time_ns(), root)
        batch.append(("insert or replace into epoch values(?,?,?,?)", row))
        tree.commit(batch)
        self.builds += 1

    async def cid_of_directory(self, ino: int) -> Cid | None:
        """The CID of a directory as it is now; None where it cannot be known yet."""
        for _ in range(3):
            await self.build()
            if not self.changed():
                break
        row = self.writer.storage.database.one("select cid from inode where ino=?", (ino,))
        if row is None or row[0] is None or self._is_below(ino):
            return None
        return unpack_link(row[0])[0]

    def _is_below(self, ino: int) -> bool:
        """Whether something at or below the directory is still changed."""
        for directory in self.changed():
            above: int = directory
            while above:
                if above == ino:
                    return True
                row = self.writer.tree.inode_row(above)
                above = row[1] if row is not None else 0
        return False
