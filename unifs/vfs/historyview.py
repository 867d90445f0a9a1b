"""The read-only view of the past: ``/.unifs/history/<mount>/<epoch>/…``.

``HistoryView`` is its two upper levels: mounts whose past is kept, and the epochs of one. An epoch
is listed by its number, and once more by each of its checkpoints' names; a time (UTC) finds the
newest one that is as old. What is below an epoch is an ``EpochView``'s.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from unifs.errors import IsADirectory, NotFound, Stale
from unifs.vfs.epochview import EpochView
from unifs.vfs.namespace import table_attributes
from unifs.vfs.volume import INO_SHIFT, DirectoryHandle, Handle, Inode, Volume

if TYPE_CHECKING:
    from unifs.types import Attributes, Caller
    from unifs.vfs.history import History
    from unifs.vfs.inodes import Inodes
    from unifs.vfs.reserved import Reserved
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Emit, Invalidator

NAME = b"history"
#: Views that are known at once; one that nobody looks at makes room.
VIEWS_MAX = 8_192
EPOCHS_PAGE = 256
#: Offsets of checkpoints in a listing of epochs, behind every number.
_NAMED = 1 << 56


class _Directory(Inode):
    """``history`` (without a volume) or the epochs of one mount."""

    __slots__ = ("shows",)

    def __init__(
        self, ino: int, volume: Volume, attributes: Attributes, shows: TreeVolume | None
    ) -> None:
        super().__init__(ino, volume, attributes)
        self.shows = shows

    def is_busy(self) -> bool:
        return True


class _Listing(DirectoryHandle):
    """A page at a time: mounts by position, epochs by number and checkpoints behind them."""

    __slots__ = ()

    def readdir(self, offset: int, emit: Emit) -> None:
        directory, view = self.inode, self.inode.volume
        assert isinstance(directory, _Directory)
        assert isinstance(view, HistoryView)
        for name, inode, position in view.entries(directory, offset):
            if not emit(name, inode.attributes, position):
                return
            view.inodes.remember(inode.ino)


class HistoryView(Volume):
    """The mounts with a past, and their epochs."""

    refuses_changes = True
    refusal = EpochView.refusal

    def __init__(
        self,
        history: History,
        reserved: Reserved,
        volumes: dict[str, TreeVolume],
        invalidator: Invalidator,
    ) -> None:
        super().__init__("history")
        self.history = history
        self.reserved = reserved
        self.inodes: Inodes = history.writer.inodes
        self.invalidator = invalidator
        self.volumes = volumes
        self.factory = reserved.factory
        self._views: OrderedDict[tuple[str, bytes], EpochView] = OrderedDict()
        self._prefix = reserved.take_prefix(self)
        self.top = self._directory(0, None)
        self._mounts = {
            os.fsencode(name): self._directory(number, volume)
            for number, (name, volume) in enumerate(volumes.items(), 1)
        }
        self.top.attributes.st_nlink += len(self._mounts)
        reserved.add(NAME, self.top.ino)

    def _directory(self, number: int, shows: TreeVolume | None) -> _Directory:
        ino = self._prefix << INO_SHIFT | number + 1
        directory = _Directory(ino, self, table_attributes(self.factory, ino, 0o555), shows)
        self.inodes.add(directory)
        return directory

    # --- as a volume ------------------------------------------------------------------------------

    def load(self, ino: int) -> Inode:
        raise Stale

    def lookup(self, parent: Inode, name: bytes) -> Inode:
        assert isinstance(parent, _Directory)
        if parent.shows is None:
            found = self._mounts.get(name)
            if found is None:
                raise NotFound
            return found
        view = self._view(parent.shows, name, self.history.resolve(os.fsdecode(name)))
        if not view.is_there():
            raise NotFound(f"{parent.shows.name} has no past in epoch {view.epoch}")
        return view.root()

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        raise IsADirectory

    def opendir(self, inode: Inode) -> DirectoryHandle:
        return _Listing(inode)

    def entries(self, directory: _Directory, offset: int) -> list[tuple[bytes, Inode, int]]:
        """(name, inode, position) of the next page."""
        volume = directory.shows
        if volume is None:
            names = sorted(self._mounts.items())[offset:]
            return [(name, found, offset + at) for at, (name, found) in enumerate(names, 1)]
        found: list[tuple[bytes, int, int]] = []
        if offset < _NAMED:
            # An offset is one more than its number: 0 is the beginning.
            shown = self.history.shown(offset - 1, EPOCHS_PAGE)
            found = [(b"%d" % each.number, each.number, each.number + 1) for each in shown]
        if len(found) < EPOCHS_PAGE:
            named = self.history.checkpoints()[max(0, offset - _NAMED) :][:EPOCHS_PAGE]
            start = max(_NAMED, offset) + 1
            found += [
                (os.fsencode(name), number, start + at) for at, (name, number) in enumerate(named)
            ]
        entries = ((name, self._view(volume, name, number), at) for name, number, at in found)
        return [(name, view.root(), at) for name, view, at in entries if view.is_there()]

    # --- views ------------------------------------------------------------------------------------

    def _view(self, volume: TreeVolume, name: bytes, epoch: int) -> EpochView:
        """The view of an epoch under a name, whether or not the mount was there then."""
        key = (volume.name, name)
        view = self._views.get(key)
        if view is not None and view.epoch != epoch:
            # The name is another one's now.
            self._retire(key, view)
            view = None
        if view is None:
            self._make_room()
            view = self._views[key] = EpochView(self, volume, epoch)
        self._views.move_to_end(key)
        return view

    def _make_room(self) -> None:
        if len(self._views) < VIEWS_MAX:
            return
        for key, view in list(self._views.items()):
            if not view.opens and self.reserved.give_back(view.prefix):
                del self._views[key]
                return

    def _retire(self, key: tuple[str, bytes], view: EpochView) -> None:
        """It is found no longer; its prefix is free once the kernel forgets it."""
        del self._views[key]
        view.is_thinned = True
        self.invalidator.entry(self._mounts[os.fsencode(key[0])].ino, key[1])
        self.give_back(view)

    def give_back(self, view: EpochView) -> None:
        """A retired view's prefix is free, if nobody remembers an inode of it."""
        if not view.opens and view.prefix in self.inodes.volumes:
            self.reserved.give_back(view.prefix)

    def thinned(self, numbers: list[int]) -> None:
        """Epochs that are shown no longer."""
        gone = set(numbers)
        for key, view in list(self._views.items()):
            if view.epoch in gone:
                self._retire(key, view)

    def renamed(self, name: str) -> None:
        """A checkpoint is there, or is no more: whoever looked for that name looks again."""
        for mount, directory in self._mounts.items():
            key = (os.fsdecode(mount), os.fsencode(name))
            view = self._views.get(key)
            if view is not None:
                self._retire(key, view)
            self.invalidator.entry(directory.ino, key[1])
            self.invalidator.inode(directory.ino)
