"""Keeper: which bytes the tree still needs, for the node's collection; and what becomes of the
rest.

It is the journal's side of ``ipfs.embedded.collect.ContentOwner``: it says where live small
contents lie, follows them when a segment is compacted, and owns the files of containers that no
content names any more. Those are deleted soon, but never before the node has copied what a pin
still needs out of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from unifs.errors import UnifsError
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.marks import Root
from unifs.journal.content import SMALL, SmallContent, small_content
from unifs.journal.log import Op, pack_pair, unpack_pair
from unifs.state.database import open_reader
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from unifs.ipfs.embedded.node import EmbeddedNode
    from unifs.ipfs.embedded.segments import Place
    from unifs.vfs.tree import Batch
    from unifs.vfs.writer import Writer

log = logging.getLogger(__name__)

LOOK_S = 1.0
#: With pins, letting go of a container needs marking; not more often than this.
COLLECT_S = 60.0

_IS_SMALL = "substr(content,1,1)=x'01'"


class Keeper:
    """Knows what the tree needs. Belongs to the event loop's thread."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.storage = writer.storage
        self.dead = writer.dead_containers
        self._collected_at = 0.0

    # --- ContentOwner -----------------------------------------------------------------------------

    def live_offsets(self, store: int, segment: int) -> set[int]:
        """The data offsets in a segment that rows, the past or unsealed records refer to."""
        del store
        offsets = set()
        for blob in self._small_blobs():
            content = small_content(blob)
            if content.segment == segment:
                offsets.add(content.offset)
        return offsets

    def _small_blobs(self) -> Iterator[bytes]:
        database = self.storage.database
        for table in ("inode", "inode_past", "remote"):
            for (blob,) in database.rows(f"select content from {table} where {_IS_SMALL}"):
                yield blob
        # Recovery may go back to what these records replaced.
        for record in self.storage.log.records(self.writer.needed_since()):
            if record.op is Op.CONTENT:
                for blob in unpack_pair(record.data):
                    if blob and blob[0] == 1:
                        yield blob
        for inode in self.writer.inodes.hot.values():
            content = getattr(inode, "content", None)
            if isinstance(content, SmallContent):
                yield content.blob

    def moved(self, store: int, moves: Sequence[tuple[Place, Place]]) -> None:
        """Rows and hot inodes follow contents to their new places."""
        del store
        to = {(old.segment, old.offset): new for old, new in moves}
        batch: Batch = []
        database = self.storage.database
        for table, key in (("inode", "ino"), ("inode_past", "ino,until"), ("remote", "ino")):
            query = f"select {key},content from {table} where {_IS_SMALL}"
            where = " and ".join(f"{column}=?" for column in key.split(","))
            for *keys, blob in database.rows(query):
                after = _at(small_content(blob), to)
                if after is not None:
                    statement = f"update {table} set content=? where {where}"
                    batch.append((statement, (after.blob, *keys)))
        batch += self._moved_records(to)
        self.writer.tree.commit(batch)
        for inode in self.writer.inodes.hot.values():
            content = getattr(inode, "content", None)
            if isinstance(content, SmallContent):
                after = _at(content, to)
                if after is not None:
                    after.is_verified = content.is_verified
                    inode.content = after  # type: ignore[attr-defined]
                    inode.stored = after.blob  # type: ignore[attr-defined]
            elif getattr(inode, "stored", b"")[:1] == b"\1":
                after = _at(small_content(inode.stored), to)  # type: ignore[attr-defined]
                if after is not None:
                    inode.stored = after.blob  # type: ignore[attr-defined]

    def _moved_records(self, to: dict[tuple[int, int], Place]) -> Batch:
        """Statements for journal records that recovery may still go by."""
        batch: Batch = []
        for record in self.storage.log.records(self.writer.needed_since()):
            if record.op is not Op.CONTENT:
                continue
            pair = unpack_pair(record.data)
            moved = [_moved_blob(blob, to) for blob in pair]
            if tuple(moved) != pair:
                statement = "update journal set data=? where seq=?"
                batch.append((statement, (pack_pair(*moved), record.seq)))
        return batch

    def dead_containers(self) -> list[int]:
        """Containers that no content names any more."""
        return sorted(self.dead)

    def drop_container(self, container: int) -> None:
        """Delete the file."""
        self.dead.discard(container)
        self.storage.contents.containers.delete(container)

    # --- roots ------------------------------------------------------------------------------------

    def roots(self) -> list[Root]:
        """CIDs whose DAGs the tree needs: built roots, linked contents, sealed contents.

        Runs in any thread, on a connection of its own.
        """
        return tree_roots(self.storage.state.database)

    # --- letting go -------------------------------------------------------------------------------

    async def run(self, node: EmbeddedNode) -> None:
        """Delete dead containers, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            if not self.dead:
                continue
            try:
                await self._let_go(node)
            except (UnifsError, OSError) as error:
                log.warning("dead containers stay for now: error=%s", error)

    async def _let_go(self, node: EmbeddedNode) -> None:
        if await node.pins_scan():
            if trio.current_time() - self._collected_at >= COLLECT_S:
                self._collected_at = trio.current_time()
                await node.repo_gc()
            return
        blocks = self.storage.blocks
        for container in self.dead_containers():
            await trio.to_thread.run_sync(blocks.index.forget_container, container)
            await complete(self.drop_container, container)


def tree_roots(database: Path) -> list[Root]:
    """What ``Keeper.roots`` answers."""
    connection = open_reader(database)
    try:
        execute = connection.execute
        columns = [row[0] for row in execute("select root from epoch")]
        columns += [row[0][8:] for row in execute("select cid from content where cid is not null")]
        for table in ("inode", "inode_past"):
            linked = f"select substr(content,10) from {table} where substr(content,1,1)=x'04'"
            columns += [row[0] for row in execute(linked)]
    finally:
        connection.close()
    return [Root(Cid.decode(bytes(column))) for column in dict.fromkeys(columns)]


def _moved_blob(blob: bytes, to: dict[tuple[int, int], Place]) -> bytes:
    if not blob or blob[0] != SMALL:
        return blob
    after = _at(small_content(blob), to)
    return blob if after is None else after.blob


def _at(content: SmallContent, to: dict[tuple[int, int], Place]) -> SmallContent | None:
    new = to.get((content.segment, content.offset))
    if new is None:
        return None
    return SmallContent(new.segment, new.offset, content.length, content.digest)
