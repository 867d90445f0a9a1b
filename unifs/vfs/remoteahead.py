"""The next page of a listing, asked for while the one before is taken into the tree.

``Merge`` begins one when a reader has gone on to a second page, and takes it when the reader comes
for the next. A page that nobody came for within ``KEEP_S`` is dropped, so is one that failed: who
comes then asks again and hears what is wrong himself. At most ``PAGES_MAX`` at a time. While a page
is held its question counts as asked, so that what changes meanwhile is seen (``remoteunderway``).
Belongs to the event loop's thread; tasks live in the volume's nursery.
"""

from __future__ import annotations

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
PAGES_MAX: Final = 8
KEEP_S: Final = 5.0


@dataclass(slots=True, eq=False)
class _Ahead:
    #: Path and cursor.
    place: tuple[str, str]
    moment: int
    page: Page | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Ahead:
    """Pages on their way, by the number of their directory's inode."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._pages: dict[int, _Ahead] = {}

    def begin(self, nursery: trio.Nursery, scan: Scan, ino: int, place: tuple[str, str]) -> None:
        """Ask for the page of a directory at (path, cursor), unless too many are asked for."""
        self.drop(ino)
        if len(self._pages) < PAGES_MAX:
            ahead = self._pages[ino] = _Ahead(place, self._questions.begin())
            nursery.start_soon(self._ask, scan, ino, ahead)

    async def _ask(self, scan: Scan, ino: int, ahead: _Ahead) -> None:
        try:
            with ahead.scope:
                try:
                    ahead.page = await scan(*ahead.place)
                except UnifsError:
                    # Whoever comes for this page asks again.
                    return
                ahead.answered.set()
                await trio.sleep(KEEP_S)
        finally:
            ahead.answered.set()
            self._questions.end()
            if self._pages.get(ino) is ahead:
                del self._pages[ino]

    async def take(self, ino: int, place: tuple[str, str | None]) -> tuple[Page, int] | None:
        """The page at (path, cursor) and the moment of its question, if it was asked for.

        The question is the caller's to end; no checkpoint lies between its two ends.
        """
        ahead = self._pages.get(ino)
        if ahead is None or ahead.place != place:
            self.drop(ino)
            return None
        await ahead.answered.wait()
        if ahead.page is None or self._pages.get(ino) is not ahead:
            return None
        self._questions.begin()
        self.drop(ino)
        return ahead.page, ahead.moment

    def drop(self, ino: int) -> None:
        """Nobody wants that page any more."""
        ahead = self._pages.pop(ino, None)
        if ahead is not None:
            ahead.scope.cancel()
