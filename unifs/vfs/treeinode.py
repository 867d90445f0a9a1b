"""Inodes of the tree: what an object of the hot table knows beyond its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.journal.content import SEALED, LargeContent
from unifs.vfs.volume import Inode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.journal.content import Content
    from unifs.journal.overlay import Overlay
    from unifs.types import Attributes
    from unifs.vfs.volume import Volume


class TreeInode(Inode):
    """A row of ``inode``, and what its writers have not committed yet."""

    __slots__ = (
        "acknowledged",
        "changed_at",
        "content",
        "epoch",
        "guards",
        "is_gone",
        "is_touched",
        "name",
        "overlay",
        "parent",
        "pending",
        "seq",
        "stored",
        "synced",
        "unsynced_bytes",
        "writers",
    )

    def __init__(self, ino: int, volume: Volume, attributes: Attributes) -> None:
        # Inode's own four, not by a call: this runs once per created file.
        self.ino = ino
        self.volume = volume
        self.attributes = attributes
        self.opens = 0
        #: Its directory while it has one name, else 0.
        self.parent = 0
        #: The name under which it was found last; None before.
        self.name: bytes | None = None
        #: Epoch in which the row got its present form.
        self.epoch = 0
        #: No name is left; openable until the kernel forgets it.
        self.is_gone = False
        #: Created and not committed yet: (directory, name).
        self.pending: tuple[int, bytes] | None = None
        #: The content column as it is in the database.
        self.stored = b""
        #: What a power cut goes back to instead of ``stored``, which was committed on the way to
        #: something else and is nothing that a call has acknowledged; None: ``stored`` itself.
        self.acknowledged: bytes | None = None
        #: The content column of the last SYNC record that is known.
        self.synced: bytes | None = None
        #: ``stored`` decoded, at first use.
        self.content: Content | None = None
        self.overlay: Overlay | None = None
        #: Open handles that may write.
        self.writers = 0
        #: These took names of ours by a rename; our row stays until their contents are sealed.
        self.guards: list[TreeInode] = []
        #: Journal record of the present content, or a later one.
        self.seq = 0
        #: Bytes written that are not yet where they belong (``vfs.unsynced``).
        self.unsynced_bytes = 0
        #: Attributes differ from the row (times of a directory, atime).
        self.is_touched = False
        #: Monotonic seconds at which it became pending or got its overlay.
        self.changed_at = 0.0

    def is_busy(self) -> bool:
        return (
            self.opens > 0
            or self.overlay is not None
            or self.pending is not None
            or self.is_gone
            or self.is_touched
            or getattr(self.content, "state", SEALED) != SEALED
        )

    def before(self) -> bytes:
        """The content column that a power cut goes back to from what is committed next."""
        return self.stored if self.acknowledged is None else self.acknowledged

    def is_dirty(self) -> bool:
        """Whether closing must commit something."""
        overlay = self.overlay
        return self.pending is not None or (overlay is not None and overlay.is_dirty)

    def living_guards(self) -> set[TreeInode]:
        """Who has our names now: those that took them, or took them from these."""
        found: set[TreeInode] = set()
        waiting, seen = list(self.guards), {self}
        while waiting:
            guard = waiting.pop()
            if guard in seen:
                continue
            seen.add(guard)
            if guard.is_gone:
                waiting += guard.guards
            else:
                found.add(guard)
        return found


def share(content: LargeContent, inodes: Iterable[Inode]) -> None:
    """What sealing has made of a content holds for every inode that has it: of what was brought
    back from the past each one decodes its own.
    """
    for inode in inodes:
        if isinstance(inode, TreeInode):
            held = inode.content
            if isinstance(held, LargeContent) and held.id == content.id:
                inode.content = content
