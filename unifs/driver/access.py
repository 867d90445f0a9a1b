"""One line of the access log from the arguments of one request.

Called by ``operations.py`` only while somebody reads the log, so nothing here needs to be fast; it
must never raise, because it runs outside the guard.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unifs.telemetry import Access

if TYPE_CHECKING:
    from collections.abc import Callable


class _Shape(NamedTuple):
    """Where in a handler's arguments each thing stands; None: nowhere."""

    ino: int | None = None
    fh: int | None = None
    name: int | None = None
    offset: int | None = None
    size: int | None = None
    data: int | None = None
    caller: int | None = None


_SHAPES: Final = {
    "lookup": _Shape(ino=0, name=1, caller=2),
    "getattr": _Shape(ino=0, caller=1),
    "setattr": _Shape(ino=0, caller=4),
    "readlink": _Shape(ino=0, caller=1),
    "statfs": _Shape(caller=0),
    "mknod": _Shape(ino=0, name=1, caller=4),
    "mkdir": _Shape(ino=0, name=1, caller=3),
    "symlink": _Shape(ino=0, name=1, caller=3),
    "link": _Shape(ino=0, name=2, caller=3),
    "unlink": _Shape(ino=0, name=1, caller=2),
    "rmdir": _Shape(ino=0, name=1, caller=2),
    "rename": _Shape(ino=0, name=1, caller=5),
    "open": _Shape(ino=0, caller=2),
    "create": _Shape(ino=0, name=1, caller=4),
    "read": _Shape(fh=0, offset=1, size=2),
    "write": _Shape(fh=0, offset=1, data=2),
    "flush": _Shape(fh=0),
    "release": _Shape(fh=0),
    "fsync": _Shape(fh=0),
    "opendir": _Shape(ino=0, caller=1),
    "readdir": _Shape(fh=0, offset=1),
    "releasedir": _Shape(fh=0),
    "fsyncdir": _Shape(fh=0),
    "getxattr": _Shape(ino=0, name=1, caller=2),
    "setxattr": _Shape(ino=0, name=1, data=2, caller=3),
    "listxattr": _Shape(ino=0, caller=1),
    "removexattr": _Shape(ino=0, name=1, caller=2),
}
VERBS: Final = tuple(_SHAPES)


def line(
    verb: str,
    args: tuple[Any, ...],
    number: int,
    elapsed_ns: int,
    inode_of: Callable[[int], int],
) -> Access:
    """The line for a request that took ``elapsed_ns`` and was answered with errno ``number``.

    ``inode_of`` tells a handle's inode, 0 where it is gone. Names of extended attributes stand in
    ``name``; the kernel does not say who reads, writes or closes a handle, so their pid is 0.
    """
    shape = _SHAPES[verb]
    caller = None if shape.caller is None else args[shape.caller]
    if shape.fh is not None:
        ino = inode_of(args[shape.fh])
    else:
        ino = 0 if shape.ino is None else args[shape.ino]
    if shape.data is not None:
        size = len(args[shape.data])
    else:
        size = 0 if shape.size is None else args[shape.size]
    return Access(
        at_ns=time.time_ns() - elapsed_ns,
        operation=verb,
        ino=ino,
        name=b"" if shape.name is None else args[shape.name],
        offset=0 if shape.offset is None else args[shape.offset],
        size=size,
        pid=0 if caller is None else caller.pid,
        uid=0 if caller is None else caller.uid,
        errno=number,
        elapsed_ns=elapsed_ns,
    )
