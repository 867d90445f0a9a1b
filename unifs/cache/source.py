"""What a clean handle reads from: one version of one remote object.

``vfs`` makes one for each open file, ``ReadCache`` and what belongs to it read from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.mounts.base import Mount
    from unifs.types import Version


class ReadRange(Protocol):
    """Reads a range of one version of one object at its backend."""

    async def __call__(self, offset: int, size: int) -> bytes: ...


class ReadInto(Protocol):
    """As ``Mount.read_into``, of one version of one object."""

    async def __call__(
        self, offset: int, buffers: Sequence[memoryview], filled: Callable[[], None]
    ) -> None: ...


@runtime_checkable
class ReadsNowait(Protocol):
    """A mount whose bytes lie on this machine: it answers from the page cache itself."""

    def read_nowait(
        self, path: str, version: Version, offset: int, size: int
    ) -> bytes | memoryview: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One version of one remote object.

    ``mount`` is the mount's name in the namespace and ``object`` the object's path there ("" where
    the version alone names the bytes). With ``read_nowait`` the bytes lie on this machine already
    (the embedded node's): no tier keeps a second copy. ``read_into`` is None where the backend
    takes one range at a time.
    """

    mount: str
    object: str
    version: Version
    size_bytes: int
    read: ReadRange
    read_nowait: Callable[[int, int], bytes | memoryview] | None = None
    read_into: ReadInto | None = None

    @classmethod
    def of(cls, name: str, mount: Mount, path: str, version: Version, size_bytes: int) -> Source:
        """The source for the object at ``path`` of a mount called ``name``."""
        identity = "" if mount.is_immutable else path
        nowait = None
        if isinstance(mount, ReadsNowait):
            nowait = partial(mount.read_nowait, path, version)
        read = partial(mount.read, path, version)
        into = None
        if mount.supports("read_into"):
            into = partial(mount.read_into, path, version)
        return cls(name, identity, version, size_bytes, read, nowait, into)
