"""Rows of names that a listing told for the first time, many at once.

``Merge`` asks which names of a page are new to the tree in every respect (``new_names``) and hands
those to ``PageRows``, which makes their rows without an inode in memory for each: a page of 1,000
keys takes 10 ms instead of 35, and a listing of 100,000 does not empty the table of hot inodes.
Whoever looks one up later has it loaded from its row, like any other. Belongs to the event loop's
thread; commits nothing itself.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from unifs.journal.content import remote_blob, symlink_blob
from unifs.types import NAME_MAX_BYTES, Version
from unifs.vfs.remoterows import INSERT, TOLD, UNLISTED, join
from unifs.vfs.tree import ATTRIBUTES, INSERT_INODE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.types import Entry, Node
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

    Told = tuple[bytes, str, Node]

#: Fewer names than this are looked at one by one, and become hot: somebody has asked for them.
PAGE_MIN: Final = 16


def mode_of(volume: RemoteVolume, node: Node) -> int:
    """The mode of a node, with permissions of ours where the backend knows none."""
    permissions = stat.S_IMODE(node.mode)
    if not node.has_permissions:
        permissions = 0o755 if stat.S_ISDIR(node.mode) else 0o644
        if volume.is_read_only():
            permissions &= 0o555
    if stat.S_ISLNK(node.mode):
        permissions = 0o777
    return stat.S_IFMT(node.mode) | permissions


def sift(
    path: str, told: list[Entry], is_late: Callable[[str], bool] | None
) -> tuple[list[Told], list[str]]:
    """Entries of a directory to be taken, and the paths of those that are late (None: none is)."""
    entries: list[Told] = []
    late: list[str] = []
    for entry in told:
        below = join(path, entry.name)
        if is_late is not None and is_late(below):
            late.append(below)
        else:
            entries.append((entry.name, below, entry.node))
    return entries, late


def new_names(volume: RemoteVolume, parent: RemoteInode, told: Sequence[Told]) -> set[bytes]:
    """Those names of a page of which nothing is known: no row at their path, nothing under their
    name, nothing of ours on its way there."""
    if len(told) < PAGE_MIN:
        return set()
    paths = {os.fsencode(path): name for name, path, _ in told}
    if len(paths) < len(told):
        # A name twice: one by one.
        return set()
    attempts, pending = volume.attempts, volume.writer.pending
    names = {
        name
        for name, path, _ in told
        if not attempts.is_at(path) and (parent.ino, name) not in pending
    }
    for path in volume.remotes.among(list(paths)):
        names.discard(paths[path])
    names.difference_update(volume.tree.among(parent.ino, list(paths.values())))
    return names


def shown(entries: tuple[Entry, ...]) -> list[Entry]:
    """Entries whose names can be names here; the rest cannot be asked for by anybody."""
    return [
        entry
        for entry in entries
        if 0 < len(entry.name) <= NAME_MAX_BYTES
        and entry.name not in (b".", b"..")
        and b"/" not in entry.name
        and b"\0" not in entry.name
    ]


class PageRows:
    """Statements for new names of one directory."""

    def __init__(self, volume: RemoteVolume, parent: RemoteInode, now_ns: int) -> None:
        self._volume = volume
        self._parent = parent
        self._now_ns = now_ns
        self._owner = (os.getuid(), os.getgid())
        self._modes: dict[tuple[int, bool], int] = {}
        self.batch: Batch = []
        self.count = self.directories = 0

    def add(self, name: bytes, path: str, node: Node) -> None:
        """The rows of one name."""
        tree, parent, version = self._volume.tree, self._parent, node.version or Version("")
        kind = (node.mode, node.has_permissions)
        mode = self._modes.get(kind)
        if mode is None:
            mode = self._modes[kind] = mode_of(self._volume, node)
        is_regular = mode & 0o170000 == stat.S_IFREG
        is_directory = mode & 0o170000 == stat.S_IFDIR
        stored = b""
        if is_regular:
            stored = remote_blob(node.size_bytes, version)
        elif node.target is not None:
            stored = symlink_blob(node.target)
        moment = node.mtime_ns or 0
        packed = ATTRIBUTES.pack(
            mode,
            *self._owner,
            2 if is_directory else 1,
            node.size_bytes,
            moment,
            moment,
            moment,
            0 if is_regular else node.rdev,
        )
        ino, batch, mount = tree.new_ino(), self.batch, self._volume.mount_id
        batch.append((INSERT_INODE, (ino, mount, parent.ino, tree.epoch, packed, stored)))
        batch.append(tree.add_name(parent.ino, name, ino))
        told = TOLD.pack(mode & 0o7777, *self._owner, moment)
        known = (version, self._now_ns, UNLISTED, None, 0, None, told, 0)
        batch.append((INSERT, (ino, mount, os.fsencode(path), *known)))
        self.count += 1
        self.directories += is_directory

    def committed(self) -> None:
        """The rows are there."""
        self._volume.rows += self.count
