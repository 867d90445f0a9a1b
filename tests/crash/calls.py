"""The calls of a workload: each is recorded, made, and acknowledged."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tests.crash.history import noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.history import Recorder

LABEL = "user.crash"

#: What calls return once the server or the disk below is gone.
DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.EROFS, errno.ESHUTDOWN})

#: The largest piece that one write request puts down.
REQUEST_BYTES = 100_000


class ServerGone(Exception):
    """The server has died; the record ends here."""


class Directory:
    """The calls of a workload: each is recorded, made, and acknowledged."""

    def __init__(self, root: str, recorder: Recorder, *, has_fake_fsync: bool = False) -> None:
        self.root, self.recorder, self.has_fake_fsync = root, recorder, has_fake_fsync
        self._fill = 0

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _do(self, action: Callable[[], object], call: str, **details: object) -> None:
        number = self.recorder.intent(call, **details)
        try:
            action()
        except OSError as error:
            if error.errno not in DEAD:
                self.recorder.unexpected(f"{call}: {os.strerror(error.errno or 0)}")
            raise ServerGone from error
        self.recorder.acknowledge(number)

    def _opened(self, flags: int, call: str, path: str, **details: object) -> int:
        """Open under a number that the record knows: the one the kernel will give."""
        spare = os.open("/dev/null", os.O_RDONLY)
        os.close(spare)
        opened: list[int] = []
        self._do(
            lambda: opened.append(os.open(self._at(path), flags, 0o640)),
            call,
            path=path,
            fd=spare,
            **details,
        )
        if opened != [spare]:
            raise RuntimeError(f"descriptor {opened}, not {spare}")
        return spare

    def create(self, path: str, flags: int = 0) -> int:
        flags |= os.O_CREAT | os.O_EXCL | os.O_WRONLY
        return self._opened(flags, "create", path, mode=0o640)

    def open(self, path: str, flags: int = 0) -> int:
        is_truncated = bool(flags & os.O_TRUNC)
        return self._opened(os.O_WRONLY | flags, "open", path, trunc=is_truncated)

    def write(self, fd: int, size_bytes: int, at: int | None, call: str = "write") -> None:
        """Write noise in one request; ``at`` None is the end of a file opened to append."""
        self._fill += 1
        piece = noise(self._fill, size_bytes)

        def action() -> None:
            done = os.write(fd, piece) if at is None else os.pwrite(fd, piece, at)
            if done != size_bytes:
                raise OSError(errno.EIO, "short write")

        self._do(action, call, fd=fd, size=size_bytes, at=at, fill=self._fill)

    def write_all(self, fd: int, size_bytes: int) -> None:
        """Write a whole file in requests of at most REQUEST_BYTES."""
        for offset in range(0, size_bytes, REQUEST_BYTES):
            self.write(fd, min(REQUEST_BYTES, size_bytes - offset), offset)

    def fsync(self, fd: int) -> None:
        action = (lambda: None) if self.has_fake_fsync else (lambda: os.fsync(fd))
        self._do(action, "fsync", fd=fd)

    def close(self, fd: int) -> None:
        self._do(lambda: os.close(fd), "close", fd=fd)

    def fsync_directory(self, path: str) -> None:
        try:
            fd = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in DEAD:
                self.recorder.unexpected(f"open {path!r}: {os.strerror(error.errno or 0)}")
            raise ServerGone from error
        try:
            action = (lambda: None) if self.has_fake_fsync else (lambda: os.fsync(fd))
            self._do(action, "fsyncdir", path=path)
        finally:
            os.close(fd)

    def ftruncate(self, fd: int, size_bytes: int) -> None:
        self._do(lambda: os.ftruncate(fd, size_bytes), "ftruncate", fd=fd, size=size_bytes)

    def truncate(self, path: str, size_bytes: int) -> None:
        at = self._at(path)
        self._do(lambda: os.truncate(at, size_bytes), "truncate", path=path, size=size_bytes)

    def rename(self, old: str, new: str) -> None:
        self._do(lambda: os.rename(self._at(old), self._at(new)), "rename", path=old, new=new)

    def link(self, old: str, new: str) -> None:
        self._do(lambda: os.link(self._at(old), self._at(new)), "link", path=old, new=new)

    def symlink(self, target: str, path: str) -> None:
        action = lambda: os.symlink(target, self._at(path))  # noqa: E731
        self._do(action, "symlink", path=path, target=target)

    def unlink(self, path: str) -> None:
        self._do(lambda: os.unlink(self._at(path)), "unlink", path=path)

    def mkdir(self, path: str) -> None:
        self._do(lambda: os.mkdir(self._at(path), 0o750), "mkdir", path=path, mode=0o750)

    def rmdir(self, path: str) -> None:
        self._do(lambda: os.rmdir(self._at(path)), "rmdir", path=path)

    def chmod(self, path: str, mode: int) -> None:
        self._do(lambda: os.chmod(self._at(path), mode), "chmod", path=path, mode=mode)

    def set_label(self, path: str, label: str) -> None:
        action = lambda: os.setxattr(self._at(path), LABEL, label.encode())  # noqa: E731
        self._do(action, "setxattr", path=path, label=label)
