"""A seeded worker that changes a directory and records every call, until its server dies.

    python -m tests.crash.workload DIRECTORY MANIFEST --seed N [--calls N] [--scenario NAME]

It runs as a process of its own, is never killed, and ends at the first error that a dead server
gives. Any other error goes into the manifest as unexpected, which fails the check.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.calls import Directory, ServerGone
from tests.crash.history import Recorder
from tests.crash.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable

#: Small, at the edge of what is kept without a file, several requests, more than one chunk.
SIZES = (0, 1, 100, 4096, 20_000, 65_535, 65_536, 65_537, 150_000, 300_000)
LARGE_SIZES = (1 << 20, (1 << 20) + 1, 2_500_000)
FILES_MAX = 60


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


def main() -> int:
    """Work as the arguments say; 0 when the server died or the work is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--scenario", choices=("mixed", *SCENARIOS), default="mixed")
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
            SCENARIOS[options.scenario](directory, options.seed)
    except ServerGone:
        pass
    return 0


if __name__ == "__main__":
    os.umask(0)
    sys.exit(main())
