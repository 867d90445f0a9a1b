"""What happens behind the tree without anybody asking: late commits, releases, background flushes.

One task ticks four times a second and does, in the loop, a bounded amount of each. A failure (a
full disk) is logged once per kind until it passes; the next tick tries again.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

import trio

from unifs.errors import NoSpace, UnifsError
from unifs.journal.content import SEALED, LargeContent, large_id
from unifs.vfs.epochs import time_rows, times_written
from unifs.vfs.tree import KEEP_XATTRS
from unifs.waiting import WouldBlock, complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.vfs.tree import Batch
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.writer import Writer

log = logging.getLogger(__name__)

TICK_S = 0.25
PENDING_S = 1.0
OPEN_COMMIT_S = 5.0
TIMES_S = 1.0
FLUSH_S = 5.0
ROWS_MAX = 2_000

#: Containers of contents, and whether any content names one.
HELD = "select container from holding where content in (select value from json_each(?))"
IS_HELD = "select 1 from holding where container=? limit 1"


class Upkeep:
    """Keeps a writer's promises that have a time in them."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.storage = writer.storage
        self._failed: set[str] = set()
        #: Containers that lost a content; some are still written to, or read by who writes.
        self._released: set[int] = set()
        self._times_at = 0.0
        self._flushed_at = 0.0
        self._is_flushing = False
        self._blocked: WouldBlock | None = None

    async def run(self) -> None:
        """Tick until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(TICK_S)
                now = time.monotonic()
                self.tick(now)
                if self._blocked is not None:
                    blocked, self._blocked = self._blocked, None
                    await blocked.wait()
                if now - self._flushed_at > FLUSH_S and not self._is_flushing:
                    self._flushed_at = now
                    self._try("reserve", self._restore_reserve)
                    if self._is_flush_due():
                        self._is_flushing = True
                        nursery.start_soon(self._flush)

    async def finish(self) -> None:
        """Before a clean stop: commit and flush everything. Raises what that raises.

        On a full disk the reserve is given up for it. What does not fit even so was refused to its
        writers, or acknowledged nothing: it is left, and recovery runs at the next start.
        """
        try:
            try:
                await self._finish()
            except NoSpace:
                if not self.storage.state.give_up_reserve():
                    raise
                await self._finish()
        except NoSpace as error:
            self.storage.is_tidy = False
            log.warning("not everything fitted on the disk at the end: %s", error)

    async def _finish(self) -> None:
        writer = self.writer
        for inode in [*writer.pending.values(), *writer.open.values()]:
            if inode.is_dirty() and not inode.is_gone:
                await complete(writer.commit, inode)
        while writer.touched:
            await complete(self.write_times)
        await self.storage.flusher.flush()
        await complete(self.release)
        if writer.released:
            # Rows went just now.
            await self.storage.flusher.flush()
            await complete(self.release)
        # What still waits to be released is known to nobody after this: recovery finds it.
        left = [writer.replaced, writer.released, writer.unneeded, writer.forgotten]
        self.storage.is_tidy = not any(left) and not writer.dead_containers

    def tick(self, now: float) -> None:
        """One round of everything that is due."""
        self._try("pending", lambda: self._commit_late(now))
        if now - self._times_at > TIMES_S:
            self._times_at = now
            self._try("times", self.write_times)
        self._try("release", self.release)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except WouldBlock as block:
            # Nobody else may be there to ask for what has to happen first (the WAL's restart).
            self._blocked = block
        except (UnifsError, OSError) as error:
            if what not in self._failed:
                self._failed.add(what)
                log.warning("upkeep failed: what=%s error=%s", what, error)
        else:
            self._failed.discard(what)

    def _is_flush_due(self) -> bool:
        storage, writer = self.storage, self.writer
        is_behind = storage.log.seq > storage.flusher.sealed_seq
        return is_behind or bool(writer.released or writer.unneeded)

    async def _flush(self) -> None:
        try:
            await self.storage.flusher.flush()
        except UnifsError as error:
            log.warning("background flush failed: error=%s", error)
        finally:
            self._is_flushing = False

    def _restore_reserve(self) -> None:
        self.storage.state.restore_reserve()

    def _commit_late(self, now: float) -> None:
        writer = self.writer
        late = [held for held in writer.pending.values() if now - held.changed_at > PENDING_S]
        late += [
            held
            for held in writer.open.values()
            if held.is_dirty() and not held.is_gone and now - held.changed_at > OPEN_COMMIT_S
        ]
        for inode in late:
            inode.changed_at = now
            if inode.is_dirty():
                writer.commit(inode)
                if not inode.opens:
                    # Its last close could not commit.
                    writer.detach(inode)

    def write_times(self) -> None:
        """Rows for directory times and atimes that moved since the last call."""
        writer = self.writer
        tree = writer.tree
        touched = list(writer.touched.values())[:ROWS_MAX]
        batch = time_rows(writer, touched)
        sealed_seq = self.storage.flusher.sealed_seq
        if not batch and sealed_seq == self._sealed_seq_written:
            return
        meta = "insert or replace into meta values(?,?)"
        batch.append((meta, ("sealed_seq", sealed_seq)))
        if len(touched) == len(writer.touched):
            batch.append((meta, ("times_seq", self.storage.log.seq)))
        tree.commit(batch)
        self._sealed_seq_written = sealed_seq
        times_written(writer, touched)

    _sealed_seq_written = 0

    # --- releasing --------------------------------------------------------------------------------

    def is_sealed(self, inode: TreeInode) -> bool:
        """Whether the inode's present content has durable bytes."""
        content = inode.content
        if isinstance(content, LargeContent):
            return content.state == SEALED
        return inode.seq <= self.storage.flusher.sealed_seq

    def release(self) -> None:
        """Remove rows and bytes that nobody needs any more."""
        self._reap()
        writer = self.writer
        if writer.replaced:
            waiting = []
            for inode, content in writer.replaced:
                if self.is_sealed(inode) and not self._is_guarded(inode):
                    writer.release([content])
                else:
                    waiting.append((inode, content))
            writer.replaced = waiting
        durable = self.storage.flusher.durable_commits
        ready = [content for at, content in writer.released if at <= durable]
        self._released.update(name for at, name in writer.unneeded if at <= durable)
        writer.unneeded = [item for item in writer.unneeded if item[0] > durable]
        if ready or self._released:
            # Also where a container has only lost its last writer since.
            self._release_contents(ready)
            writer.released = [item for item in writer.released if item[0] > durable]

    def _reap(self) -> None:
        writer = self.writer
        waiting: list[TreeInode] = []
        batch: Batch = []
        contents: list[int] = []
        reaped: set[TreeInode] = set()
        for inode in writer.forgotten[:ROWS_MAX]:
            if inode.guards and self._is_guarded(inode):
                waiting.append(inode)
                continue
            reaped.add(inode)
            is_history = writer.tree.tracking.keeps_inode(inode)
            if inode.epoch == writer.tree.epoch or not is_history:
                if is_history:
                    batch.append((KEEP_XATTRS, (inode.ino,)))
                batch.append(("delete from xattr where ino=?", (inode.ino,)))
                batch.append(("delete from inode where ino=? and gone is not null", (inode.ino,)))
                content = large_id(inode.stored)
                if content:
                    contents.append(content)
        if batch:
            writer.tree.commit(batch, frees=True)
        writer.forgotten[:ROWS_MAX] = waiting
        # What they had replaced before they lost their names is wanted no more either.
        contents += [content for inode, content in writer.replaced if inode in reaped]
        writer.replaced = [held for held in writer.replaced if held[0] not in reaped]
        writer.release(contents)

    def _is_guarded(self, inode: TreeInode) -> bool:
        """Whether the inode that took this one's name, or who took it from there, is unsealed."""
        return any(not self.is_sealed(guard) for guard in inode.living_guards())

    def _release_contents(self, ids: list[int]) -> None:
        database = self.storage.database
        batch: Batch = []
        gone: list[int] = []
        for content, count in Counter(ids).items():
            row = database.one("select refs from content where id=?", (content,))
            if row is None:
                continue
            if row[0] > count:
                batch.append(("update content set refs=refs-? where id=?", (count, content)))
                continue
            gone.append(content)
            batch.append(("delete from content where id=?", (content,)))
            batch.append(("delete from holding where content=?", (content,)))
        held = database.all(HELD, (json.dumps(gone),))
        if batch:
            self.writer.tree.commit(batch, frees=True)
        self._released.update(container for (container,) in held)
        in_use: set[int] = set()
        for open_ in self.writer.open.values():
            if open_.overlay is not None:
                in_use |= {open_.overlay.container, *open_.overlay.extents.containers}
        idle = self._released - in_use
        dead = {container for container in idle if database.one(IS_HELD, (container,)) is None}
        carried = self.writer.durability.carried
        if marks := carried.marks(dead):
            self.writer.tree.commit(carried.drop(marks), frees=True)
            carried.dropped(marks)
        self._released &= in_use
        self.writer.dead_containers |= dead
