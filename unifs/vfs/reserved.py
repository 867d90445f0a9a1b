"""The reserved name at the root: ``/.unifs``, a read-only directory of views.

No listing of the root shows it; a look-up finds it. Its children are the roots of read-only
volumes, each registered by name: ``history`` (what the tree was) and others. The daemon makes one
and hands it to whoever has a view to show.

It owns the inode prefixes from ``RESERVED_FIRST`` to ``RESERVED_LAST``: a view takes one or more of
them, so its inode numbers never meet those of the tree or of a host directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.errors import TooManyHandles

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.types import Attributes
    from unifs.vfs.inodes import Inodes
    from unifs.vfs.namespace import Namespace
    from unifs.vfs.volume import Volume

RESERVED_NAME = b".unifs"
RESERVED_FIRST, RESERVED_LAST = 0x4000, 0x7FFF


class Reserved:
    """The directory ``/.unifs``. Belongs to the event loop's thread."""

    def __init__(self, namespace: Namespace, inodes: Inodes) -> None:
        self._namespace = namespace
        self.inodes = inodes
        self._directory = namespace.add_unlisted(RESERVED_NAME)
        self._next = RESERVED_FIRST

    @property
    def factory(self) -> Callable[[], Attributes]:
        """Makes attributes in the front end's form."""
        return self._namespace.factory

    @property
    def ino(self) -> int:
        """The directory's inode number."""
        return self._directory.ino

    def add(self, name: bytes, root: int) -> None:
        """Show a view's root directory under a name; Exists if it is taken."""
        self._namespace.add(self._directory, name, root)

    def take_prefix(self, volume: Volume) -> int:
        """A prefix for a view's inode numbers, whose inodes ``volume`` loads from now on.

        TooManyHandles where all of them are taken; ``give_back`` makes room.
        """
        for _ in range(RESERVED_LAST - RESERVED_FIRST + 1):
            prefix = self._next
            self._next = RESERVED_FIRST if prefix == RESERVED_LAST else prefix + 1
            if prefix not in self.inodes.volumes:
                self.inodes.volumes[prefix] = volume
                return prefix
        raise TooManyHandles("too many views of /.unifs are in use at once")

    def give_back(self, prefix: int) -> bool:
        """The prefix is free again, unless the kernel remembers an inode of it; whether it is."""
        if self.inodes.known.get(prefix):
            return False
        self.inodes.drop_volume(prefix)
        return True
