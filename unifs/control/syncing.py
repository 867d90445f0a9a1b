"""Waiting for backends, and saying what is left meanwhile.

``unifs ctl sync``, ``unifs ctl journal sync`` and ``unifs umount --wait`` call it. What is said
goes to stderr, for people; the answer is the operation's own.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from unifs.control import render
from unifs.errors import DeadlineExceeded, UnifsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from unifs.control.locate import Target

#: The operations that wait for backends.
OPERATIONS: Final = ("sync", "journal.sync")
#: Between two looks at what is left; nothing is said of what ends sooner.
LOOK_S: Final = 0.5
#: A look that takes longer tells nobody anything.
LOOK_MAX_S: Final = 10.0
#: Before an unmount, so long nobody is told why it waits.
FIRST_S: Final = 5.0
#: To the first column, and what stands in the line is gone.
_ERASE: Final = "\r\x1b[2K"


def call(target: Target, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of an operation that waits; on a terminal a line says what is left until then."""
    with _telling(target, parameters.get("path")):
        return target.client().call(name, parameters)


def before_unmounting(target: Target) -> None:
    """Return when all changes have reached their backends, however long that takes.

    What waits after ``FIRST_S`` is said once. KeyboardInterrupt ends the wait, and nothing else.
    """
    try:
        with _telling(target, None):
            target.client().call("journal.sync", {"timeout_s": FIRST_S})
        return
    except DeadlineExceeded as error:
        waiting = str(error)
    left = _left(target.client().call("journal.status", {}))
    print(f"unifs: {render.printable(waiting)}", file=sys.stderr)
    print(f"  {left}; Ctrl-C ends the wait, and the tree stays mounted", file=sys.stderr)
    call(target, "journal.sync", {})


@contextmanager
def _telling(target: Target, path: str | None) -> Iterator[None]:
    """Say what is left, on a line of stderr that is gone afterwards, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    is_over = threading.Event()
    teller = threading.Thread(target=_tell, args=(target, path, is_over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()


def _tell(target: Target, path: str | None, is_over: threading.Event) -> None:
    # What is wrong with the daemon, the call that waits says.
    with suppress(UnifsError, OSError):
        try:
            while not is_over.wait(LOOK_S):
                status = target.client(LOOK_MAX_S).call("journal.status", {"path": path})
                sys.stderr.write(f"{_ERASE}{_left(status)}")
                sys.stderr.flush()
        finally:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()


def _left(status: Mapping[str, Any]) -> str:
    count = sum(status[state] for state in ("open", "closed", "sealed"))
    text = f"{count:,} {'change waits' if count == 1 else 'changes wait'} for the backend"
    if status["unsynced_bytes"]:
        text += f", {render.size(status['unsynced_bytes'])}"
    if status["sent_bytes"]:
        text += f", of which it has {render.size(status['sent_bytes'])}"
    return text
