"""Where unifs meets the disk: every system call below a state directory passes here.

``Seam`` stands between the write side and the kernel: the functions of ``os`` that the journal, the
overlays, the segments and recovery call, files that Python opens, and, by a VFS of its own below
SQLite, the reads, writes, syncs and truncations of every database. Each is told to an ``Observer``
by its name, which may refuse it, cut it short, or let it pass; after a sync it is told again.

    with Seam(state, observer):
        …                   # open and close the databases in here

``lock`` and SQLite's index of the WAL in memory are no part of it. A fault leaves no connection
behind: one that outlived a test's power cut would, when it is closed, checkpoint by the index of
the WAL that was before the cut, and destroy tree.db as no process that ended could.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What to do instead of a call: an errno, or "short": half of what was to be written.
Fault = int | str

#: Calls whose first argument is a descriptor or a path, and which of them write bytes.
CALLS = (
    "pwrite",
    "pwritev",
    "pread",
    "preadv",
    "open",
    "fdatasync",
    "fsync",
    "ftruncate",
    "truncate",
    "posix_fallocate",
    "unlink",
    "rename",
    "replace",
    "link",
    "mkdir",
)
SYNCS = ("fdatasync", "fsync", "sync")

#: The modules that open tree.db, each by a name of its own for SQLite's VFS.
CONNECTING = ("state.database", "state.queries", "fsck.offline")

#: SQLite's codes for what the kernel answered, by the method of the VFS.
_SQLITE_FAILURES = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
}


class Observer:
    """Sees each call. As it is, it lets everything pass."""

    #: Whether syncs reach the real disk: a test that only pretends to cut need not wait for it.
    is_syncing = True

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        """What happens instead of ``call``; None: the call. ``flags``: of an open."""
        return None

    def synced(self, path: str) -> None:
        """A sync of ``path`` has returned."""


class Seam:
    """See the module's text."""

    def __init__(self, state: Path, observer: Observer) -> None:
        self._state = os.fspath(state)
        self._observer = observer
        self._stack = ExitStack()
        self._open: Callable[..., Any] = builtins.open
        self._pwrite = os.pwrite

    def __enter__(self) -> Self:
        tree = _Below(self, "unifs-seam-tree", "unix-excl", is_default=False)
        # Registered as long as they are referred to.
        self._below = (tree, _Below(self, "unifs-seam", "unix", is_default=True))
        patches: list[Any] = [mock.patch(f"unifs.{name}.VFS", tree.name) for name in CONNECTING]
        patches += [mock.patch(f"os.{name}", self._wrapped(name)) for name in CALLS]
        patches += [mock.patch("builtins.open", self._opened), mock.patch("io.open", self._opened)]
        for patch in patches:
            self._stack.enter_context(patch)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for vfs in self._below:
            vfs.unregister()

    def concerns(self, path: str) -> bool:
        return path.startswith(self._state) and not path.endswith(("/lock", "-shm"))

    def ask(self, call: str, path: str, flags: int = 0) -> Fault | None:
        return self._observer.before(call, path, flags)

    # --- os ---------------------------------------------------------------------------------------

    def _path(self, subject: Any) -> str:
        if isinstance(subject, int):
            try:
                return os.readlink(f"/proc/self/fd/{int(subject)}").removesuffix(" (deleted)")
            except OSError:
                return ""
        return os.fsdecode(subject)

    def _wrapped(self, name: str) -> Callable[..., Any]:
        real: Callable[..., Any] = getattr(os, name)
        if name in SYNCS:
            return lambda subject: self._sync(name, real, subject)

        def call(subject: Any, *rest: Any, **named: Any) -> Any:
            path = self._path(subject)
            if not self.concerns(path):
                return real(subject, *rest, **named)
            flags = rest[0] if name == "open" else 0
            fault = self.ask(name, path, flags)
            if fault is None:
                return real(subject, *rest, **named)
            if isinstance(fault, int):
                raise OSError(fault, os.strerror(fault))
            data, offset = rest
            whole = b"".join(map(bytes, data)) if name == "pwritev" else bytes(data)
            return self._pwrite(subject, whole[: len(whole) // 2], offset)

        return call

    def _sync(self, name: str, real: Callable[[Any], None], subject: Any) -> None:
        path = self._path(subject)
        if not self.concerns(path):
            real(subject)
            return
        fault = self.ask(name, path)
        if isinstance(fault, int):
            raise OSError(fault, os.strerror(fault))
        if self._observer.is_syncing:
            real(subject)
        self._observer.synced(path)

    # --- files that Python opens ------------------------------------------------------------------

    def _opened(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        path = self._path(file)
        if "b" not in mode or not self.concerns(path):
            return self._open(file, mode, *rest, **named)
        raw = _Raw(self, path, file, mode.replace("b", ""))
        return io.BufferedReader(raw) if raw.readable() else io.BufferedWriter(raw)


class _Raw(io.FileIO):
    """A file of Python's whose calls are told."""

    def __init__(self, seam: Seam, path: str, file: Any, mode: str) -> None:
        self._seam, self._path = seam, path
        self._ask("open", os.O_RDONLY if mode == "r" else os.O_CREAT)
        super().__init__(file, mode)

    def _ask(self, call: str, flags: int = 0) -> Fault | None:
        fault = self._seam.ask(call, self._path, flags)
        if isinstance(fault, int):
            raise OSError(fault, os.strerror(fault))
        return fault

    def write(self, data: Any) -> int:
        is_short = self._ask("write") is not None
        view = memoryview(data).cast("B")
        return super().write(view[: len(view) // 2] if is_short else view) or 0

    def readinto(self, buffer: Any) -> int | None:
        self._ask("read")
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._ask("read")
        return super().readall()


# --- SQLite ---------------------------------------------------------------------------------------


class _Below(apsw.VFS):
    """A VFS that passes everything on, and tells."""

    def __init__(self, seam: Seam, name: str, base: str, *, is_default: bool) -> None:
        self.name, self._base, self._seam = name, base, seam
        super().__init__(name, base, makedefault=is_default)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _BelowFile(self._seam, self._base, name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:
        if self._seam.concerns(name):
            _refuse("delete", self._seam.ask("delete", name))
        super().xDelete(name, sync_directory)


class _BelowFile(apsw.VFSFile):
    """A file of SQLite's whose calls are told."""

    def __init__(self, seam: Seam, base: str, name: Any, flags: list[int]) -> None:
        self._seam = seam
        self._path = name if isinstance(name, str) else name.filename() if name else ""
        self._is_told = seam.concerns(self._path)
        if self._is_told and seam.ask("open", self._path, os.O_CREAT) is not None:
            raise apsw.CantOpenError("a fault")
        super().__init__(base, name, flags)

    def _ask(self, call: str) -> Fault | None:
        return self._seam.ask(call, self._path) if self._is_told else None

    def xRead(self, amount: int, offset: int) -> bytes:
        _refuse("read", self._ask("read"))
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:
        fault = self._ask("write")
        if fault == "short":
            # SQLite's own VFS writes on after a short write, and hears why it cannot.
            super().xWrite(bytes(data)[: len(data) // 2], offset)
            raise apsw.FullError("a short write")
        _refuse("write", fault)
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        _refuse("truncate", self._ask("truncate"))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        _refuse("sync", self._ask("sync"))
        if self._seam._observer.is_syncing:
            super().xSync(flags)
        if self._is_told:
            self._seam._observer.synced(self._path)


def _refuse(call: str, fault: Fault | None) -> None:
    """Answer as SQLite's own VFS does where the kernel says ``fault``."""
    if fault is None:
        return
    if fault == errno.ENOSPC and call == "write":
        raise apsw.FullError("a fault")
    raise _failure(call)


def _failure(call: str) -> apsw.IOError:
    # Made here: an exception in a variable of the frame that raises it is a cycle, and its
    # traceback keeps connections open until the next collection of garbage.
    error = apsw.IOError("a fault")
    error.extendedresult = _SQLITE_FAILURES[call]
    return error
