"""The next pages of a listing, asked for while the one before is taken into the tree.

``Merge`` begins when a reader has gone on to a second page, and takes a page when the reader comes
for it. ``PAGES_EACH`` are held or on their way for a directory, so that the backend makes one while
another is parsed and a third becomes rows: a listing of 100,000 keys took a third longer with one.
Pages that nobody came for within ``KEEP_S`` are dropped, so is one that failed: who comes then asks
again and hears what is wrong himself. At most ``DIRECTORIES_MAX`` at a time. While a page is held
its question counts as asked, so that what changes meanwhile is seen (``remoteunderway``). Belongs
to the event loop's thread; tasks live in the volume's nursery.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import UnifsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.types import Page
    from unifs.vfs.remoteunderway import Questions

    #: One page of the directory at a path, from a cursor.
    Scan = Callable[[str, str | None], Awaitable[Page]]

#: A page of 1,000 entries takes 1 MiB.
PAGES_EACH: Final = 2
DIRECTORIES_MAX: Final = 4
KEEP_S: Final = 5.0


@dataclass(slots=True, eq=False)
class _Ahead:
    """One directory's. ``cursor`` is that of the page to be asked for next, None behind the last.

    ``pages``: cursor, page and the moment of its question, in order.
    """

    path: str
    cursor: str | None
    pages: deque[tuple[str, Page, int]] = field(default_factory=deque)
    changed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def has_changed(self) -> None:
        """Wake whoever waits for a page, or for room."""
        self.changed.set()
        self.changed = trio.Event()

    async def until_wanted(self) -> None:
        """Return when another page may be asked for, or all have been taken."""
        while len(self.pages) >= PAGES_EACH or (self.pages and self.cursor is None):
            await self.changed.wait()


class Ahead:
    """Pages on their way, by the number of their directory's inode."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._listings: dict[int, _Ahead] = {}

    def begin(self, nursery: trio.Nursery, scan: Scan, ino: int, place: tuple[str, str]) -> None:
        """Ask for the pages of a directory from (path, cursor) on, unless that is done already or
        too many are asked for."""
        if ino not in self._listings and len(self._listings) < DIRECTORIES_MAX:
            ahead = self._listings[ino] = _Ahead(*place)
            nursery.start_soon(self._ask, scan, ino, ahead)

    async def _ask(self, scan: Scan, ino: int, ahead: _Ahead) -> None:
        try:
            with ahead.scope:
                while ahead.cursor is not None:
                    await self._ask_one(scan, ahead, ahead.cursor)
                    with trio.fail_after(KEEP_S):
                        await ahead.until_wanted()
        except (UnifsError, trio.TooSlowError):
            # Whoever comes for the next page asks again.
            return
        finally:
            if self._listings.get(ino) is ahead:
                del self._listings[ino]
            for _ in ahead.pages:
                self._questions.end()
            ahead.pages.clear()
            ahead.has_changed()

    async def _ask_one(self, scan: Scan, ahead: _Ahead, cursor: str) -> None:
        moment = self._questions.begin()
        try:
            page = await scan(ahead.path, cursor)
        except BaseException:
            self._questions.end()
            raise
        ahead.pages.append((cursor, page, moment))
        ahead.cursor = page.after
        ahead.has_changed()

    async def take(self, ino: int, place: tuple[str, str | None]) -> tuple[Page, int] | None:
        """The page at (path, cursor) and the moment of its question, if it was asked for.

        The question is the caller's to end.
        """
        ahead = self._listings.get(ino)
        if ahead is None:
            return None
        first = ahead.pages[0][0] if ahead.pages else ahead.cursor
        if (ahead.path, first) != place:
            self.drop(ino)
            return None
        while not ahead.pages:
            if self._listings.get(ino) is not ahead:
                return None
            await ahead.changed.wait()
        _, page, moment = ahead.pages.popleft()
        ahead.has_changed()
        return page, moment

    def drop(self, ino: int) -> None:
        """Nobody wants those pages any more."""
        ahead = self._listings.pop(ino, None)
        if ahead is not None:
            ahead.scope.cancel()
