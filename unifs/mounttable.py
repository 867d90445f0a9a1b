"""The mount table: which mounts there are, and adding and removing them while the tree is mounted.

Owned by the daemon. Mounts of the settings are added at the start; host directories added at run
time are remembered in the state directory and added again at the next start. Of mounts with a
backend it knows the name only; ``remotes`` adds and removes them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from unifs.errors import (
    Exists,
    InvalidArgument,
    NotADirectory,
    NotFound,
    Unsupported,
    from_os_error,
)
from unifs.vfs.host import HostVolume
from unifs.vfs.reserved import RESERVED_FIRST
from unifs.vfs.volume import INO_SHIFT
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.driver.notify import Notifications
    from unifs.vfs.namespace import NamespaceDirectory
    from unifs.vfs.storage import Storage
    from unifs.vfs.vfs import Vfs

META_KEY = "local_directories"
#: The namespace has prefix 1, the tree 0; host volumes count from here.
FIRST_PREFIX = 2
LAST_PREFIX = RESERVED_FIRST - 1


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One mount as a user sees it. ``source`` is what it shows, "" where that has no address."""

    name: str
    kind: str
    source: str
    is_writable: bool
    is_removable: bool


class MountTable:
    """Adds volumes to the namespace and takes them away. Belongs to the event loop's thread."""

    def __init__(
        self, vfs: Vfs, storage: Storage, notifications: Notifications, mount_point: str
    ) -> None:
        self._vfs = vfs
        self._storage = storage
        self._notifications = notifications
        self._mount_point = os.path.realpath(mount_point) if mount_point else ""
        self._fixed: list[TableEntry] = []
        self._remotes: dict[str, TableEntry] = {}
        self._local: NamespaceDirectory | None = None
        self._hosts: dict[str, tuple[HostVolume, str, bool]] = {}
        self._prefix = FIRST_PREFIX
        self._timeout_s = 1.0
        self._is_local_writable = True

    def add_fixed(self, info: TableEntry, root: int) -> None:
        """A mount that is there as long as the daemon: /mfs, /ipfs."""
        self._vfs.namespace.add(self._vfs.namespace.root, os.fsencode(info.name), root)
        self._fixed.append(info)

    def add_local(
        self, directories: dict[str, str], timeout_s: float, is_writable: bool = True
    ) -> list[str]:
        """/local with the settings' host directories and those remembered.

        Returns a sentence for each that cannot be shown now; the tree comes up without it.
        """
        self._local = self._vfs.namespace.add_directory(b"local")
        self._timeout_s = timeout_s
        self._is_local_writable = is_writable
        problems: list[str] = []
        for names, is_removable in ((directories, False), (self._remembered(), True)):
            for name, directory in names.items():
                try:
                    self._add_host(name, _resolved(directory), is_removable)
                except (OSError, NotADirectory, NotFound, Exists, InvalidArgument) as error:
                    problems.append(f"local/{name}: {error}")
        return problems

    def _remembered(self) -> dict[str, str]:
        return self._storage.database.get_table(META_KEY)

    def list(self) -> list[TableEntry]:
        """All mounts, by name."""
        hosts = [
            TableEntry(f"local/{name}", "local", directory, self._is_local_writable, is_removable)
            for name, (_, directory, is_removable) in self._hosts.items()
        ]
        entries = [*self._fixed, *self._remotes.values(), *hosts]
        return sorted(entries, key=lambda info: info.name)

    def check_free(self, name: str) -> None:
        """Exists if something at the root is called that."""
        root = self._vfs.namespace.root
        if os.fsencode(name) in root.unlisted:
            raise Exists(f"the name {name} is reserved")
        if os.fsencode(name) in root.children:
            raise Exists(f"there is a mount called {name} already")

    def add_remote(self, info: TableEntry, root: int) -> None:
        """A mount with a backend, at the root."""
        directory = self._vfs.namespace.root
        self._vfs.namespace.add(directory, os.fsencode(info.name), root)
        self._remotes[info.name] = info
        self._notifications.for_mount("").inode(directory.ino)

    def remove_remote(self, name: str) -> None:
        """Show it no longer."""
        directory = self._vfs.namespace.root
        self._vfs.namespace.remove(directory, os.fsencode(name))
        del self._remotes[name]
        self._notifications.for_mount("").entry(directory.ino, os.fsencode(name))
        self._notifications.for_mount("").inode(directory.ino)

    async def add(self, name: str, directory: str) -> TableEntry:
        """Show a host directory as ``local/NAME``; remembered for the next start."""
        short = self._local_name(name)
        if not os.path.isabs(directory):
            raise InvalidArgument(f"{directory!r} has to be an absolute path")
        self._vfs.check_name(os.fsencode(short))
        # In a thread: a path of the tree itself is answered by this event loop.
        path = await trio.to_thread.run_sync(self._looked_at, directory, abandon_on_cancel=True)
        self._add_host(short, path, True)
        await complete(self._remember, {**self._remembered(), short: directory})
        self._tell()
        return next(info for info in self.list() if info.name == f"local/{short}")

    async def remove(self, name: str) -> None:
        """Show it no longer. Open files in it stay usable until they are closed.

        With the last of them, and the last inode that the kernel remembers, its descriptors go.
        """
        if name in [info.name for info in self._fixed]:
            raise Unsupported(f"{name} is always there")
        short = self._local_name(name)
        if short not in self._hosts:
            raise NotFound(f"there is no mount {name}")
        volume, _, is_removable = self._hosts[short]
        if not is_removable:
            raise Unsupported(f"{name} stands in the settings file; remove it there")
        remembered = self._remembered()
        remembered.pop(short, None)
        await complete(self._remember, remembered)
        assert self._local is not None
        self._vfs.namespace.remove(self._local, os.fsencode(short))
        del self._hosts[short]
        self._notifications.for_mount("local").entry(self._local.ino, os.fsencode(short))
        self._tell()
        volume.close_when_idle(partial(self._let_go, volume.root_ino >> INO_SHIFT))

    def _let_go(self, prefix: int) -> bool:
        """Whether nobody remembers anything of a removed volume; then nobody finds it any more."""
        inodes = self._vfs.inodes
        if inodes.known.get(prefix):
            return False
        inodes.drop_volume(prefix)
        return True

    def _local_name(self, name: str) -> str:
        kind, _, short = name.partition("/")
        if kind != "local" or not short or "/" in short:
            raise InvalidArgument(f"{name!r} is not of the form local/NAME")
        if self._local is None:
            raise Unsupported("the mount /local is switched off in the settings")
        return short

    def _looked_at(self, directory: str) -> Path:
        """A host directory, which is no part of this tree by another path either. Blocks."""
        path = _resolved(directory)
        self._check_not_own(path)
        if self._mount_point and path.stat().st_dev == os.stat(self._mount_point).st_dev:
            raise InvalidArgument(f"{path} is a part of this tree")
        return path

    def _add_host(self, name: str, path: Path, is_removable: bool) -> None:
        if self._local is None or name in self._hosts:
            raise Exists(f"there is a mount local/{name} already")
        self._check_not_own(path)
        if self._prefix > LAST_PREFIX:
            raise Unsupported("too many host directories were added since the start")
        vfs = self._vfs
        try:
            volume = HostVolume(
                f"local/{name}",
                self._prefix,
                path,
                attributes_factory=vfs.factory,
                remember=vfs.inodes.remember,
                invalidator=self._notifications.for_mount("local"),
                timeout_s=self._timeout_s,
            )
        except OSError as error:
            raise from_os_error(error) from error
        volume.refuses_changes = not self._is_local_writable
        vfs.inodes.volumes[self._prefix] = volume
        self._prefix += 1
        vfs.namespace.add(self._local, os.fsencode(name), volume.root_ino)
        self._hosts[name] = (volume, str(path), is_removable)

    def _check_not_own(self, path: Path) -> None:
        """The tree inside itself would wait for itself."""
        mine = self._mount_point
        if mine and (
            path == Path(mine) or Path(mine) in path.parents or path in Path(mine).parents
        ):
            raise InvalidArgument(f"{path} contains this tree's mount point or lies in it")

    def _remember(self, names: dict[str, str]) -> None:
        statement = "insert or replace into meta values(?,?)"
        self._storage.tree.commit([(statement, (META_KEY, json.dumps(names)))])

    def _tell(self) -> None:
        assert self._local is not None
        self._notifications.for_mount("local").inode(self._local.ino)


def _resolved(directory: str) -> Path:
    """The directory without symlinks; InvalidArgument, NotFound or NotADirectory. Blocks."""
    if "\0" in directory:
        raise InvalidArgument(f"{directory!r} is no path")
    path = Path(os.path.realpath(os.path.expanduser(directory)))
    if not path.is_dir():
        raise (
            NotADirectory(f"{path} is not a directory")
            if path.exists()
            else NotFound(f"{path} does not exist")
        )
    return path
