"""The model: a tree of dictionaries with the results and errno that Linux gives, and nothing else.

Symlinks point nowhere, so following one is ENOENT. Callers are root: no permission is checked.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from tests.model.operations import RENAME_EXCHANGE, RENAME_NOREPLACE, Status

NAME_MAX_BYTES = 255
WRITABLE = os.O_WRONLY | os.O_RDWR


@dataclass(eq=False)
class Item:
    """One inode of the model."""

    kind: str
    permissions: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, Item] = field(default_factory=dict)
    target: bytes = b""
    nlink: int = 0
    mtime_ns: int = 0
    labels: dict[str, bytes] = field(default_factory=dict)

    def touch(self) -> None:
        """Forget a modification time that was set: it is now whenever this happened."""
        self.mtime_ns = 0

    def status(self) -> Status:
        """Return what stat says."""
        if self.kind == "dir":
            return Status("dir", self.permissions, 0, 0, self.mtime_ns)
        size = len(self.target) if self.kind == "link" else len(self.data)
        return Status(self.kind, self.permissions, size, self.nlink, self.mtime_ns)


@dataclass(eq=False)
class Opened:
    """One handle of the model."""

    item: Item
    flags: int


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Model:
    """The dictionary that everything else is compared with."""

    def __init__(self) -> None:
        self.top = Item("dir", 0o755)

    def paths(self) -> list[bytes]:
        """Return every name, directories before what is in them."""
        found, pending = [], [(b"", self.top)]
        while pending:
            above, item = pending.pop()
            for name in sorted(item.entries):
                path = above + b"/" + name if above else name
                found.append(path)
                pending.append((path, item.entries[name]))
        return found

    # --- paths ------------------------------------------------------------------------------------

    def _parent(self, path: bytes) -> tuple[Item, bytes]:
        *above, name = path.split(b"/")
        item = self.top
        for component in above:
            item = self._child(item, component)
            if item.kind == "link":
                raise _error(errno.ENOENT)
            if item.kind != "dir":
                raise _error(errno.ENOTDIR)
        return item, name

    @staticmethod
    def _check(name: bytes) -> None:
        if len(name) > NAME_MAX_BYTES:
            raise _error(errno.ENAMETOOLONG)

    def _child(self, parent: Item, name: bytes) -> Item:
        self._check(name)
        if name not in parent.entries:
            raise _error(errno.ENOENT)
        return parent.entries[name]

    def _item(self, path: bytes) -> Item:
        return self._child(*self._parent(path)) if path else self.top

    def _followed(self, path: bytes) -> Item:
        item = self._item(path)
        if item.kind == "link":
            raise _error(errno.ENOENT)
        return item

    def _vacant(self, path: bytes) -> tuple[Item, bytes]:
        parent, name = self._parent(path)
        self._check(name)
        if name in parent.entries:
            raise _error(errno.EEXIST)
        return parent, name

    @staticmethod
    def _put(parent: Item, name: bytes, item: Item) -> None:
        parent.entries[name] = item
        item.nlink += 1
        parent.touch()

    @staticmethod
    def _take(parent: Item, name: bytes) -> Item:
        item = parent.entries.pop(name)
        item.nlink -= 1
        parent.touch()
        return item

    # --- handles ----------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> Opened:
        parent, name = self._parent(path)
        self._check(name)
        item = parent.entries.get(name)
        if item is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT)
            item = Item("file", 0o644)
            self._put(parent, name, item)
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST)
        elif item.kind == "link":
            raise _error(errno.ELOOP)
        elif item.kind == "dir" and flags & (WRITABLE | os.O_CREAT | os.O_TRUNC):
            raise _error(errno.EISDIR)
        elif flags & os.O_TRUNC:
            item.data.clear()
            item.touch()
        return Opened(item, flags)

    def close(self, handle: Opened) -> None:
        """Nothing of the model depends on it."""

    def pread(self, handle: Opened, offset: int, size: int) -> bytes:
        if handle.flags & os.O_WRONLY:
            raise _error(errno.EBADF)
        if handle.item.kind == "dir":
            raise _error(errno.EISDIR)
        return bytes(handle.item.data[offset : offset + size])

    def pwrite(self, handle: Opened, offset: int, data: bytes) -> int:
        if not handle.flags & WRITABLE:
            raise _error(errno.EBADF)
        if not data:
            return 0
        content = handle.item.data
        start = len(content) if handle.flags & os.O_APPEND else offset
        content.extend(bytes(max(0, start - len(content))))
        content[start : start + len(data)] = data
        handle.item.touch()
        return len(data)

    def ftruncate(self, handle: Opened, size: int) -> None:
        if not handle.flags & WRITABLE:
            raise _error(errno.EINVAL)
        self._resize(handle.item, size)

    @staticmethod
    def _resize(item: Item, size: int) -> None:
        del item.data[size:]
        item.data.extend(bytes(size - len(item.data)))
        item.touch()

    def fsync(self, handle: Opened) -> None:
        """The model never crashes."""

    def fstat(self, handle: Opened) -> Status:
        return handle.item.status()

    # --- names ------------------------------------------------------------------------------------

    def lstat(self, path: bytes) -> Status:
        return self._item(path).status()

    def truncate(self, path: bytes, size: int) -> None:
        item = self._followed(path)
        if item.kind == "dir":
            raise _error(errno.EISDIR)
        self._resize(item, size)

    def listdir(self, path: bytes) -> list[bytes]:
        item = self._followed(path)
        if item.kind != "dir":
            raise _error(errno.ENOTDIR)
        return sorted(item.entries)

    def mkdir(self, path: bytes) -> None:
        self._put(*self._vacant(path), Item("dir", 0o755))

    def rmdir(self, path: bytes) -> None:
        parent, name = self._parent(path)
        item = self._child(parent, name)
        if item.kind != "dir":
            raise _error(errno.ENOTDIR)
        if item.entries:
            raise _error(errno.ENOTEMPTY)
        self._take(parent, name)

    def unlink(self, path: bytes) -> None:
        parent, name = self._parent(path)
        if self._child(parent, name).kind == "dir":
            raise _error(errno.EISDIR)
        self._take(parent, name)

    def link(self, old: bytes, new: bytes) -> None:
        item = self._item(old)
        parent, name = self._vacant(new)
        if item.kind == "dir":
            raise _error(errno.EPERM)
        self._put(parent, name, item)

    def symlink(self, target: bytes, path: bytes) -> None:
        self._put(*self._vacant(path), Item("link", 0o777, target=target))

    def readlink(self, path: bytes) -> bytes:
        item = self._item(path)
        if item.kind != "link":
            raise _error(errno.EINVAL)
        return item.target

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        source, old_name = self._parent(old)
        target, new_name = self._parent(new)
        item = self._child(source, old_name)
        self._check(new_name)
        there = target.entries.get(new_name)
        if flags & RENAME_NOREPLACE and there is not None:
            raise _error(errno.EEXIST)
        if flags & RENAME_EXCHANGE and there is None:
            raise _error(errno.ENOENT)
        self._check_loops(old, new, flags)
        if there is item:
            return
        if flags & RENAME_EXCHANGE:
            assert there is not None
            source.entries[old_name], target.entries[new_name] = there, item
            source.touch()
            target.touch()
            return
        if there is not None:
            self._check_replaced(item, there)
            self._take(target, new_name)
        self._put(target, new_name, self._take(source, old_name))

    @staticmethod
    def _check_loops(old: bytes, new: bytes, flags: int) -> None:
        if new.startswith(old + b"/"):
            raise _error(errno.EINVAL)
        if old.startswith(new + b"/"):
            raise _error(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)

    @staticmethod
    def _check_replaced(item: Item, there: Item) -> None:
        if item.kind == "dir" and there.kind != "dir":
            raise _error(errno.ENOTDIR)
        if item.kind != "dir" and there.kind == "dir":
            raise _error(errno.EISDIR)
        if there.entries:
            raise _error(errno.ENOTEMPTY)

    # --- attributes -------------------------------------------------------------------------------

    def chmod(self, path: bytes, mode: int) -> None:
        self._followed(path).permissions = mode

    def utime(self, path: bytes, mtime_ns: int) -> None:
        self._followed(path).mtime_ns = mtime_ns

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        labels = self._followed(path).labels
        if flags & os.XATTR_CREATE and name in labels:
            raise _error(errno.EEXIST)
        if flags & os.XATTR_REPLACE and name not in labels:
            raise _error(errno.ENODATA)
        labels[name] = value

    def getxattr(self, path: bytes, name: str) -> bytes:
        labels = self._followed(path).labels
        if name not in labels:
            raise _error(errno.ENODATA)
        return labels[name]

    def listxattr(self, path: bytes) -> list[str]:
        return sorted(self._followed(path).labels)

    def removexattr(self, path: bytes, name: str) -> None:
        self.getxattr(path, name)
        del self._followed(path).labels[name]

    def remount(self) -> None:
        """Nothing of the model depends on it."""
