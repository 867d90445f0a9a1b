"""Versions of objects as files: what ``/.unifs/versions/<mount>`` shows of one S3 service.

    <bucket>/<key…>            a directory: the versions of the object of that key, and the names of
                               keys below it
    <bucket>/<key…>/<version>  the bytes of one version, called by the service's id

Keys are written as in the mount (``names``), but that an object and the keys below it share one
directory: nothing here is called ``k%%``. Where a key below is called like a version, the key is
shown. Keys with a segment of more than 255 bytes, and ids that can be no name, are not shown:
``unifs ctl s3 versions`` has them. Deletions have no bytes and are not shown either, but what was
deleted is a directory like any other. Read-only; paths are those of the service, whatever was
renamed in the tree and has not arrived there.
"""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Final

from unifs.errors import Corrupt, InvalidArgument, NotFound
from unifs.mounts.base import Mount
from unifs.mounts.s3.names import PART, names_of, prefix_of
from unifs.mounts.s3.versions import (
    ObjectVersion,
    VersionPage,
    read_version,
    version_page,
    versions_of,
)
from unifs.types import NAME_MAX_BYTES, Entry, Node, Page

if TYPE_CHECKING:
    from unifs.mounts.s3.mount import S3Mount
    from unifs.types import Version

DIRECTORY: Final = Node(stat.S_IFDIR | 0o555)


class S3Versions(Mount):
    """All versions of all objects that one mount shows."""

    kind = "s3-versions"

    def __init__(self, mount: S3Mount) -> None:
        self._mount = mount
        self._service = mount.service
        self._places = mount.places

    async def stat(self, path: str) -> Node:
        """A directory where any version of a key is called or begins so; else one version."""
        if self._places.is_top(path):
            return await self._top(path)
        bucket, key = self._place(path)
        for prefix in (key, f"{key}/"):
            page = await version_page(self._service, (bucket, prefix), limit=1)
            if any(one.key == key or one.key.startswith(f"{key}/") for one in page.versions):
                return DIRECTORY
        above, _, name = path.rpartition("/")
        if self._places.is_top(above):
            raise NotFound(f"no version of {path!r} is kept")
        for one in await versions_of(self._service, self._place(above)):
            if one.id == name and not one.is_deleted:
                return _node(one)
        raise NotFound(f"no version of {path!r} is kept")

    async def _top(self, path: str) -> Node:
        """The mount's root, or a bucket."""
        if path:
            await self._mount.stat(path)
        return DIRECTORY

    async def scan(self, path: str, after: str | None) -> Page:
        if self._places.has_buckets and not path:
            page = await self._mount.scan("", after)
            return Page(tuple(Entry(e.name, DIRECTORY) for e in page.entries), page.after)
        place, entries, last = self._place(path), [], ""
        if after is None and place[1] and not self._places.is_top(path):
            entries = [Entry(_name(one.id), _node(one)) for one in await self._named(place)]
        marker = None
        if after is not None:
            key, version_id, last = _cursor(after)
            marker = (key, version_id)
        prefix = f"{place[1]}/" if place[1] else ""
        listed = await version_page(self._service, (place[0], prefix), "/", marker)
        names = _names_below(listed, prefix)
        below = {name for name in names if name != last}
        entries = [entry for entry in entries if entry.name.decode() not in below]
        entries += [Entry(name.encode("utf-8", "surrogateescape"), DIRECTORY) for name in below]
        if listed.after is None:
            return Page(tuple(entries))
        return Page(tuple(entries), json.dumps([*listed.after, names[-1] if names else last]))

    async def _named(self, place: tuple[str, str]) -> list[ObjectVersion]:
        """The versions of one object that can be files."""
        found = await versions_of(self._service, place)
        return [one for one in found if not one.is_deleted and _is_name(one.id)]

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        above, _, name = path.rpartition("/")
        one = ObjectVersion(name, version, offset + size, 0, is_latest=False)
        return await read_version(self._service, self._place(above), one, offset, size)

    def _place(self, path: str) -> tuple[str, str]:
        """Bucket and key of the object at a path; the key is "" at the top of a bucket."""
        bucket, rest = self._places.split(path)
        if rest.endswith(PART):
            raise NotFound("keys with a part of more than 255 bytes are not shown here")
        try:
            key = self._places.prefix + prefix_of(rest)
        except InvalidArgument as error:
            raise NotFound(str(error)) from error
        return bucket, key.removesuffix("/")


def _names_below(page: VersionPage, prefix: str) -> list[str]:
    """The names of a page in their order: each once, without the directory's own marker."""
    keys = {one.key for one in page.versions if one.key != prefix or one.size_bytes}
    keys |= {found.removesuffix("/") for found in page.prefixes}
    parts = [names_of(key.removeprefix(prefix)) for key in sorted(keys)]
    return list(dict.fromkeys(names[0] for names in parts if len(names) == 1))


def _cursor(after: str) -> tuple[str, str, str]:
    found = json.loads(after)
    if not isinstance(found, list) or len(found) != 3:
        raise Corrupt("that is no place in a listing of versions")
    return str(found[0]), str(found[1]), str(found[2])


def _is_name(version_id: str) -> bool:
    is_plain = version_id.isascii() and "/" not in version_id and "\0" not in version_id
    return is_plain and version_id not in ("", ".", "..") and len(version_id) <= NAME_MAX_BYTES


def _name(version_id: str) -> bytes:
    return version_id.encode("ascii")


def _node(one: ObjectVersion) -> Node:
    return Node(stat.S_IFREG | 0o444, one.size_bytes, one.version, one.mtime_ns)
