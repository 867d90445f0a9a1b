"""unifs, with a signal to itself at a chosen step: ``python -m tests.fuse.signalled POINT N …``.

``N`` is the signal's number; what follows is a command of unifs.
"""

from __future__ import annotations

import os
import sys
from functools import wraps
from typing import Any

from unifs import cli
from unifs.daemon import Daemon
from unifs.driver.session import Session
from unifs.vfs.storage import Storage

#: After these functions; all but the last come before the tree answers.
POINTS: dict[str, tuple[type, str]] = {
    "the state is open": (Storage, "_open"),
    "everything is built": (Daemon, "_answer"),
    "the loop turns": (Daemon, "_tasks"),
    "it is mounted": (Session, "_initialize"),
    "it is unmounted": (Session, "_close"),
}


def arm(point: str, number: int) -> None:
    """Wrap the function of a point."""
    owner, name = POINTS[point]
    function = getattr(owner, name)

    @wraps(function)
    def wrapped(*arguments: Any) -> Any:
        answer = function(*arguments)
        os.write(2, f"reached: {point}\n".encode())
        os.kill(os.getpid(), number)
        return answer

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(cli.run(sys.argv[3:]))
