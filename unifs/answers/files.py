"""``unifs ctl files``: the tree by path."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import trio

from unifs.control.daemon_protocol import FileEntry, FileStat
from unifs.errors import (
    Busy,
    Exists,
    NoAttribute,
    NotAvailableOffline,
    TryAgain,
    UnifsError,
)
from unifs.journal.content import SMALL_BYTES
from unifs.vfs.mfsvolume import MfsVolume
from unifs.vfs.namespace import Namespace
from unifs.vfs.paths import copied_mode, naming
from unifs.vfs.remotecid import known_cid
from unifs.vfs.remoterows import RemoteInode
from unifs.vfs.remotevolume import RemoteVolume
from unifs.vfs.sharing import settle, share
from unifs.vfs.treeinode import TreeInode
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from unifs.control.daemon_protocol import ChangeState, FileKind
    from unifs.ipfs.cid import Cid
    from unifs.ipfs.node import Node
    from unifs.vfs.paths import PathEntry, Paths
    from unifs.vfs.volume import Inode

KIND_NAMES: dict[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "character",
}
#: How long an answer waits for a CID that has to be computed.
CID_S = 5.0


class FilesAnswer:
    """The tree by path, for control operations."""

    def __init__(
        self,
        paths: Paths,
        node: Node,
        is_here: Callable[[Cid], Awaitable[bool]],
        seal: Callable[[TreeInode], Awaitable[None]],
    ) -> None:
        """``is_here``: whether all of a DAG is on this machine. ``seal`` hashes a content now."""
        self._paths = paths
        self._seal = seal
        self._node = node
        self._is_here = is_here

    async def ls(self, path: str) -> AsyncIterator[FileEntry]:
        """A directory's names in its own order, or the file itself."""
        entry = await self._paths.stat(path)
        if not stat.S_ISDIR(entry.mode):
            yield _listed(entry)
            return
        async for batch in self._paths.scan(path):
            for found in batch:
                yield _listed(found)

    async def stat(self, path: str) -> FileStat:
        """One object, with CID and state where it has them."""
        entry = await self._paths.stat(path)
        inode = await self._paths.find(path)
        target = None
        if stat.S_ISLNK(entry.mode):
            target = os.fsdecode(await complete(inode.volume.readlink, inode))
        return FileStat(
            path=path,
            kind=KIND_NAMES[stat.S_IFMT(entry.mode)],
            size_bytes=entry.size_bytes,
            mode=f"{stat.S_IMODE(entry.mode):04o}",
            uid=entry.uid,
            gid=entry.gid,
            links=entry.nlink,
            mtime_s=entry.mtime_ns / 1e9,
            target=target,
            cid=await cid_text(inode),
            state=state_text(inode),
        )

    async def mkdir(self, path: str, parents: bool) -> None:
        """Exists if it is there and not ``parents``."""
        try:
            await self._paths.mkdir(path, parents)
        except Exists:
            raise Exists(f"{path} exists") from None

    async def move(self, source: str, destination: str) -> str:
        """Rename; into ``destination`` where that is a directory. The new path."""
        return await self._paths.move(source, destination)

    async def remove(self, path: str, recursive: bool) -> None:
        """NotEmpty for a directory with names in it and not ``recursive``.

        Busy for a mount, before anything below it goes.
        """
        paths = self._paths
        above, _ = await paths.parent_of(path)
        entry = await paths.stat(path)
        if isinstance(above.volume, Namespace):
            raise Busy(f"{path} is a mount: `unifs ctl mounts remove` takes out what was added")
        if recursive and stat.S_ISDIR(entry.mode):
            with self._holding() as held:
                await held._empty(path)
        await paths.remove(path)

    @contextmanager
    def _holding(self) -> Iterator[FilesAnswer]:
        """This, for one operation on many paths."""
        with self._paths.holding() as paths:
            yield FilesAnswer(paths, self._node, self._is_here, self._seal)

    async def _empty(self, top: str) -> None:
        """Remove what is below a directory, however deep it is: a stack, and no calls in calls.

        The requests of the kernel are answered between one name and the next.
        """
        stack = [top.rstrip("/")]
        while stack:
            directory = stack[-1]
            below = []
            entries = [each async for batch in self._paths.scan(directory) for each in batch]
            for entry in entries:
                await trio.lowlevel.checkpoint()
                path = f"{directory}/{os.fsdecode(entry.name)}"
                if stat.S_ISDIR(entry.mode):
                    below.append(path)
                else:
                    await self._paths.remove(path)
            stack += below
            if not below:
                stack.pop()
                if stack:
                    await self._paths.remove(directory)

    async def copy(self, source: str, destination: str) -> str:
        """Copy a file or directory; what has a CID and is here is linked into /mfs instead.

        Of large files, bytes of this machine that nobody writes are named twice, not copied. Exists
        if the destination is taken by something that is no directory. The path of the copy.
        """
        paths = self._paths
        destination = await paths.into(source, destination)
        try:
            with self._holding() as held:
                await held._copy(source, destination)
        except Exists:
            raise Exists(f"{destination} exists") from None
        return destination

    async def _copy(self, source: str, destination: str) -> None:
        paths = self._paths
        parent, name = await paths.parent_of(destination)
        paths.vfs.check_name(name)
        if isinstance(parent.volume, MfsVolume):
            assert isinstance(parent, TreeInode)
            with naming(destination, parent.volume):
                paths.vfs.to_change(parent.ino)
            if await self._linked(source, parent, name):
                return
        await self._copy_bytes(source, destination)

    async def _linked(self, source: str, parent: TreeInode, name: bytes) -> bool:
        """Link what has a CID into /mfs; whether it has one, and its bytes are here."""
        assert isinstance(parent.volume, MfsVolume)
        if source.startswith("/ipfs/"):
            cid = await self._node.resolve(source)
            await parent.volume.link_node(parent, name, cid, self._paths.caller)
        else:
            found = await self._known(source)
            if found is None:
                return False
            try:
                async with self._node.hold(found):
                    # Held, so that what is here now stays until the row names it.
                    if not await self._is_here(found):
                        return False
                    await parent.volume.link_node(parent, name, found, self._paths.caller)
            except NotAvailableOffline:
                return False
        self._paths.invalidate(parent, name)
        return True

    async def _known(self, source: str) -> Cid | None:
        """The CID of a file of a remote mount that is large enough to be linked, if it is known."""
        inode = await self._paths.find(source)
        if not isinstance(inode, RemoteInode) or inode.attributes.st_size <= SMALL_BYTES:
            return None
        assert isinstance(inode.volume, RemoteVolume)
        is_file = stat.S_ISREG(inode.attributes.st_mode)
        return known_cid(inode.volume, inode) if is_file else None

    async def _copy_bytes(self, source: str, destination: str) -> None:
        entry = await self._paths.stat(source)
        if stat.S_ISREG(entry.mode):
            if not await self._shared(source, destination):
                await self._paths.copy_file(source, destination)
        elif stat.S_ISDIR(entry.mode):
            self._paths.check_apart(source, destination)
            await self._copy_directory(source, destination)
        elif stat.S_ISLNK(entry.mode):
            await self._paths.copy_symlink(source, destination)
        else:
            await self._paths.copy_node(source, destination)

    async def _shared(self, source: str, destination: str) -> bool:
        """Name the source's content a second time; whether it has one here, and nobody writes."""
        paths = self._paths
        inode = await paths.find(source)
        parent, name = await paths.parent_of(destination)
        if not isinstance(inode, TreeInode) or not isinstance(parent, TreeInode):
            return False
        if inode.attributes.st_size <= SMALL_BYTES or not await complete(settle, inode):
            return False
        paths.vfs.check_name(name)
        with naming(destination, parent.volume):
            paths.vfs.to_change(parent.ino)
        await self._seal(inode)
        if not await complete(share, inode, parent, name, paths.caller):
            return False
        paths.invalidate(parent, name)
        return True

    async def _copy_directory(self, source: str, destination: str) -> None:
        # A tree may be deeper than Python's stack.
        waiting = [(source.rstrip("/"), destination)]
        while waiting:
            source, destination = waiting.pop()
            mode = copied_mode((await self._paths.stat(source)).mode)
            await self._paths.mkdir(destination, mode=mode)
            names = [entry async for batch in self._paths.scan(source) for entry in batch]
            for entry in names:
                await trio.lowlevel.checkpoint()
                name = os.fsdecode(entry.name)
                below, copied = f"{source}/{name}", f"{destination}/{name}"
                if stat.S_ISDIR(entry.mode):
                    waiting.append((below, copied))
                else:
                    await self._copy_bytes(below, copied)


def _listed(entry: PathEntry) -> FileEntry:
    return FileEntry(
        kind=KIND_NAMES[stat.S_IFMT(entry.mode)],
        size_bytes=entry.size_bytes,
        mtime_s=entry.mtime_ns / 1e9,
        name=os.fsdecode(entry.name),
    )


async def cid_text(inode: Inode) -> str | None:
    """The CID of an inode as text; None where it has none, or none yet."""
    with trio.move_on_after(CID_S):
        try:
            value: bytes = await complete(inode.volume.getxattr, inode, b"ipfs.cid")
            return value.decode()
        except (NoAttribute, TryAgain):
            return None
    return None


def state_text(inode: Inode) -> ChangeState | None:
    """How far the last change of an inode has come; None in mounts without a journal."""
    try:
        state = inode.volume.getxattr(inode, b"user.unifs.state").decode()
        return cast("ChangeState", state)
    except (UnifsError, OSError):
        return None
