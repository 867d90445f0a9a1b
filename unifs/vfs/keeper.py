"""Keeper: which bytes the tree still needs, for the node's collection; and what becomes of the
rest.

It is the journal's side of ``ipfs.embedded.collect.ContentOwner``: it says where live small
contents lie, follows them when a segment is compacted, and owns the files of containers that no
content names any more. Those are deleted soon, but never before the node has copied what a pin
still needs out of them.

Rows are searched in threads (``smallrows``); the loop only changes those that were found, a few at
a time, so that a collection of millions of files holds up nobody.
"""

from __future__ import annotations

import logging
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from unifs.errors import NoSpace, UnifsError
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.marks import Root
from unifs.journal.content import SMALL, SmallContent, small_content
from unifs.journal.log import Op, pack_pair, unpack_pair
from unifs.state.queries import Reader
from unifs.vfs.smallrows import INODE, JOURNAL, KEYS, TABLES, rows_naming
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.unindexed import index_container
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from unifs.ipfs.embedded.node import EmbeddedNode
    from unifs.ipfs.embedded.segments import Place
    from unifs.vfs.smallrows import Named, Table
    from unifs.vfs.tree import Batch
    from unifs.vfs.writer import Writer

    #: (segment, offset) -> where those bytes lie from now on.
    Moves = dict[tuple[int, int], Place]

log = logging.getLogger(__name__)

LOOK_S = 1.0
#: With pins, letting go of a container needs marking; not more often than this.
COLLECT_S = 60.0
#: Rows that follow a move in one transaction on the loop: 1.5 ms.
MOVED_ROWS = 200
SEALED_IN = (
    "select distinct h.container from holding h join content c on c.id=h.content where c.state=2"
)


class Keeper:
    """Knows what the tree needs. Belongs to the event loop's thread."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.storage = writer.storage
        self.dead = writer.dead_containers
        self._collected_at = float("-inf")
        self._is_linked = False
        #: ``Keeping.links`` when no row named a DAG; -1: nobody has looked.
        self._unlinked_at = -1

    # --- ContentOwner -----------------------------------------------------------------------------

    async def live_offsets(self, store: int, segment: int) -> set[int]:
        """The data offsets in a segment that rows, the past or unsealed records refer to."""
        del store
        # Before the rows: a record may be all that is left of what a row said until now.
        needed = self.writer.needed_since()
        waiting = [small_content(inode.acknowledged or b"") for inode in self._acknowledged()]
        live = await trio.to_thread.run_sync(self._live_offsets, segment, needed)
        return live | {small.offset for small in waiting if small.segment == segment}

    def _acknowledged(self) -> list[TreeInode]:
        """Hot inodes whose next record will say that recovery may go back to a small content."""
        small = bytes((SMALL,))
        return [
            inode
            for inode in self.writer.inodes.hot.values()
            if isinstance(inode, TreeInode) and (inode.acknowledged or b"")[:1] == small
        ]

    def _live_offsets(self, segment: int, needed: int) -> set[int]:
        offsets: set[int] = set()
        for table in TABLES:
            after = needed if table is JOURNAL else 0
            for rows in rows_naming(self.storage.state.database, table, segment, after):
                trio.from_thread.check_cancelled()
                contents = (content for row in rows for content in _contents(row))
                offsets.update(held.offset for held in contents if held.segment == segment)
        return offsets

    async def moved(self, store: int, moves: Sequence[tuple[Place, Place]]) -> None:
        """Rows and hot inodes follow contents to their new places, and that is durable.

        Until then both places are right, so it may be interrupted anywhere.
        """
        del store
        to = {(old.segment, old.offset): new for old, new in moves}
        needed = self.writer.needed_since()
        for segment in sorted({old.segment for old, _ in moves}):
            while await self._follow(segment, needed, to):
                pass
        for inode in self._acknowledged():
            inode.acknowledged = _moved(inode.acknowledged or b"", to)
        # The old bytes go next; a power cut must not bring back rows that name them.
        await self.storage.flusher.flush()

    async def _follow(self, segment: int, needed: int, to: Moves) -> int:
        """One look through everything; how many rows followed."""
        changed = 0
        for table in TABLES:
            after = needed if table is JOURNAL else 0
            found = rows_naming(self.storage.state.database, table, segment, after)
            while (rows := await trio.to_thread.run_sync(partial(next, found, None))) is not None:
                for start in range(0, len(rows), MOVED_ROWS):
                    part = rows[start : start + MOVED_ROWS]
                    changed += await complete(self._move, table, part, to)
                    await trio.lowlevel.checkpoint()
        return changed

    def _move(self, table: Table, rows: list[Named], to: Moves) -> int:
        """One transaction; a row that is no longer what it was when it was found stays."""
        statement = (
            f"update {table.name} set {table.column}=? where {table.key}=? and {table.column}=?"
        )
        batch: Batch = []
        for row in rows:
            after = _moved_column(row, to)
            if after != row.column:
                batch.append((statement, (after, row.key, row.column)))
        if batch:
            self.writer.tree.commit(batch)
        if table is INODE:
            for _, (after, ino, before) in batch:
                inode = self.writer.inodes.hot.get(ino)
                if inode is not None and inode.stored == before:  # type: ignore[attr-defined]
                    _follow_row(inode, after)  # type: ignore[arg-type]
        return len(batch)

    def dead_containers(self) -> list[int]:
        """Containers that no content names any more."""
        return sorted(self.dead)

    def drop_container(self, container: int) -> None:
        """Delete the file."""
        self.dead.discard(container)
        self.storage.contents.containers.delete(container)

    async def tell_again(self) -> None:
        """Hash what sealed contents and dead containers hold, for a block index made anew."""
        known = {row[0] for row in self.storage.database.all(SEALED_IN)} | self.dead
        check = trio.from_thread.check_cancelled
        for container in sorted(known):
            await trio.to_thread.run_sync(index_container, self.storage, container, check)

    # --- roots ------------------------------------------------------------------------------------

    def roots(self) -> Iterator[Root]:
        """CIDs whose DAGs the tree needs: built roots, linked contents, sealed contents.

        Runs in any thread, on a connection of its own.
        """
        return tree_roots(self.storage.state.database)

    # --- letting go -------------------------------------------------------------------------------

    async def run(self, node: EmbeddedNode) -> None:
        """Delete dead containers, until cancelled."""
        await self.index_left()
        while True:
            await trio.sleep(LOOK_S)
            if not self.dead:
                continue
            try:
                await self._let_go_even_if_full(node)
            except (UnifsError, OSError) as error:
                log.warning("dead containers stay for now: error=%s", error)

    async def index_left(self) -> None:
        """Tell the block index what an earlier daemon's files hold: see ``unindexed``."""
        check = trio.from_thread.check_cancelled
        for container in sorted(self.storage.unindexed):
            try:
                await trio.to_thread.run_sync(index_container, self.storage, container, check)
            except (UnifsError, OSError) as error:
                log.warning("a container stays until the next start: error=%s", error)
            else:
                self.storage.unindexed.discard(container)
                self.dead.add(container)

    async def _let_go_even_if_full(self, node: EmbeddedNode) -> None:
        try:
            await self._let_go(node)
        except NoSpace:
            # The index takes a little to forget where blocks lay, and then all of them are free.
            if not self.storage.state.give_up_reserve():
                raise
            self._collected_at = float("-inf")
            await self._let_go(node)

    async def _let_go(self, node: EmbeddedNode) -> None:
        moment = node.keeping.moment()
        has_pins = bool(await node.pins_scan())
        if has_pins or await self._has_links(node):
            if trio.current_time() - self._collected_at >= COLLECT_S:
                self._collected_at = trio.current_time()
                await (node.repo_gc() if has_pins else node.collector.release())
            return
        for container in self.dead_containers():
            forget = partial(self.storage.blocks.index.forget_container, container)
            if not await trio.to_thread.run_sync(node.keeping.still, moment, forget):
                return
            await complete(self.drop_container, container)

    async def _has_links(self, node: EmbeddedNode) -> bool:
        """Whether rows name a DAG by its CID, or somebody reads one: its blocks may lie there.

        Rows are looked through when something was linked since it was last known that none does;
        once one does, that is believed until the next start.
        """
        keeping = node.keeping
        if keeping.is_holding:
            return True
        links = keeping.links
        if not self._is_linked and self._unlinked_at != links:
            work = partial(_has_links, self.storage.state.database)
            self._is_linked = await trio.to_thread.run_sync(work)
            self._unlinked_at = links
        return self._is_linked or keeping.is_holding or keeping.links != links


#: Rows that are links by CID: table, its key, the CID in a column, and which rows have one.
_LINKS = (
    ("inode", "ino", "substr(content,10)", "substr(content,1,1)=x'04'"),
    ("inode_past", "ino", "substr(content,10)", "substr(content,1,1)=x'04'"),
)
#: All rows that name CIDs.
_ROOTS = (
    ("epoch", "epoch", "root", "root is not null"),
    ("content", "id", "substr(cid,9)", "cid is not null"),
    *_LINKS,
)


def tree_roots(database: Path, places: tuple[tuple[str, ...], ...] = _ROOTS) -> Generator[Root]:
    """The CIDs that rows name; no read transaction sees more than ``KEYS`` rows."""
    connection = Reader(database)
    try:
        for table, key, column, where in places:
            first = f"select min({key}) from {table} where {key}>?"
            query = f"select {column} from {table} where {key}>? and {key}<=? and {where}"
            after = 0
            while True:
                least: Any = connection.all(first, (after,))[0][0]
                if least is None:
                    break
                after = least - 1
                rows: list[Any] = connection.all(query, (after, after + KEYS))
                yield from (Root(Cid.decode(column)) for (column,) in rows)
                after += KEYS
    finally:
        connection.close()


def _has_links(database: Path) -> bool:
    """Whether any row, present or past, is a link by CID: one look through all of them."""
    with closing(tree_roots(database, _LINKS)) as found:
        return next(found, None) is not None


def _contents(row: Named) -> Iterator[SmallContent]:
    """The small contents that a row names, wherever they lie."""
    columns = unpack_pair(row.column) if row.op == Op.CONTENT else (row.column,)
    for column in columns:
        if column and column[0] == SMALL:
            yield small_content(column)


def _moved_column(row: Named, to: Moves) -> bytes:
    """What a row's column says once its contents have moved."""
    if row.op == Op.CONTENT:
        old, new = unpack_pair(row.column)
        return pack_pair(_moved(old, to), _moved(new, to))
    return _moved(row.column, to)


def _moved(blob: bytes, to: Moves) -> bytes:
    if not blob or blob[0] != SMALL:
        return blob
    content = small_content(blob)
    new = to.get((content.segment, content.offset))
    if new is None:
        return blob
    return SmallContent(new.segment, new.offset, content.length, content.digest).blob


def _follow_row(inode: TreeInode, after: bytes) -> None:
    """A hot inode says what its row says."""
    inode.stored = after
    if isinstance(inode.content, SmallContent):
        content = small_content(after)
        content.is_verified = inode.content.is_verified
        inode.content = content
