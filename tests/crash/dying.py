"""unifs, with a SIGKILL of itself at a chosen step: ``python -m tests.crash.dying POINT N WORD…``.

The product has no such switch: here one of its functions is wrapped before the command line runs.
``POINT`` is a crash window of ``unifs/journal/recovery.py`` that a killed process can fall into, by
its number; the process dies at the ``N``-th time that it gets there and says so on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from unifs import cli
from unifs.ipfs.embedded.segments import Segments
from unifs.journal.containers import Containers
from unifs.journal.recovery import Recovery
from unifs.state.held import Held
from unifs.vfs.tree import Tree
from unifs.vfs.upkeep import Upkeep
from unifs.vfs.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

REACHED = "reached window"


def _always(_self: Any) -> bool:
    return True


@dataclass(frozen=True)
class Point:
    """A function, and whether to die before or after it."""

    owner: type
    function: str
    is_after: bool = False
    #: Asked of ``self``: whether this call is one of those that count.
    counts: Callable[[Any], bool] = _always


POINTS = {
    "1": Point(Segments, "append_raw", is_after=True),
    "2": Point(Writer, "_large_rows", is_after=True),
    "3": Point(Tree, "commit", is_after=True),
    "7": Point(Upkeep, "_reap", counts=lambda upkeep: bool(upkeep.writer.forgotten)),
    "8": Point(Upkeep, "write_times", counts=lambda upkeep: bool(upkeep.writer.touched)),
    "9": Point(Upkeep, "_release_contents"),
    "10": Point(Containers, "delete"),
    "11": Point(Recovery, "_sync_rows"),
    "14": Point(Held, "_commit", counts=lambda held: len(held.batches) > 1),
    "15": Point(Held, "_commit", is_after=True),
}


def arm(name: str, number: int) -> None:
    """Wrap the function of a point; from here on the process is doomed."""
    point = POINTS[name]
    function = getattr(point.owner, point.function)
    left = number

    def die() -> None:
        os.write(2, f"{REACHED} {name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    @wraps(function)
    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal left
        is_counted = point.counts(self)
        left -= is_counted
        is_due = is_counted and left == 0
        if is_due and not point.is_after:
            die()
        answer = function(self, *arguments, **named)
        if is_due:
            die()
        return answer

    setattr(point.owner, point.function, wrapped)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(cli.run(sys.argv[3:]))
