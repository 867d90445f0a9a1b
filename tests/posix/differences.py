"""Where unifs answers otherwise than ext4 by design, each with its reason; see docs/posix.md.

A cell that is named here is expected to have ``instead``, and nothing else: a difference that is
gone fails as well.
"""

from __future__ import annotations

from typing import NamedTuple

#: Both kinds of mount.
UNIFS = ("mfs", "local")


class Difference(NamedTuple):
    """Some cells of a column, in these rows."""

    places: tuple[str, ...]
    grid: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    instead: str
    reason: str


NODEV = "FUSE mounts are nodev and nosuid: libfuse adds both, so a device node opens nowhere"
TMPFILE = "pyfuse3 has no O_TMPFILE: programs fall back to a named temporary file"
AT_THE_END = "atime moves at reads that reach unifs; the kernel answers a read at the end by itself"
NODIRATIME = "directories and symlinks keep their atime, as under the mount option nodiratime"
NO_GROUP_EXECUTION = "the kernel keeps S_ISGID without S_IXGRP on FUSE; it gives no privilege"
USER_XATTRS = "only user.* is kept: no ACLs, capabilities, labels; programs are told EOPNOTSUPP"
GIVEN = "a new host file is given to its caller by a chown, which moves its ctime"

_NEW = ("open O_CREAT", "open O_CREAT|O_EXCL", "mkdir", "mkfifo", "mknod file", "symlink", "bind")
_OPENING = tuple(
    f"open {flags}"
    for flags in (
        *("O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_RDONLY|O_TRUNC"),
        *("O_APPEND", "O_SYNC", "O_DSYNC", "O_NOFOLLOW", "O_DIRECT"),
    )
)

DIFFERENCES = (
    Difference(UNIFS, "objects", _OPENING, ("null",), "EACCES", NODEV),
    Difference(
        UNIFS, "objects", ("open O_TMPFILE",), ("dir", "full", "dirlink"), "EOPNOTSUPP", TMPFILE
    ),
    Difference(
        UNIFS, "times", ("file: read at the end", "empty: read"), ("object",), "-", AT_THE_END
    ),
    Difference(
        ("mfs",), "times", ("dir: readdir", "dangling: readlink"), ("object",), "-", NODIRATIME
    ),
    Difference(("local",), "new", _NEW, ("ctime",), "later", GIVEN),
    Difference(UNIFS, "set-id", ("2767 write some other",), ("after",), "2767", NO_GROUP_EXECUTION),
    Difference(
        UNIFS,
        "xattr namespaces",
        ("get security.absent", "get system.posix_acl_access"),
        ("root", "owner", "other"),
        "EOPNOTSUPP",
        USER_XATTRS,
    ),
    Difference(
        UNIFS,
        "xattr namespaces",
        (
            *("set security.new", "remove security.absent"),
            *("get trusted.absent", "set trusted.new", "remove trusted.absent"),
        ),
        ("root",),
        "EOPNOTSUPP",
        USER_XATTRS,
    ),
)


def expected(place: str, grid: str, row: str, cells: dict[str, str]) -> dict[str, str]:
    """What a row of a grid has to be at this place."""
    found = dict(cells)
    for one in DIFFERENCES:
        if place in one.places and grid == one.grid and row in one.rows:
            for column in one.columns:
                assert found[column] != one.instead, f"no difference: {one}"
                found[column] = one.instead
    return found
