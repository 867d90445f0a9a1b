"""Paths to nodes: stat and scan.

An object is a file. A prefix of other keys is a directory, with or without a marker. Where both
have one name the object is ``k`` and the directory ``k%%`` (``names``), so that a file costs one
HEAD.

A page's cursor is the service's own token, the last name (a service forgets its tokens), and those
objects that a later prefix may share its name with: "k" comes before "k.txt" and "k/".
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from unifs.errors import (
    Corrupt,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from unifs.mounts.s3.attributes import DIRECTORY, directory_in, node_in, target_in
from unifs.mounts.s3.directories import Directories
from unifs.mounts.s3.listing import records
from unifs.mounts.s3.names import (
    is_beside_object,
    is_part,
    is_probe,
    names_beside,
    names_of,
    parts_of,
)
from unifs.mounts.s3.parallel import all_of
from unifs.mounts.s3.service import Request
from unifs.types import SYMLINK_MAX_BYTES, Entry, Node, Page, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unifs.mounts.s3.listing import KeyPage, Listed
    from unifs.mounts.s3.names import Places
    from unifs.mounts.s3.objects import Objects

log = logging.getLogger(__name__)

PAGE_KEYS: Final = 1000
#: With attributes in metadata each entry costs a HEAD.
KEEPING_PAGE_KEYS: Final = 250
HEADS_MAX: Final = 32
#: Behind every key that begins like this.
LAST: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where a listing goes on. ``objects`` are names of objects that a prefix may share."""

    token: str = ""
    last: str = ""
    objects: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str | None) -> _Cursor:
        if text is None:
            return cls()
        try:
            token, last, *objects = json.loads(text)
        except (ValueError, TypeError) as error:
            raise InvalidArgument("that is no cursor of a listing") from error
        return cls(token, last, tuple(objects))

    def text(self) -> str:
        return json.dumps([self.token, self.last, *self.objects])


class Reading:
    """stat, scan and read of one mount."""

    def __init__(self, objects: Objects, places: Places) -> None:
        self.objects = objects
        self.places = places
        self.directories = Directories(objects, places, self.stat)
        self._is_keeping = objects.service.options.keeps_attributes

    # --- stat -------------------------------------------------------------------------------------

    async def stat(self, path: str) -> Node:
        """The node at ``path``; NotFound only where the service says that there is none."""
        bucket, rest = self.places.split(path)
        if not rest:
            if bucket:
                await self.objects.service.call(Request("HEAD", bucket))
            return DIRECTORY
        if not is_part(path):
            node = await self._stat_object(path)
            if node is not None:
                return node
        return await self._stat_directory(path)

    async def _stat_object(self, path: str) -> Node | None:
        place = self.places.maybe_object_at(path)
        if place is None:
            return None
        headers = await self.objects.head(*place)
        if headers is None or (place[1].endswith("/") and headers.get("content-length") == "0"):
            return None
        return await self.node_of(place, headers)

    async def node_of(self, place: tuple[str, str], headers: dict[str, str]) -> Node:
        """The node of an object from its HEAD; a symlink's target takes another request."""
        node = node_in(headers, self._is_keeping)
        if not stat.S_ISLNK(node.mode):
            return node
        assert node.version is not None
        body = await self.objects.read(place, node.version, 0, SYMLINK_MAX_BYTES + 1)
        return replace(node, target=target_in(body))

    async def _stat_directory(self, path: str) -> Node:
        try:
            bucket, prefix = self.places.prefix_at(path)
        except InvalidArgument as error:
            raise NotFound(f"no key is shown as {path!r}") from error
        if is_part(path):
            page = await self.scan(path, None)
            while not page.entries and page.after is not None:
                page = await self.scan(path, page.after)
            if not page.entries:
                raise NotFound(f"no key begins like {path!r}")
            return DIRECTORY
        keys = await self.objects.first_keys(bucket, prefix, 1)
        if not keys:
            raise NotFound(f"there is no {path!r}")
        if is_beside_object(path) and await self.objects.head(bucket, prefix[:-1]) is None:
            raise NotFound(f"{path!r} is shown under its plain name")
        self.directories.seen(path, is_marked=keys[0] == prefix)
        return await self._directory_node(bucket, prefix, has_marker=keys[0] == prefix)

    async def _directory_node(self, bucket: str, prefix: str, has_marker: bool) -> Node:
        if not self._is_keeping or not has_marker:
            return DIRECTORY
        headers = await self.objects.head(bucket, prefix)
        return DIRECTORY if headers is None else directory_in(headers)

    # --- scan -------------------------------------------------------------------------------------

    async def scan(self, path: str, after: str | None) -> Page:
        """One page of the directory at ``path``."""
        bucket, rest = self.places.split(path)
        if not bucket:
            return await self._scan_buckets()
        cursor = _Cursor.of(after)
        try:
            bucket, prefix = self.places.prefix_at(path)
        except InvalidArgument as error:
            raise NotFound(f"no key is shown as {path!r}") from error
        page = await self._page(bucket, prefix, cursor)
        is_empty = not page.objects and not page.prefixes
        if is_empty and rest and after is None and not is_part(path):
            if await self._stat_object(path) is not None:
                raise NotADirectory(f"{path!r} is no directory")
            raise NotFound(f"there is no {path!r}")
        if after is None and not is_empty:
            is_marked = bool(page.objects) and page.objects[0].key == prefix
            self.directories.seen(path, is_marked)
        has_probes = prefix == self.places.prefix
        shown = _Shown(path, prefix, cursor.objects, has_probes)
        entries = list(shown.entries(page))
        if self._is_keeping:
            entries = await self._with_attributes(bucket, prefix, entries)
        following = _following(page, shown, prefix)
        if is_part(path) and not entries and after is None and following is None:
            raise NotFound(f"no key begins like {path!r}")
        return Page(tuple(entry for entry, _ in entries), following)

    async def _page(self, bucket: str, prefix: str, cursor: _Cursor) -> KeyPage:
        count = KEEPING_PAGE_KEYS if self._is_keeping else PAGE_KEYS
        query = {"prefix": prefix, "delimiter": "/", "max-keys": str(count)}
        if cursor.token:
            try:
                return await self.objects.page(
                    bucket, {**query, "continuation-token": cursor.token}
                )
            except InvalidArgument:
                log.debug("the service forgot its token: bucket=%s prefix=%r", bucket, prefix)
        if cursor.last:
            query["start-after"] = cursor.last + (LAST if cursor.last.endswith("/") else "")
        return await self.objects.page(bucket, query)

    async def _scan_buckets(self) -> Page:
        answer = await self.objects.service.call(Request("GET"))
        found = records(answer.body, "Bucket").found
        names = [os.fsencode(fields.get("Name", "")) for fields in found]
        return Page(tuple(Entry(name, DIRECTORY) for name in names if name))

    async def _with_attributes(
        self, bucket: str, prefix: str, entries: list[tuple[Entry, str]]
    ) -> list[tuple[Entry, str]]:
        """The entries with what their objects' metadata says, by a HEAD each."""
        told: dict[int, Entry] = {}

        async def ask(number: int, entry: Entry, key: str) -> None:
            headers = await self.objects.head(bucket, key)
            if headers is None:
                if key.endswith("/"):
                    told[number] = entry
            elif key.endswith("/") and stat.S_ISDIR(entry.node.mode):
                told[number] = Entry(entry.name, directory_in(headers))
            else:
                told[number] = Entry(entry.name, await self.node_of((bucket, key), headers))

        asked = [(number, *pair) for number, pair in enumerate(entries) if pair[1]]
        await all_of(HEADS_MAX, [partial(ask, *one) for one in asked])
        return [
            (told.get(number, entry), key)
            for number, (entry, key) in enumerate(entries)
            if not key or number in told
        ]

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        """``size`` bytes of that version of the object at ``path``."""
        return await self.objects.read(self._object_at(path), version, offset, size)

    async def read_into(
        self,
        path: str,
        version: Version,
        offset: int,
        buffers: Sequence[memoryview],
        filled: Callable[[], None],
    ) -> None:
        """One GET for many buffers; ``Mount.read_into``."""
        await self.objects.read_into(self._object_at(path), version, offset, buffers, filled)

    def _object_at(self, path: str) -> tuple[str, str]:
        if not self.places.split(path)[1] or is_part(path):
            raise IsADirectory(f"{path!r} is a directory")
        return self.places.object_at(path)


class _Shown:
    """What one page of keys is shown as in one directory."""

    def __init__(self, path: str, prefix: str, objects: tuple[str, ...], has_probes: bool) -> None:
        self._prefix = prefix
        self._parts = parts_of(path) if is_part(path) else 0
        self._above = tuple(path.split("/")[-self._parts :]) if self._parts else ()
        #: Where the segment begins of which the directory stands for a part.
        self._cut = prefix.rfind("/") + 1 if self._parts else len(prefix)
        self._objects = set(objects)
        self._has_probes = has_probes

    def entries(self, page: KeyPage) -> Iterator[tuple[Entry, str]]:
        """Each entry, and the key to ask for its attributes ("": none)."""
        seen: set[bytes] = set()
        for found in page.objects:
            if found.key == self._prefix and found.size_bytes == 0:
                continue
            segment = self._segment(found.key)
            if self._has_probes and is_probe(segment):
                continue
            self._objects.add(segment)
            names = names_of(segment)
            if names[: self._parts] != self._above:
                continue
            name = os.fsencode(names[self._parts])
            if len(names) == self._parts + 1:
                yield Entry(name, _file(found)), found.key
            elif name not in seen:
                seen.add(name)
                yield Entry(name, DIRECTORY), ""
        for prefix in page.prefixes:
            yield from self._prefix_entry(prefix, seen)

    def _prefix_entry(self, prefix: str, seen: set[bytes]) -> Iterator[tuple[Entry, str]]:
        segment = self._segment(prefix[:-1])
        names = names_beside(segment) if segment in self._objects else names_of(segment)
        if names[: self._parts] != self._above:
            return
        name = os.fsencode(names[self._parts])
        if name in seen:
            return
        seen.add(name)
        yield Entry(name, DIRECTORY), prefix if len(names) == self._parts + 1 else ""

    def _segment(self, key: str) -> str:
        if not key.startswith(self._prefix):
            raise Corrupt(f"the service lists {key!r} below {self._prefix!r}")
        return key[self._cut :]

    def open_objects(self, lasts: list[str]) -> tuple[str, ...]:
        """The objects whose names a prefix on a later page may have."""
        found: set[str] = set()
        for last in lasts:
            end = last[self._cut :]
            found.update(end[:size] for size in range(len(end) + 1))
        return tuple(sorted(found & self._objects))


def _file(found: Listed) -> Node:
    mode = stat.S_IFREG | 0o644
    return Node(mode, found.size_bytes, Version(found.etag), found.mtime_ns)


def _following(page: KeyPage, shown: _Shown, prefix: str) -> str | None:
    if not page.is_truncated:
        return None
    lasts = [page.objects[-1].key] if page.objects else []
    lasts += page.prefixes[-1:]
    if not lasts:
        raise Corrupt(f"the service's listing of {prefix!r} goes on and says nothing")
    return _Cursor(page.token or "", max(lasts), shown.open_objects(lasts)).text()
