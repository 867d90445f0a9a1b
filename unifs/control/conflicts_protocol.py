"""What operations ask of the daemon about conflicts, and what they are answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from unifs.control.daemon_protocol import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

Side = Literal["ours", "theirs", "both"]


class Conflict(Answer):
    """Two versions of one file: ``ours`` was written here, ``theirs`` came from the backend."""

    #: Where both wanted to be; the backend's version is there.
    path: str
    ours: str
    #: Whether the backend's version is still there.
    has_theirs: bool
    time_s: float


class Resolved(Answer):
    """What became of a conflict."""

    path: str
    kept: Side


class Conflicts(Protocol):
    """Files of which somebody else changed the backend's version."""

    async def list(self, path: str | None) -> Sequence[Conflict]: ...

    async def resolve(self, path: str, keep: Side) -> Resolved:
        """``path`` is that of either version; NotFound where there is no conflict."""
        ...
