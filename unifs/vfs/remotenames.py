"""Names that a backend could never hold are refused when they are made, not when they are sent.

Called by ``RemoteVolume`` for every new name; it asks the mount, not the backend, and changes
nothing. What only the backend can tell (a name that it forbids) is told by the journal.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from unifs.errors import CrossMount
from unifs.vfs.remoterows import RemoteInode

if TYPE_CHECKING:
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.volume import Inode


def check_name(volume: RemoteVolume, parent: Inode, name: bytes, kind: int) -> None:
    """InvalidArgument or NotPermitted where nothing of that kind can have that name."""
    assert isinstance(parent, RemoteInode)
    volume.mount.check_name(parent.path, name, kind)


def check_rename(volume: RemoteVolume, old: tuple[Inode, bytes], new: tuple[Inode, bytes]) -> None:
    """As ``check_name`` of the new name; CrossMount where programs copy and remove instead."""
    inode = volume.find(*old)
    if inode is None:
        return
    if not volume.mount.supports("rename"):
        there = volume.find(*new)
        for one in (inode, there):
            if one is not None and stat.S_ISDIR(one.attributes.st_mode):
                raise CrossMount
    if volume.mount.has_containers and volume.root in (old[0].ino, new[0].ino):
        raise CrossMount
    check_name(volume, *new, stat.S_IFMT(inode.attributes.st_mode))
