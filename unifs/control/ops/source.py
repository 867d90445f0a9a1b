"""Bytes for an operation, from the caller or from a file that the daemon can read itself.

``add`` and ``dag import`` use it. A file on this machine is read by the daemon: no byte crosses the
socket. The caller says which file it sees (``identity``), because its path may name another one for
the daemon: in a container, in another mount namespace.
"""

import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final, NamedTuple

from unifs.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    UnifsError,
    Unsupported,
    from_os_error,
)

PIECE_BYTES: Final = 1 << 20


class HostPath(NamedTuple):
    """A file or directory of this machine, and its size where it is a file."""

    path: Path
    size_bytes: int


async def host_path(path: str, identity: str | None) -> HostPath:
    """The path, checked to be readable here and to be the object that the caller means.

    Unsupported for what is neither file nor directory: its bytes are the caller's to read.
    Looked at in a thread: it may lie in the mounted tree, which this event loop serves.
    """
    import trio  # only here: see ``progress``

    return await trio.to_thread.run_sync(_checked, path, identity)


def _checked(path: str, identity: str | None) -> HostPath:
    if not os.path.isabs(path) or "\0" in path:
        raise InvalidArgument(f"{path!r} has to be an absolute path", field="path")
    try:
        found = os.stat(path)
        readable = os.access(path, os.R_OK)
    except OSError as error:
        named = from_os_error(error)
        if not isinstance(named, UnifsError):
            raise
        raise type(named)(f"the daemon: {path}: {named}", daemon_path=path) from error
    if identity is not None and identity != f"{found.st_dev}:{found.st_ino}":
        raise NotFound(f"{path} is another file for the daemon than for you", daemon_path=path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise Unsupported(f"{path} is neither a file nor a directory")
    if not readable:
        raise PermissionDenied(f"the daemon may not read {path}", daemon_path=path)
    return HostPath(Path(path), found.st_size)


async def pieces_of(path: Path) -> AsyncGenerator[bytes, None]:
    """A file's bytes, read in a thread. Whoever does not read to the end closes it."""
    import trio  # only here: see ``progress``

    try:
        opened = await trio.open_file(path, "rb", buffering=0)
    except OSError as error:
        named = from_os_error(error)
        if not isinstance(named, UnifsError):
            raise
        raise type(named)(f"{path}: {named}") from error
    async with opened as file:
        while piece := await file.read(PIECE_BYTES):
            yield piece
