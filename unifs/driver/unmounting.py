"""The umount command: unmount, and wait until the daemon has ended.

Called by the command line, from a process of its own. A mount that other namespaces hold a copy of
(containers) does not end when ours is taken away: then the daemon is told to end, and if it does
not, the kernel is told to end the connection.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from unifs.driver.fusectl import Connection, ensure_mounted
from unifs.driver.mountinfo import mounted_at, mounts, resolved, umount
from unifs.driver.replacing import fusermount, is_dead, remove_dead
from unifs.errors import (
    Busy,
    DeadlineExceeded,
    InvalidArgument,
    MountFailed,
    NotFound,
    NotPermitted,
    from_os_error,
)

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

#: After a plain umount the kernel ends the connection at once, unless there is a copy of the mount.
COPY_S: Final = 1.0
#: What a daemon that was told to end takes: its grace for programs that use the tree, and closing.
END_S: Final = 15.0
#: How long a daemon may take to close its state before the command returns without it.
CLOSE_S: Final = 30.0
#: Programs named in a message.
NAMED_MAX: Final = 5


def umount_command(mount_point: Path, wait: bool) -> int:
    """Unmount the tree at ``mount_point``; 0 when its daemon has ended.

    ``wait``: however long the daemon takes to close its state; otherwise ``CLOSE_S``, then
    DeadlineExceeded. Raises NotFound where nothing is mounted, InvalidArgument where it is no
    unifs, Busy naming the programs that use it. A dead mount is removed.
    """
    place = resolved(mount_point)
    ensure_mounted()
    found = mounted_at(place)
    if found is None:
        raise NotFound(f"nothing is mounted at {place}")
    if not found.is_unifs:
        raise InvalidArgument(f"what is mounted at {place} is no unifs ({found.fs_type})")
    connection = Connection.of(found)
    daemons = connection.servers()
    with ExitStack() as stack:
        descriptors = []
        for pid in daemons:
            try:
                descriptors.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
            stack.callback(os.close, descriptors[-1])
        _unmount(place)
        _end_copies(connection, descriptors)
        if not _have_ended(descriptors, None if wait else CLOSE_S):
            pids = ", ".join(map(str, daemons))
            raise DeadlineExceeded(f"{place} is unmounted, its daemon (pid {pids}) still closes")
    return 0


def _unmount(place: str) -> None:
    try:
        if os.geteuid() == 0:
            umount(place)
        else:
            fusermount(place, "-u")
    except (OSError, MountFailed) as error:
        is_busy = error.errno == errno.EBUSY if isinstance(error, OSError) else "busy" in str(error)
        if is_busy and is_dead(place):
            remove_dead(place)
        elif is_busy:
            raise Busy(f"{place} is in use{_users(place)}") from error
        elif isinstance(error, OSError) and error.errno == errno.EPERM:
            raise NotPermitted(f"{place} can only be unmounted by root") from error
        elif isinstance(error, OSError):
            raise from_os_error(error) from error
        else:
            raise


def _end_copies(connection: Connection, daemons: list[int]) -> None:
    """End the daemon where a copy of the mount in another namespace keeps its connection."""
    if _ends_within(connection, COPY_S):
        return
    log.info("the mount has copies in other namespaces: ending its daemon")
    for daemon in daemons:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    if daemons and _have_ended(daemons, END_S):
        return
    try:
        connection.abort()
    except OSError as error:
        raise MountFailed(
            f"copies of the mount in other namespaces keep it: {error.strerror}"
        ) from error


def _ends_within(connection: Connection, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while connection.is_alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _have_ended(daemons: list[int], seconds: float | None) -> bool:
    """Whether all processes have ended within that time."""
    deadline = None if seconds is None else time.monotonic() + seconds
    for daemon in daemons:
        poller = select.poll()
        poller.register(daemon, select.POLLIN)
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not poller.poll(None if left_s is None else left_s * 1000):
            return False
    return True


def _users(place: str) -> str:
    """What uses it, as " by NAME (pid N), …"; /proc tells, the tree is not touched.

    This command is named where there is nobody else: it ends by itself.
    """
    below = {mount.mount_point for mount in mounts() if mount.mount_point.startswith(f"{place}/")}
    users = [f"what is mounted at {path}" for path in sorted(below)]
    itself = str(os.getpid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid != itself and any(_is_within(link, place) for link in _links(f"/proc/{pid}")):
            try:
                with open(f"/proc/{pid}/comm", errors="replace") as file:
                    users.append(f"{file.read().strip()} (pid {pid})")
            except OSError:
                continue
    if not users:
        is_itself = any(_is_within(link, place) for link in _links("/proc/self"))
        return " by this command, which stands in it" if is_itself else ""
    more = f" and {len(users) - NAMED_MAX} more" if len(users) > NAMED_MAX else ""
    return " by " + ", ".join(users[:NAMED_MAX]) + more


def _links(process: str) -> list[str]:
    """Where a process stands, what it runs and has open or mapped, as far as it may be seen."""
    try:
        paths = [f"{process}/cwd", f"{process}/root", f"{process}/exe"]
        paths += [f"{process}/fd/{name}" for name in os.listdir(f"{process}/fd")]
        with open(f"{process}/maps", errors="surrogateescape") as file:
            links = [line[line.index("/") :].rstrip("\n") for line in file if "/" in line]
    except OSError:
        # Another user's, or gone meanwhile.
        return []
    for path in paths:
        with suppress(OSError):
            links.append(os.readlink(path))
    return links


def _is_within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")
