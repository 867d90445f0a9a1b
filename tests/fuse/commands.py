"""The mount and umount commands around the RAM file system, as a program of its own.

``python -m tests.fuse.commands mount [--foreground] [--state DIR] [--fail WHAT] MNT`` and
``… umount [--wait] MNT`` do what the command line does: the exit code of the failure, its sentence
on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.driver.ramfs import RamFs
from unifs import config
from unifs.driver.mounting import mount_command
from unifs.driver.notify import Notifications
from unifs.driver.session import Session, SessionOptions
from unifs.driver.unmounting import umount_command
from unifs.errors import StateInUse, UnifsError
from unifs.telemetry import AccessLog, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.config import Settings


def run(settings: Settings, mount_point: str, ready: Callable[[], None]) -> int:
    """What ``unifs.daemon.run`` is: serve until unmounted."""
    options = SessionOptions(
        allow_other=settings.allow_other, read_only=settings.read_only, end_grace_s=0.5
    )
    session = Session(RamFs(), options, Metrics(), AccessLog(), Notifications())
    trio.run(session.serve, mount_point, ready)
    return 0


def failing(what: str) -> Callable[[Settings, str, Callable[[], None]], int]:
    """A daemon that does not get as far as serving."""

    def fail(settings: Settings, mount_point: str, ready: Callable[[], None]) -> int:
        if what == "named":
            raise StateInUse("it is in use by pid 1", holder=1)
        if what == "bug":
            raise ValueError("a bug")
        if what == "slow":
            # Longer than anybody waits for it to be ended.
            time.sleep(3600)
        os.abort()

    return fail


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("command", choices=["mount", "umount"])
    arguments.add_argument("mount_point", type=Path)
    arguments.add_argument("--state", type=Path)
    arguments.add_argument("--foreground", action="store_true")
    arguments.add_argument("--wait", action="store_true")
    arguments.add_argument("--fail", default="")
    chosen = arguments.parse_args()
    try:
        if chosen.command == "umount":
            return umount_command(chosen.mount_point, chosen.wait)
        settings = config.load(state=chosen.state)
        serve = failing(chosen.fail) if chosen.fail else run
        return mount_command(settings, chosen.mount_point, chosen.foreground, serve)
    except UnifsError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
