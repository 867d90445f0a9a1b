"""Which directories there are, as far as keys can tell.

S3 has none: a directory is there while a key begins with its path, or while its marker (a key that
ends in "/" and has no bytes) is. So a file put needs a look whether its directory is there, and a
directory that loses its last file would be gone. What this mount itself saw or made is remembered
for ``KNOWN_S``, so that a thousand files put into a directory look once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import Conflict, NotADirectory, NotFound, PermissionDenied
from unifs.mounts.s3.attributes import marker_headers, write_headers
from unifs.mounts.s3.encryption import key_headers
from unifs.mounts.s3.service import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.mounts.s3.names import Places
    from unifs.mounts.s3.objects import Objects
    from unifs.types import Node

KNOWN_S: Final = 30.0
KNOWN_MAX: Final = 4096


class Directories:
    """What is known of directories, and the looks that find it out."""

    def __init__(
        self, objects: Objects, places: Places, stat: Callable[[str], Awaitable[Node]]
    ) -> None:
        self._objects = objects
        self._places = places
        self._stat = stat
        #: path -> when it was seen; those with a marker in the second.
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._marked: OrderedDict[str, None] = OrderedDict()
        #: Those that this mount made, empty, and when.
        self._made: OrderedDict[str, float] = OrderedDict()
        self._marking = trio.Lock()

    def seen(self, path: str, is_marked: bool = False) -> None:
        """The directory is there."""
        self._seen[path] = trio.current_time()
        self._seen.move_to_end(path)
        if len(self._seen) > KNOWN_MAX:
            self._seen.popitem(last=False)
        if is_marked:
            self._marked[path] = None
            self._marked.move_to_end(path)
            if len(self._marked) > KNOWN_MAX:
                self._marked.popitem(last=False)

    def made(self, path: str) -> None:
        """The directory is new: what comes to lie in it soon comes from here."""
        self.seen(path, is_marked=True)
        self._made[path] = trio.current_time()
        if len(self._made) > KNOWN_MAX:
            self._made.popitem(last=False)

    def gone(self, path: str) -> None:
        """The directory, and all below it, is not there any more."""
        for known in (self._seen, self._marked, self._made):
            for one in [one for one in known if one == path or one.startswith(f"{path}/")]:
                del known[one]

    async def need_above(self, path: str) -> None:
        """Return if the directory that ``path`` lies in is there; NotFound or NotADirectory."""
        above = path.rpartition("/")[0]
        if not above:
            return
        seen = self._seen.get(above)
        if seen is not None and seen + KNOWN_S > trio.current_time():
            return
        node = await self._stat(above)
        if node.mode & 0o170000 != 0o040000:
            raise NotADirectory(f"{above!r} is no directory")
        self.seen(above)

    async def is_free(self, path: str) -> bool:
        """Whether a new file does not take a directory's name.

        In a directory that was made here a moment ago that is known. Should somebody else put a
        directory there just then, both are shown (``names``) and nothing is lost.
        """
        made = self._made.get(path.rpartition("/")[0], float("-inf"))
        if path not in self._seen and made + KNOWN_S > trio.current_time():
            return True
        return not await self.is_there(path)

    async def is_there(self, path: str) -> bool:
        """Whether any key lies in the directory at ``path``, its marker included."""
        bucket, prefix = self._places.prefix_at(path)
        try:
            return bool(await self._objects.first_keys(bucket, prefix, 1))
        except NotFound:
            return False

    async def keep_above(self, path: str) -> None:
        """The directory that ``path`` lies in outlives what is in it: it gets a marker.

        Where this identity may not write there, so be it: the directory then ends with its files.
        """
        above = path.rpartition("/")[0]
        if above in self._marked or self._places.is_top(above):
            return
        # One for all who remove at the same time.
        async with self._marking:
            if above not in self._marked:
                await self._keep(above)

    async def _keep(self, above: str) -> None:
        bucket, prefix = self._places.prefix_at(above)
        if not prefix.endswith("/"):
            return
        try:
            await self.keep(bucket, prefix, marker_headers(""))
        except PermissionDenied:
            return
        self.seen(above, is_marked=True)

    async def keep(self, bucket: str, prefix: str, headers: dict[str, str]) -> None:
        """Put a directory's marker where there is none."""
        try:
            await self.mark(bucket, prefix, headers)
        except Conflict:
            # SeaweedFS says so of every directory; only one that is listed stays.
            if await self._objects.first_keys(bucket, prefix, 1) != [prefix]:
                await self.mark(bucket, prefix, headers, is_new=False)

    async def clear(self, bucket: str, key: str) -> bool:
        """Whether a directory of nothing stood at a key, and is gone now.

        SeaweedFS keeps a directory whose last object somebody removed: it lists no key for it, but
        shows it among the prefixes, and ``If-None-Match`` refuses a file of its name. To remove it
        spares what may be in it.
        """
        prefix = f"{key}/"
        if self._objects.service.is_amazon or await self._objects.head(bucket, prefix) is None:
            return False
        if await self._objects.first_keys(bucket, prefix, 1):
            return False
        await self._clear(bucket, prefix)
        return True

    async def _clear(self, bucket: str, prefix: str) -> None:
        """Remove directories of nothing, those within others first."""
        before: list[str] = []
        while True:
            page = await self._objects.page(bucket, {"prefix": prefix, "delimiter": "/"})
            below = [found for found in page.prefixes if found != prefix]
            if below == before:
                # Nothing more, or somebody puts things there.
                break
            for found in below:
                await self._clear(bucket, found)
            before = below
        await self._objects.service.call(Request("DELETE", bucket, prefix))

    async def mark(
        self, bucket: str, prefix: str, headers: dict[str, str], is_new: bool = True
    ) -> None:
        """Put a directory's marker. Conflict where there is one and it is to be new."""
        options = self._objects.service.options
        said = {**write_headers(options), **key_headers(options), **headers}
        if is_new:
            said["if-none-match"] = "*"
        await self._objects.service.call(Request("PUT", bucket, prefix, headers=said))
