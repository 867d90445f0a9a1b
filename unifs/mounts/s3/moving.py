"""Copies at the service: rename, and attributes in metadata.

S3 renames nothing and changes no metadata: it copies, and what was there is deleted afterwards. A
directory's rename first puts the marker of the new one with the change's token, then copies and
deletes page by page: after a crash the token says that what stands there is ours, and what is left
at the old place says what is to be done. Nothing is deleted that somebody changed after it was
copied; it is copied again. What somebody stored at the new place meanwhile stays there: the service
refuses the copy, or (``conditions``) a listing before each page of copies shows it.

Markers are not copied but put anew: SeaweedFS finds nothing to copy in a directory.
"""

from __future__ import annotations

import logging
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from unifs.errors import (
    Conflict,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    TryAgain,
    Unsupported,
)
from unifs.mounts.s3.attributes import (
    TOKEN,
    size_in,
    token_in,
    told,
    version_in,
    write_headers,
)
from unifs.mounts.s3.copies import COPY_MAX_BYTES, Copies, beside
from unifs.mounts.s3.markers import Markers
from unifs.mounts.s3.multipart import Copying
from unifs.mounts.s3.parallel import all_of
from unifs.mounts.s3.writing import condition_of
from unifs.types import Node, Version

if TYPE_CHECKING:
    from unifs.mounts.s3.listing import Listed
    from unifs.mounts.s3.multipart import Multipart
    from unifs.mounts.s3.removing import Removing
    from unifs.mounts.s3.writing import Place, Writing
    from unifs.types import SetAttributes

log = logging.getLogger(__name__)

PAGE_KEYS: Final = 1000
COPIES_MAX: Final = 32
#: Rounds of a directory's rename in which everything that was copied was changed again by somebody.
ROUNDS_MAX: Final = 10
#: Looks before an object is said to be somebody else's.
LOOKS: Final = 3
#: So many of them are known to be ours in the next round.
KEPT_MAX: Final = 10_000
#: Markers below a directory that are deleted at a time.
MARKERS_MAX: Final = 100_000


class Moving:
    """rename and set_attributes for one mount."""

    def __init__(self, writing: Writing, removing: Removing, multipart: Multipart) -> None:
        self._removing = removing
        self.copies = Copies(writing, multipart)
        self._markers = Markers(writing, removing, self.copies)
        self._reading = writing.reading
        self._objects = writing.objects
        self._service = writing.service
        self._directories = writing.directories
        self._options = writing.options
        self._writing = writing
        #: Renames of directories under way, by the old path.
        self._ways: dict[str, _Way] = {}

    # --- attributes -------------------------------------------------------------------------------

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        """Keep mode, owner and mtime in an object's, or a directory marker's, metadata."""
        if not self._options.keeps_attributes:
            raise Unsupported("keep_attributes is off: attributes live in the tree only")
        if self._reading.places.is_top(path):
            raise Unsupported("a bucket has no attributes")
        place = self._reading.places.maybe_object_at(path)
        headers = None if place is None else await self._object(place)
        if place is None or headers is None:
            await self._markers.set_attributes(path, changes)
            return
        node = await self._reading.node_of(place, headers)
        metadata = told(changes, stat.S_IFMT(node.mode))
        if any(headers.get(name) != value for name, value in metadata.items()):
            await self.copies.onto_itself(place, headers, metadata)

    async def _object(self, place: Place) -> dict[str, str] | None:
        """What HEAD says of an object; None where there is none, or a directory's marker."""
        headers = await self._objects.head(*place)
        is_marker = headers is not None and place[1].endswith("/") and not size_in(headers)
        return None if is_marker else headers

    # --- rename -----------------------------------------------------------------------------------

    async def rename(self, path: str, new_path: str, token: str, base: Version | None) -> None:
        """Move an object or a directory; what was done already is not done again.

        Conflict where ``new_path`` has another version than ``base``.
        """
        places = self._reading.places
        if places.is_top(path) or places.is_top(new_path):
            raise Unsupported("a bucket cannot be renamed")
        if f"{new_path}/".startswith(f"{path}/"):
            raise InvalidArgument(f"{new_path!r} lies in {path!r}")
        source = places.maybe_object_at(path)
        headers = None if source is None else await self._object(source)
        if headers is not None:
            try:
                await self._rename_object(path, headers, new_path, (token, base))
            except NotFound:
                # An earlier try, of which we heard nothing, may have ended only now.
                if not await self.has_begun(new_path, token):
                    raise
            except IsADirectory:
                # Or it was a directory's, and somebody has put a file in its place since.
                if not await self._carries(places.prefix_at(new_path), token):
                    raise
                if await self._directories.is_there(path):
                    await self._rename_directory(path, new_path, token)
        elif await self._directories.is_there(path):
            try:
                await self._rename_directory(path, new_path, token)
            except NotADirectory:
                # Or a file's, and a directory stands in its place now.
                if not await self._carries(places.object_at(new_path), token):
                    raise
        elif not await self.has_begun(new_path, token):
            raise NotFound(f"there is no {path!r}")
        else:
            bucket, prefix = places.prefix_at(path)
            await self._directories.clear(bucket, prefix.removesuffix("/"))

    async def has_begun(self, new_path: str, token: str) -> bool:
        """Whether what stands at ``new_path`` carries the token of this change."""
        places = self._reading.places
        is_file = await self._carries(places.object_at(new_path), token)
        return is_file or await self._carries(places.prefix_at(new_path), token)

    async def _carries(self, place: Place, token: str) -> bool:
        headers = await self._objects.head(*place)
        return headers is not None and token_in(headers) == token

    async def _rename_object(
        self,
        path: str,
        headers: dict[str, str],
        new_path: str,
        change: tuple[str, Version | None],
    ) -> None:
        token, base = change
        source = self._reading.places.object_at(path)
        target = self._reading.places.object_at(new_path)
        await self._directories.need_above(new_path)
        if await self._directories.is_there(new_path):
            raise IsADirectory(f"{new_path!r} is a directory")
        version = version_in(headers)

        async def send(condition: dict[str, str]) -> Version:
            return await self.copies.copy(
                source, headers, target, Copying({TOKEN: token}, condition)
            )

        is_honoured = await self._writing.conditions.copying(target[0])
        made = await self._writing.stored_if(is_honoured, (target, base, token), send)
        if isinstance(made, Node):
            copied_before = await self._copied_before(source, target)
            if copied_before is None:
                return
            version = copied_before
        try:
            await self._removing.remove(path, version, token)
        except Conflict:
            # Somebody stored another object at the old place; it is theirs and stays.
            return

    async def _copied_before(self, source: Place, target: Place) -> Version | None:
        """The version of ``source`` that an earlier try copied; None: somebody stored another.

        One answer with a wrong ETag is not believed.
        """
        for _ in range(LOOKS):
            headers = await self._objects.head(*source)
            if headers is None:
                return None
            if await self.copies.is_copied(target, version_in(headers)):
                return version_in(headers)
        return None

    async def _rename_directory(self, path: str, new_path: str, token: str) -> None:
        source = self._reading.places.prefix_at(path)
        target = self._reading.places.prefix_at(new_path)
        if not target[1].endswith("/") or not source[1].endswith("/"):
            raise InvalidArgument("a part of a key cannot be renamed")
        await self._markers.begin(source, target, new_path, token)
        way = _Way(source, target, await self._writing.conditions.copying(target[0]))
        self._ways[path] = way
        try:
            await self._move_directory(path, way)
        finally:
            self._ways.pop(path, None)
        await self._directories.keep_above(path)
        await self._markers.end(source, target, token, way.is_honoured)
        await self._directories.clear(source[0], source[1].removesuffix("/"))
        self._directories.gone(path)
        self._directories.seen(new_path, is_marked=True)

    def moved(self, path: str) -> int | None:
        """How many objects the rename of a directory has moved; None where none is under way."""
        way = self._ways.get(path)
        return None if way is None else way.moved

    async def _move_directory(self, path: str, way: _Way) -> None:
        """Everything below, until nothing is left but the directory's own marker."""
        for _ in range(ROUNDS_MAX):
            way.markers.clear()
            if not await self._move_below(way):
                await self._markers.delete(way.source[0], way.markers)
                if len(way.markers) < MARKERS_MAX:
                    return
        raise TryAgain(f"{path!r} is large, or somebody keeps changing it")

    async def _move_below(self, way: _Way) -> bool:
        """Copy everything below and delete it, but for markers; whether there was anything."""
        bucket, prefix = way.source
        had_any = False
        after = prefix
        while True:
            query = {"prefix": prefix, "max-keys": str(PAGE_KEYS), "start-after": after}
            page = await self._objects.page(bucket, query)
            found = [one for one in page.objects if one.key != prefix]
            if found:
                had_any = had_any or not all(map(_is_marker, found))
                there = await self._there(way, after, found[-1].key)
                await all_of(
                    COPIES_MAX,
                    [partial(self._move, one, way, there.get(way.new(one.key))) for one in found],
                )
            if not page.is_truncated or not page.objects:
                return had_any
            after = page.objects[-1].key

    async def _there(self, way: _Way, after: str, last: str) -> dict[str, Listed]:
        """What stands at the new places of the keys behind ``after``, up to ``last``."""
        bucket, prefix = way.target
        after, last = way.new(after), way.new(last)
        there: dict[str, Listed] = {}
        while True:
            query = {"prefix": prefix, "max-keys": str(PAGE_KEYS), "start-after": after}
            page = await self._objects.page(bucket, query)
            there |= {one.key: one for one in page.objects if one.key <= last}
            if not page.is_truncated or not page.objects or page.objects[-1].key >= last:
                return there
            after = page.objects[-1].key

    async def _move(self, found: Listed, way: _Way, there: Listed | None) -> None:
        old = (way.source[0], found.key)
        new = (way.target[0], way.new(found.key))
        version = Version(found.etag)
        if _is_marker(found):
            if there is None:
                await self._markers.put_anew(old, new)
            if len(way.markers) < MARKERS_MAX:
                way.markers[found.key] = version
            return
        headers = None
        if "-" in version or self._options.encryption or found.size_bytes > COPY_MAX_BYTES:
            headers = await self._objects.head(*old)
            if headers is None:
                return
            version = version_in(headers)
        stands = None if there is None else there.etag
        if not way.is_honoured:
            # The listing is seconds old, and the service will not look.
            now = await self._objects.head(*new)
            stands = None if now is None else version_in(now)
        kept = None
        if stands is not None:
            if stands == version or await self.copies.is_copied(new, version):
                way.moved += await self._removing.delete_version(old, version)
                return
            kept = way.kept.get(new[1])
            if kept != stands:
                new, kept = beside(new, version), None
        try:
            made = await self._moved(old, version, headers, (new, way.condition(new[1], kept)))
        except NotFound:
            return
        except Conflict as error:
            if await self._objects.head(*new) is None:
                raise TryAgain(f"{old[1]!r} is being changed by somebody") from error
            if await self.copies.is_copied(new, version):
                made = version
            else:
                new = beside(new, version)
                made = await self._moved(old, version, headers, (new, {}))
        if await self._removing.delete_version(old, version):
            way.moved += 1
        else:
            way.keep(new[1], made)

    async def _moved(
        self,
        old: Place,
        version: Version,
        headers: dict[str, str] | None,
        where: tuple[Place, dict[str, str]],
    ) -> Version:
        """Copy one object of a directory; ``headers`` where HEAD was needed. The new version."""
        new, condition = where
        if headers is not None:
            return await self.copies.copy(old, headers, new, Copying({}, condition))
        how = Copying(write_headers(self._options), condition)
        made = await self.copies.copy_version(old, version, new, how)
        self._objects.remember(new, version, made)
        return made


def _is_marker(found: Listed) -> bool:
    return found.key.endswith("/") and not found.size_bytes


class _Way:
    """From one directory to another."""

    def __init__(self, source: Place, target: Place, is_honoured: bool) -> None:
        self.source = source
        self.target = target
        #: Whether copies keep conditions on what they replace.
        self.is_honoured = is_honoured
        #: Objects that are at the new place and not at the old one any more.
        self.moved = 0
        #: New keys, and the version copied there, whose old object was changed meanwhile: they
        #: are ours to replace.
        self.kept: dict[str, Version] = {}
        #: Old keys of markers and their versions. They are deleted when nothing else is left:
        #: SeaweedFS would keep what one of them marks, seen by nobody and in the way of a file.
        self.markers: dict[str, Version] = {}

    def new(self, key: str) -> str:
        """Where a key of the old directory goes."""
        return self.target[1] + key[len(self.source[1]) :]

    def condition(self, key: str, kept: Version | None) -> dict[str, str]:
        """With what a copy to ``key`` replaces nothing but ``kept``."""
        return condition_of(kept) if self.is_honoured else {}

    def keep(self, key: str, version: Version) -> None:
        """The old object is to be copied again."""
        if len(self.kept) < KEPT_MAX:
            self.kept[key] = version
