"""``unifs ctl conflicts``: the two versions of a file, and which one stays.

A decision is what a user would do with the two names, a rename or a removal, and it goes to the
backend as that does: nothing of the backend is replaced that changed once more meanwhile.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unifs.control.conflicts_protocol import Conflict, Resolved
from unifs.errors import NotFound
from unifs.vfs.conflicts import kept, kept_of, settle
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unifs.control.conflicts_protocol import Side
    from unifs.vfs.conflicts import Kept
    from unifs.vfs.paths import Paths
    from unifs.vfs.storage import Storage
    from unifs.vfs.treevolume import TreeVolume


class ConflictsAnswer:
    """Conflicts of all mounts with a backend."""

    def __init__(self, storage: Storage, paths: Paths, volumes: Mapping[int, TreeVolume]) -> None:
        self._storage = storage
        self._paths = paths
        self._volumes = volumes

    async def list(self, path: str | None) -> Sequence[Conflict]:
        """All, or those of which a version lies at or below ``path``."""
        top = None if path is None else (await self._paths.find(path)).ino
        tree = self._storage.tree
        return [
            self._shown(each)
            for each in kept(self._storage.database)
            if each.mount in self._volumes
            and (tree.is_below(each.ino, top) or tree.is_below(self._theirs(each), top))
        ]

    def _shown(self, conflict: Kept) -> Conflict:
        return Conflict(
            path=self._path_of_name(conflict),
            ours=self._path(conflict.ino),
            has_theirs=self._theirs(conflict) > 0,
            time_s=conflict.time_ns / 1e9,
        )

    def _theirs(self, conflict: Kept) -> int:
        """The inode that has the name now; 0 where there is none."""
        ino = self._storage.tree.find(conflict.parent, conflict.name)
        return 0 if ino == conflict.ino else ino

    def _path(self, ino: int) -> str:
        row = self._storage.tree.inode_row(ino)
        volume = self._volumes.get(row[0]) if row is not None else None
        path = self._storage.tree.path(ino)
        if volume is None or path is None:
            return f"inode {ino}"
        return f"/{volume.name}{os.fsdecode(path).rstrip('/')}"

    def _path_of_name(self, conflict: Kept) -> str:
        return f"{self._path(conflict.parent)}/{os.fsdecode(conflict.name)}"

    async def resolve(self, path: str, keep: Side) -> Resolved:
        """Make the decision; idempotent no more than the rename or removal that it is."""
        conflict = await self._find(path)
        volume = self._volumes[conflict.mount]
        if volume.refuses_changes:
            raise volume.refused()
        shown = self._shown(conflict)
        if keep == "ours":
            # Replaces what has the name; where that is gone, it is a rename to a free name.
            if self._storage.tree.find(conflict.parent, conflict.name) != conflict.ino:
                await self._take_place(shown.ours, conflict)
            await complete(self._settle, conflict.ino)
        elif keep == "theirs":
            if not shown.has_theirs:
                raise NotFound(f"the backend's version of {shown.path} is not there any more")
            await self._paths.remove(shown.ours)
        else:
            await complete(self._settle, conflict.ino)
        return Resolved(path=shown.path, kept=keep)

    def _settle(self, ino: int) -> None:
        self._storage.tree.commit([settle(ino)])

    async def _take_place(self, ours: str, conflict: Kept) -> None:
        above, name = await self._paths.parent_of(ours)
        vfs, caller = self._paths.vfs, self._paths.caller
        target = vfs.inodes.get(conflict.parent)
        await complete(vfs.rename, above.ino, name, conflict.parent, conflict.name, 0, caller)
        self._paths.invalidate(above, name)
        self._paths.invalidate(target, conflict.name)

    async def _find(self, path: str) -> Kept:
        inode = await self._paths.find(path)
        found = kept_of(self._storage.database, inode.ino)
        if found is None:
            others = kept(self._storage.database)
            found = next((each for each in others if self._theirs(each) == inode.ino), None)
        if found is None or found.mount not in self._volumes:
            raise NotFound(f"{path} is in no conflict; `unifs ctl conflicts list` shows them")
        return found
