"""Files and directories of an epoch, opened: what they read is not thinned meanwhile.

A file's bytes are looked up by its row at every read: the collection of the node moves small
contents, and rows follow. A directory is read a page of rows at a time, in a thread.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from unifs.errors import Corrupt, Stale
from unifs.journal.content import CLOSED, LARGE, LINKED, LargeContent, SmallContent, large_id
from unifs.journal.extents import ExtentMap
from unifs.vfs.history import Form, form_at, names_at
from unifs.vfs.volume import DirectoryHandle, Handle
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.journal.content import Content, Contents
    from unifs.state.database import Database
    from unifs.vfs.epochview import EpochView
    from unifs.vfs.history import Ask
    from unifs.vfs.volume import Emit, Inode

#: Names of a directory that are looked up in one go: a few milliseconds of a thread.
PAGE = 256


def large_size(database: Database, blob: bytes) -> int | None:
    """The size of a large content; None for others."""
    if not blob or blob[0] != LARGE:
        return None
    row = database.one("select size from content where id=?", (large_id(blob),))
    return None if row is None else int(row[0])


def past_content(contents: Contents, database: Database, blob: bytes) -> Content | None:
    """The content that a past row names.

    Of one that was never sealed, after the machine stopped: the form that its last fsync made
    durable; Corrupt where there is none.
    """
    content = contents.decode(blob)
    if not isinstance(content, LargeContent) or content.state != CLOSED:
        return content
    query = "select boot,durable_size,durable_extents from content where id=?"
    boot, size, extents = database.one(query, (content.id,))
    if boot != contents.boot:
        if size is None:
            raise Corrupt("the machine stopped before these bytes were stored")
        content.size, content.extents = size, ExtentMap.unpack(extents)
    return content


class PastHandle(Handle):
    """An open file of an epoch."""

    __slots__ = ("_blob", "_content", "view")

    def __init__(self, inode: Inode, view: EpochView) -> None:
        super().__init__(inode)
        self.view = view
        self._blob = b""
        self._content: Content | None = None
        self._look()
        view.hold()

    def _look(self) -> bytes:
        form = self.view.form(self.inode.ino)
        if form is None:
            raise Stale(f"epoch {self.view.epoch} is not kept any more")
        content = self._content
        is_closed = isinstance(content, LargeContent) and content.state == CLOSED
        if is_closed or form.content != self._blob:
            # Sealing, for whoever else has this content, may have moved its bytes.
            storage = self.view.storage
            self._content = past_content(storage.contents, storage.database, form.content)
            self._blob = form.content
        return form.content

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        blob = self._look()
        content, contents = self._content, self.view.storage.contents
        if isinstance(content, SmallContent):
            return contents.read_small(content, offset, size)
        if content is not None:
            return contents.read_large(content, offset, size)
        if blob and blob[0] == LINKED:
            return self.view.volume.read_linked(blob, offset, size)
        return b""

    def release(self) -> None:
        self.view.let_go()


class PastDirectory(DirectoryHandle):
    """An open directory of an epoch. The offset is the id of a name's row."""

    __slots__ = ("_after", "_at", "_is_last", "_rows", "view")

    def __init__(self, inode: Inode, view: EpochView) -> None:
        super().__init__(inode)
        self.view = view
        #: (id, name, form) behind the offset ``_at``, the next one last.
        self._rows: list[tuple[int, bytes, Form]] = []
        self._at = -1
        #: Row up to which was looked, and whether the directory ends there.
        self._after = 0
        self._is_last = False
        view.hold()

    def readdir(self, offset: int, emit: Emit) -> None:
        if self._at != offset:
            raise WouldBlock(partial(self._fetch, offset, offset), self.view.name)
        view = self.view
        has_emitted = False
        while True:
            while self._rows:
                row_id, name, form = self._rows[-1]
                if not emit(name, view.listed(form), row_id):
                    return
                view.inodes.remember(view.number(form.ino))
                self._rows.pop()
                self._at = row_id
                has_emitted = True
            if self._is_last or has_emitted:
                return
            raise WouldBlock(partial(self._fetch, self._after, offset), self.view.name)

    async def _fetch(self, after: int, at: int) -> object:
        local, epoch = self.view.local(self.inode.ino), self.view.epoch
        rows, names = await self.view.history.in_thread(partial(_page, local, epoch, after))
        hidden = self.view.storage.tree.tracking.hidden(epoch)
        self._rows = [row for row in rows if row[2].ino not in hidden][::-1]
        self._after = names[-1] if names else after
        self._is_last = len(names) < PAGE
        self._at = at
        return RETRY

    def release(self) -> None:
        self.view.let_go()


def _page(
    parent: int, epoch: int, after: int, ask: Ask
) -> tuple[list[tuple[int, bytes, Form]], list[int]]:
    """Names with what they named, and the ids of all rows that were looked at."""
    rows = names_at(ask, parent, epoch, after, PAGE)
    found: list[tuple[int, bytes, Form]] = []
    for row_id, name, ino in rows:
        form = form_at(ask, ino, epoch)
        if form is not None:
            found.append((row_id, name, form))
    return found, [row[0] for row in rows]
