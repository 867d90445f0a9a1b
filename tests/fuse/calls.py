"""What the tests of the driver on real mounts share."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from tests.fuse.conftest import PATIENCE_S, Mounted
from unifs.driver.mountinfo import MountedAt, mounted_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Threads:
    """Calls that may block, each in a thread, with their answers or errno."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self._threads: list[threading.Thread] = []

    def run(self, call: Callable[..., Any], *args: Any) -> None:
        thread = threading.Thread(target=self._call, args=(call, *args), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _call(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            self.answers.append(call(*args))
        except OSError as error:
            self.answers.append(error.errno)

    def join(self) -> list[Any]:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        return self.answers


def found(mounted: Mounted) -> MountedAt:
    """Its line in mountinfo."""
    there = mounted_at(str(mounted.path))
    assert there is not None
    assert there.is_unifs
    return there


def frozen_count(mounted: Mounted) -> int:
    """How many requests wait for a thaw."""
    return int(os.getxattr(mounted.path, "user.frozen"))


def drop_pages(path: Path) -> None:
    """The next read of that file reaches the driver."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def errno_of(call: Callable[[], Any]) -> int:
    """The errno that a call fails with; 0 where it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0
