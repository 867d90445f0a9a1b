"""What is under way between a remote volume and its backend: questions, and changes of ours.

``Attempts`` are changes whose outcome is not known: sent and not answered, or left by an earlier
daemon. ``Questions`` tells which answers are older than what is known, because a change ended while
they were asked. Both belong to the event loop's thread; neither reads nor writes a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from unifs.journal.writeback_order import Attempt


class Attempts:
    """Changes of unknown outcome, by inode and path."""

    def __init__(self) -> None:
        self._by_path: dict[str, set[int]] = {}
        #: Of those that are renames: inode -> both paths.
        self._moving: dict[int, tuple[str, str]] = {}
        #: Those of them that were refused halfway: nothing of them is under way.
        self._refused: set[int] = set()
        self._ended = trio.Event()

    def add(self, ino: int, attempt: Attempt, path: str | None) -> None:
        """A change begins, or is refused halfway; ``path``: where the backend holds the inode."""
        self._by_path.setdefault(attempt.path, set()).add(ino)
        if attempt.verb == "rename" and path is not None:
            self._moving[ino] = (path, attempt.path)
        if attempt.is_refused:
            self._refused.add(ino)
            self._tell()
        else:
            self._refused.discard(ino)

    def end(self, ino: int) -> None:
        """The outcome of whatever was attempted with an inode is known."""
        for path in [path for path, held in self._by_path.items() if ino in held]:
            self._by_path[path].discard(ino)
            if not self._by_path[path]:
                del self._by_path[path]
        self._refused.discard(ino)
        if self._moving.pop(ino, None) is not None:
            self._tell()

    def _tell(self) -> None:
        self._ended.set()
        self._ended = trio.Event()

    @property
    def is_quiet(self) -> bool:
        """Whether there is none."""
        return not self._by_path and not self._moving

    def is_at(self, path: str) -> bool:
        """Whether what stands at ``path`` is perhaps ours, without our knowing."""
        return path in self._by_path

    def at(self, path: str) -> Collection[int]:
        """The inodes that have an attempt at ``path``."""
        return self._by_path.get(path, ())

    def below(self, path: str) -> Iterator[int]:
        """The inodes that have an attempt below a directory."""
        for place, held in self._by_path.items():
            if place.startswith(f"{path}/"):
                yield from held

    def is_moving(self, path: str) -> bool:
        """Whether a rename is under way that moves what stands at ``path``, or goes there."""
        return any(ino not in self._refused for ino in self._movers(path))

    def moving(self, path: str) -> int:
        """The inode of a rename that has not ended and concerns ``path``, 0 for none."""
        return next(self._movers(path), 0)

    def _movers(self, path: str) -> Iterator[int]:
        for ino, ends in self._moving.items():
            if any(path == end or path.startswith(f"{end}/") for end in ends):
                yield ino

    async def settled(self, path: str) -> bool:
        """Wait for the end of renames that concern ``path``; whether there was one."""
        has_waited = False
        while self.is_moving(path):
            has_waited = True
            await self._ended.wait()
        return has_waited


class Questions:
    """Questions to the backend, and the paths that changed there by us meanwhile."""

    def __init__(self) -> None:
        self._asking = 0
        self._moment = 0
        self._departed: dict[str, int] = {}

    def begin(self) -> int:
        """A question is asked; the moment to judge its answer by."""
        self._asking += 1
        return self._moment

    def end(self) -> None:
        """It has been answered, or given up."""
        self._asking -= 1
        if not self._asking:
            self._departed.clear()

    def departed(self, path: str) -> None:
        """Writeback changed what stands at ``path``: answers under way do not know."""
        if self._asking:
            self._moment += 1
            self._departed[path] = self._moment

    @property
    def has_departed(self) -> bool:
        """Whether anything changed since the oldest question that is still asked."""
        return bool(self._departed)

    def is_late(self, path: str, moment: int) -> bool:
        """Whether an answer about ``path`` to a question of ``moment`` is older than a change."""
        while True:
            if self._departed.get(path, 0) > moment:
                return True
            if "/" not in path:
                return False
            path = path.rpartition("/")[0]
