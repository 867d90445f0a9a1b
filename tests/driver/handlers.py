"""The driver's handlers around a vfs that answers as it is told, without a kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from unifs.driver.operations import Operations
from unifs.driver.waits import Deadlines, Waits
from unifs.telemetry import AccessLog, Metrics
from unifs.types import PlainCaller

CALLER = PlainCaller(uid=7, gid=8, pid=9)
FIELDS = SimpleNamespace(
    update_mode=True,
    update_uid=False,
    update_gid=True,
    update_size=True,
    update_atime=False,
    update_mtime=True,
    update_ctime=True,
)


def _changed() -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_mode = 0o104755
    attributes.st_uid = 3
    attributes.st_gid = 4
    attributes.st_size = 5
    attributes.st_atime_ns = 6
    attributes.st_mtime_ns = 7_000_000_001
    return attributes


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "lookup": (1, b"n", CALLER),
    "getattr": (2, CALLER),
    "setattr": (2, _changed(), FIELDS, None, CALLER),
    "readlink": (2, CALLER),
    "statfs": (CALLER,),
    "mknod": (1, b"n", 0o100644, 0, CALLER),
    "mkdir": (1, b"n", 0o40755, CALLER),
    "symlink": (1, b"n", b"target", CALLER),
    "link": (2, 1, b"n", CALLER),
    "unlink": (1, b"n", CALLER),
    "rmdir": (1, b"n", CALLER),
    "rename": (1, b"n", 1, b"m", 0, CALLER),
    "open": (2, 0, CALLER),
    "create": (1, b"n", 0o100644, 0, CALLER),
    "read": (3, 10, 20),
    "write": (3, 10, b"data"),
    "flush": (3,),
    "release": (3,),
    "fsync": (3, True),
    "opendir": (1, CALLER),
    "readdir": (4, 0, object()),
    "releasedir": (4,),
    "fsyncdir": (4, False),
    "getxattr": (2, b"user.a", CALLER),
    "setxattr": (2, b"user.a", b"v", CALLER),
    "listxattr": (2, CALLER),
    "removexattr": (2, b"user.a", CALLER),
}


class FakeServed:
    """Answers every request with ``answer``, or raises it where it is an exception."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def inode_of(self, fh: int) -> int:
        return 100 + fh

    def __getattr__(self, verb: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append((verb, args))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call


class Driver:
    """Handlers with everything around them in sight."""

    def __init__(self, answer: Any = None, per_mount_max: int = 256, **deadlines: float) -> None:
        self.served = FakeServed(answer)
        self.metrics = Metrics()
        self.access_log = AccessLog()
        self.waits = Waits(self.metrics, per_mount_max)
        self.operations = Operations(
            self.served, self.waits, self.metrics, self.access_log, Deadlines(**deadlines)
        )

    async def request(self, verb: str) -> Any:
        return await getattr(self.operations, verb)(*ARGUMENTS[verb])

    async def errno_of(self, verb: str) -> int:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await self.request(verb)
        return caught.value.errno
