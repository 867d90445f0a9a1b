"""Which daemon a command means, and which path of its tree.

The command line calls it. It reads /proc/self/mountinfo and never touches a mounted tree: a dead or
frozen mount point would block it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unifs import config
from unifs.control.client import Client
from unifs.errors import InvalidArgument, NoDaemon

MOUNTINFO: Final = Path("/proc/self/mountinfo")
_TYPE: Final = b"fuse.unifs"
_SOURCE: Final = "unifs:"


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted tree. ``state`` is None where its mount does not tell its state directory."""

    mount_point: Path
    state: Path | None


def source_of(state: Path) -> str:
    """The mount's source (``fsname``) that lets ``mounted`` find the state directory again."""
    return f"{_SOURCE}{state}"


def mounted(mountinfo: Path = MOUNTINFO) -> list[Mounted]:
    """Every unifs tree that is mounted here, the latest last (proc_pid_mountinfo(5))."""
    found = []
    for line in mountinfo.read_bytes().splitlines():
        head, _, tail = line.partition(b" - ")
        fields, ending = head.split(b" "), tail.split(b" ")
        if ending[0] != _TYPE:
            continue
        source = _unescaped(ending[1])
        state = Path(source.removeprefix(_SOURCE)) if source.startswith(_SOURCE) else None
        found.append(Mounted(Path(_unescaped(fields[4])), state))
    return found


def _unescaped(field: bytes) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


class Target:
    """The daemon that a command means: by ``state``, by ``mount``, by a path, else the default."""

    def __init__(self, state: Path | None, mount: Path | None) -> None:
        if state is not None and mount is not None:
            raise InvalidArgument("give either --state or --mount")
        self._state = state
        self._mount = None if mount is None else _plain(mount)

    def client(self, timeout_s: float | None = None) -> Client:
        """A client of that daemon."""
        state = self._state_directory()
        return Client(
            config.socket_path(state), config.state_socket_path(state), timeout_s=timeout_s
        )

    def state_directory(self) -> Path:
        """Where that daemon keeps its state."""
        return self._state_directory()

    def tree_path(self, path: str) -> str:
        """``path`` as a path of the tree: below a mount point, else as it is (``/mfs/a``).

        A path below a mount point also decides which daemon is meant, unless an option has.
        """
        absolute = _plain(Path(path))
        for each in reversed(mounted()):
            if absolute == each.mount_point or each.mount_point in absolute.parents:
                if self._state is None and self._mount is None:
                    self._mount = each.mount_point
                below = str(absolute.relative_to(each.mount_point))
                return "/" if below == "." else f"/{below}"
        return path

    def _state_directory(self) -> Path:
        if self._mount is None:
            return config.state_directory(self._state)
        for each in reversed(mounted()):
            if each.mount_point == self._mount:
                return config.state_directory(each.state)
        raise NoDaemon(f"no unifs is mounted at {self._mount}", mount=str(self._mount))


def _plain(path: Path) -> Path:
    """Absolute, without ``..``, its directory's links resolved, the mounted part never touched."""
    absolute = Path(os.path.abspath(path.expanduser()))
    known = {each.mount_point for each in mounted()}
    if absolute in known or known & set(absolute.parents):
        return absolute
    return Path(os.path.realpath(absolute))
