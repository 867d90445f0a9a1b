"""A seeded worker that changes a directory and records every call, until its server dies.

    python -m tests.crash.workload DIRECTORY MANIFEST --seed N [--calls N] [--scenario NAME]

It runs as a process of its own, is never killed, and ends at the first error that a dead server
gives. Any other error goes into the manifest as unexpected, which fails the check.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.history import Recorder, noise

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "user.crash"

#: What calls return once the server or the disk below is gone.
DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.EROFS, errno.ESHUTDOWN})

#: Small, at the edge of what is kept without a file, several requests, more than one chunk.
SIZES = (0, 1, 100, 4096, 20_000, 65_535, 65_536, 65_537, 150_000, 300_000)
LARGE_SIZES = (1 << 20, (1 << 20) + 1, 2_500_000)
REQUEST_BYTES = 100_000
FILES_MAX = 60


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
        fd = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
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


class Workload:
    """Chooses what to do next. The choice depends on the seed alone."""

    def __init__(self, directory: Directory, seed: int) -> None:
        self.directory, self.choose = directory, random.Random(seed)
        self.directories = [""]
        self.files: list[str] = []
        self.logs: list[int] = []
        self.made = 0

    def run(self, calls: int) -> None:
        """Work until ``calls`` steps are done."""
        steps = self._steps()
        names, weights = list(steps), [weight for weight, _ in steps.values()]
        for _ in range(calls):
            steps[self.choose.choices(names, weights)[0]][1]()

    def _steps(self) -> dict[str, tuple[int, Callable[[], None]]]:
        return {
            "new": (12, self._new),
            "rewrite": (8, self._rewrite),
            "patch": (8, self._patch),
            "append": (8, self._append),
            "atomic": (12, self._atomic),
            "log": (6, self._log),
            "rename": (6, self._rename),
            "rename_directory": (2, self._rename_directory),
            "unlink": (6, self._unlink),
            "mkdir": (4, self._mkdir),
            "rmdir": (2, self._rmdir),
            "link": (3, self._link),
            "symlink": (2, self._symlink),
            "attributes": (5, self._attributes),
            "truncate": (4, self._truncate),
            "fsync_directory": (3, self._fsync_directory),
        }

    def _name(self) -> str:
        self.made += 1
        parent = self.choose.choice(self.directories)
        stem = self.choose.choice(("f", "a name ", "ü", "\udcff", "new\nline", "-x"))
        return f"{parent}/{stem}{self.made}" if parent else f"{stem}{self.made}"

    def _size(self) -> int:
        sizes = LARGE_SIZES if self.choose.random() < 0.03 else SIZES
        return self.choose.choice(sizes)

    def _is_synced(self) -> bool:
        return self.choose.random() < 0.4

    def _finish(self, fd: int) -> None:
        if self._is_synced():
            self.directory.fsync(fd)
        self.directory.close(fd)

    def _new(self) -> None:
        if len(self.files) >= FILES_MAX:
            self._unlink()
            return
        path = self._name()
        if self.choose.random() < 0.1:
            fd = self.directory.create(path, os.O_SYNC)
            self.directory.write(fd, self.choose.choice(SIZES[1:6]), 0, "osync")
            self.directory.close(fd)
        else:
            fd = self.directory.create(path)
            self.directory.write_all(fd, self._size())
            self._finish(fd)
        self.files.append(path)

    def _rewrite(self) -> None:
        if self.files:
            fd = self.directory.open(self.choose.choice(self.files), os.O_TRUNC)
            self.directory.write_all(fd, self._size())
            self._finish(fd)

    def _patch(self) -> None:
        if self.files:
            fd = self.directory.open(self.choose.choice(self.files))
            for _ in range(self.choose.randint(1, 4)):
                self.directory.write(
                    fd, self.choose.choice(SIZES[1:8]), self.choose.randrange(200_000)
                )
            if self.choose.random() < 0.2:
                self.directory.ftruncate(fd, self.choose.randrange(1, 200_000))
            self._finish(fd)

    def _append(self) -> None:
        if self.files:
            fd = self.directory.open(self.choose.choice(self.files), os.O_APPEND)
            self.directory.write(fd, self.choose.choice(SIZES[1:6]), None)
            self._finish(fd)

    def _atomic(self) -> None:
        """Save as editors do: a new file beside, then a rename over the old name."""
        if not self.files:
            return
        target = self.choose.choice(self.files)
        temporary = f"{target}.tmp"
        fd = self.directory.create(temporary)
        self.directory.write_all(fd, self._size())
        self._finish(fd)
        self.directory.rename(temporary, target)

    def _log(self) -> None:
        """Append to a file that stays open."""
        if len(self.logs) < 2:
            self.logs.append(self.directory.create(self._name(), os.O_APPEND))
        fd = self.choose.choice(self.logs)
        self.directory.write(fd, self.choose.choice(SIZES[1:4]), None)
        if self.choose.random() < 0.5:
            self.directory.fsync(fd)

    def _rename(self) -> None:
        if self.files:
            old = self.files.pop(self.choose.randrange(len(self.files)))
            if self.files and self.choose.random() < 0.4:
                new = self.files.pop(self.choose.randrange(len(self.files)))
            else:
                new = self._name()
            self.directory.rename(old, new)
            self.files.append(new)

    def _rename_directory(self) -> None:
        leaves = [path for path in self.directories if path and "/" not in path]
        if not leaves:
            return
        old = self.choose.choice(leaves)
        self.made += 1
        new = f"moved{self.made}"
        self.directory.rename(old, new)
        for paths in (self.files, self.directories):
            paths[:] = [
                new + path[len(old) :] if path == old or path.startswith(old + "/") else path
                for path in paths
            ]

    def _unlink(self) -> None:
        if self.files:
            self.directory.unlink(self.files.pop(self.choose.randrange(len(self.files))))

    def _mkdir(self) -> None:
        if len(self.directories) < 8:
            self.made += 1
            parent = self.choose.choice(self.directories)
            path = f"{parent}/d{self.made}" if parent else f"d{self.made}"
            self.directory.mkdir(path)
            self.directories.append(path)

    def _rmdir(self) -> None:
        self.made += 1
        self.directory.mkdir(f"empty{self.made}")
        self.directory.rmdir(f"empty{self.made}")

    def _link(self) -> None:
        if self.files and len(self.files) < FILES_MAX:
            new = self._name()
            self.directory.link(self.choose.choice(self.files), new)
            self.files.append(new)

    def _symlink(self) -> None:
        if len(self.files) < FILES_MAX:
            self.directory.symlink(f"to {self.made}", self._name())

    def _attributes(self) -> None:
        if self.files:
            path = self.choose.choice(self.files)
            if self.choose.random() < 0.5:
                self.directory.chmod(path, self.choose.choice((0o600, 0o640, 0o644, 0o755)))
            else:
                self.directory.set_label(path, f"label {self.made}")

    def _truncate(self) -> None:
        if self.files:
            self.directory.truncate(
                self.choose.choice(self.files), self.choose.choice((0, 10, 70_000, 200_000))
            )

    def _fsync_directory(self) -> None:
        self.directory.fsync_directory(self.choose.choice(self.directories))


def closed_not_synced(directory: Directory, seed: int) -> None:
    """Close files without fsync, over every kind of predecessor, then let another file be fsynced.

    The rows of the closed files are made durable by somebody else's fsync, their bytes are not.
    """
    sizes = (100, 4096, 60_000, 70_000, 300_000)
    for kind in ("rewrite", "atomic"):
        for size in sizes:
            fd = directory.create(f"{kind}{size}")
            directory.write_all(fd, size)
            directory.fsync(fd)
            directory.close(fd)
    directory.fsync_directory("")
    other = directory.create("other")
    for size in sizes:
        for path, flags in ((f"new{size}", 0), (f"atomic{size}.tmp", 0)):
            fd = directory.create(path, flags)
            directory.write_all(fd, size + seed % 50)
            directory.close(fd)
        directory.rename(f"atomic{size}.tmp", f"atomic{size}")
        fd = directory.open(f"rewrite{size}", os.O_TRUNC)
        directory.write_all(fd, size + 1)
        directory.close(fd)
    directory.write(other, 100, 0)
    directory.fsync(other)


def main() -> int:
    """Work as the arguments say; 0 when the server died or the work is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--scenario", choices=("mixed", "closed_not_synced"), default="mixed")
    parser.add_argument("--fake-fsync", action="store_true", help="a planted fault")
    options = parser.parse_args()
    # Relative paths stay on the dead mount when it is detached; absolute ones would reach below it.
    os.chdir(options.directory)
    recorder = Recorder(options.manifest)
    directory = Directory(".", recorder, has_fake_fsync=options.fake_fsync)
    try:
        if options.scenario == "mixed":
            Workload(directory, options.seed).run(options.calls)
        else:
            closed_not_synced(directory, options.seed)
    except ServerGone:
        pass
    return 0


if __name__ == "__main__":
    os.umask(0)
    sys.exit(main())
