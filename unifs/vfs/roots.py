"""The MFS root: when the tree of a volume is built as one UnixFS DAG, and what becomes of the
result.

Changes mark directories and names. A build starts after a second of quiet, every ten seconds under
load (less often where it takes more than half a second), or when somebody asks for a directory's
CID. How a DAG is built from rows is ``ipfs.embedded.mfs_root``; here are the rows (``RowView``,
read in threads on its own connection) and the commit: nodes are durable before the rows name them,
and one build is one epoch.

What is committed while a build reads rows may or may not be in it; its directories stay changed, so
the next build has it. A file whose large content is not sealed (it is open for writing) is left out
until it is.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import trio

from unifs.errors import UnifsError
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.mfs_root import Child, Dirty, build_root
from unifs.ipfs.unixfs.builder import FileBuilder, hash_leaf, leaf_block_parts, leaf_cid
from unifs.ipfs.unixfs.node import Link
from unifs.journal.content import (
    EXPANDED,
    LARGE,
    LINKED,
    SMALL,
    large_id,
    small_content,
)
from unifs.state.queries import Reader
from unifs.vfs.epochs import INSERT_EPOCH, next_epoch
from unifs.vfs.rootholes import find, rebuild_files, write_receipt
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.large_directory import LeafText
    from unifs.ipfs.embedded.mfs_root import MfsRoot
    from unifs.journal.content import SmallContent
    from unifs.vfs.sealing import Sealer
    from unifs.vfs.storage import Storage
    from unifs.vfs.tree import Batch
    from unifs.vfs.treevolume import TreeVolume

    #: Directory -> the names that changed in it; None: any of them.
    Changed = dict[int, set[bytes] | None]

log = logging.getLogger(__name__)

QUIET_S = 1.0
AGE_S = 10.0
#: Under load a build begins at the earliest after so many times as long as the last one took: the
#: root of a directory that grows and grows is built in a twentieth of the time.
PAUSE_TIMES = 20
LOOK_S = 0.25

CHILDREN = (
    "select d.name,i.ino,i.attributes,i.content,d.id from dentry d join inode i on i.ino=d.ino"
    " where d.parent=?"
)
#: A page of those children that are small contents, as ``large_directory.LeafText``, and its end.
LEAVES = (
    "select group_concat(case when substr(content,1,1)=x'01' then"
    " hex(name)||' '||hex(substr(content,14,36)) end,' '),max(id) from"
    " (select d.name,i.content,d.id from dentry d join inode i on i.ino=d.ino"
    " where d.parent=? and d.id>? order by d.id limit ?)"
)
#: The others of that page.
NO_LEAVES = f"{CHILDREN} and d.id>? and d.id<=? and substr(i.content,1,1) is not x'01'"
IS_THINNED = (
    "insert or ignore into thinned select ?,1 where not exists (select 1 from epoch where epoch=?)"
)
#: Rows of a directory that are in memory at once.
PAGE = 1000


def pack_link(link: Link) -> bytes:
    """A CID column: Tsize, 8 bytes little-endian, then the binary CID."""
    return link.tsize.to_bytes(8, "little") + link.cid.binary


def unpack_link(column: bytes) -> Link:
    """The link in a CID column."""
    return Link(Cid.decode(column[8:]), int.from_bytes(column[:8], "little"))


class RowView:
    """A tree's rows as ``mfs_root`` asks for them. Used in threads, one call at a time."""

    def __init__(self, storage: Storage, root: int, changed: Changed) -> None:
        self.root = root
        self._storage = storage
        self._changed = changed
        self._profile = storage.profile
        self._connection = Reader(storage.state.database)

    def close(self) -> None:
        self._connection.close()

    def _one(self, sql: str, *bindings: object) -> Any:
        return self._connection.one(sql, bindings)

    def dirty_directories(self) -> Iterator[Dirty]:
        """What changed. Of a directory that came from a foreign DAG, all names: it may have been
        built by another profile, and a path update would keep that shape.
        """
        for ino, names in self._changed.items():
            row = self._one("select content from inode where ino=?", ino)
            is_foreign = row is not None and row[0] == bytes((EXPANDED,))
            yield Dirty(ino, None if is_foreign else names)

    def parent(self, ino: int) -> tuple[int, bytes] | None:
        """The directory that holds this one, and its name there."""
        row = self._one("select parent from inode where ino=? and gone is null", ino)
        if row is None or not row[0]:
            return None
        name = self._one("select name from dentry where parent=? and ino=?", row[0], ino)
        return None if name is None else (row[0], name[0])

    def count(self, ino: int) -> int:
        """How many entries a directory has."""
        return int(self._one("select count(*) from dentry where parent=?", ino)[0])

    def many_children(self, ino: int) -> Iterator[Child | LeafText]:
        """All entries of a large directory: SQLite packs 10,000 in 15 ms, without the GIL."""
        if not self._profile.has_raw_leaves:
            yield from self.children(ino)
            return
        last: Any = 0
        while last is not None:
            after = last
            # At two moments, what becomes a small content between them would be in neither.
            with self._connection.at_one_moment():
                text, last = self._one(LEAVES, ino, after, PAGE)
                others = self._connection.all(NO_LEAVES, (ino, after, last))
            if text is not None:
                yield text
            for row in others:
                yield self._child(row)

    def children(self, ino: int) -> Iterator[Child]:
        """All entries of a directory."""
        query = f"{CHILDREN} and d.id>? order by d.id limit ?"
        last: Any = 0
        while rows := self._connection.all(query, (ino, last, PAGE)):
            for row in rows:
                yield self._child(row)
            last = rows[-1][4]

    def child(self, ino: int, name: bytes) -> Child | None:
        """One entry of a directory."""
        row = self._one(f"{CHILDREN} and d.name=?", ino, name)
        return None if row is None else self._child(row)

    def directory_link(self, ino: int) -> Link | None:
        """What the last build said of this directory."""
        row = self._one("select cid,content from inode where ino=?", ino)
        if row is None:
            return None
        if row[1] and row[1][0] == LINKED:
            return unpack_link(row[1][1:])
        return None if row[0] is None else unpack_link(row[0])

    def _child(self, row: Any) -> Child:
        name, ino, attributes, content, _ = row
        kind = _kind(attributes)
        if kind == "symlink":
            return Child(name, ino, kind, target=content[1:])
        if kind != "file":
            return Child(name, ino, kind)
        link = self._file_link(content)
        if link is None:
            return Child(name, ino, kind)
        return Child(name, ino, kind, link.cid, link.tsize)

    def _file_link(self, content: bytes) -> Link | None:
        """The link of a file's bytes; None while they have no CID."""
        if not content:
            return FileBuilder(self._profile, self._storage.blocks.put).finish()
        if content[0] == SMALL:
            return self._small_link(small_content(content))
        if content[0] == LINKED:
            return unpack_link(content[1:])
        assert content[0] == LARGE, "a file's content is one of these"
        row = self._one("select cid from content where id=?", large_id(content))
        return None if row is None or row[0] is None else unpack_link(row[0])

    def _small_link(self, content: SmallContent) -> Link:
        if self._profile.has_raw_leaves:
            return Link(Cid.raw(content.digest), content.length)
        # The wrapped leaf is a block of its own, which the node keeps.
        data = self._storage.segments.read(content.place())
        cid = leaf_cid(self._profile, hash_leaf(self._profile, data))
        prefix, suffix = leaf_block_parts(self._profile, len(data))
        self._storage.blocks.put(cid, prefix + data + suffix)
        return Link(cid, len(prefix) + len(data) + len(suffix))


def _kind(attributes: bytes) -> Literal["file", "directory", "symlink", "special"]:
    mode = stat.S_IFMT(int.from_bytes(attributes[:4], "little"))
    if mode == stat.S_IFREG:
        return "file"
    if mode == stat.S_IFDIR:
        return "directory"
    return "symlink" if mode == stat.S_IFLNK else "special"


class MfsRoots:
    """Builds the roots of one volume. Belongs to the event loop's thread."""

    def __init__(self, volume: TreeVolume, sealer: Sealer, blocks: Blocks) -> None:
        self.volume = volume
        self.sealer = sealer
        self.blocks = blocks
        self.writer = volume.writer
        self.builds = 0
        #: Sentences: what of the last root was found missing since the start.
        self.holes: list[str] = []
        self._limiter = trio.CapacityLimiter(1)
        self._running: trio.Event | None = None
        self._seen_seq = 0
        self._quiet_since = 0.0
        self._changed_since: float | None = None
        self._age_s = AGE_S
        self._find_changed()

    def _find_changed(self) -> None:
        """After a start: directories in which something changed since the last build."""
        last = self._last()
        for record in self.writer.storage.log.records(0 if last is None else last[1]):
            for parent in record.parents:
                if parent:
                    self.changed()[parent] = None
        if last is None:
            self.changed()[self.volume.root] = None

    def _last(self) -> Any:
        """(root CID, seq, epoch) of the last build, or None."""
        query = (
            "select root,seq,epoch from epoch where root is not null order by epoch desc limit 1"
        )
        return self.writer.storage.database.one(query)

    def current(self) -> Cid | None:
        """The root of the last build."""
        last = self._last()
        return None if last is None else Cid.decode(last[0])

    def built_seq(self) -> int:
        """The last journal record that a root contains."""
        last = self._last()
        return 0 if last is None else int(last[1])

    def changed(self) -> Changed:
        """What the next build has to look at."""
        return self.writer.changed.setdefault(self.volume.mount_id, {})

    async def restore(self) -> None:
        """Build again what of the last root is missing, from rows; name it, and what cannot be."""
        storage = self.writer.storage
        with self.blocks.importing():
            again = partial(rebuild_files, storage.state.database, storage.profile, self.blocks)
            if await trio.to_thread.run_sync(again, limiter=self._limiter):
                await trio.to_thread.run_sync(self.blocks.sync, limiter=self._limiter)
        work = partial(find, storage.state.database, self.volume.mount_id, self.blocks)
        holes = await trio.to_thread.run_sync(work, limiter=self._limiter)
        if not holes.directories and not holes.linked:
            return
        tree = self.writer.tree
        built = [tree.path(ino) or b"?" for ino in holes.directories]
        linked = [tree.path(ino) or b"?" for ino in holes.linked]
        for ino in holes.directories:
            self.changed()[ino] = None
        await self.build()
        if holes.directories:
            named = ", ".join("/mfs" + os.fsdecode(path).rstrip("/") for path in built[:3])
            self.holes.append(
                f"blocks of {len(built)} directories were missing and are built again: {named} …"
            )
        if holes.linked:
            named = ", ".join("/mfs" + os.fsdecode(path) for path in linked[:3])
            self.holes.append(f"root blocks of {len(linked)} linked files are missing: {named} …")
        for hole in self.holes:
            log.warning("%s", hole)
        receipt = partial(write_receipt, storage.state.lost_found, built, linked)
        await trio.to_thread.run_sync(receipt, limiter=self._limiter)

    async def run(self) -> None:
        """Build when it is time, until cancelled."""
        try:
            await self.restore()
        except (UnifsError, OSError) as error:
            log.warning("the root could not be restored: error=%s", error)
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
            if now - self._quiet_since >= QUIET_S or now - self._changed_since >= self._age_s:
                self._changed_since = now
                try:
                    await self.build()
                except (UnifsError, OSError) as error:
                    log.warning("the root could not be built: error=%s", error)
                self._age_s = max(AGE_S, PAUSE_TIMES * (time.monotonic() - now))

    async def build(self) -> None:
        """Bring the root up to date with everything committed before this call."""
        while self._running is not None:
            await self._running.wait()
        if not self.changed():
            return
        done = self._running = trio.Event()
        changed = self.writer.changed.pop(self.volume.mount_id)
        try:
            await self._build(changed)
        except BaseException:
            for ino, names in changed.items():
                self._mark_again(ino, names)
            raise
        finally:
            self._running = None
            done.set()

    def _mark_again(self, ino: int, names: set[bytes] | None) -> None:
        known = self.changed().get(ino, set())
        self.changed()[ino] = None if names is None or known is None else known | names

    async def _build(self, changed: Changed) -> None:
        for inode in list(self.writer.unsealed.values()):
            if inode.writers == 0:
                await self.sealer.seal(inode)
        storage = self.writer.storage
        seq = storage.log.seq
        epoch = await complete(self._end_epoch, seq)
        with self.blocks.importing(), closing(RowView(storage, self.volume.root, changed)) as view:
            built = await build_root(view, storage.profile, self.blocks, self._limiter)
            await complete(self._record, built, seq, epoch)
        for ino in built.unfinished:
            for parent, name in self.writer.tree.names_of(ino):
                self._mark_again(parent, {name})

    def _end_epoch(self, seq: int) -> int:
        """The epoch that the root is of: shown from now on, what changes meanwhile is its past.

        Where nothing changed since one ended, it is that one: after a build that failed, or a
        checkpoint.
        """
        tree = self.writer.tree
        last = self.writer.storage.database.one("select max(epoch),max(seq) from epoch")
        if last == (tree.epoch - 1, seq) and not self.writer.touched:
            return tree.epoch - 1
        return next_epoch(self.writer, seq)

    def _record(self, built: MfsRoot, seq: int, epoch: int) -> None:
        batch: Batch = []
        for directory, link in built.directories.items():
            # The directory is ours now, whatever DAG it came from.
            statement = "update inode set cid=?,content=x'' where ino=?"
            batch.append((statement, (pack_link(link), directory)))
        # Where retention has thinned it meanwhile, it is there for its root only.
        batch.append((IS_THINNED, (epoch, epoch)))
        batch.append((INSERT_EPOCH, (epoch, seq, time.time_ns())))
        batch.append(("update epoch set root=? where epoch=?", (built.root.cid.binary, epoch)))
        self.writer.tree.commit(batch)
        self.builds += 1

    async def cid_of_directory(self, ino: int) -> Cid | None:
        """The CID of a directory as it is now; None where it cannot be known yet."""
        for _ in range(3):
            await self.build()
            if not self.changed():
                break
        row = self.writer.storage.database.one("select cid from inode where ino=?", (ino,))
        is_below = self.writer.tree.is_below
        is_changed = any(is_below(directory, ino) for directory in self.changed())
        if row is None or row[0] is None or is_changed:
            return None
        return unpack_link(row[0]).cid
