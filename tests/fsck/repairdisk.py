"""What ends a repair: a kill at a call or behind a commit, a disk that loses what is not synced."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from tests.journal.powercut import Disk
from tests.journal.seam import Observer
from unifs.state.database import Database

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.journal.seam import Fault

#: Where an end leaves no lock and no half written page of SQLite behind, which a process would not.
FOLDERS = ("/lost+found", "/data/", "/segments/", "/nodes/")
#: Calls that change the disk.
CHANGES = (
    "write",
    "pwrite",
    "rename",
    "replace",
    "unlink",
    "link",
    "ftruncate",
    "fsync",
    "fdatasync",
)


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_after_commit(number: int) -> Iterator[None]:
    """The process ends behind the n-th commit in here."""
    commit, commits = Database.commit, 0

    def killed(self: Database) -> None:
        nonlocal commits
        commits += 1
        commit(self)
        if commits == number:
            raise Killed

    with mock.patch.object(Database, "commit", killed):
        yield


class Killer(Observer):
    """Ends the process at the n-th call, of a kind where ``call`` is given: it does not happen."""

    is_syncing = False

    def __init__(self, call: str = "", path: str = "") -> None:
        self._call, self._path = call, path
        self._disk: Disk | None = None
        self.restart(0)

    def restart(self, number: int) -> None:
        """Count anew; 0: never."""
        self._left = number
        self.has_fired = False

    def told_to(self, disk: Disk) -> Killer:
        """Tell a disk what SQLite has synced."""
        self._disk = disk
        return self

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        is_meant = call == self._call if self._call else call in CHANGES
        if is_meant and self._path in path and any(each in path for each in FOLDERS):
            self._left -= 1
            self.has_fired = self.has_fired or self._left == 0
            if self.has_fired:
                # Whatever tidies up on the way out is not there any more.
                raise Killed
        return None

    def synced(self, path: str) -> None:
        if self._disk is not None:
            self._disk.synced(path)


class RepairDisk(Disk):
    """With lost+found; a file that moved there without a sync of it is where it was."""

    def _folders(self) -> set[Path]:
        return {*super()._folders(), self._state / "lost+found"}

    def begin(self) -> None:
        super().begin()
        self._where = {path.stat().st_ino: path for path in self.files()}

    def files(self) -> list[Path]:
        return sorted([*super().files(), *(self._state / "lost+found").iterdir()])

    def cut(self, how: random.Random | str) -> dict[str, str]:
        for path in (self._state / "lost+found").iterdir():
            before = self._where.get(path.stat().st_ino)
            if before is not None and not before.exists() and not self._has_name(path):
                os.rename(path, before)
        return super().cut(how)
