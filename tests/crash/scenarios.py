"""Short histories with a name: ways in which bytes and names can come apart in a power cut.

Every one ends with somebody else's fsync, which makes the rows of all earlier calls durable.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.calls import Directory

#: The last small ones become large by a patch, one within and one beyond what a hash may prove.
SIZES = (100, 4096, 60_000, 65_000, 70_000, 300_000)


def closed_not_synced(directory: Directory, seed: int) -> None:
    """Close files without fsync, over every kind of predecessor, then let another file be fsynced.

    The rows of the closed files are made durable by somebody else's fsync, their bytes are not.
    """
    for kind in ("rewrite", "atomic"):
        for size in SIZES:
            fd = directory.create(f"{kind}{size}")
            directory.write_all(fd, size)
            directory.fsync(fd)
            directory.close(fd)
    directory.fsync_directory("")
    for size in SIZES:
        for path, flags in ((f"new{size}", 0), (f"atomic{size}.tmp", 0)):
            fd = directory.create(path, flags)
            directory.write_all(fd, size + seed % 50)
            directory.close(fd)
        directory.rename(f"atomic{size}.tmp", f"atomic{size}")
        fd = directory.open(f"rewrite{size}", os.O_TRUNC)
        directory.write_all(fd, size + 1)
        directory.close(fd)
    _somebody_else(directory)


def patched_after_sync(directory: Directory, seed: int) -> None:
    """Patch, fsync, close, then patch and close: the first patch was promised."""
    for size in SIZES:
        for at in (0, size // 2, size + 50_000, 150_001):
            path = f"patched{size}at{at}"
            _save(directory, path, size, is_synced=False)
            _patch(directory, path, at, is_synced=True)
            _patch(directory, path, at + seed % 3 * 1000, is_synced=False)
    _somebody_else(directory)


def appended_after_sync(directory: Directory, seed: int) -> None:
    """Append and fsync, close, append and close: the first append was promised."""
    for size in SIZES:
        path = f"log{size}"
        _save(directory, path, size, is_synced=seed % 2 == 0)
        for is_synced in (True, False, False):
            fd = directory.open(path, os.O_APPEND)
            directory.write(fd, 5000, None)
            if is_synced:
                directory.fsync(fd)
            directory.close(fd)
    _somebody_else(directory)


def logged(directory: Directory, seed: int) -> None:
    """Append to open logs and sync each line, with lines longer than an fsync carries among them.

    Some logs are patched, cut off, renamed or closed with a line that nobody synced.
    """
    logs: list[tuple[str, int]] = []
    for size in SIZES:
        for end in ("open", "patched", "cut", "renamed", "closed"):
            path = f"log{size}{end}"
            _save(directory, path, size, is_synced=True)
            logs.append((path, directory.open(path, os.O_APPEND)))
    for turn in range(4):
        for number, (_, fd) in enumerate(logs):
            directory.write(fd, 20_000 if (seed + turn + number) % 7 == 0 else 150, None)
            directory.fsync(fd)
    for path, fd in logs:
        if path.endswith("patched"):
            for at in (20, 60):
                patch = directory.open(path)
                directory.write(patch, 100, at)
                directory.fsync(patch)
                directory.close(patch)
        if path.endswith("cut"):
            directory.truncate(path, 80)
        if path.endswith("renamed"):
            directory.rename(path, f"{path}.1")
        if path.endswith("closed"):
            directory.write(fd, 200 + seed % 2 * 30_000, None)
            directory.close(fd)
    _somebody_else(directory)


def replaced_by_an_empty_file(directory: Directory, seed: int) -> None:
    """Replace a file by an empty one, durably, and write the new one without a sync.

    The old content was replaced for good: it may not come back.
    """
    for size in SIZES:
        path = f"target{size}"
        _save(directory, path, size, is_synced=True)
        fd = directory.create(f"{path}.tmp")
        directory.fsync(fd)
        directory.close(fd)
        directory.rename(f"{path}.tmp", path)
        directory.fsync_directory("")
        fd = directory.open(path)
        directory.write(fd, size, seed % 2 * 100)
        directory.close(fd)
    _somebody_else(directory)


def replaced_twice(directory: Directory, seed: int) -> None:
    """Save a file three times by rename, with and without syncs in between."""
    for size in SIZES:
        for pattern in range(8):
            path = f"target{size}-{pattern}"
            for bit in range(3):
                temporary = f"{path}.tmp"
                _save(directory, temporary, size + bit, is_synced=bool(pattern >> bit & 1))
                directory.rename(temporary, path)
    _somebody_else(directory)


def moved_after_replacing(directory: Directory, seed: int) -> None:
    """Save files by rename without a sync and move them on, to a new name and over another file."""
    for size in SIZES:
        for kind in ("free", "taken"):
            path, other = f"saved{size}{kind}", f"moved{size}{kind}"
            _save(directory, path, size, is_synced=True)
            if kind == "taken":
                _save(directory, other, size + 7, is_synced=True)
            _save(directory, f"{path}.tmp", size + seed % 3, is_synced=False)
            directory.rename(f"{path}.tmp", path)
            directory.rename(path, other)
    _somebody_else(directory)


def renamed_before_sync(directory: Directory, seed: int) -> None:
    """Rename closed files, over others and to new names, and give some of them another link."""
    for size in SIZES:
        _save(directory, f"old{size}", size, is_synced=True)
        directory.link(f"old{size}", f"older{size}")
        directory.set_label(f"old{size}", f"label {size}")
        _save(directory, f"a{size}", size, is_synced=False)
        directory.rename(f"a{size}", f"b{size}")
        directory.link(f"b{size}", f"c{size}")
        directory.rename(f"b{size}", f"old{size}")
        directory.unlink(f"c{size}")
        directory.chmod(f"old{size}", 0o600)
    _somebody_else(directory)


def truncated_after_sync(directory: Directory, seed: int) -> None:
    """Truncate synced files by name and by handle, and write again, without a sync."""
    for size in SIZES:
        for kept in (0, 50, 65_536):
            path = f"cut{size}to{kept}"
            _save(directory, path, size, is_synced=True)
            directory.truncate(path, kept)
            if seed % 2:
                _patch(directory, path, kept + 10, is_synced=False)
    _somebody_else(directory)


def _save(directory: Directory, path: str, size: int, *, is_synced: bool) -> None:
    fd = directory.create(path)
    directory.write_all(fd, size)
    if is_synced:
        directory.fsync(fd)
    directory.close(fd)


def _patch(directory: Directory, path: str, at: int, *, is_synced: bool) -> None:
    fd = directory.open(path)
    directory.write(fd, 3000, at)
    if is_synced:
        directory.fsync(fd)
    directory.close(fd)


def _somebody_else(directory: Directory) -> None:
    fd = directory.create("other")
    directory.write(fd, 100, 0)
    directory.fsync(fd)


SCENARIOS: dict[str, Callable[[Directory, int], None]] = {
    scenario.__name__: scenario
    for scenario in (
        closed_not_synced,
        patched_after_sync,
        appended_after_sync,
        logged,
        replaced_by_an_empty_file,
        replaced_twice,
        moved_after_replacing,
        renamed_before_sync,
        truncated_after_sync,
    )
}
