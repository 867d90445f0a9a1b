"""One epoch of one mount, read-only: modes, owners, times, links and attributes as they were.

Each view has a prefix of ``Reserved``, so the number of an inode is the view's prefix before its
number in the tree: the same file has one number in one epoch, and others in others (programs that
compare would take one number for one file). They hold while the tree is mounted.

Names and attributes are read by index on the loop; what has to be searched is searched in a thread.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from unifs.errors import (
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotFound,
    Stale,
    Unsupported,
)
from unifs.journal.content import SYMLINK, large_id
from unifs.vfs.history import form_at, live_name_at, name_at, xattrs_at
from unifs.vfs.historyfile import PastDirectory, PastHandle, large_size
from unifs.vfs.historyrows import cid_at, linked_row
from unifs.vfs.tree import blocks_of, fill_attributes
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.treevolume import CID_XATTR
from unifs.vfs.volume import INO_SHIFT, DirectoryHandle, Handle, Inode, Volume
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.types import Attributes, Caller
    from unifs.vfs.history import Form
    from unifs.vfs.historyview import HistoryView
    from unifs.vfs.treevolume import TreeVolume

#: How long the kernel keeps what it was told; a thinned epoch is taken from it at once.
TIMEOUT_S = 60.0
#: Names that a thread looked for, remembered.
FOUND_MAX = 4_096
_LOCAL = (1 << INO_SHIFT) - 1


class EpochView(Volume):
    """One epoch of one mount."""

    refuses_changes = True
    refusal = "the past cannot be changed; `unifs ctl undelete` and `rollback` bring it back"

    def __init__(self, parent: HistoryView, volume: TreeVolume, epoch: int) -> None:
        super().__init__("history")
        self.parent = parent
        self.history = parent.history
        self.inodes = parent.inodes
        self.storage = parent.history.writer.storage
        self.volume = volume
        self.epoch = epoch
        self.is_thinned = False
        #: Open files and directories.
        self.opens = 0
        self.prefix = parent.reserved.take_prefix(self)
        self._scratch = parent.factory()
        self._found: OrderedDict[tuple[int, bytes], int] = OrderedDict()

    # --- numbers ----------------------------------------------------------------------------------

    def number(self, local: int) -> int:
        """The inode number here of one of the tree."""
        return self.prefix << INO_SHIFT | local

    def local(self, ino: int) -> int:
        """The tree's inode number of one here."""
        return ino & _LOCAL

    def hold(self) -> None:
        """Something of it is open: the epoch stays."""
        self.opens += 1
        self.history.hold(self.epoch)

    def let_go(self) -> None:
        self.opens -= 1
        self.history.let_go(self.epoch)

    # --- inodes -----------------------------------------------------------------------------------

    def form(self, ino: int) -> Form | None:
        """What an inode here was."""
        return form_at(self.history.ask, self.local(ino), self.epoch)

    def _fill(self, attributes: Attributes, form: Form) -> Attributes:
        fill_attributes(attributes, self.number(form.ino), form.attributes, TIMEOUT_S)
        size = large_size(self.storage.database, form.content)
        if size is not None and size != attributes.st_size:
            # It was open: the row tells what was closed, the content what was sealed.
            attributes.st_size, attributes.st_blocks = size, blocks_of(size)
        if self._writer_of(form) is not None:
            # Whoever wants to open it looks it up first.
            attributes.attr_timeout = attributes.entry_timeout = 0.0
        return attributes

    def listed(self, form: Form) -> Attributes:
        """Attributes for a listing, valid until the next call."""
        return self._fill(self._scratch, form)

    def load(self, ino: int) -> Inode:
        form = None if self.is_thinned else self.form(ino)
        if form is None:
            raise Stale(f"epoch {self.epoch} is not kept any more")
        return Inode(ino, self, self._fill(self.parent.factory(), form))

    def forgotten(self, ino: int) -> None:
        self.inodes.drop(ino)
        if self.is_thinned:
            self.parent.give_back(self)

    def getattr(self, inode: Inode) -> Attributes:
        if self.is_thinned:
            raise Stale(f"epoch {self.epoch} is not kept any more")
        if not inode.attributes.attr_timeout:
            form = self.form(inode.ino)
            if form is not None:
                self._settle(form)
                self._fill(inode.attributes, form)
        return inode.attributes

    def root(self) -> Inode:
        """The mount's root directory as it was."""
        return self.inodes.get(self.number(self.volume.root))

    def is_there(self) -> bool:
        """Whether the mount was there in this epoch, and its past was kept."""
        root = self.volume.root
        is_hidden = root in self.storage.tree.tracking.hidden(self.epoch)
        return not is_hidden and self.form(root) is not None

    def lookup(self, parent: Inode, name: bytes) -> Inode:
        self.getattr(parent)
        self._expand(parent)
        ino = self._find(self.local(parent.ino), name)
        if not ino or ino in self.storage.tree.tracking.hidden(self.epoch):
            raise NotFound
        form = form_at(self.history.ask, ino, self.epoch)
        if form is None:
            raise NotFound
        self._settle(form)
        found = self.inodes.get(self.number(ino))
        self.getattr(found)
        return found

    def _find(self, parent: int, name: bytes) -> int:
        """Where the live rows do not tell, a thread looks, and what it found is remembered."""
        key = (parent, name)
        known = self._found.get(key)
        if known is None:
            known = live_name_at(self.history.ask, parent, name, self.epoch)
            if not known:
                raise WouldBlock(partial(self._look, key), self.name)
        return known

    async def _look(self, key: tuple[int, bytes]) -> object:
        found = await self.history.in_thread(lambda ask: name_at(ask, *key, self.epoch))
        self._found[key] = found
        if len(self._found) > FOUND_MAX:
            self._found.popitem(last=False)
        return RETRY

    def _settle(self, form: Form) -> None:
        """A file that is still being written: what it is in this epoch is sealed first."""
        live = self._writer_of(form)
        if live is not None:
            raise WouldBlock(partial(self._seal, live), self.name)

    def _writer_of(self, form: Form) -> TreeInode | None:
        """The live inode whose writer may still change these bytes in place."""
        content = large_id(form.content)
        live = self.inodes.hot.get(form.ino) if content else None
        if not isinstance(live, TreeInode) or live.overlay is None or live.is_gone:
            return None
        own = live.overlay.content
        return live if own is not None and own.id == content else None

    async def _seal(self, live: TreeInode) -> object:
        await self.history.seal(live)
        return RETRY

    def _expand(self, directory: Inode) -> None:
        """A directory that was linked by its CID has no rows for its names until it is opened."""
        form = self.form(directory.ino)
        row = None if form is None else linked_row(self.storage.tree, form)
        if form is None or row is None:
            return
        if row[3] is not None:
            cid = cid_at(self.storage, form)
            raise Unsupported(f"it was linked by its CID and never opened: see /ipfs/{cid}")
        self.volume.expand(self.inodes.get(form.ino))

    def readlink(self, inode: Inode) -> bytes:
        form = self.form(inode.ino)
        if form is None or not form.content or form.content[0] != SYMLINK:
            raise InvalidArgument
        return form.content[1:]

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        if stat.S_ISDIR(inode.attributes.st_mode):
            raise IsADirectory
        self.getattr(inode)
        form = self.form(inode.ino)
        if form is not None:
            self._settle(form)
        return PastHandle(inode, self)

    def opendir(self, inode: Inode) -> DirectoryHandle:
        if not stat.S_ISDIR(inode.attributes.st_mode):
            raise NotADirectory
        self.getattr(inode)
        self._expand(inode)
        return PastDirectory(inode, self)

    # --- extended attributes ----------------------------------------------------------------------

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        if name == CID_XATTR:
            form = self.form(inode.ino)
            cid = None if form is None else cid_at(self.storage, form)
            if cid is None:
                raise NoAttribute
            return str(cid).encode()
        value = xattrs_at(self.history.ask, self.local(inode.ino), self.epoch).get(name)
        if value is None:
            raise NoAttribute
        return value

    def listxattr(self, inode: Inode) -> list[bytes]:
        return list(xattrs_at(self.history.ask, self.local(inode.ino), self.epoch))
