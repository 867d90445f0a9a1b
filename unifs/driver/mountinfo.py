"""What is mounted where, read from /proc, and the two system calls that change it.

Used by the session, the mount and umount commands and doctor. Nothing here touches a mounted tree:
a ``stat`` of a dead or frozen mount point can block for ever, /proc/self/mountinfo never does.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
#: The file system type of a mounted unifs tree: "fuse." and the mount option ``subtype``.
UNIFS_TYPE: Final = "fuse.unifs"
#: umount2(2): take it out of the tree now, end it when nobody uses it any more.
MNT_DETACH: Final = 2
#: open_tree(2), move_mount(2): numbers that all architectures share (Linux 5.2).
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
#: move_mount(2): below the mount that is there, not over it (Linux 6.5).
MOVE_MOUNT_BENEATH: Final = 0x200
_AT_FDCWD: Final = -100


@dataclass(frozen=True, slots=True)
class MountedAt:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    mount_point: str
    fs_type: str
    major: int
    minor: int
    #: "shared:N", "master:N" and so on; empty where the mount is private.
    propagation: tuple[str, ...]
    #: What is mounted there, as the file system calls it.
    source: str = ""

    @property
    def is_unifs(self) -> bool:
        return self.fs_type == UNIFS_TYPE

    @property
    def is_shared(self) -> bool:
        return any(tag.startswith("shared:") for tag in self.propagation)


def mounts(source: Path = MOUNTINFO) -> list[MountedAt]:
    """Everything mounted in this mount namespace, the latest last."""
    return [_parse(line) for line in source.read_bytes().splitlines()]


def mounted_at(path: str, source: Path = MOUNTINFO) -> MountedAt | None:
    """The topmost mount whose mount point is exactly ``path`` (absolute, resolved), or None."""
    found = [mount for mount in mounts(source) if mount.mount_point == path]
    return found[-1] if found else None


def mount_above(path: str, source: Path = MOUNTINFO) -> MountedAt | None:
    """The mount that ``path`` (absolute, resolved) lies in; None in a chroot that is no mount."""
    return max(
        (mount for mount in mounts(source) if _is_within(path, mount.mount_point)),
        key=lambda mount: len(mount.mount_point),
        default=None,
    )


def resolved(path: str | os.PathLike[str]) -> str:
    """``path``, absolute and without symlinks, though its last component is never touched.

    The last component may be a dead or frozen mount point. Only when no mount is there is it
    resolved as well, because mount(2) follows it.
    """
    absolute = os.path.abspath(os.fspath(path))
    parent, name = os.path.split(absolute)
    place = os.path.join(os.path.realpath(parent), name)
    return place if mounted_at(place) else os.path.realpath(place)


def mount(source: str, target: str, fs_type: str) -> None:
    """mount(2) without flags. Raises OSError."""
    _check(_libc().mount(source.encode(), os.fsencode(target), fs_type.encode(), 0, None), target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError. The interpreter lock is released meanwhile."""
    _check(_libc().umount2(os.fsencode(target), flags), target)


def open_copy(path: str) -> int:
    """A descriptor of a copy of the mount at ``path``, attached nowhere. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    result = _libc().syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    return _check(result, path)


def attach(copy: int, target: str, flags: int = 0) -> None:
    """Attach what ``open_copy`` has given at ``target``, once. Raises OSError."""
    flags |= _MOVE_MOUNT_F_EMPTY_PATH
    result = _libc().syscall(_MOVE_MOUNT, copy, b"", _AT_FDCWD, os.fsencode(target), flags)
    _check(result, target)


def _parse(line: bytes) -> MountedAt:
    head, _, tail = line.partition(b" - ")
    fields = head.split(b" ")
    major, minor = fields[2].split(b":")
    kind, source = tail.split(b" ")[:2]
    return MountedAt(
        mount_point=_unescaped(fields[4]),
        fs_type=_unescaped(kind),
        source=_unescaped(source),
        major=int(major),
        minor=int(minor),
        propagation=tuple(os.fsdecode(tag) for tag in fields[6:]),
    )


def _unescaped(field: bytes) -> str:
    """Space, tab, newline and backslash stand as three octal digits."""
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


def _is_within(path: str, mount_point: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip("/") + "/")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, target: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
    return result
