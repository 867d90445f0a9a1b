"""What this machine lacks for a mounted tree, and how to mend it.

``examine`` is what `unifs doctor` prints; the mount command asks the findings that a mount cannot
do without before it starts anything. Nothing here mounts, opens a tree, or changes the machine.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import resource
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unifs.driver import fusectl, loop
from unifs.driver.mountinfo import mount_above
from unifs.errors import InvalidArgument
from unifs.state.directory import refuse_foreign

if TYPE_CHECKING:
    from unifs.config import Settings

FUSE_DEVICE: Final = Path("/dev/fuse")
#: Miscellaneous devices (10), FUSE_MINOR (229): linux/miscdevice.h.
FUSE_NUMBER: Final = os.makedev(10, 229)
FUSE_CONF: Final = Path("/etc/fuse.conf")
PIPE_MAX: Final = Path("/proc/sys/fs/pipe-max-size")
USER_LIMIT: Final = Path("/sys/module/fuse/parameters/max_user_bgreq")
STATUS: Final = Path("/proc/self/status")

#: Bits of CapEff (linux/capability.h).
CAP_SYS_ADMIN: Final = 21
CAP_SYS_RESOURCE: Final = 24
#: What the tests run on reaches back to here; FUSE without readdirplus ended with 3.9.
KERNEL_OLDEST: Final = (5, 4)
#: Below it the reserve, a segment and the database's log leave little for anything else.
FREE_BYTES_LOW: Final = 1 << 30
#: Open files take one descriptor each, large contents up to four.
DESCRIPTORS_LOW: Final = 16_384
#: libfuse's splice buffer: the largest request and its header.
PIPE_BYTES: Final = (1 << 20) + 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``message`` says what is; ``remedy`` what to do where it is not ok."""

    name: str
    is_ok: bool
    message: str
    remedy: str = ""
    #: Without it nothing can be mounted; otherwise something is slower or weaker.
    is_needed: bool = False


def examine(settings: Settings, mount_point: Path | None = None) -> list[Finding]:
    """Everything that `unifs doctor` looks at, what is needed first."""
    return [
        *needed(settings.allow_other),
        connection_limits(),
        kernel(),
        request_loop(),
        state_disk(settings.state_directory),
        descriptors(),
        pipe_size(),
        propagation(mount_point or Path.home()),
    ]


def needed(is_allow_other_wanted: bool) -> list[Finding]:
    """What a mount cannot do without."""
    return [fuse_device(), mount_right(), allow_other(is_allow_other_wanted)]


# --- needed -------------------------------------------------------------------------------------


def fuse_device(path: Path = FUSE_DEVICE) -> Finding:
    """Whether the kernel serves FUSE and lets us in."""
    name = "FUSE device"
    try:
        status = path.stat()
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding(name, False, *_device_problem(path, error), is_needed=True)
    # Containers lay /dev/null over what they keep from their programs.
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != FUSE_NUMBER:
        return Finding(
            name,
            False,
            f"{path} is not the FUSE device",
            f"remove it, then: mknod {path} c 10 229; in a container: --device /dev/fuse",
            is_needed=True,
        )
    return Finding(name, True, f"{path} can be opened", is_needed=True)


def _device_problem(path: Path, error: OSError) -> tuple[str, str]:
    if error.errno == errno.ENOENT:
        return (
            f"{path} is missing",
            "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{path} cannot be opened: {error.strerror}",
            f"as root: chmod 666 {path}; in a container: --device /dev/fuse",
        )
    return f"{path} cannot be opened: {error.strerror}", "modprobe fuse"


def mount_right() -> Finding:
    """Whether we may mount: as root, or through fusermount3."""
    if os.geteuid() == 0:
        if has_capability(CAP_SYS_ADMIN):
            return Finding("mount", True, "root may mount", is_needed=True)
        return Finding(
            "mount",
            False,
            "root may not mount here (no CAP_SYS_ADMIN)",
            "in a container: --cap-add SYS_ADMIN --device /dev/fuse",
            is_needed=True,
        )
    program = shutil.which("fusermount3")
    if program is None:
        return Finding(
            "mount",
            False,
            "fusermount3 is not installed",
            "install the package fuse3",
            is_needed=True,
        )
    status = os.stat(program)
    if not status.st_mode & stat.S_ISUID or status.st_uid != 0:
        return Finding(
            "mount",
            False,
            f"{program} is not set-uid root",
            f"as root: chown root {program} && chmod u+s {program}",
            is_needed=True,
        )
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return Finding(
            "mount",
            False,
            f"{program} mounts for nobody without a name: uid {os.getuid()} has no entry in"
            " /etc/passwd",
            "as root: useradd, or a line in /etc/passwd; in a container: a user of its image",
            is_needed=True,
        )
    return Finding("mount", True, f"{program} mounts for users", is_needed=True)


def allow_other(is_wanted: bool, conf: Path = FUSE_CONF) -> Finding:
    """Whether other users can be let in."""
    if os.geteuid() == 0:
        return Finding("allow_other", True, "root may let other users in", is_needed=is_wanted)
    try:
        lines = conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(re.fullmatch(r"\s*user_allow_other\s*", line) for line in lines):
        return Finding("allow_other", True, f"{conf} permits it", is_needed=is_wanted)
    return Finding(
        "allow_other",
        not is_wanted,
        f"other users cannot be let in: {conf} has no line user_allow_other",
        f"as root: echo user_allow_other >> {conf}",
        is_needed=is_wanted,
    )


# --- good to have -------------------------------------------------------------------------------


def connection_limits(user_limit: Path = USER_LIMIT) -> Finding:
    """Whether the kernel's limit of background requests can be raised."""
    name = "fusectl"
    if not fusectl.is_mounted():
        is_root = os.geteuid() == 0
        return Finding(
            name,
            is_root,
            f"{fusectl.FUSECTL} is not mounted"
            + (": unifs mounts it" if is_root else "; one frozen backend can hold up the others"),
            f"as root: mount -t fusectl fusectl {fusectl.FUSECTL}",
        )
    if os.geteuid() != 0:
        try:
            allowed = int(user_limit.read_text())
        except (OSError, ValueError):
            allowed = 0
        if allowed < fusectl.BACKGROUND_MAX:
            return Finding(
                name,
                False,
                f"users may have {allowed} background requests per mount,"
                f" not {fusectl.BACKGROUND_MAX}",
                f"as root: echo {fusectl.BACKGROUND_MAX} > {user_limit}",
            )
    return Finding(name, True, "the kernel's limits can be raised")


def kernel(release: str = os.uname().release) -> Finding:
    """Whether the kernel is one that unifs was tested with."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    oldest = ".".join(map(str, KERNEL_OLDEST))
    if version < KERNEL_OLDEST:
        return Finding(
            "kernel", False, f"Linux {release} is older than {oldest}", "use a newer kernel"
        )
    return Finding("kernel", True, f"Linux {release}")


def request_loop() -> Finding:
    """Whether the fast request loop serves."""
    reason = loop.incompatibility()
    if reason:
        return Finding(
            "request loop",
            False,
            f"pyfuse3's own loop serves, at a third of the speed: {reason}",
            "install the pyfuse3 that requirements.lock names",
        )
    return Finding("request loop", True, "the fast loop serves")


def state_disk(state: Path) -> Finding:
    """Whether the state directory can be written and has room."""
    name = "state directory"
    place = state
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        message = f"{place} cannot be written"
        return Finding(name, False, message, "give another --state", is_needed=True)
    if place == state:
        try:
            refuse_foreign(state)
        except InvalidArgument as error:
            return Finding(name, False, str(error), "give another --state", is_needed=True)
    free = shutil.disk_usage(place).free
    message = f"{free / (1 << 30):.1f} GiB free for {state}"
    if free < FREE_BYTES_LOW:
        return Finding(name, False, message, "free some space, or give another --state")
    return Finding(name, True, message)


def descriptors() -> Finding:
    """Whether many files can be open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    has_no_limit = hard == resource.RLIM_INFINITY
    is_ok = has_no_limit or hard >= DESCRIPTORS_LOW
    return Finding(
        "descriptors",
        is_ok,
        "no limit of open files" if has_no_limit else f"at most {hard} open files",
        "" if is_ok else f"ulimit -Hn {DESCRIPTORS_LOW * 4}, or LimitNOFILE= of the service",
    )


def pipe_size(path: Path = PIPE_MAX) -> Finding:
    """Whether libfuse can splice requests. Without it reading and writing is no slower."""
    try:
        allowed = int(path.read_text())
    except (OSError, ValueError):
        allowed = 0
    if allowed >= PIPE_BYTES or has_capability(CAP_SYS_RESOURCE):
        return Finding("pipe size", True, "libfuse can splice")
    return Finding("pipe size", True, f"libfuse reads requests (pipe-max-size is {allowed})")


def propagation(mount_point: Path) -> Finding:
    """Whether a container that binds the tree sees it again after a crash and a new mount."""
    above = mount_above(os.path.realpath(mount_point.parent))
    if above is None:
        return Finding(
            "propagation",
            False,
            "the mount table does not show what lies below this root: a chroot",
        )
    if above.is_shared:
        return Finding("propagation", True, f"{above.mount_point} is a shared mount")
    return Finding(
        "propagation",
        False,
        f"{above.mount_point} is a private mount: a running container loses the tree when unifs"
        " is mounted again",
        f"as root: mount --make-rshared {above.mount_point}; in containers bind the parent"
        " directory with rslave",
    )


def has_capability(bit: int, status: Path = STATUS) -> bool:
    """Whether this process has that capability in effect."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> bit & 1)
