"""Merge: what the backend says of its names becomes rows.

Rows are matched by the path at which the backend holds an object *now*, not by their names in the
tree: what was renamed here and not yet there is the same object, what was removed here and not yet
there is not shown again. A name that stays keeps its row id and its inode. What is due (changed
here and not confirmed) is never touched: its conflict is writeback's to see.

An answer that was under way while writeback changed the same path is older than what is known, and
is passed over (``departed``). While a rename is on its way to the backend, or an earlier daemon
left one whose outcome is not known, nobody knows on which side of it an answer below either path
was given: nothing is asked there until it has ended (``Attempts.settled``).
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import NotFound, Stale
from unifs.journal.content import large_id, symlink_blob
from unifs.journal.log import Op
from unifs.types import Version
from unifs.vfs.remoteahead import Ahead
from unifs.vfs.remotedrop import count_directories, drop
from unifs.vfs.remoteending import end_listing
from unifs.vfs.remotepage import PageRows, mode_of, new_names, shown, sift
from unifs.vfs.remoterows import (
    COMPLETE,
    PARTIAL,
    UNLISTED,
    RemoteInode,
    is_directory,
    is_pinned,
    is_same_kind,
    join,
    pack_told,
)
from unifs.vfs.remoteunderway import Questions
from unifs.vfs.tree import INSERT_INODE, UPDATE_INODE, pack_attributes
from unifs.waiting import RETRY, complete

if TYPE_CHECKING:
    from unifs.types import Node, Page
    from unifs.vfs.remotepage import Told
    from unifs.vfs.remoterows import Form
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch, Statement

#: Names of a page that become rows without a pause: 4 ms. What answers the question for the next
#: page would wait for all 1,000, and the backend for the question after that.
TAKEN_TOGETHER = 250


class Merge:
    """Brings answers of one backend into the tree. Belongs to the event loop's thread."""

    def __init__(self, volume: RemoteVolume) -> None:
        self.volume = volume
        self.tree = volume.tree
        self.remotes = volume.remotes
        self.attempts = volume.attempts
        self._questions = Questions()
        self._ahead = Ahead(self._questions)
        self._scans: dict[int, trio.Event] = {}
        #: Contents that the rows of the transaction being prepared name no more.
        self._left: list[int] = []
        #: Inodes that it has changed, and what they were.
        self._changed: list[tuple[RemoteInode, Form]] = []

    # --- asking -----------------------------------------------------------------------------------

    def departed(self, path: str) -> None:
        """Writeback changed what stands at ``path``: answers under way do not know."""
        self._questions.departed(path)

    def _is_late(self, path: str, moment: int) -> bool:
        return self.attempts.is_moving(path) or self._questions.is_late(path, moment)

    async def stat(self, parent: RemoteInode, name: bytes) -> object:
        """Ask for one name; NotFound if the backend, or the tree, says that there is none."""
        volume = self.volume
        known = volume.find(parent, name)
        path = known.path if isinstance(known, RemoteInode) else None
        if path is None:
            assert parent.path is not None
            path = join(parent.path, name)
        if await self.attempts.settled(path):
            return RETRY
        moment = self._questions.begin()
        try:
            node = await volume.mount.stat(path)
            if self._is_late(path, moment):
                return RETRY
            await complete(self.take, parent, [(name, path, node)])
        except NotFound:
            if self._is_late(path, moment):
                return RETRY
            if isinstance(known, RemoteInode):
                await complete(self.vanish, [known.ino])
        finally:
            self._questions.end()
        if volume.find(parent, name) is None:
            raise NotFound
        return RETRY

    async def refresh(self, inode: RemoteInode) -> object:
        """Ask for an object that is known."""
        path = inode.path
        if path is None or await self.attempts.settled(path):
            return RETRY
        moment = self._questions.begin()
        try:
            node = await self.volume.mount.stat(path)
            if not self._is_late(path, moment):
                await complete(self._renew, inode, node)
        except NotFound:
            if self._is_late(path, moment):
                return RETRY
            await complete(self.vanish, [inode.ino])
        finally:
            self._questions.end()
        if inode.is_gone and not inode.opens:
            raise Stale
        return RETRY

    def _renew(self, inode: RemoteInode, node: Node) -> None:
        is_other = not is_same_kind(inode, node) or is_pinned(inode, node)
        if is_other and not self.volume.is_changed(inode):
            # Whoever has it open keeps it; the name is asked for anew.
            self.vanish([inode.ino])
            return
        batch = self._begin()
        is_written = self._update(inode, node, self.volume.now_ns(), batch)
        self._commit(batch)
        if is_written:
            self._updated(inode)

    async def scan(self, inode: RemoteInode) -> object:
        """Bring the whole directory into the tree."""
        while inode.path is not None and not self.volume.is_listed(inode):
            await self.scan_page(inode)
        return RETRY

    async def scan_page(self, inode: RemoteInode) -> object:
        """Bring one more page of the directory into the tree; one at a time, whoever asks."""
        if inode.path is not None and await self.attempts.settled(inode.path):
            return RETRY
        running = self._scans.get(inode.ino)
        if running is not None:
            await running.wait()
            return RETRY
        self._scans[inode.ino] = trio.Event()
        try:
            await self._scan_page(inode)
        finally:
            self._scans.pop(inode.ino).set()
        return RETRY

    async def _scan_page(self, inode: RemoteInode) -> None:
        path = inode.path
        if path is None:
            return
        if inode.listing == COMPLETE or inode.cursor is None:
            inode.listing, inode.cursor = UNLISTED, None
            inode.listed_ns = self.volume.now_ns()
        cursor, listed_ns = inode.cursor, inode.listed_ns
        ahead = await self._ahead.take(inode.ino, (path, cursor))
        moment = self._questions.begin() if ahead is None else ahead[1]
        try:
            page = await self.volume.mount.scan(path, cursor) if ahead is None else ahead[0]
            names = shown(page.entries)
            for start in range(0, max(len(names), 1), TAKEN_TOGETHER):
                is_same = (inode.path, inode.listed_ns) == (path, listed_ns)
                if self._is_late(path, moment) or not is_same:
                    # The directory moved while it was listed, or lost names that were listed.
                    inode.listing, inode.cursor = UNLISTED, None
                    return
                if start == 0 and cursor is not None and page.after is not None:
                    self._ask_ahead(inode.ino, (path, page.after))
                end = start + TAKEN_TOGETHER
                is_quiet = self.attempts.is_quiet and not self._questions.has_departed
                is_late = None if is_quiet else partial(self._is_late, moment=moment)
                told = sift(path, names[start:end], is_late)
                await complete(self._take_page, inode, told, end >= len(names), page)
                if end < len(names):
                    await trio.lowlevel.checkpoint()
            if page.after is None:
                await end_listing(self, inode, path)
        finally:
            self._questions.end()

    def _ask_ahead(self, ino: int, place: tuple[str, str]) -> None:
        if self.volume.nursery is not None:
            self._ahead.begin(self.volume.nursery, self.volume.mount.scan, ino, place)

    def _take_page(
        self, inode: RemoteInode, told: tuple[list[Told], list[str]], is_last: bool, page: Page
    ) -> None:
        """Take what ``sift`` told of a page; the last of it moves the listing on."""
        entries, late = told
        self.take(inode, entries)
        batch: Batch = []
        for path in late:
            self._see(path, inode.listed_ns, batch)
        if is_last:
            inode.listing, inode.cursor = PARTIAL, page.after
            batch.append(self.remotes.store(inode))
        if batch:
            self.tree.commit(batch)

    def _see(self, path: str, now_ns: int, batch: Batch) -> None:
        """Note that something stands at a path of which nothing else is to be learnt now."""
        ino = self.remotes.at(path)
        known = self.volume.hot_or_row(ino) if ino else None
        if known is not None:
            known.checked_ns = max(known.checked_ns, now_ns)
            batch.append(self.remotes.store(known))

    # --- taking -----------------------------------------------------------------------------------

    def take(self, parent: RemoteInode, entries: list[Told]) -> None:
        """Rows for (name, path, node): new ones, and those that differ."""
        volume = self.volume
        batch = self._begin()
        now_ns = max(volume.now_ns(), parent.listed_ns)
        made: dict[bytes, RemoteInode] = {}
        written: list[RemoteInode] = []
        replaced: list[int] = []
        new = new_names(volume, parent, entries)
        rows = PageRows(volume, parent, now_ns)
        for name, path, node in entries:
            if name in new:
                rows.add(name, path, node)
                continue
            if self.attempts.is_at(path) or name in made:
                self._see(path, now_ns, batch)
                continue
            ino = self.remotes.at(path)
            known = volume.hot_or_row(ino) if ino else None
            if ino and (known is None or known.is_gone):
                # Removed here, not yet there.
                continue
            if known is not None:
                if is_same_kind(known, node) and not is_pinned(known, node):
                    if self._update(known, node, now_ns, batch):
                        written.append(known)
                    continue
                if volume.is_changed(known):
                    self._see(path, now_ns, batch)
                    continue
                replaced.append(known.ino)
            elif volume.find(parent, name) is not None:
                # A local object of that name has not arrived there yet.
                continue
            made[name] = self.new(parent, node, path)
        if replaced:
            self.vanish(replaced)
            made = {name: made[name] for name in made if volume.find(parent, name) is None}
        for name, inode in made.items():
            self.insert(inode, name, batch)
        batch += rows.batch
        directories = rows.directories + sum(map(is_directory, made.values()))
        if directories:
            batch.append(count_directories(parent, directories))
        if batch:
            self._commit(batch)
        parent.attributes.st_nlink += directories
        rows.committed()
        for inode in made.values():
            volume.inodes.add(inode)
        for inode in written:
            self._updated(inode)

    def _begin(self) -> Batch:
        """A transaction before which memory changes: WouldBlock here, where it would wait."""
        self.tree.database.admit()
        self._left, self._changed = [], []
        return []

    def _change(self, inode: RemoteInode) -> Form:
        """An inode changes before the transaction is committed; its form until then."""
        self._changed.append((inode, form := inode.form()))
        return form

    def _commit(self, batch: Batch) -> None:
        try:
            self.tree.commit(batch)
        except BaseException:
            for inode, form in self._changed:
                inode.restore(form)
            raise
        self.volume.writer.release(self._left)

    def new(self, parent: RemoteInode, node: Node, path: str) -> RemoteInode:
        """A new inode in memory for an object of the backend."""
        volume = self.volume
        attributes = volume.factory()
        inode = RemoteInode(self.tree.new_ino(), volume, attributes)
        attributes.st_ino = inode.ino
        attributes.st_nlink = 2 if stat.S_ISDIR(node.mode) else 1
        attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
        attributes.st_rdev = node.rdev
        attributes.st_blksize = 1 << 20
        attributes.entry_timeout = attributes.attr_timeout = volume.timeout_s
        attributes.st_mode = mode_of(volume, node)
        moment = node.mtime_ns or 0
        attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = moment
        inode.parent, inode.epoch, inode.path = parent.ino, self.tree.epoch, path
        if node.target is not None:
            inode.stored = symlink_blob(node.target)
        inode.take_version(node)
        inode.told = pack_told(attributes)
        inode.checked_ns = max(volume.now_ns(), parent.listed_ns)
        return inode

    def insert(self, inode: RemoteInode, name: bytes, batch: Batch) -> None:
        """Statements for what ``new`` made."""
        packed = pack_attributes(inode.attributes)
        volume = self.volume
        row = (inode.ino, volume.mount_id, inode.parent, inode.epoch, packed, inode.stored)
        batch.append((INSERT_INODE, row))
        batch.append(self.tree.add_name(inode.parent, name, inode.ino))
        batch.append(self.remotes.store(inode))
        volume.rows += 1

    def _update(self, inode: RemoteInode, node: Node, now_ns: int, batch: Batch) -> bool:
        """Statements for what the backend says of a known object; whether they write its row."""
        if self.volume.is_changed(inode):
            inode.checked_ns = now_ns
            batch.append(self.remotes.store(inode))
            return False
        attributes = inode.attributes
        before = self._change(inode)
        if (node.version or Version("")) != inode.version:
            self._adopt(inode, node, batch)
        if node.has_permissions and not inode.is_local:
            attributes.st_mode = stat.S_IFMT(attributes.st_mode) | stat.S_IMODE(node.mode)
            if node.mtime_ns is not None:
                attributes.st_mtime_ns = attributes.st_ctime_ns = node.mtime_ns
        is_written = inode.form() != before
        if is_written:
            batch.append(self._row(inode))
            self.volume.tell_inode(inode.ino)
        inode.checked_ns = now_ns
        batch.append(self.remotes.store(inode))
        return is_written

    def _row(self, inode: RemoteInode) -> Statement:
        packed = pack_attributes(inode.attributes)
        return UPDATE_INODE, (inode.parent, self.tree.epoch, packed, inode.stored, inode.ino)

    def adopt_bytes(self, inode: RemoteInode, node: Node) -> None:
        """Somebody else's bytes take the place of the backend's; our attributes stay."""
        attributes = inode.attributes
        batch = self._begin()
        self._change(inode)
        moments = attributes.st_mtime_ns, attributes.st_ctime_ns
        self._adopt(inode, node, batch)
        attributes.st_mtime_ns, attributes.st_ctime_ns = moments
        self._commit([*batch, self._row(inode), self.remotes.store(inode)])
        self.volume.tell_inode(inode.ino)

    def _adopt(self, inode: RemoteInode, node: Node, batch: Batch) -> None:
        """Somebody else's version takes the place of what was here."""
        content = large_id(inode.stored)
        attributes = inode.attributes
        inode.held, inode.based_on = None, None
        if node.target is not None:
            inode.stored = symlink_blob(node.target)
        inode.take_version(node)
        if content:
            # Recovery does not go behind this.
            log = self.volume.writer.log
            batch.append(log.row(Op.SYNC, inode.ino, inode.parent, inode.stored))
            self._left.append(content)
        moment = node.mtime_ns if node.mtime_ns is not None else self.volume.now_ns()
        if not stat.S_ISDIR(attributes.st_mode):
            attributes.st_mtime_ns = attributes.st_ctime_ns = moment

    def _updated(self, inode: RemoteInode) -> None:
        inode.epoch = self.tree.epoch
        inode.is_touched = False
        self.volume.writer.touched.pop(inode.ino, None)

    # --- vanishing --------------------------------------------------------------------------------

    def vanish(self, inos: list[int]) -> None:
        """The backend has these no more; what is due below one stays."""
        keep = self.volume.sync.ancestors_of_due()
        for ino in inos:
            inode = self.volume.hot_or_row(ino)
            if inode is None or self.volume.is_changed(inode) or ino in keep:
                if ino in keep or (inode is not None and self.volume.sync.is_due(ino)):
                    self.volume.sync.vanished(ino)
                continue
            drop(self.volume, ino)
