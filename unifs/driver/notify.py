"""Telling the kernel to forget, without ever waiting for it.

An invalidation can block for seconds behind a look-up or a read of the same inode (measured: 3.5 s
and 2.7 s), and for ever when it is awaited by the handler that it waits for. So each mount has one
bounded queue and one thread: what is slow for one mount delays nobody else's.

A mount's ``KernelInvalidator`` is called on the event loop only, by the volumes; its thread calls
pyfuse3, which releases the interpreter lock while the kernel works. ``session.py`` opens the gate
when there is a session and closes everything before the session goes: libfuse would crash on a
notification without one.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: Notifications that wait per mount. Beyond it they are dropped, counted, and the kernel's cached
#: names and attributes end by their timeouts instead.
QUEUE_MAX: Final = 65_536
#: How long closing waits for a thread that the kernel holds, before and after the connection is
#: aborted to get it back.
JOIN_S: Final = 2.0

#: (inode, attributes only) or (parent, name).
_Notice = tuple[int, bool] | tuple[int, bytes]


class Kernel(Protocol):
    """The two notifications; pyfuse3 is one. Both block and raise OSError."""

    def invalidate_inode(self, inode: int, attr_only: bool = ..., /) -> None: ...

    def invalidate_entry(self, inode_p: int, name: bytes, /) -> None: ...


class KernelInvalidator:
    """The ``Invalidator`` of one mount."""

    def __init__(self, mount: str, kernel: Kernel, gate: threading.Event) -> None:
        self._mount = mount
        self._kernel = kernel
        self._gate = gate
        self._queue: SimpleQueue[_Notice | None] = SimpleQueue()
        # Notices in the queue. Written by the loop, emptied by the thread; each step is one
        # dictionary operation, so no lock is needed and the loop cannot wait for one.
        self._pending: dict[_Notice, None] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._dropped = 0
        self._sent = 0

    def inode(self, ino: int, attributes_only: bool = False) -> None:
        """Forget the attributes, and unless ``attributes_only`` the cached bytes, of an inode."""
        if attributes_only and (ino, False) in self._pending:
            return
        self._put((ino, attributes_only))

    def entry(self, parent: int, name: bytes) -> None:
        """Forget a name."""
        self._put((parent, name))

    def statistics(self) -> dict[str, int]:
        """Notifications sent, waiting, at most waiting, and dropped because the queue was full."""
        return {
            "sent": self._sent,
            "waiting": len(self._pending),
            "waiting_max": QUEUE_MAX,
            "dropped": self._dropped,
        }

    def stop(self) -> None:
        """Take nothing more and end after the notification in progress. Idempotent."""
        self._is_closed = True
        self._pending.clear()
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended within that time."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    def _put(self, notice: _Notice) -> None:
        if notice in self._pending or self._is_closed:
            return
        if len(self._pending) >= QUEUE_MAX:
            if not self._dropped:
                log.warning("mount=%s has too many invalidations waiting, dropped", self._mount)
            self._dropped += 1
            return
        self._pending[notice] = None
        self._queue.put(notice)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"unifs-notify-{self._mount}", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        self._gate.wait()
        while (notice := self._queue.get()) is not None:
            if self._is_closed:
                return
            # Before the call: a change that comes during it must be told again.
            self._pending.pop(notice, None)
            try:
                self._send(notice)
                self._sent += 1
            except OSError as error:
                self._log(notice, error)
            except Exception:
                # A bug costs one invalidation, not the thread that sends all the others.
                log.exception("mount=%s invalidation failed", self._mount)

    def _send(self, notice: _Notice) -> None:
        match notice:
            case (int() as ino, bool() as attributes_only):
                self._kernel.invalidate_inode(ino, attributes_only)
            case (int() as parent, bytes() as name):
                self._kernel.invalidate_entry(parent, name)

    def _log(self, notice: _Notice, error: OSError) -> None:
        if error.errno == errno.ENOENT or self._is_closed:
            # The kernel does not know it (any more): nothing is left to forget.
            log.debug("mount=%s invalidation=%r unknown to the kernel", self._mount, notice)
        else:
            log.warning(
                "mount=%s invalidation=%r failed reason=%r", self._mount, notice, str(error)
            )


class Notifications:
    """The invalidators of one session, made by the daemon before there is one."""

    def __init__(self, kernel: Kernel = pyfuse3) -> None:
        self._kernel = kernel
        self._gate = threading.Event()
        self._by_mount: dict[str, KernelInvalidator] = {}

    def for_mount(self, name: str) -> KernelInvalidator:
        """The invalidator of that mount. What is told before the session opens waits."""
        if name not in self._by_mount:
            self._by_mount[name] = KernelInvalidator(name, self._kernel, self._gate)
        return self._by_mount[name]

    def remove(self, name: str) -> None:
        """That mount is gone; its thread ends by itself."""
        if invalidator := self._by_mount.pop(name, None):
            invalidator.stop()

    def statistics(self) -> dict[str, dict[str, int]]:
        """``KernelInvalidator.statistics`` by mount."""
        return {name: each.statistics() for name, each in self._by_mount.items()}

    def open(self) -> None:
        """There is a session: start telling."""
        self._gate.set()

    def close(self, abort: Callable[[], None]) -> bool:
        """End every thread; whether all have ended.

        The session must not be closed otherwise. A thread that the kernel holds is set free by
        ``abort``, which must end the connection. Blocks up to twice ``JOIN_S``.
        """
        for each in self._by_mount.values():
            each.stop()
        self._gate.set()
        if self._join():
            return True
        abort()
        return self._join()

    def _join(self) -> bool:
        until = time.monotonic() + JOIN_S
        for each in self._by_mount.values():
            each.join(max(0.0, until - time.monotonic()))
        return all(each.join(0.0) for each in self._by_mount.values())
