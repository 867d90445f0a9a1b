"""A host directory as a volume: /local/<name>, written through.

The vfs calls it like every volume. Each operation is the host's own system call on a descriptor of
the directory and one name, so whatever returns is done on the host, other programs see it at once,
and the host's file system keeps its own promises (atomic rename, fsync, O_APPEND, links, special
files). It keeps no attributes: each look-up and getattr asks the host (1–2 µs), and what other
programs change is seen within ``timeout_s``, the time for which the kernel may remember entries
and attributes.

Cached pages are kept across opens only if mtime, ctime and size are those of the last open, and
that was more than two clock ticks after the file's last change (a younger file may change again
without its times telling).

The kernel checks permissions before it asks (default_permissions); the daemon's own rights decide
what the host allows. Where the daemon is root, new objects are given to the caller, with the group
that the host chose in a set-group-ID directory. The kernel clears suid and sgid on write, truncate
and chown by a setattr; on open(O_TRUNC) it does not, that is done here.

Longer than most because it has one method for each operation of a volume; what those share lies in
``hostnodes``, ``hosthandles`` and ``hostowner``.

It must never block the loop on data (see ``hosthandles``), follow a symlink on the host, or step
out of its directory. Metadata calls run inline: on a cold or remote host file system they take
that long.
"""

from __future__ import annotations

import os
import stat
import time
import weakref
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unifs.errors import AttributeNamespace, InvalidArgument, NoAttribute, Stale
from unifs.mounts.hostcalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    renameat2,
    set_owner,
    set_times,
)
from unifs.types import SetAttributes
from unifs.vfs.hosthandles import HostDirectoryHandle, HostHandle, HostIo
from unifs.vfs.hostnodes import ROOT_NUMBER, HostInode, HostNode, NodeTable, fill
from unifs.vfs.hostowner import Ownership, clear_set_id
from unifs.vfs.volume import INO_SHIFT, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from unifs.types import Attributes, Caller
    from unifs.vfs.volume import Emit, Handle, Inode, Invalidator

#: Two ticks of a 100 Hz clock: file times move in ticks, so within one they may hide a change.
TRUST_AGE_NS: Final = 20_000_000
THREADS_MAX: Final = 8
FRESH_MAX: Final = 1024

_NUMBER_MASK: Final = (1 << INO_SHIFT) - 1
#: What of open(2)'s flags is passed on to the host.
_OPEN_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC


class HostVolume(Volume):
    """The tree below a host directory."""

    def __init__(
        self,
        name: str,
        prefix: int,
        directory: Path,
        *,
        attributes_factory: Callable[[], Attributes],
        remember: Callable[[int], None],
        invalidator: Invalidator,
        timeout_s: float = 1.0,
    ) -> None:
        """``prefix`` starts every inode number; ``remember`` counts a look-up (of readdir)."""
        super().__init__(name)
        self._base = prefix << INO_SHIFT
        self._make_attributes = attributes_factory
        self._remember = remember
        self._invalidator = invalidator
        self._timeout_s = timeout_s
        self._nodes = NodeTable(directory, self._tell_stale)
        self._hot: weakref.WeakValueDictionary[int, HostInode] = weakref.WeakValueDictionary()
        self._io = HostIo(name, THREADS_MAX)
        #: What look-ups found most recently, until the vfs has made it hot.
        self._fresh: deque[HostInode] = deque(maxlen=FRESH_MAX)
        self._ownership = Ownership()
        self._on_idle: Callable[[], bool] | None = None

    def close(self) -> None:
        """Give the host's directory up. Handles must have been released."""
        self._nodes.close()

    def close_when_idle(self, on_idle: Callable[[], bool]) -> None:
        """Close as soon as no handle is open and ``on_idle`` agrees.

        It is asked whenever a handle was closed or an inode forgotten.
        """
        self._on_idle = on_idle
        self._io.on_release = self._look_if_idle
        self._look_if_idle()

    def _look_if_idle(self) -> None:
        if self._on_idle is not None and not self._io.handles and self._on_idle():
            self._on_idle = None
            self.close()

    @property
    def root_ino(self) -> int:
        """The number of the directory itself."""
        return self._base | ROOT_NUMBER

    @property
    def remembered(self) -> int:
        """How many host objects have a number."""
        return len(self._nodes)

    @property
    def descriptors(self) -> int:
        """How many descriptors are open beside those of handles."""
        return self._nodes.descriptors

    # --- inodes ---------------------------------------------------------------------------------

    def load(self, ino: int) -> Inode:
        node = self._nodes.get(ino & _NUMBER_MASK)
        inode = self._hot.get(node.number)
        return inode if inode is not None else self._inode(node, self._nodes.status(node))

    def forgotten(self, ino: int) -> None:
        number = ino & _NUMBER_MASK
        if self._nodes.forget(number):
            self._hot.pop(number, None)
        self._look_if_idle()

    def lookup(self, parent: Inode, name: bytes) -> Inode:
        above = _node_of(parent)
        directory = self._nodes.directory_fd(above)
        return self._admit(above, name, os.stat(name, dir_fd=directory, follow_symlinks=False))

    def getattr(self, inode: Inode) -> Attributes:
        fill(inode.attributes, inode.ino, self._nodes.status(_node_of(inode)), self._timeout_s)
        return inode.attributes

    def setattr(
        self,
        inode: Inode,
        changes: SetAttributes,
        handle: Handle | None,
        caller: Caller,
    ) -> Attributes:
        """Owner before mode (a new owner clears suid), times last (all else changes them)."""
        with self._path_of(_node_of(inode)) as path:
            # No field at all is chown(-1, -1), which moves ctime.
            if changes.uid is not None or changes.gid is not None or changes == SetAttributes():
                set_owner(path, changes)
            if changes.size_bytes is not None:
                if isinstance(handle, HostHandle) and handle.is_writable:
                    os.ftruncate(handle.fd, changes.size_bytes)
                else:
                    os.truncate(path, changes.size_bytes)
            if changes.mode is not None:
                os.chmod(path, stat.S_IMODE(changes.mode))
            set_times(path, changes)
        return self.getattr(inode)

    def readlink(self, inode: Inode) -> bytes:
        fd = self._nodes.open_path(_node_of(inode))
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    # --- names ----------------------------------------------------------------------------------

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        if stat.S_ISREG(mode):
            inode, handle = self.create(parent, name, mode, os.O_WRONLY | os.O_EXCL, caller)
            handle.release()
            return inode
        directory = self._nodes.directory_fd(_node_of(parent))
        os.mknod(name, mode, rdev, dir_fd=directory)
        return self._adopt(_node_of(parent), name, mode, caller)

    def mkdir(self, parent: Inode, name: bytes, mode: int, caller: Caller) -> Inode:
        directory = self._nodes.directory_fd(_node_of(parent))
        os.mkdir(name, mode, dir_fd=directory)
        return self._adopt(_node_of(parent), name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, parent: Inode, name: bytes, target: bytes, caller: Caller) -> Inode:
        directory = self._nodes.directory_fd(_node_of(parent))
        os.symlink(target, name, dir_fd=directory)
        return self._adopt(_node_of(parent), name, stat.S_IFLNK, caller)

    def link(
        self,
        inode: Inode,
        parent: Inode,
        name: bytes,
        caller: Caller,
    ) -> Inode:
        above = _node_of(parent)
        with self._path_of(_node_of(inode)) as path:
            directory = self._nodes.directory_fd(above)
            os.link(os.fsencode(path), name, dst_dir_fd=directory, follow_symlinks=True)
        return self.lookup(parent, name)

    def unlink(
        self,
        parent: Inode,
        name: bytes,
        caller: Caller,
    ) -> None:
        above = _node_of(parent)
        node, links = self._pin(above, name)
        os.unlink(name, dir_fd=self._nodes.directory_fd(above))
        if node is not None:
            self._nodes.lose_name(node, above, name, is_last=links == 1)

    def rmdir(
        self,
        parent: Inode,
        name: bytes,
        caller: Caller,
    ) -> None:
        above = _node_of(parent)
        node, _ = self._pin(above, name)
        os.rmdir(name, dir_fd=self._nodes.directory_fd(above))
        if node is not None:
            self._nodes.lose_name(node, above, name, is_last=True)

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise InvalidArgument("rename flags")
        above, new_above = _node_of(parent), _node_of(new_parent)
        moved = self._known(above, name)
        displaced, links = None, 0
        if flags == 0:
            displaced, links = self._pin(new_above, new_name)
        elif flags == RENAME_EXCHANGE:
            displaced = self._known(new_above, new_name)
        source = self._nodes.directory_fd(above)
        # Both descriptors stay: the table keeps more than one directory.
        renameat2(source, name, self._nodes.directory_fd(new_above), new_name, flags)
        if displaced is moved and moved is not None:
            return
        if moved is not None:
            moved.parent, moved.name = new_above.number, new_name
        if displaced is not None and flags == RENAME_EXCHANGE:
            displaced.parent, displaced.name = above.number, name
        elif displaced is not None:
            is_last = links == 1 or displaced.type == stat.S_IFDIR
            self._nodes.lose_name(displaced, new_above, new_name, is_last)

    # --- files and directories --------------------------------------------------------------------

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        node = _node_of(inode)
        if node.type != stat.S_IFREG:
            raise InvalidArgument("not a regular file")
        fd = self._nodes.open(node, flags & _OPEN_FLAGS)
        try:
            if flags & os.O_TRUNC:
                # By path: with O_RDONLY the descriptor cannot be cut.
                os.truncate(f"/proc/self/fd/{fd}", 0)
                clear_set_id(fd, caller)
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        return self._handle(inode, fd, flags, status)

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Inode, Handle]:
        above = _node_of(parent)
        directory = self._nodes.directory_fd(above)
        how = flags & _OPEN_FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, how, stat.S_IMODE(mode), dir_fd=directory)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            found = self.lookup(parent, name)
            return found, self.open(found, flags, caller)
        try:
            self._ownership.give(
                f"/proc/self/fd/{fd}", os.fstat(directory), os.fstat(fd), mode, caller
            )
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=directory)
            raise
        inode = self._admit(above, name, status)
        return inode, self._handle(inode, fd, flags, status)

    def opendir(self, inode: Inode) -> HostDirectoryHandle:
        fd = self._nodes.open(_node_of(inode), os.O_RDONLY | os.O_DIRECTORY)
        return HostDirectoryHandle(_host(inode), fd, self._emit_entry, self._io)

    # --- extended attributes ----------------------------------------------------------------------

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        _check_namespace(name)
        with self._path_of(_node_of(inode)) as path:
            return os.getxattr(path, name)

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        _check_namespace(name)
        with self._path_of(_node_of(inode)) as path:
            os.setxattr(path, name, value)

    def listxattr(self, inode: Inode) -> list[bytes]:
        with self._path_of(_node_of(inode)) as path:
            names = [os.fsencode(name) for name in os.listxattr(path)]
        return [name for name in names if name.startswith(b"user.")]

    def removexattr(self, inode: Inode, name: bytes) -> None:
        _check_namespace(name)
        with self._path_of(_node_of(inode)) as path:
            os.removexattr(path, name)

    # --- inside ---------------------------------------------------------------------------------

    def _admit(self, above: HostNode, name: bytes, status: os.stat_result) -> HostInode:
        return self._inode(self._nodes.admit(status, above, name), status)

    def _inode(self, node: HostNode, status: os.stat_result) -> HostInode:
        inode = self._hot.get(node.number)
        if inode is None or inode.node is not node:
            inode = HostInode(self._base | node.number, self, self._make_attributes(), node)
            self._hot[node.number] = inode
            self._fresh.append(inode)
        fill(inode.attributes, inode.ino, status, self._timeout_s)
        return inode

    def _handle(self, inode: Inode, fd: int, flags: int, status: os.stat_result) -> HostHandle:
        handle = HostHandle(_host(inode), fd, flags, self._io)
        node = handle.node
        signature = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        handle.keep_cache = node.seen == signature
        age_ns = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
        node.seen = signature if age_ns > TRUST_AGE_NS else None
        return handle

    def _emit_entry(self, above: HostNode, name: bytes, cookie: int, emit: Emit) -> bool:
        directory = self._nodes.directory_fd(above)
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return True
        is_known = self._nodes.find(status) is not None
        node = self._nodes.admit(status, above, name)
        ino = self._base | node.number
        inode = self._hot.get(node.number)
        attributes = self._make_attributes() if inode is None else inode.attributes
        fill(attributes, ino, status, self._timeout_s)
        if emit(name, attributes, cookie):
            self._remember(ino)
            return True
        if not is_known:
            self._nodes.forget(node.number)
        return False

    def _known(self, above: HostNode, name: bytes) -> HostNode | None:
        directory = self._nodes.directory_fd(above)
        try:
            return self._nodes.find(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def _pin(self, above: HostNode, name: bytes) -> tuple[HostNode | None, int]:
        """The node that ``name`` leads to, kept reachable, and its link count."""
        directory = self._nodes.directory_fd(above)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None, 0
        status = os.fstat(fd)
        node = self._nodes.find(status)
        if node is None:
            os.close(fd)
        else:
            self._nodes.pin(node, fd)
        return node, status.st_nlink

    @contextmanager
    def _path_of(self, node: HostNode) -> Iterator[str]:
        """A path that leads to exactly this object, whatever its names are meanwhile."""
        fd = self._nodes.open_path(node)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    # --- new objects ----------------------------------------------------------------------------

    def _adopt(self, above: HostNode, name: bytes, mode: int, caller: Caller) -> HostInode:
        """Give what was just made under ``name`` to the caller; Stale if it is not there."""
        directory = self._nodes.directory_fd(above)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            status = os.fstat(fd)
            # A hard link to somebody's file, put there meanwhile, must not be given away.
            is_ours = stat.S_ISDIR(mode) or status.st_nlink == 1
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode) or not is_ours:
                raise Stale
            self._ownership.give(f"/proc/self/fd/{fd}", os.fstat(directory), status, mode, caller)
            return self._admit(above, name, os.fstat(fd))
        finally:
            os.close(fd)

    def _tell_stale(self, node: HostNode) -> None:
        if node.parent:
            self._invalidator.entry(self._base | node.parent, node.name)


def _host(inode: Inode) -> HostInode:
    assert isinstance(inode, HostInode)
    return inode


def _node_of(inode: Inode) -> HostNode:
    return _host(inode).node


def _check_namespace(name: bytes) -> None:
    if name == b"ipfs.cid":
        raise NoAttribute
    if not name.startswith(b"user."):
        raise AttributeNamespace
