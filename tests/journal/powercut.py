"""A disk that loses what nobody synced: what a power cut leaves, byte by byte.

While a ``Disk`` is in use it keeps a copy of every file of the state directory as of its last
fdatasync. ``cut`` then rewrites the files as a cut may leave them: as they were synced, as they
are, cut off in between, or page by page one or the other; a file that nobody synced may be gone.
The kernel writes in any order, so each file is decided on its own: a WAL that is there with data
that are not is the case to fear. ``refused_syncs`` is a disk that says so instead.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

PAGE = 4096
#: Whatever a test makes of ``open``.
_open = open


@contextmanager
def refused_syncs(is_refused: Callable[[int], bool]) -> Iterator[None]:
    """fdatasync says EIO of the descriptors that ``is_refused``."""
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        if is_refused(descriptor):
            raise OSError(errno.EIO, "no")
        real(descriptor)

    with mock.patch("os.fdatasync", sync):
        yield


def is_container(descriptor: int) -> bool:
    """Whether it is one of a file with bytes of large files."""
    return "/data/" in _path(descriptor)


def _path(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{int(descriptor)}")


class Disk:
    """The state directory's disk, from one start of the file system to the cut."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._synced: dict[int, bytes] = {}
        #: What each directory named when it was synced last.
        self._names: dict[Path, set[str]] = {}
        #: Kinds besides, for tests that want worse: "zeros", "flipped".
        self.more: tuple[str, ...] = ()
        self._patches = [
            mock.patch("os.fdatasync", self._sync(os.fdatasync)),
            mock.patch("os.fsync", self._sync(os.fsync)),
        ]

    def begin(self) -> None:
        """All that is there now is on the disk."""
        for folder in {path.parent for path in self.files()} | self._folders():
            self._names[folder] = set(os.listdir(folder))
        for path in self.files():
            self._synced[path.stat().st_ino] = path.read_bytes()

    def synced(self, path: str) -> None:
        """A sync of this file returned: what is in it now stays."""
        if Path(path) in self._folders():
            self._names[Path(path)] = set(os.listdir(path))
        if path.startswith(str(self._state)) and os.path.isfile(path):
            with _open(path, "rb") as file:
                self._synced[os.fstat(file.fileno()).st_ino] = file.read()

    def __enter__(self) -> Disk:
        self.begin()
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self._patches:
            patch.stop()

    def _sync(self, real: object) -> object:
        def sync(descriptor: int) -> None:
            self.synced(_path(descriptor))
            real(descriptor)  # type: ignore[operator]

        return sync

    def _folders(self) -> set[Path]:
        return {self._state / name for name in ("data", "segments", "nodes")}

    def _has_name(self, path: Path) -> bool:
        """Whether the name of a file is durable; the WAL's is, since the database was made."""
        return path.parent == self._state or path.name in self._names.get(path.parent, ())

    def files(self) -> list[Path]:
        """Every file whose bytes a cut can take; SQLite's database is only written by checkpoints,
        which sync."""
        found = [
            *(self._state / "data").iterdir(),
            *(self._state / "segments").iterdir(),
            *(self._state / "nodes").glob("*.car"),
        ]
        wal = self._state / "tree.db-wal"
        return sorted([*found, wal] if wal.exists() else found)

    def cut(self, how: random.Random | str) -> dict[str, str]:
        """Rewrite every file as the cut leaves it; by name what was chosen.

        ``how``: a source of chance, "synced" for all files as they were synced, or "wal" for the
        same but with all of the WAL there. Of these two, a file whose directory was not synced
        after it was made is gone.
        """
        chosen = {}
        for path in self.files():
            now = path.read_bytes()
            synced = self._synced.get(path.stat().st_ino)
            if isinstance(how, str):
                kind = "current" if how == "wal" and path.name.endswith("-wal") else "synced"
            else:
                kind = how.choice(
                    ("current", "current", "synced", "synced", "pages", "prefix", *self.more)
                )
            chosen[path.name] = kind
            left = _left(kind, now, synced, how)
            if isinstance(how, str) and not self._has_name(path):
                left = None
            if left is None:
                path.unlink()
            else:
                path.write_bytes(left)
        (self._state / "tree.db-shm").unlink(missing_ok=True)
        return chosen


def _left(kind: str, now: bytes, synced: bytes | None, how: random.Random | str) -> bytes | None:
    if kind == "current":
        return now
    if kind == "synced" or isinstance(how, str):
        return synced
    before = synced or b""
    if kind in ("zeros", "flipped"):
        if now[: len(before)] != before or len(now) == len(before):
            return before
        # The new size is there: a tail of zeros, or a wrong bit in what nobody synced.
        if kind == "zeros":
            return before.ljust(len(now), b"\0")
        at = how.randrange(len(before), len(now))
        return now[:at] + bytes((now[at] ^ 1 << how.randrange(8),)) + now[at + 1 :]
    if kind == "prefix":
        low, high = sorted((len(before), len(now)))
        return now[: how.randint(low, high)] if now[: len(before)] == before else before
    length = max(len(before), len(now))
    pages = []
    for start in range(0, length, PAGE):
        old = before[start : start + PAGE].ljust(min(PAGE, length - start), b"\0")
        new = now[start : start + PAGE].ljust(min(PAGE, length - start), b"\0")
        pages.append(how.choice((old, new)))
    left = b"".join(pages)
    return left[: how.choice((len(before), len(now)))]
