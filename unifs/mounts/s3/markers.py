"""What stands at the keys of directories themselves: markers, and files of others.

A directory's key ends in "/". An object there without bytes is its marker: put anew where the
directory goes, with attributes in its metadata, deleted in the end. One with bytes is a file of
somebody's (``%%`` in the directory), which no marker may replace and which moves along. ``moving``
calls this for renames and attributes; it never writes over what it has not looked at.
"""

from __future__ import annotations

import stat
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

from unifs.errors import Conflict, NotADirectory, NotEmpty, NotFound, TryAgain
from unifs.mounts.s3.attributes import (
    TOKEN,
    copied,
    marker_headers,
    size_in,
    token_in,
    told,
    version_in,
    was,
)
from unifs.mounts.s3.copies import beside
from unifs.mounts.s3.multipart import Copying
from unifs.mounts.s3.parallel import all_of
from unifs.mounts.s3.writing import condition_of
from unifs.types import Version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unifs.mounts.s3.copies import Copies
    from unifs.mounts.s3.removing import Removing
    from unifs.mounts.s3.writing import Place, Writing
    from unifs.types import SetAttributes

DELETES_MAX: Final = 32


class Markers:
    """Markers of one mount's directories."""

    def __init__(self, writing: Writing, removing: Removing, copies: Copies) -> None:
        self._removing = removing
        self._copies = copies
        self._objects = writing.objects
        self._places = writing.reading.places
        self._directories = writing.directories

    async def set_attributes(self, path: str, changes: SetAttributes) -> None:
        """Keep a directory's attributes in its marker; where a file has its place, nowhere."""
        bucket, prefix = self._places.prefix_at(path)
        keys = await self._objects.first_keys(bucket, prefix, 1)
        if not keys:
            raise NotFound(f"there is no {path!r}")
        metadata = told(changes, stat.S_IFDIR)
        headers = await self._objects.head(bucket, prefix) if keys == [prefix] else None
        if headers is None:
            # SeaweedFS answers HEAD of a directory without a marker, with the version of nothing.
            await self._directories.keep(bucket, prefix, {**marker_headers(""), **metadata})
            return
        if size_in(headers) or all(headers.get(name) == said for name, said in metadata.items()):
            return
        said = {**marker_headers(""), **copied(headers), **metadata}
        try:
            await self._replace((bucket, prefix), headers, said)
        except Conflict as error:
            raise TryAgain(f"{prefix!r} is being written to") from error

    async def _replace(
        self, place: Place, there: Mapping[str, str], said: Mapping[str, str]
    ) -> None:
        """Put a marker in the place of the one that HEAD has told of; Conflict if it changed."""
        condition = condition_of(version_in(there))
        await self._directories.mark(*place, {**said, **condition}, is_new=False)

    # --- a directory's rename ---------------------------------------------------------------------

    async def begin(self, source: Place, target: Place, new_path: str, token: str) -> None:
        """The new directory's marker, with the token, unless it is there from an earlier try.

        NotEmpty, NotADirectory where something else stands there.
        """
        await self._directories.need_above(new_path)
        if await self._objects.head(target[0], target[1][:-1]) is not None:
            raise NotADirectory(f"{new_path!r} is a file")
        there = await self._objects.head(*target)
        if there is not None and token_in(there) == token:
            return
        keys = await self._objects.first_keys(*target, 2)
        if (there is not None and size_in(there)) or any(key != target[1] for key in keys):
            raise NotEmpty(f"{new_path!r} is not empty")
        headers = await self._objects.head(*source)
        is_marker = headers is not None and not size_in(headers)
        said = {**(copied(headers) if headers and is_marker else {}), **marker_headers(token)}
        try:
            if there is not None and keys:
                await self._replace(target, there, said)
            else:
                # No condition holds for a directory of nothing (``Directories.clear``).
                await self._directories.mark(*target, said, is_new=there is None)
        except Conflict as error:
            # Perhaps it was delivered twice, and this is the second one's answer.
            made = await self._objects.head(*target)
            if made is not None and token_in(made) == token:
                return
            if made is not None and size_in(made):
                raise NotEmpty(f"{new_path!r} is not empty") from error
            raise TryAgain(f"{target[1]!r} is being written to") from error

    async def put_anew(self, old: Place, new: Place) -> None:
        """Put the marker of a directory below at its new place, where none is."""
        headers = await self._objects.head(*old)
        if headers is not None and not size_in(headers):
            await self._directories.keep(*new, copied(headers))

    async def delete(self, bucket: str, markers: Mapping[str, Version]) -> None:
        """Delete those below a directory, key -> version, those within others first."""
        deepest = sorted(markers, key=_depth, reverse=True)

        async def delete(key: str) -> None:
            await self._removing.delete_version((bucket, key), markers[key])

        for _, keys in groupby(deepest, _depth):
            await all_of(DELETES_MAX, [partial(delete, key) for key in keys])

    async def end(self, source: Place, target: Place, token: str, is_honoured: bool) -> None:
        """Delete the old directory's marker; a file in its place moves to that of the new one.

        TryAgain where somebody is writing there.
        """
        page = await self._objects.page(source[0], {"prefix": source[1], "max-keys": "1"})
        for found in page.objects:
            # What HEAD says of a directory of nothing (``Directories.clear``) is no version.
            if found.key != source[1]:
                continue
            version = Version(found.etag)
            if found.size_bytes:
                version = await self._move_file(source, target, token, is_honoured)
            is_gone = await self._removing.delete_version(source, version)
            # A refused DELETE may be the second of two that were delivered.
            if not is_gone and await self._objects.first_keys(*source, 1):
                raise TryAgain(f"{source[1]!r} is being written to")

    async def _move_file(
        self, source: Place, target: Place, token: str, is_honoured: bool
    ) -> Version:
        """Copy a file to where it goes, unless an earlier try did; the version that was copied."""
        headers = await self._objects.head(*source)
        if headers is None or not size_in(headers):
            raise TryAgain(f"{source[1]!r} is being written to")
        version = version_in(headers)
        there = await self._objects.head(*target)
        if there is not None and version in (version_in(there), *was(there)):
            return version
        condition: dict[str, str] = {}
        if there is None or token_in(there) != token:
            target = beside(target, version)
        elif is_honoured:
            condition = condition_of(version_in(there))
        try:
            await self._copies.copy(source, headers, target, Copying({TOKEN: token}, condition))
        except Conflict as error:
            raise TryAgain(f"{target[1]!r} is being written to") from error
        return version


def _depth(key: str) -> int:
    return key.count("/")
