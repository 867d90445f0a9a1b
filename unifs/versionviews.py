"""``/.unifs/versions``: the versions that backends keep, one directory a mount.

The daemon makes one and shows it by a ``ViewVolume``. A mount is in it as long as it is in the
tree; those whose kind keeps no versions are not.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from unifs.errors import NotFound
from unifs.mounts.base import Mount
from unifs.types import Entry, Node, Page

if TYPE_CHECKING:
    from unifs.mounts.s3.versionsview import S3Versions
    from unifs.remotes import Remote, Remotes
    from unifs.types import Version

DIRECTORY: Final = Node(stat.S_IFDIR | 0o555)


class VersionViews(Mount):
    """The views of all mounts that have one, by the mount's name."""

    kind = "versions"

    def __init__(self, remotes: Remotes) -> None:
        self._remotes = remotes

    async def stat(self, path: str) -> Node:
        view, below = self._view(path)
        return DIRECTORY if view is None else await view.stat(below)

    async def scan(self, path: str, after: str | None) -> Page:
        view, below = self._view(path)
        if view is not None:
            return await view.scan(below, after)
        names = [each.name for each in self._remotes if _of(each) is not None]
        return Page(tuple(Entry(os.fsencode(name), DIRECTORY) for name in names))

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        view, below = self._view(path)
        if view is None:
            raise NotFound
        return await view.read(below, version, offset, size)

    def _view(self, path: str) -> tuple[S3Versions | None, str]:
        """The view of the mount that a path begins with, and the rest; None at the top."""
        if not path:
            return None, ""
        name, _, below = path.partition("/")
        view = _of(self._remotes.get(name))
        if view is None:
            raise NotFound(f"{name} keeps no versions")
        return view, below


def _of(remote: Remote) -> S3Versions | None:
    # What no mount has needed is not imported: 60 ms of a start without S3.
    from unifs.mounts.s3.mount import S3Mount
    from unifs.mounts.s3.versionsview import S3Versions

    mount = remote.mount.mount
    return S3Versions(mount) if isinstance(mount, S3Mount) else None
