"""What a service manager hears of this process: that it is ready, ends, and lives; and its log.

Called by the mount command's foreground way and by the session; without a service manager every
call does nothing. The protocol is sd_notify(3): datagrams of assignments to a unix socket. It must
never hold up the tree or fail it: what cannot be told is logged, and the tree is served anyway.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Final

import trio

from unifs import config

log = logging.getLogger(__name__)

#: sd-daemon(3): "<N>" at the start of a line of stderr is its priority, as syslog(3) counts them.
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
#: The journal has its own clock and priority: a line is the module and key=value.
JOURNAL_FORMAT: Final = "%(name)s %(message)s"


def tell(*assignments: str) -> None:
    """Send ``assignments`` ("READY=1", "STATUS=…") to the service manager, if there is one."""
    address = config.supervisor_says("NOTIFY_SOCKET")
    if not address:
        return
    # A line's end would begin another assignment.
    text = "\n".join(each.replace("\n", " ") for each in assignments)
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            # A manager that does not read would otherwise stop the loop.
            sending.setblocking(False)
            sending.sendto(text.encode(errors="replace"), name)
    except OSError as error:
        log.warning("the service manager cannot be told reason=%r", error.strerror)


async def keep_alive() -> None:
    """Tell the service manager's watchdog, where it asks, that the event loop turns; for ever."""
    usec, pid = map(config.supervisor_says, ("WATCHDOG_USEC", "WATCHDOG_PID"))
    if not usec.isdecimal() or pid not in ("", str(os.getpid())):
        return
    while True:
        tell("WATCHDOG=1")
        # Twice in the time that it waits, as sd_watchdog_enabled(3) recommends.
        await trio.sleep(int(usec) / 1e6 / 2)


class JournalFormatter(logging.Formatter):
    """A record with its priority before each of its lines, which the journal makes entries of."""

    def __init__(self) -> None:
        super().__init__(JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        mark = next(f"<{number}>" for least, number in _PRIORITIES if record.levelno >= least)
        return "\n".join(mark + line for line in super().format(record).splitlines())


def log_to_stderr(plain_format: str, level: str) -> None:
    """Log to standard error: as the journal reads it if it leads there, else ``plain_format``."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = JournalFormatter() if _leads_to_journal() else logging.Formatter(plain_format)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper())


def _leads_to_journal() -> bool:
    stream = config.supervisor_says("JOURNAL_STREAM")
    if not stream:
        return False
    # The variable is inherited by what a service starts with its output led elsewhere.
    status = os.fstat(sys.stderr.fileno())
    return stream == f"{status.st_dev}:{status.st_ino}"
