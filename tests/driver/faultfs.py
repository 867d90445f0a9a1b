"""The RAM file system with faults on command, for the tests of real mounts.

``python -m tests.driver.faultfs MNT --faults FILE`` reads FILE at every request: lines of
``VERB KIND [ARGUMENT]``. What is not named there behaves as ``ramfs`` does.

Setting ``user.change`` on a file changes its bytes behind the kernel's back, ``user.forget`` and
``user.forget-name`` (PARENT/NAME) tell the kernel; ``user.frozen`` is how many requests wait for
a thaw.

A name that begins with "frozen" belongs to a mount of that name whose reads wait until the line
``thaw`` stands in FILE. "slow" in the same place waits 0.2 s, and a look-up of "stuck" waits as a
frozen read does. Missing names that begin with "never" are proven absent for an hour.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from tests.driver.ramfs import RamFs, parser, serve
from unifs.driver.access import VERBS
from unifs.driver.notify import Notifications
from unifs.driver.session import SessionOptions
from unifs.driver.waits import Deadlines
from unifs.errors import Corrupt, NotFound, UnifsError
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.types import Caller

#: How often a frozen read looks whether it may go on.
THAW_POLL_S = 0.02
SLOW_S = 0.2

KINDS: dict[str, BaseException] = {
    "value": ValueError("a bug"),
    "key": KeyError("a bug"),
    "assertion": AssertionError(),
    "recursion": RecursionError("a bug"),
    "memory": MemoryError(),
    "type": TypeError("a bug"),
    "base": UnifsError("an unnamed failure"),
    "corrupt": Corrupt(),
    "os": OSError(5, "Input/output error"),
    "oswithout": OSError("no errno"),
    "group": ExceptionGroup("one", [Corrupt()]),
    "groups": ExceptionGroup("two", [Corrupt(), ValueError()]),
}


class FaultFs(RamFs):
    """Fails, waits and freezes as a file of lines says."""

    def __init__(self, timeout_s: float, faults: Path, notifications: Notifications) -> None:
        super().__init__(timeout_s)
        self._faults = faults
        self._invalidator = notifications.for_mount("ram")
        self._names: dict[int, bytes] = {}
        self._frozen = 0
        for verb in VERBS:
            setattr(self, verb, partial(self._faulty, verb, getattr(self, verb)))

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self._faults.read_text().splitlines()]

    def _faulty(self, verb: str, operation: Any, *args: Any) -> Any:
        for line in self._lines():
            if line[0] == verb:
                if line[1] == "wait":
                    raise WouldBlock(trio.sleep_forever, "faulty")
                if line[1] == "late":
                    raise WouldBlock(partial(self._late, KINDS[line[2]]), "faulty")
                raise KINDS[line[1]]
        return operation(*args)

    async def _late(self, error: BaseException) -> object:
        await trio.lowlevel.checkpoint()
        raise error

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Any, pyfuse3.EntryAttributes]:
        node, attributes = super().create(parent, name, mode, flags, caller)
        self._names[attributes.st_ino] = name
        return node, attributes

    def lookup(self, parent: int, name: bytes, caller: Caller) -> pyfuse3.EntryAttributes:
        if name.startswith(b"never") and name not in self._nodes[parent].children:
            raise NotFound("proven", negative_timeout_s=3600)
        if name == b"stuck" and ["thaw"] not in self._lines():
            raise WouldBlock(self._until_thawed, "frozen")
        return super().lookup(parent, name, caller)

    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        name = self._names.get(fh, b"")
        if name.startswith(b"frozen") and ["thaw"] not in self._lines():
            raise WouldBlock(self._until_thawed, "frozen")
        if name.startswith(b"slow"):
            return self._slow(partial(super().read, fh, offset, size))
        return super().read(fh, offset, size)

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        node = self._node(ino)
        if name == b"user.change":
            # As if somebody else had written: the kernel knows nothing of it.
            node.data[:] = value
            node.attributes.st_size = len(value)
        elif name == b"user.forget":
            self._invalidator.inode(ino)
        elif name == b"user.forget-name":
            parent, _, child = value.partition(b"/")
            self._invalidator.entry(int(parent), child)
        else:
            super().setxattr(ino, name, value)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if name == b"user.frozen":
            return str(self._frozen).encode()
        return super().getxattr(ino, name)

    def _slow(self, answer: Any) -> Any:
        async def wait() -> object:
            await trio.sleep(SLOW_S)
            return answer()

        raise WouldBlock(wait, "slow")

    async def _until_thawed(self) -> object:
        # Another process says so, in a file.
        self._frozen += 1
        try:
            while ["thaw"] not in self._lines():  # noqa: ASYNC110
                await trio.sleep(THAW_POLL_S)
        finally:
            self._frozen -= 1
        return RETRY


PRETENCES = ("version", "before", "after")


def pretend(what: str) -> None:
    """Change pyfuse3: its version, or where its wait for a request suspends.

    After the wait it suspends only once, which is when the loop tries it out. pyfuse3 reads from a
    blocking descriptor as soon as the wait ends: a second reader let in between would find nothing
    left to read and stop the whole process.
    """
    if what == "version":
        pyfuse3.__version__ = "3.99"
        return
    wait = pyfuse3._wait_fuse_readable
    has_suspended = False

    async def changed() -> bool:
        nonlocal has_suspended
        if what == "before":
            await trio.lowlevel.checkpoint()
        answer = await wait()
        if what == "after" and not has_suspended:
            has_suspended = True
            await trio.lowlevel.checkpoint()
        return answer

    pyfuse3._wait_fuse_readable = changed


def main() -> int:
    arguments = parser()
    arguments.add_argument("--faults", type=Path, required=True)
    arguments.add_argument(
        "--deadline", type=float, default=600.0, help="of every request, seconds"
    )
    arguments.add_argument("--per-mount", type=int, default=256)
    arguments.add_argument("--grace", type=float, default=5.0)
    arguments.add_argument("--read-only", action="store_true")
    arguments.add_argument("--allow-other", action="store_true")
    arguments.add_argument("--crash", action="store_true", help="fail once it is mounted")
    arguments.add_argument("--pretend", choices=PRETENCES, help="that pyfuse3 is another one")
    chosen = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    if chosen.pretend:
        pretend(chosen.pretend)
    limit = chosen.deadline
    notifications = Notifications()
    return serve(
        FaultFs(chosen.timeout, chosen.faults, notifications),
        chosen.mount_point,
        SessionOptions(
            deadlines=Deadlines(limit, limit, limit, limit, limit, limit),
            per_mount_max=chosen.per_mount,
            end_grace_s=chosen.grace,
            is_fast_loop_wanted=not chosen.stock_loop,
            read_only=chosen.read_only,
            allow_other=chosen.allow_other,
        ),
        notifications,
        crash if chosen.crash else lambda: print("ready", flush=True),
    )


def crash() -> None:
    print("ready", flush=True)
    raise RuntimeError("the daemon fails")


if __name__ == "__main__":
    sys.exit(main())
