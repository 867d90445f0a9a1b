"""One mounted tree, from mount(2) to the end of its session.

The daemon makes a ``Session`` and awaits ``serve``; that is the only way into pyfuse3. There is
one session per process, because pyfuse3 keeps it in globals.

How it ends. A signal or ``end()``: the tree is taken out of the namespace *while it is still
served*, so that pages written through mmap reach the vfs; then waiting requests get ENOTCONN and
the loop stops. Somebody else's umount: the kernel says so and the loop stops. A failure of the
daemon: the mount point stays, dead (ENOTCONN), because a mirror job that saw an empty directory
there would delete the other side; the next mount replaces it.

The loop's thread must never touch the tree that it serves: it would wait for itself, for ever.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from unifs.driver import fusectl, loop, supervised
from unifs.driver.mountinfo import MountedAt, mounted_at
from unifs.driver.operations import Operations
from unifs.driver.replacing import detach, place_for
from unifs.driver.waits import PER_MOUNT_MAX, Deadlines, Waits, places_per_mount
from unifs.errors import MountFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unifs.driver.notify import Notifications
    from unifs.driver.served import Served
    from unifs.telemetry import AccessLog, Metrics

log = logging.getLogger(__name__)

#: Tasks of the request loop, suspended ones included; pyfuse3's default of 99 stops the whole tree
#: behind 99 waiting requests.
TASKS_MAX: Final = 2048
#: With a Python-bound thread beside it, a request waits 5.2 ms at Python's 5 ms, 0.6 at this (p95).
SWITCH_INTERVAL_S: Final = 0.0005
#: How long the tree is served after it was taken out of the namespace while programs use it.
END_GRACE_S: Final = 5.0
#: Of what libfuse and fusermount3 say while they mount, so much is read.
SAID_BYTES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a tree is mounted and served."""

    allow_other: bool = False
    read_only: bool = False
    noexec: bool = False
    deadlines: Deadlines = field(default_factory=Deadlines)
    #: Requests that may wait for one mount, and how many remote mounts share the kernel's own limit
    #: where that cannot be raised.
    per_mount_max: int = PER_MOUNT_MAX
    remote_mounts: int = 0
    end_grace_s: float = END_GRACE_S
    is_fast_loop_wanted: bool = True
    #: What the mount table says is mounted; a comma would end the option.
    source: str = "unifs"
    #: Where a directory may be made to mount at before a dead mount is replaced.
    staging: Path | None = None

    def for_fuse(self) -> set[str]:
        """libfuse's mount options. Never max_read: libfuse would then end the session at INIT."""
        options = {"default_permissions", f"fsname={self.source}", "subtype=unifs"}
        if self.allow_other:
            options.add("allow_other")
        if self.read_only:
            options.add("ro")
        if self.noexec:
            options.add("noexec")
        return options


def mount(operations: pyfuse3.Operations, place: str, options: set[str]) -> None:
    """Mount, by root or through fusermount3. RuntimeError with what they said why they did not.

    They say it on stderr, where it goes on to.
    """
    stderr, heard = os.dup(2), os.memfd_create("stderr")
    try:
        os.dup2(heard, 2)
        try:
            pyfuse3.init(operations, place, options)
        finally:
            os.dup2(stderr, 2)
            said = os.pread(heard, SAID_BYTES_MAX, 0)
            with suppress(OSError):
                os.write(2, said)
    except RuntimeError as error:
        # "fuse: …", "fusermount3: …"; other threads may have logged something meanwhile.
        lines = said.decode(errors="replace").splitlines()
        reasons = [line for line in lines if line.startswith("fuse")]
        raise RuntimeError("; ".join(reasons) or str(error)) from error
    finally:
        os.close(stderr)
        os.close(heard)


class Session:
    """The FUSE session of this process."""

    def __init__(
        self,
        served: Served,
        options: SessionOptions,
        metrics: Metrics,
        access_log: AccessLog,
        notifications: Notifications,
    ) -> None:
        self.waits = Waits(metrics, options.per_mount_max)
        self._operations = Operations(served, self.waits, metrics, access_log, options.deadlines)
        self._options = options
        self._notifications = notifications
        self._mount_point = ""
        self._mounted: MountedAt | None = None
        self._is_detached = False
        self._has_ended = trio.Event()
        self._is_ending = False

    async def serve(
        self,
        mount_point: str,
        ready: Callable[[], None],
        is_to_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Mount at ``mount_point`` (absolute, resolved), call ``ready`` once it answers, serve.

        ``is_to_end``: whether a signal came before this listened.
        Returns when the tree has been unmounted, by anybody. Raises MountFailed; leaves a dead
        mount point when it is cancelled or fails later.
        """
        self._mount_point = mount_point
        self._initialize()
        is_clean = False
        try:
            with loop.installed(self._options.is_fast_loop_wanted, self.waits):
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._end_on_signal)
                    if is_to_end():
                        nursery.start_soon(self.end)
                    nursery.start_soon(self._greet, ready)
                    await pyfuse3.main(max_tasks=TASKS_MAX)
                    self._has_ended.set()
                    supervised.tell("STOPPING=1", "STATUS=unmounted, closing")
                    nursery.cancel_scope.cancel()
            is_clean = True
        finally:
            self.waits.end_all()
            self._close(is_clean)

    async def end(self) -> None:
        """Unmount and end the session; returns when the loop has been told to stop.

        Called again while that is under way, it stops the loop at once.
        """
        if self._is_ending:
            self._stop()
            return
        self._is_ending = True
        supervised.tell("STOPPING=1", f"STATUS=unmounting {self._mount_point}")
        try:
            await trio.to_thread.run_sync(detach, self._mount_point)
            self._is_detached = True
        except (OSError, MountFailed) as error:
            # EINVAL: somebody else has taken it out already, and something else may be there now.
            self._is_detached = isinstance(error, OSError) and error.errno == errno.EINVAL
            log.warning(
                "mount_point=%s cannot be unmounted reason=%r", self._mount_point, str(error)
            )
        with trio.move_on_after(self._options.end_grace_s):
            await self._has_ended.wait()
        self._stop()

    def _initialize(self) -> None:
        with place_for(self._mount_point, self._options.staging) as place:
            try:
                mount(self._operations, place, self._options.for_fuse())
            except RuntimeError as error:
                raise MountFailed(f"{self._mount_point} cannot be mounted: {error}") from error
        self._mounted = mounted_at(self._mount_point)
        if self._mounted is None or not self._mounted.is_unifs:
            pyfuse3.close(unmount=False)
            raise MountFailed(f"{self._mount_point} is not the path that was mounted")
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def _greet(self, ready: Callable[[], None]) -> None:
        """What has to wait for the kernel's first request, and from then on goes on."""
        await self._operations.is_initialized.wait()
        assert self._mounted is not None
        background = fusectl.tune(self._mounted)
        self.waits.per_mount_max = min(
            self._options.per_mount_max, places_per_mount(background, self._options.remote_mounts)
        )
        self._notifications.open()
        # What exists now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        ready()
        await supervised.keep_alive()

    async def _end_on_signal(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    log.info("signal=%s unmounting", signal.Signals(number).name)
                    nursery.start_soon(self.end)

    def _stop(self) -> None:
        self.waits.end_all()
        if not self._has_ended.is_set():
            pyfuse3.terminate()

    def _close(self, is_clean: bool) -> None:
        """Give the session back to libfuse; unmounts if nobody has and the end was wanted."""
        if not self._notifications.close(self._abort):
            log.error("mount_point=%s a notification does not end: session left", self._mount_point)
            return
        # Detached already: another mount may be at that path by now.
        pyfuse3.close(unmount=is_clean and not self._is_detached)

    def _abort(self) -> None:
        if self._mounted is None:
            return
        try:
            fusectl.Connection.of(self._mounted).abort()
        except OSError as error:
            log.warning("connection cannot be aborted reason=%r", str(error))
