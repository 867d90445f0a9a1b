"""Whose a new host object is: owner and mode as the caller asked, not as the daemon would have
them.

``HostVolume`` calls it right after it has made something. Only a daemon that is root can give
objects away; otherwise they are its own user's, who is the only caller then.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unifs.types import Caller

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class Ownership:
    """The daemon's user and umask, which its own system calls are subject to."""

    __slots__ = ("_is_root", "_umask")

    def __init__(self) -> None:
        self._is_root = os.geteuid() == 0
        self._umask = os.umask(0)
        os.umask(self._umask)

    def give(
        self, path: str, parent: os.stat_result, made: os.stat_result, mode: int, caller: Caller
    ) -> None:
        """Set the owner, then the mode bits that umask or the change of owner took away.

        ``path`` must lead to the object whatever its name does (/proc/self/fd). In a set-group-ID
        directory the group is the one that the host chose.
        """
        is_given = False
        if self._is_root:
            gid = made.st_gid if parent.st_mode & stat.S_ISGID else caller.gid
            if (caller.uid, gid) != (made.st_uid, made.st_gid):
                os.chown(path, caller.uid, gid)
                is_given = True
        if stat.S_ISLNK(made.st_mode):
            return
        if mode & self._umask or (is_given and (mode | made.st_mode) & _SET_ID):
            os.chmod(path, stat.S_IMODE(mode) | made.st_mode & stat.S_ISGID)


def clear_set_id(fd: int, caller: Caller) -> None:
    """What the host does to a set-ID file that an ordinary caller truncates, for a root daemon."""
    mode = os.fstat(fd).st_mode
    if caller.uid == 0 or not mode & _SET_ID:
        return
    # Set-group-ID without group execution marks mandatory locking, not a privilege.
    clear = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    os.fchmod(fd, stat.S_IMODE(mode & ~clear))
