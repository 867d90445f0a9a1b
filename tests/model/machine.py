"""The state machine: each rule is one operation, done by the model and by the subject."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.memory import Model
from tests.model.operations import RENAME_EXCHANGE, RENAME_NOREPLACE, Status

if TYPE_CHECKING:
    from collections.abc import Callable

HANDLES_MAX = 6

#: Few names, so that operations meet; among them what is not UTF-8 and what is as long as can be.
_NAMES = (b"a", b"b", "ü".encode(), b"\xff\n-x", b"n" * 255)
_TOO_LONG = b"m" * 256
PATHS = (
    *_NAMES,
    _TOO_LONG,
    *(parent + b"/" + name for parent in (b"a", b"b") for name in (b"a", b"b", b"c")),
    *(b"a/b/" + name for name in (b"a", b"b")),
    b"a/b/c/d",
    b"b/" + _TOO_LONG,
)
#: Files that every example begins with, some of them open.
FILES = (b"f", b"a/f", b"b/f", b"a/b/f", _NAMES[3])
#: The edges of pages, of what is kept without a file, of the requests of the kernel.
OFFSETS = (0, 1, 100, 4095, 4096, 65_535, 65_536, 131_072, 200_001)
SIZES = (0, 1, 10, 4096, 4097, 65_535, 65_536, 65_537, 140_000)
FLAGS = (0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC, os.O_APPEND)
LABELS = ("user.a", "user.b")

#: A path by number: most numbers mean a name that exists, the others one of PATHS.
paths = st.integers(0, 299)
EXISTING_BELOW = 200
handles = st.integers(0, HANDLES_MAX - 1)


def profile(examples: int, steps: int) -> settings:
    """Return settings for a bounded run that is the same every time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class FileSystemMachine(RuleBasedStateMachine):
    """Compares a subject with the model. A subclass says in ``make_subject`` what is compared."""

    remounts_max: ClassVar[int] = 2
    make_subject: ClassVar[Callable[[], Any]]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.subject: Any = None
        self.handles: list[tuple[Any, Any]] = []
        self.remounts = 0
        self.writes = 0

    @initialize()
    def begin(self) -> None:
        self.subject = type(self).make_subject()

        for directory in (b"a", b"b", b"a/b"):
            self.same("mkdir", directory)
        for number, path in enumerate(FILES):
            self._open(path, os.O_RDWR | os.O_CREAT)
            self.pwrite(-1, 0, SIZES[number + 2])
            if number % 2:
                self.close(-1)

    def at(self, number: int) -> bytes:
        """Return the path that a drawn number means in this state."""
        existing = self.model.paths()
        if number < EXISTING_BELOW and existing:
            return existing[number % len(existing)]
        return PATHS[number % len(PATHS)]

    def same(self, operation: str, *arguments: object) -> tuple[Any, Any]:
        """Do one operation on both and compare result or errno; return both results."""
        expected = _outcome(getattr(self.model, operation), *arguments)
        found = _outcome(getattr(self.subject, operation), *arguments)
        self._compare(f"{operation}{arguments!r}"[:300], expected, found)
        return expected, found

    @staticmethod
    def _compare(what: str, expected: Any, found: Any) -> None:
        if isinstance(expected, Status) and isinstance(found, Status) and not expected.mtime_ns:
            expected, found = _without_time(expected), _without_time(found)
        assert found == expected, f"{what}: {_short(found)}, not {_short(expected)}"

    # --- handles ----------------------------------------------------------------------------------

    @rule(
        path=paths,
        access=st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)),
        flags=st.sampled_from(FLAGS),
    )
    def open(self, path: int, access: int, flags: int) -> None:
        self._open(self.at(path), access | flags)

    @rule(path=paths)
    def create(self, path: int) -> None:
        self._open(self.at(path), os.O_RDWR | os.O_CREAT)

    def _open(self, path: bytes, flags: int) -> None:
        if len(self.handles) >= HANDLES_MAX:
            self.close(0)
        expected = _outcome(self.model.open, path, flags)
        found = _outcome(self.subject.open, path, flags)
        what = f"open({path!r}, {flags:o})"
        if isinstance(expected, OSErrorNumber) or isinstance(found, OSErrorNumber):
            if not isinstance(found, OSErrorNumber):
                self.subject.close(found)
            self._compare(what, expected, found if isinstance(found, OSErrorNumber) else "a handle")
            return
        self.handles.append((expected, found))

    def _on_handle(self, which: int, operation: str, *arguments: object) -> None:
        if not self.handles:
            self._open(FILES[which % len(FILES)], os.O_RDWR | os.O_CREAT)
        if not self.handles:
            return
        opened, handle = self.handles[which % len(self.handles)]
        expected = _outcome(getattr(self.model, operation), opened, *arguments)
        found = _outcome(getattr(self.subject, operation), handle, *arguments)
        self._compare(f"{operation}{arguments!r}"[:200], expected, found)

    @rule(which=handles, offset=st.sampled_from(OFFSETS), size=st.sampled_from(SIZES))
    def pwrite(self, which: int, offset: int, size: int) -> None:
        self.writes += 1
        data = (bytes([self.writes % 255 + 1]) + os.fsencode(str(self.writes))) * (size // 2 + 1)
        self._on_handle(which, "pwrite", offset, data[:size])

    @rule(which=handles, offset=st.sampled_from(OFFSETS), size=st.sampled_from(SIZES))
    def pread(self, which: int, offset: int, size: int) -> None:
        self._on_handle(which, "pread", offset, size)

    @rule(which=handles, size=st.sampled_from(SIZES))
    def ftruncate(self, which: int, size: int) -> None:
        self._on_handle(which, "ftruncate", size)

    @rule(which=handles)
    def fsync(self, which: int) -> None:
        self._on_handle(which, "fsync")

    @rule(which=handles)
    def fstat(self, which: int) -> None:
        self._on_handle(which, "fstat")

    @rule(which=handles)
    def close(self, which: int) -> None:
        if self.handles:
            opened, handle = self.handles.pop(which % len(self.handles))
            self.model.close(opened)
            self.subject.close(handle)

    # --- names ------------------------------------------------------------------------------------

    @rule(path=paths)
    def lstat(self, path: int) -> None:
        self.same("lstat", self.at(path))

    @rule(path=paths, size=st.sampled_from(SIZES))
    def truncate(self, path: int, size: int) -> None:
        self.same("truncate", self.at(path), size)

    @rule(path=paths)
    def listdir(self, path: int) -> None:
        self.same("listdir", self.at(path))

    @rule(path=paths)
    def mkdir(self, path: int) -> None:
        self.same("mkdir", self.at(path))

    @rule(path=paths)
    def rmdir(self, path: int) -> None:
        self.same("rmdir", self.at(path))

    @rule(path=paths)
    def unlink(self, path: int) -> None:
        self.same("unlink", self.at(path))

    @rule(old=paths, new=paths)
    def link(self, old: int, new: int) -> None:
        self.same("link", self.at(old), self.at(new))

    @rule(path=paths)
    def symlink(self, path: int) -> None:
        self.same("symlink", b"nowhere/at/all", self.at(path))

    @rule(path=paths)
    def readlink(self, path: int) -> None:
        self.same("readlink", self.at(path))

    @rule(
        old=paths,
        new=paths,
        flags=st.sampled_from((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)),
    )
    def rename(self, old: int, new: int, flags: int) -> None:
        self.same("rename", self.at(old), self.at(new), flags)

    # --- attributes -------------------------------------------------------------------------------

    @rule(path=paths, mode=st.sampled_from((0o600, 0o644, 0o755, 0o700)))
    def chmod(self, path: int, mode: int) -> None:
        self.same("chmod", self.at(path), mode)

    @rule(path=paths, mtime_ns=st.sampled_from((1, 1_700_000_000_123_456_789)))
    def utime(self, path: int, mtime_ns: int) -> None:
        self.same("utime", self.at(path), mtime_ns)

    @rule(
        path=paths,
        name=st.sampled_from(LABELS),
        value=st.sampled_from((b"", b"one", b"\0two" * 100)),
        flags=st.sampled_from((0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, path: int, name: str, value: bytes, flags: int) -> None:
        self.same("setxattr", self.at(path), name, value, flags)

    @rule(path=paths, name=st.sampled_from(LABELS))
    def getxattr(self, path: int, name: str) -> None:
        self.same("getxattr", self.at(path), name)

    @rule(path=paths, name=st.sampled_from(LABELS))
    def removexattr(self, path: int, name: str) -> None:
        self.same("removexattr", self.at(path), name)

    # --- everything -------------------------------------------------------------------------------

    @precondition(lambda self: self.remounts < self.remounts_max)
    @rule()
    def remount(self) -> None:
        self.remounts += 1
        self._close_all()
        self.subject.remount()
        self.compare_trees()

    def compare_trees(self) -> None:
        """Compare every name, attribute and byte of both trees."""
        pending = [b""]
        while pending:
            directory = pending.pop()
            names, _ = self.same("listdir", directory)
            for name in names:
                path = directory + b"/" + name if directory else name
                status, _ = self.same("lstat", path)
                if status.kind == "dir":
                    pending.append(path)
                elif status.kind == "link":
                    self.same("readlink", path)
                else:
                    self._compare_content(path)
                if status.kind != "link":
                    self.same("listxattr", path)

    def _compare_content(self, path: bytes) -> None:
        self._open(path, os.O_RDONLY)
        self._on_handle(-1, "pread", 0, 1 << 20)
        self.close(-1)

    def _close_all(self) -> None:
        while self.handles:
            self.close(0)

    def teardown(self) -> None:
        if self.subject is None:
            return
        try:
            self.compare_trees()
        finally:
            self._close_all()


class OSErrorNumber(int):
    """An operation that failed, by its errno."""

    def __repr__(self) -> str:
        return errno.errorcode.get(self, str(int(self)))


def _outcome(action: Callable[..., Any], *arguments: object) -> Any:
    try:
        return action(*arguments)
    except OSError as error:
        return OSErrorNumber(error.errno or 0)


def _without_time(status: Status) -> Status:
    return Status(status.kind, status.permissions, status.size_bytes, status.nlink)


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 60:
        return f"{len(value)} bytes {value[:30]!r}…{value[-20:]!r}"
    return repr(value)[:300]
