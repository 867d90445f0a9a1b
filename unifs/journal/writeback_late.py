"""What may still arrive at a backend: calls that ended without an answer.

Proxies and services act on what they were sent before the connection closed. While a call may still
arrive at a path, nothing goes there but its repetition, and what it can do no harm to. So it
arrives where its conditions were made for: a PUT finds its own object and is refused, a DELETE
finds what it was to delete or nothing, a copy finds that its source is gone. Without that a
repeated and answered PUT could come again after its file was removed, and a late DELETE could take
a new file of the same bytes.

Used by ``writeback_calls``; belongs to the event loop's thread. A restart does not shorten it:
``vfs.remotelate`` notes in the rows what no attempt tells any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.journal.writeback_order import Attempt
    from unifs.types import Change, Version


def _is_refused_after(late: Change, change: Change) -> bool:
    """Whether a backend with conditions refuses ``late`` once ``change`` has happened.

    But for the version that ``late`` was made for coming back (``Late.match_s``).
    """
    if late.verb == "put":
        return change.verb == "set_attributes" or (change.verb == "put" and change.base is not None)
    return late.verb == "remove" and late.base is not None and change.verb == "put"


@dataclass(frozen=True, slots=True)
class _Lost:
    """A call without an answer, and until when it may arrive."""

    change: Change
    until: float

    def is_same(self, change: Change) -> bool:
        """Whether that is the same call again."""
        mine = self.change
        if mine.verb == "remove":
            return change.verb == "remove"
        return mine.token == change.token

    def is_told_by(self, change: Change) -> bool:
        """Whether nothing is forgotten where that one is remembered instead."""
        return self.is_same(change) and self.change.base == change.base


class Late:
    """What may still arrive: the calls without an answer, by path.

    Of an earlier daemon the attempts that it left open are known, and what it may have been about
    to remove: whoever finds those in the rows says so (``lost``). What may arrive although its
    repetition was answered stands in its notes (``noted``).
    """

    def __init__(self, late_s: float) -> None:
        self._late_s = late_s
        #: The path that was lost last is the last.
        self._lost: dict[str, list[_Lost]] = {}

    def lost(self, change: Change) -> None:
        """A call ended without an answer."""
        self.noted(change, self._late_s)

    def noted(self, change: Change, left_s: float) -> None:
        """A call may still arrive for so long."""
        now = trio.current_time()
        while self._lost:
            path, found = next(iter(self._lost.items()))
            if found[-1].until > now:
                break
            del self._lost[path]
        lost = _Lost(change, now + min(left_s, self._late_s))
        for path in (change.path, change.new_path):
            if path:
                found = self._lost.pop(path, [])
                others = [one for one in found if one.until > now and not one.is_told_by(change)]
                self._lost[path] = [*others, lost]

    def at(self, path: str) -> list[tuple[Change, float]]:
        """What may still arrive at a path, and for how long."""
        now = trio.current_time()
        return [(lost.change, lost.until - now) for lost in self._lost.get(path, ())]

    def left_s(self, attempt: Attempt) -> float:
        """How long a call of an attempt may still arrive; not positive where none can."""
        until = -math.inf
        for lost in self._lost.get(attempt.path, ()):
            if lost.change.token == attempt.token:
                until = max(until, lost.until)
        return until - trio.current_time()

    def wait_s(self, change: Change, is_tree: bool, is_conditional: bool) -> float:
        """How long ``change`` has to wait for others that may still arrive where it goes.

        ``is_tree``: it takes what lies below its paths along. ``is_conditional``: the backend
        refuses a put whose base is not there. Not positive where there is nothing to wait for.
        """
        until = -math.inf
        for lost in self._at(change, is_tree):
            is_refused = is_conditional and _is_refused_after(lost.change, change)
            if not lost.is_same(change) and not is_refused:
                until = max(until, lost.until)
        return until - trio.current_time()

    def match_s(self, change: Change, version: Version | None) -> float:
        """How long another call may still arrive whose base has just been stored again."""
        until = -math.inf
        for lost in self._at(change, False):
            if version and lost.change.base == version and not lost.is_same(change):
                until = max(until, lost.until)
        return until - trio.current_time()

    def _at(self, change: Change, is_tree: bool) -> Iterator[_Lost]:
        for path in (change.path, change.new_path) if self._lost else ():
            if path:
                yield from self._lost.get(path, ())
                if is_tree:
                    for place, found in self._lost.items():
                        if place.startswith(f"{path}/"):
                            yield from found
