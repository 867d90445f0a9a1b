"""What operations on the past ask of the daemon, and what they are answered with.

As in ``daemon_protocol``: a name here is a name in the JSON, the tables and the docs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from unifs.control.daemon_protocol import Answer, FileKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class EpochInfo(Answer):
    """An epoch that is kept: the tree as it was at ``time_s``. ``cid``: the root, where one was
    built. ``names``: its checkpoints.
    """

    epoch: int
    time_s: float
    names: list[str]
    cid: str | None = None


class PathVersion(Answer):
    """What a path was from this epoch on. ``changed`` says in words what differs from before: made,
    removed, kind, content, mode, owner, links, time, attributes; names, of a directory.
    """

    epoch: int
    time_s: float
    changed: list[str]
    kind: FileKind | None = None
    size_bytes: int | None = None
    mode: str | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_s: float | None = None
    cid: str | None = None


class Difference(Answer):
    """A path that is not in the second epoch what it was in the first."""

    change: Literal["added", "removed", "changed"]
    kind: FileKind
    what: list[str]
    path: str


class Restored(Answer):
    """What was brought back, in numbers of names. ``before`` is the epoch that holds what was there
    until now; ``skipped`` was left as it is: it is not tracked.
    """

    path: str
    epoch: int
    before: int
    made: int
    changed: int
    removed: int
    unchanged: int
    skipped: list[str]


class CheckpointInfo(Answer):
    """An epoch that is kept until its name is removed."""

    name: str
    epoch: int
    time_s: float


class Tracked(Answer):
    """A path at and below which a past is kept, or is not."""

    path: str
    is_tracked: bool


class History(Protocol):
    """The past of the tree. An epoch is given by its number, a checkpoint's name, a time or
    ``now``.
    """

    def epochs(self) -> AsyncIterator[EpochInfo]: ...

    def versions(self, path: str) -> AsyncIterator[PathVersion]:
        """The oldest first."""
        ...

    def diff(self, first: str, second: str, path: str) -> AsyncIterator[Difference]: ...

    async def undelete(self, path: str, epoch: str | None, to: str | None) -> Restored:
        """Exists where something is there now."""
        ...

    async def rollback(self, path: str, epoch: str) -> Restored:
        """Busy where a file is open for writing."""
        ...

    async def checkpoint(self, name: str) -> CheckpointInfo: ...

    async def checkpoints(self) -> list[CheckpointInfo]: ...

    async def remove_checkpoint(self, name: str) -> CheckpointInfo: ...

    async def track(self, path: str, is_tracked: bool, is_sure: bool = False) -> Tracked: ...

    async def tracked(self) -> list[Tracked]: ...
