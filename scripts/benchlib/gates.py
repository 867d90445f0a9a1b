"""The limits that scripts/bench holds: the one table of numbers the project promises to reach.

A ratio is time of unifs / time of the peer, so below 1 unifs is faster. A row without a limit is
shown, not judged. Rows with fsync are judged against ext4 only: neither rclone nor JuiceFS syncs.
"""

from __future__ import annotations

_JUICEFS_REST = (
    "seq_cold",
    "seq_cached",
    "rand_4k",
    "rand_8thr",
    "stat",
    "find_ls",
    "ls_l",
    "open_read",
    "write_4k",
    "big_write",
)

RATIO_LIMITS: dict[str, dict[str, float]] = {
    "rclone": {
        "create": 0.25,
        "tar": 0.3,
        "rm_r": 0.35,
        "rename": 0.4,
        "open_read": 0.1,
        "seq_cold": 0.35,
        "rand_4k": 0.5,
        "write_4k": 0.8,
        "stat": 0.3,
        "big_write": 1.1,
        "find_ls": 1.1,
        "ls_l": 1.1,
    },
    "juicefs": {
        "create": 0.2,
        "tar": 0.2,
        "rm_r": 0.2,
        "rename": 0.2,
        **dict.fromkeys(_JUICEFS_REST, 1.1),
    },
    "null": {
        "create": 2.0,
        "tar": 1.6,
        "rm_r": 2.5,
        "rename": 2.75,
        "write_4k": 1.5,
        "open_read": 1.3,
        "stat": 1.25,
        "rand_4k": 1.25,
        "rand_8thr": 1.25,
        "find_ls": 1.7,
        "ls_l": 1.7,
        "seq_cold": 1.5,
        "seq_cached": 1.5,
        "big_write": 1.5,
    },
    "ext4": {},
    "self": {},
}

#: From this many files on, listing must beat rclone, which has no readdirplus.
LARGE_TREE_FILES = 1000
LARGE_TREE_LIMITS = {"find_ls": 0.9, "ls_l": 0.9}

#: Rows of their own, by name: the limit and what it is a limit of.
SPECIAL_LIMITS: dict[str, tuple[float, str]] = {
    "mount_ls": (1.0, "s"),
    "idle_pss": (100.0, "MiB"),
    "ctl_version": (0.3, "s"),
    "gib_fsync": (1.8, "× ext4"),
    "fsync_time": (2.5, "× ext4"),
    "gib_written": (1.1, "GiB"),
    "small_written": (1100.0, "MiB"),
    "growth": (1.3, "× first 10,000"),
    "ls_100k": (5.0, "× ext4"),
    "only_hash": (1.3, "× sha256sum"),
    "add": (1.3, "× cp + sync"),
    "verified_read": (1.5, "× sha256sum"),
}


def ratio_limit(peer: str, row: str, files: int) -> float | None:
    """Return the highest ratio that ``row`` may have against ``peer``, or None."""
    if peer == "rclone" and files >= LARGE_TREE_FILES and row in LARGE_TREE_LIMITS:
        return LARGE_TREE_LIMITS[row]
    return RATIO_LIMITS[peer].get(row)
