"""The kernel's side of one FUSE connection: its limits, its read-ahead, its end.

The kernel allows 12 background requests per connection, so 12 reads stuck on one backend stop
every cold read of the whole tree (measured: 2.7 s at 12 stuck reads, 8.7 s at 40; 0.00 s at 40
with 1024 allowed). libfuse cannot change that limit, the files of the fusectl file system can.
Their owner is the user who mounted; only root can mount fusectl itself where nobody has.

Used by the session after mounting and by the umount command. It must never touch the mounted tree.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unifs.driver.mountinfo import MountedAt, mount, mounted_at

log = logging.getLogger(__name__)

FUSECTL: Final = Path("/sys/fs/fuse/connections")
BDI: Final = Path("/sys/class/bdi")
#: Background requests that the kernel sends before earlier ones are answered.
BACKGROUND_MAX: Final = 1024
BACKGROUND_DEFAULT: Final = 12
#: Cold sequential reads: 2.7 GB/s at the kernel's 128 KiB, 4.5 at 1 MiB, no more at 4 MiB.
READ_AHEAD_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Connection:
    """One mounted FUSE file system, by its device number."""

    major: int
    minor: int

    @classmethod
    def of(cls, mounted: MountedAt) -> Connection:
        return cls(mounted.major, mounted.minor)

    @property
    def directory(self) -> Path:
        """Its control files, where fusectl is mounted."""
        return FUSECTL / str(self.minor)

    def is_alive(self) -> bool:
        """Whether the kernel still has this connection; only true where fusectl is mounted."""
        return self.directory.exists()

    def raise_limits(self) -> int:
        """Let frozen mounts hold back none of the others; how many background requests there are.

        Users other than root get what /sys/module/fuse/parameters/max_user_bgreq allows (0.03 % of
        memory: 668 at 2 GiB), and EINVAL above it. Raises OSError where nothing is allowed.
        """
        for limit in (BACKGROUND_MAX, BACKGROUND_MAX // 2, BACKGROUND_MAX // 4):
            try:
                for name in ("max_background", "congestion_threshold"):
                    (self.directory / name).write_text(f"{limit}\n")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return limit
        raise OSError(errno.EINVAL, "max_user_bgreq allows too few background requests")

    def raise_read_ahead(self) -> None:
        """Let the kernel read ahead further. Raises OSError for anybody but root."""
        path = BDI / f"{self.major}:{self.minor}" / "read_ahead_kb"
        path.write_text(f"{READ_AHEAD_KIB}\n")

    def servers(self) -> list[int]:
        """The processes that have this connection open, as far as they can be seen.

        Where /proc/PID/fdinfo does not name the connection of a descriptor of /dev/fuse (older
        kernels), there are none to be found.
        """
        line = f"fuse_connection:\t{self.minor}"
        found = set()
        for path in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(path) != "/dev/fuse":
                    continue
                fdinfo = path.parent.parent / "fdinfo" / path.name
                if line in fdinfo.read_text().splitlines():
                    found.add(int(path.parts[2]))
            except OSError:
                # Gone meanwhile, or another user's.
                continue
        return sorted(found)

    def abort(self) -> None:
        """End the connection: every request fails, the daemon's session ends. Raises OSError."""
        (self.directory / "abort").write_text("1\n")


def is_mounted() -> bool:
    """Whether the fusectl file system is there."""
    return mounted_at(str(FUSECTL)) is not None


def ensure_mounted() -> bool:
    """Mount fusectl where it is missing and we are root. Whether it is there now."""
    if is_mounted():
        return True
    if os.geteuid() != 0:
        return False
    try:
        mount("fusectl", str(FUSECTL), "fusectl")
    except OSError as error:
        log.info("fusectl cannot be mounted reason=%r", str(error))
        return False
    return True


def tune(mounted: MountedAt) -> int:
    """Raise the limits of a new connection; how many background requests the kernel then sends.

    Call it when the kernel has had its answer to INIT: that answer sets both limits anew.
    """
    connection = Connection.of(mounted)
    ensure_mounted()
    try:
        background = connection.raise_limits()
    except OSError as error:
        log.warning(
            "max_background cannot be raised reason=%r: `unifs doctor` says more", str(error)
        )
        background = BACKGROUND_DEFAULT
    if os.geteuid() == 0:
        try:
            connection.raise_read_ahead()
        except OSError as error:
            log.info("read_ahead_kb cannot be raised reason=%r", str(error))
    return background
