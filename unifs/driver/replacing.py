"""A mount point whose daemon has died: telling it, taking it away, and mounting in its place.

The mount and umount commands and the session call it. A dead tree answers ENOTCONN, which no
program takes for an empty directory; one that was just unmounted *is* an empty directory, and a job
that mirrors it deletes the other side. So root's new tree is put beneath the dead one, which is
then taken away: whoever looks sees the one or the other, in containers too. Users have to go
through fusermount3, which cannot do that: there the place is empty for some milliseconds.

Nothing here touches a living tree from the thread that serves it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unifs.driver import mountinfo
from unifs.driver.mountinfo import MNT_DETACH, mounted_at, umount
from unifs.errors import DeadlineExceeded, MountFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

#: How long a mounted tree may take for its first answer, and an old one until it counts as frozen.
ANSWER_S: Final = 10.0
#: fusermount3 does one system call.
FUSERMOUNT_S: Final = 30.0


def is_dead(place: str) -> bool:
    """Whether a mount's daemon is gone. DeadlineExceeded where it is there but does not answer."""
    try:
        look_in_time(place)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def look_in_time(place: str) -> None:
    """Look at a mounted tree from a thread of its own, since the answer may never come.

    By statfs, which always reaches the daemon: what stat says of a dead tree's root may be cached.
    Raises OSError, or DeadlineExceeded after ``ANSWER_S``.
    """
    failures: list[OSError] = []

    def look() -> None:
        try:
            os.statvfs(place)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=look, name="unifs-look", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive():
        raise DeadlineExceeded(f"the unifs at {place} does not answer (`unifs umount` ends it)")
    if failures:
        raise failures[0]


def remove_dead(place: str, leave: int = 0) -> None:
    """Take the dead unifs at ``place`` out of the way, all but ``leave`` of them.

    Raises MountFailed.
    """
    while _is_dead_unifs(place) and len(_stacked(place)) > leave:
        try:
            detach(place)
        except OSError as error:
            raise MountFailed(f"the dead mount at {place} stays: {error.strerror}") from error


def detach(place: str) -> None:
    """Take a mount out of the namespace; it ends when its last user is gone. Blocks.

    Raises OSError, or MountFailed with what fusermount3 said.
    """
    if os.geteuid() == 0:
        umount(place, MNT_DETACH)
    else:
        fusermount(place, "-u", "-z")


def fusermount(place: str, *flags: str) -> None:
    """Unmount by the set-uid program. Raises MountFailed with what it said. Blocks."""
    program = shutil.which("fusermount3")
    if program is None:
        raise MountFailed("fusermount3 is not installed")
    result = subprocess.run(
        [program, *flags, "--", place],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=FUSERMOUNT_S,
        check=False,
    )
    if result.returncode:
        raise MountFailed(result.stderr.strip() or f"fusermount3 ended with {result.returncode}")


@contextmanager
def place_for(place: str, staging: Path | None) -> Iterator[str]:
    """Where to mount a tree so that it is at ``place`` when the block is left.

    ``place`` itself, unless a dead unifs is there, the caller is root, and ``staging`` says where a
    directory may be made that nobody else uses. Raises MountFailed.
    """
    if staging is None or os.geteuid() != 0 or not _is_dead_unifs(place):
        remove_dead(place)
        yield place
        return
    remove_dead(place, leave=1)
    try:
        # Left over from one that was killed here.
        remove_dead(str(staging))
        staging.mkdir(mode=0o700, exist_ok=True)
        yield str(staging)
        _move_over(str(staging), place)
        umount(str(staging), MNT_DETACH)
        staging.rmdir()
    except OSError as error:
        raise MountFailed(f"the dead mount at {place} stays: {error.strerror}") from error
    log.info("mount_point=%s took the place of one that died", place)


def _move_over(source: str, place: str) -> None:
    """Let the mount at ``source`` be at ``place`` too, where a dead one is on top."""
    copy = mountinfo.open_copy(source)
    try:
        try:
            mountinfo.attach(copy, place, mountinfo.MOVE_MOUNT_BENEATH)
        except OSError as error:
            # Linux before 6.5, or a mount point below a shared mount that would be covered twice.
            # Between the next two calls the place is empty: 20 µs.
            log.info("mount_point=%s is empty for a moment reason=%r", place, error.strerror)
            umount(place, MNT_DETACH)
            mountinfo.attach(copy, place)
            return
        umount(place, MNT_DETACH)
    finally:
        os.close(copy)


def _stacked(place: str) -> list[mountinfo.MountedAt]:
    return [each for each in mountinfo.mounts() if each.mount_point == place]


def _is_dead_unifs(place: str) -> bool:
    found = mounted_at(place)
    return found is not None and found.is_unifs and is_dead(place)
