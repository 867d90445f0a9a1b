"""What writeback needs of the tree besides places: bytes to send, and changes that it confirms.

Implemented by ``vfs.remotesync``, called by ``writeback_calls``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from unifs.journal.writeback_order import Objects

if TYPE_CHECKING:
    from collections.abc import Collection

    from unifs.journal.writeback_order import Attempt
    from unifs.mounts.base import ContentReader
    from unifs.types import Node, SetAttributes


@dataclass(slots=True, eq=False)
class Upload:
    """Immutable bytes on their way. ``mark`` says how far the inode was written at that moment."""

    reader: ContentReader
    blob: bytes
    key: bytes
    mark: int = 0


class LocalTree(Objects, Protocol):
    """What writeback needs of the tree; every change is one transaction."""

    async def upload(self, ino: int) -> Upload | None:
        """The inode's bytes, durable here; None where they are changing."""
        ...

    async def flush(self, seq: int) -> None:
        """Return when records up to ``seq``, and all committed before them, survive a power cut."""
        ...

    def token(self, seq: int, verb: str) -> str:
        """What a backend knows a change by; no other has it, here or in another tree."""
        ...

    async def attempted(self, ino: int) -> Upload | None:
        """The bytes of the open attempt, None where there is none."""
        ...

    def node(self, ino: int) -> Node: ...

    def attributes(self, ino: int) -> SetAttributes: ...

    def begin(self, ino: int, attempt: Attempt, blob: bytes) -> None:
        """From now on the backend may have it."""
        ...

    def end(self, ino: int) -> None:
        """The attempt did not reach the backend."""
        ...

    def refused(self, ino: int) -> None:
        """The attempt, a rename, was refused when a part of it was done: it is not under way."""
        ...

    def disown(self, ino: int) -> None:
        """What the attempt may still bring to the backend is to be removed; ``ino`` goes on."""
        ...

    def note_late(self, path: str) -> None:
        """What may still arrive at ``path`` is known after a restart, too. Raises nothing."""
        ...

    def attempting(self, path: str) -> Collection[int]:
        """The inodes that have an attempt at ``path``."""
        ...

    def stored(self, ino: int, path: str, node: Node, upload: Upload | None) -> None:
        """The backend has it there; what stood there before is gone."""
        ...

    def moved(self, ino: int, path: str, new_path: str) -> None: ...

    def removed(self, ino: int, is_foreign: bool) -> None:
        """The backend has nothing of it any more, or keeps what is somebody else's."""
        ...

    def told(self, ino: int) -> None: ...

    def kept_here(self, ino: int) -> None:
        """The backend cannot keep such an object: it lives in the tree."""
        ...

    def vanished(self, ino: int) -> None:
        """Somebody removed it from the backend."""
        ...

    def conflict(self, ino: int, path: str, node: Node) -> None:
        """Somebody else's object stands at ``path``."""
        ...
