"""Rollback and undelete: a path as it was in an epoch, brought back into the live tree.

Every step is an operation of the volume or one transaction of ``historyrestore``: it is in the
journal, and what it replaces is in the epoch that ended before the first step. A file is replaced
whole: whoever opens its name finds the old or the new one. After a kill some of the paths are
brought back and the others are not, and one name more (``TEMPORARY``) may be there; the same
rollback again does the rest.

Names that were one file are one file again. What is not tracked stays as it is. Runs on the event
loop, a checkpoint between two steps; rows of the past are read in a thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from unifs.errors import Busy, Exists, NotADirectory, UnifsError
from unifs.journal.content import CLOSED, LargeContent
from unifs.types import PlainCaller
from unifs.vfs.epochs import seal_file
from unifs.vfs.history import children_at, form_at, name_at, xattrs_at
from unifs.vfs.historyrestore import is_same, make_from, put_back
from unifs.vfs.historyrows import linked_row
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.treerename import RENAME_NOREPLACE
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.vfs.history import Ask, Form, History
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Invalidator

#: The name of a file for the moment before it takes the place of another, and of a directory
#: that is brought back beside what is there, until all of it is.
TEMPORARY = b".unifs-rollback-"
PAGE = 1_000
CALLER = PlainCaller()


@dataclass(slots=True)
class Outcome:
    """What was done, in numbers of names; ``skipped`` are paths that were left as they are."""

    made: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Directory:
    """A directory on its way: its names are brought back first, then its attributes."""

    inode: TreeInode
    form: Form
    path: bytes
    is_open: bool = False
    waiting: list[tuple[bytes, Form]] = field(default_factory=list)


class Rollback:
    """Brings one path back. Made for one run; holds no epoch, its caller does."""

    def __init__(
        self, history: History, volume: TreeVolume, invalidator: Invalidator, epoch: int
    ) -> None:
        self.history = history
        self.volume = volume
        self.epoch = epoch
        self.outcome = Outcome()
        self._invalidator = invalidator
        self._joins = True
        self._stack: list[_Directory] = []
        #: Files of the past with several names, and which live inode each is.
        self._files: dict[int, TreeInode] = {}

    async def bring_back(self, parent: TreeInode, name: bytes, form: Form, path: bytes) -> None:
        """What a name was, under its name in a live directory.

        A file that was one with a live one becomes so again and takes that one along.
        """
        await self._name(parent, name, form, path)
        await self._directories()

    async def bring_back_beside(
        self, parent: TreeInode, name: bytes, form: Form, path: bytes
    ) -> None:
        """What a name was, under one that is free. Exists where it is taken by then.

        It is there once all of it is. A file becomes one with a live one only where that has not
        changed since.
        """
        self._joins = False
        is_filled = stat.S_ISDIR(form.mode) and linked_row(self.volume.tree, form) is None
        made = _temporary() if is_filled else name
        try:
            await self._name(parent, made, form, path)
            await self._directories()
            if is_filled:
                await complete(self.volume.rename, parent, made, parent, name, RENAME_NOREPLACE)
                self._told(parent, name)
        except UnifsError:
            if is_filled:
                await self._remove(parent, made, path)
            raise

    async def bring_back_root(self, form: Form) -> None:
        """The whole mount."""
        root: TreeInode = self.volume.inodes.get(self.volume.root)  # type: ignore[assignment]
        self._stack.append(_Directory(root, form, b""))
        await self._directories()

    async def check_free(self, top: TreeInode) -> None:
        """Busy where a file at or below an inode is open for writing."""
        tree = self.volume.tree
        opened = [
            inode
            for inode in list(self.history.writer.inodes.hot.values())
            if isinstance(inode, TreeInode) and inode.volume is self.volume and inode.writers
        ]
        for inode in opened:
            places = tree.names_of(inode.ino)
            below = inode is top or any(tree.is_below(parent, top.ino) for parent, _ in places)
            if below and places:
                path = os.fsdecode(tree.path(inode.ino) or b"")
                raise Busy(f"/{self.volume.name}{path} is open for writing")
            await trio.lowlevel.checkpoint()

    async def parent_of(self, names: list[bytes]) -> TreeInode:
        """The live directory of a path; what is missing of it is made as it was."""
        volume = self.volume
        directory: TreeInode = volume.inodes.get(volume.root)  # type: ignore[assignment]
        ino = volume.root
        for name in names:
            ino = await self.history.in_thread(partial(_step, ino, name, self.epoch))
            live = await complete(volume.find, directory, name)
            if live is not None and not stat.S_ISDIR(live.attributes.st_mode):
                raise NotADirectory(f"{os.fsdecode(name)} is not a directory now")
            if live is None:
                live = await complete(volume.mkdir, directory, name, 0o755, CALLER)
                self._told(directory, name)
                self.outcome.made += 1
                form = form_at(self.history.ask, ino, self.epoch)
                if form is not None:
                    await self._attributes(live, form)
            directory = live
        return directory

    # --- directories ------------------------------------------------------------------------------

    async def _directories(self) -> None:
        while self._stack:
            top = self._stack[-1]
            if not top.is_open:
                top.is_open = True
                top.waiting = await self._compare(top)
            if top.waiting:
                name, form = top.waiting.pop()
                await self._name(top.inode, name, form, top.path + b"/" + name)
                continue
            await self._attributes(top.inode, top.form)
            self._stack.pop()

    async def _compare(self, directory: _Directory) -> list[tuple[bytes, Form]]:
        """Remove names that were not there; what was."""
        wanted = await self.history.in_thread(partial(_children, directory.form.ino, self.epoch))
        names = dict(wanted)
        await complete(self.volume.commit_names, directory.inode.ino)
        after = 0
        while rows := self.volume.tree.names(directory.inode.ino, after, PAGE):
            for _, name, _ in rows:
                if name not in names:
                    await self._remove(directory.inode, name, directory.path + b"/" + name)
            after = rows[-1][0]
        return wanted[::-1]

    async def _name(self, parent: TreeInode, name: bytes, form: Form, path: bytes) -> None:
        await trio.lowlevel.checkpoint()
        live = await complete(self.volume.find, parent, name)
        if live is not None and not self._joins:
            raise Exists(f"{os.fsdecode(path)} is there")
        if form.ino in self._hidden or (live is not None and live.ino in self._hidden):
            self.outcome.skipped.append(os.fsdecode(path))
            return
        if not stat.S_ISDIR(form.mode):
            await self._file(parent, name, live, form, path)
            return
        is_linked = linked_row(self.volume.tree, form) is not None
        if is_linked and (live is None or live.ino != form.ino):
            xattrs = xattrs_at(self.history.ask, form.ino, self.epoch)
            await self._remove(parent, name, path)
            await complete(self._make, form, xattrs, parent, name)
            parent.attributes.st_nlink += 1
            self.outcome.made += 1
            self._told(parent, name)
            return
        if live is not None and not stat.S_ISDIR(live.attributes.st_mode):
            await self._remove(parent, name, path)
            live = None
        if live is None:
            live = await complete(self.volume.mkdir, parent, name, 0o700, CALLER)
            self._told(parent, name)
            self.outcome.made += 1
        self._stack.append(_Directory(live, form, path))

    async def _attributes(self, inode: TreeInode, form: Form) -> None:
        xattrs = xattrs_at(self.history.ask, form.ino, self.epoch)
        if is_same(inode, form, xattrs):
            return
        await complete(self._put_back, inode, form, xattrs)
        self._invalidator.inode(inode.ino, attributes_only=True)

    @property
    def _hidden(self) -> frozenset[int]:
        """Directories that stay as they are: their past is not whole."""
        return self.volume.tree.tracking.hidden(self.epoch)

    # --- files ------------------------------------------------------------------------------------

    async def _file(
        self, parent: TreeInode, name: bytes, live: TreeInode | None, form: Form, path: bytes
    ) -> None:
        xattrs = xattrs_at(self.history.ask, form.ino, self.epoch)
        known = self._files.get(form.ino) or self._alive(form, live, xattrs)
        if known is None and live is not None and self._fits(live, form):
            known = live
        if known is None:
            await self._seal(form, None)
            known = await self._replace(parent, name, live, path, partial(self._make, form, xattrs))
        else:
            if is_same(known, form, xattrs):
                self.outcome.unchanged += known is live
            else:
                await self._seal(form, known)
                await complete(self._put_back, known, form, xattrs)
                self._invalidator.inode(known.ino)
                self.outcome.changed += 1
            if known is not live:
                await self._replace(parent, name, live, path, partial(self._link, known))
        if form.links > 1:
            self._files[form.ino] = known

    def _alive(
        self, form: Form, live: TreeInode | None, xattrs: dict[bytes, bytes]
    ) -> TreeInode | None:
        """The inode that had several names then and has some now."""
        if form.links < 2 or (live is not None and live.ino == form.ino):
            return live if live is not None and live.ino == form.ino else None
        row = self.volume.tree.inode_row(form.ino)
        if row is None or row[3] is not None:
            return None
        inode: TreeInode = self.volume.inodes.get(form.ino)  # type: ignore[assignment]
        return inode if self._joins or is_same(inode, form, xattrs) else None

    def _fits(self, live: TreeInode, form: Form) -> bool:
        """Whether a live file can become what was, without a change of any other name."""
        mode = live.attributes.st_mode
        if stat.S_IFMT(mode) != stat.S_IFMT(form.mode):
            return False
        if live.ino != form.ino and (live.attributes.st_nlink > 1 or form.links > 1):
            return False
        if stat.S_ISREG(mode):
            return True
        return live.stored == form.content and live.attributes.st_rdev == form.rdev

    def _make(
        self, form: Form, xattrs: dict[bytes, bytes], parent: TreeInode, name: bytes
    ) -> TreeInode:
        return make_from(self.volume, parent, name, self._as_it_is(form), xattrs)

    def _put_back(self, inode: TreeInode, form: Form, xattrs: dict[bytes, bytes]) -> None:
        put_back(self.volume, inode, self._as_it_is(form), xattrs)

    def _as_it_is(self, form: Form) -> Form:
        """A form that was read a while ago: a collection moves small contents meanwhile, and only
        rows follow.
        """
        return form_at(self.history.ask, form.ino, self.epoch) or form

    def _link(self, known: TreeInode, parent: TreeInode, name: bytes) -> TreeInode:
        return self.volume.link(known, parent, name, CALLER)

    async def _replace(
        self,
        parent: TreeInode,
        name: bytes,
        live: TreeInode | None,
        path: bytes,
        make: Callable[[TreeInode, bytes], TreeInode],
    ) -> TreeInode:
        """Put a file under a name; one that is there is replaced by a rename."""
        if live is not None and stat.S_ISDIR(live.attributes.st_mode):
            await self._remove(parent, name, path)
            live = None
        if live is None:
            made = await complete(make, parent, name)
            self.outcome.made += 1
        else:
            temporary = _temporary()
            made = await complete(make, parent, temporary)
            await complete(self.volume.rename, parent, temporary, parent, name, 0)
            self.outcome.changed += 1
        self._told(parent, name)
        return made

    async def _seal(self, form: Form, known: TreeInode | None) -> None:
        """Two live inodes never share a content that one of them may still change."""
        content = self.volume.contents.decode(form.content)
        if not isinstance(content, LargeContent) or content.state != CLOSED:
            return
        query = "select ino from inode where content=? and gone is null"
        for (ino,) in self.volume.tree.database.all(query, (form.content,)):
            if known is None or ino != known.ino:
                inode: TreeInode = self.volume.inodes.get(ino)  # type: ignore[assignment]
                await seal_file(self.history.writer, self.history.seal, inode)

    # --- removing ---------------------------------------------------------------------------------

    async def _remove(self, parent: TreeInode, name: bytes, path: bytes) -> None:
        """A name and everything below it; a directory with something untracked in it stays."""
        volume = self.volume
        top = await complete(volume.find, parent, name)
        if top is None:
            return
        if any(volume.tree.is_below(ino, top.ino) for ino in self._hidden):
            self.outcome.skipped.append(os.fsdecode(path))
            return
        stack = [(parent, name)]
        while stack:
            await trio.lowlevel.checkpoint()
            above, each = stack[-1]
            inode = await complete(volume.find, above, each)
            if inode is not None and stat.S_ISDIR(inode.attributes.st_mode):
                await complete(volume.commit_names, inode.ino)
                if rows := volume.tree.names(inode.ino, 0, PAGE):
                    stack.extend((inode, row[1]) for row in rows)
                    continue
                await complete(volume.rmdir, above, each, CALLER)
            elif inode is not None:
                await complete(volume.unlink, above, each, CALLER)
            stack.pop()
            if inode is not None:
                self._told(above, each)
                self.outcome.removed += 1

    def _told(self, parent: TreeInode, name: bytes) -> None:
        self._invalidator.entry(parent.ino, name)
        self._invalidator.inode(parent.ino, attributes_only=True)


def _temporary() -> bytes:
    return TEMPORARY + os.urandom(8).hex().encode()


def _children(directory: int, epoch: int, ask: Ask) -> list[tuple[bytes, Form]]:
    return children_at(ask, directory, epoch)


def _step(ino: int, name: bytes, epoch: int, ask: Ask) -> int:
    return name_at(ask, ino, name, epoch) if ino else 0
