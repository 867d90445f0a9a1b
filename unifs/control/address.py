"""The control socket as a place: binding it privately, reaching it, telling stale from alive.

The server listens and the client connects through here. A unix socket's address holds 107 bytes; a
longer path is reached through a descriptor of its directory (``/proc/self/fd/N/name``), so that no
state directory is too deep to be controlled.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unifs.errors import NoDaemon, PermissionDenied, StateInUse, StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: struct sockaddr_un has 108 bytes for the path and its NUL (unix(7)).
ADDRESS_BYTES_MAX: Final = 107
BACKLOG: Final = 128


@contextmanager
def short(path: Path) -> Iterator[str]:
    """An address for ``path`` that fits, valid inside this context."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path, timeout_s: float | None = None) -> socket.socket:
    """A connection to the daemon that listens at ``path``. NoDaemon if none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        with short(path) as address:
            connection.connect(address)
    except OSError as error:
        connection.close()
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDenied(f"the control socket {path} belongs to somebody else") from error
        raise NoDaemon(f"no unifs daemon answers at {path}", path=str(path)) from error
    return connection


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` that only its owner can open (0600 in a directory of 0700).

    Replaces the socket of a daemon that is gone; StateInUse if that daemon still answers.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path.parent, 0o700)
        _remove_stale(path)
        return _bind(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateUnusable(f"the control socket {path} cannot be made: {reason}") from error


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the bound file the mode of the socket's inode: it is private from its first
        # moment, without touching the process's umask.
        os.fchmod(listener.fileno(), 0o600)
        with short(path) as address:
            listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_symlink() and not path.exists():
        return
    if not path.is_symlink() and not path.is_socket():
        raise StateUnusable(f"{path} is in the way: it is not a socket")
    try:
        connect(path, timeout_s=1.0).close()
    except NoDaemon:
        path.unlink()
    else:
        raise StateInUse(f"a unifs daemon already answers at {path}")


def link(path: Path, target: Path) -> None:
    """Leave a link to the socket where it is looked for without $XDG_RUNTIME_DIR."""
    if path == target:
        return
    if path.is_symlink() and path.readlink() == target:
        # Left by a daemon that was killed; what answers through it by now are we.
        return
    _remove_stale(path)
    path.symlink_to(target)


def remove(path: Path) -> None:
    """Remove a socket or a link; absent is success."""
    path.unlink(missing_ok=True)
