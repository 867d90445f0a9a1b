"""The state directory: its layout, its lock, its reserve.

Owned by the daemon, from before the database is opened until after it is closed. One daemon per
directory: a second one refuses and names the first. Never deletes anything but its own reserve.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from typing import TYPE_CHECKING

from unifs.errors import InvalidArgument, NoSpace, StateInUse, StateUnusable

if TYPE_CHECKING:
    from pathlib import Path

#: Given up so that commits that free space work on a full disk.
RESERVE_BYTES = 8 << 20
#: With less than this a commit may find no room for its pages of the log.
FULL_BYTES = 256 << 10

FOLDERS = ("segments", "data", "cache", "lost+found", "nodes")

#: What may be in a state directory before unifs is: a disk's own folder, and what its user puts
#: there (as may files of settings, *.toml). A log is begun before the state is opened.
FIRST = {"lost+found", "credentials.json", "unifs.log"}


def boot_id() -> str:
    """The kernel's id of this boot; page cache of an earlier one is gone."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class StateDirectory:
    """An exclusively locked state directory with all its folders."""

    def __init__(self, path: Path, mount_point: str = "") -> None:
        self.path = path
        self.database = path / "tree.db"
        self.segments = path / "segments"
        self.data = path / "data"
        self.cache = path / "cache"
        self.lost_found = path / "lost+found"
        #: DAG nodes and added blocks; a segment store apart from the journal's.
        self.nodes = path / "nodes"
        self.boot_id = boot_id()
        self._reserved_bytes = 0
        self._reserve = path / "reserve"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error
        self._lock = self._take_lock(mount_point)
        try:
            for folder in FOLDERS:
                (path / folder).mkdir(mode=0o700, exist_ok=True)
            self.restore_reserve()
        except OSError as error:
            self.close()
            raise _unusable(path, error) from error
        except StateUnusable:
            self.close()
            raise

    def _take_lock(self, mount_point: str) -> int:
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(os.pread(lock, 4096, 0))
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise _unusable(self.path, error) from error
            raise StateInUse(f"{self.path} is in use by {owner}") from error
        claim = {"pid": os.getpid(), "boot_id": self.boot_id, "mount_point": mount_point}
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(claim).encode(), 0)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                os.close(lock)
                raise _unusable(self.path, error) from error
        return lock

    @property
    def has_reserve(self) -> bool:
        """Whether there is something to give up."""
        return self._reserved_bytes > 0

    def restore_reserve(self) -> bool:
        """Hold ``RESERVE_BYTES`` of real blocks again, or an eighth of it at least.

        False where the disk has none to give.
        """
        is_whole = self._reserved_bytes == RESERVE_BYTES
        if is_whole or (self.has_reserve and not self.free_bytes()):
            return True
        try:
            reserve = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise _unusable(self.path, error) from error
        try:
            return any(self._hold(reserve, RESERVE_BYTES // part) for part in (1, 2, 4, 8))
        finally:
            os.close(reserve)

    def _hold(self, reserve: int, size: int) -> bool:
        try:
            os.posix_fallocate(reserve, 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _unusable(self.path, error) from error
            os.ftruncate(reserve, 0)
            size = 0
        self._reserved_bytes = size
        return size > 0

    def give_up_reserve(self) -> bool:
        """Free the reserve for a commit that will free more; False if it is gone already."""
        if not self.has_reserve:
            return False
        self._reserved_bytes = 0
        os.truncate(self._reserve, 0)
        return True

    def free_bytes(self) -> int:
        """What ordinary writes may still use of the disk."""
        disk = os.statvfs(self.path)
        return max(0, disk.f_bavail * disk.f_frsize - RESERVE_BYTES)

    def is_full(self) -> bool:
        """Whether the disk has too little for any change that does not make room."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize < FULL_BYTES

    def close(self) -> None:
        """Unlock. The database must be closed."""
        os.close(self._lock)


def refuse_foreign(path: Path) -> None:
    """Return if the directory is a state directory or may become one. Changes nothing.

    InvalidArgument where it holds something else: unifs makes its directory private, and deletes
    what it does not know in folders whose names anybody may use (``data``, ``cache``).
    """
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise _unusable(path, error) from error
    if "tree.db" in names or _has_claim(path / "lock"):
        return
    # A start that found no room for its claim has got so far.
    known = FIRST | {"lock", "reserve", *FOLDERS} if "lock" in names else FIRST
    foreign = sorted(name for name in names - known if not name.endswith(".toml"))
    if foreign:
        raise InvalidArgument(
            f"{path} is no state directory of unifs and not empty ({foreign[0]!r} is in it):"
            " give one of its own"
        )


def _has_claim(lock: Path) -> bool:
    try:
        return _holder(lock.read_bytes()) is not None
    except OSError:
        return False


def holder(path: Path) -> int | None:
    """The process that holds the state directory ``path`` now; None where nobody does or tells."""
    try:
        lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # None yet, or none that we may see: opening the directory will say so.
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(os.pread(lock, 4096, 0))
    finally:
        os.close(lock)
    return None


def _holder(claim: bytes) -> int | None:
    try:
        return int(json.loads(claim)["pid"])
    except (ValueError, KeyError, TypeError):
        return None


def _owner(claim: bytes) -> str:
    try:
        owner = json.loads(claim)
        return f"pid {owner['pid']} (mounted at {owner['mount_point'] or 'nowhere'})"
    except (ValueError, KeyError):
        return "another process"


def no_room(path: Path) -> NoSpace:
    """Why a state directory cannot be opened whose reserve is gone too."""
    return NoSpace(
        f"no space left to open the state directory {path}: free a few megabytes on that disk,"
        " elsewhere than in it; files of the tree can be deleted once it is mounted"
    )


def _unusable(path: Path, error: OSError) -> StateUnusable | NoSpace:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_room(path)
    return StateUnusable(f"the state directory {path} cannot be used: {error.strerror}")
