"""The mount protocol: what a backend must answer to be a subtree of unifs.

A mount is small. It maps names and errors and makes one remote call per method. It keeps no cache,
no journal and no retry loop: the tree caches names, the cache caches bytes, writeback retries.

A capability is an overridden method; nobody declares what they can do, ``supports("rename")``
looks. What a backend lacks (symlinks, links, special files) lives in the tree only.

Deadlines are the caller's cancel scopes; no method takes a timeout. Every method is cancellable at
every await, and leaves nothing half done at the backend that a later call cannot overwrite.

Paths are mount-relative ``str`` with surrogateescape: "" is the root, "a/b" a child of "a".

Errors are those of ``unifs.errors`` and nothing else: NotFound only for proven absence;
Unreachable, DeadlineExceeded, RateLimited for what may pass; Conflict where the backend's version
is not ``base``; Stale where a version cannot be had any more; Corrupt, NoSpace, Unsupported for
what they say.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from unifs.errors import UnifsError, Unsupported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from unifs.types import Change, Node, Page, SetAttributes, Version


class ContentReader(Protocol):
    """Immutable bytes on their way to a backend. May be read in any order and more than once.

    One whose CID is known has it as ``cid``; one of a file as its ``attributes`` what the file has.
    """

    size_bytes: int

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset``, less only at the end."""
        ...


def cid_of(content: ContentReader) -> str:
    """The CID of a content on its way to a backend; "" where nobody knows it."""
    return str(getattr(content, "cid", ""))


def attributes_of(content: ContentReader) -> SetAttributes | None:
    """Mode, owner and times of the file whose content is on its way; None where nobody says."""
    return getattr(content, "attributes", None)


class LocalReader(Protocol):
    """A file of a mount whose bytes lie on this machine."""

    def read_nowait(self, offset: int, size: int) -> bytes | memoryview:
        """As ``Handle.read``; WouldBlock where the disk must be waited for."""
        ...


class Mount:
    """One backend shown as a subtree. Subclasses override what their backend can do."""

    #: The word in the settings that selects this mount: ``kind = "s3"``.
    kind: ClassVar[str] = ""
    #: Objects never change under their path (``/ipfs/<cid>``): cached for ever.
    is_immutable: ClassVar[bool] = False
    #: ``put`` is conditional on ``base`` and recognises its own token. Where a backend cannot give
    #: that, as the class says or as one mount finds out, this is False and ``explain`` shows the
    #: remaining window.
    is_conditional: bool = True
    #: The same of what a ``rename`` replaces; True until it is found out to be otherwise.
    is_rename_conditional: bool = True
    #: Whether what lies at the root is of a kind of its own (buckets of a service): no files lie
    #: beside it, and no rename has it as its source or its target.
    has_containers: bool = False
    #: The verbs that an overridden ``commit`` wants many of at once (None: all); the others come
    #: one in a call, and several calls at a time.
    batched: ClassVar[frozenset[str] | None] = None

    # --- reading --------------------------------------------------------------------------------

    async def stat(self, path: str) -> Node:
        """The object at ``path``. NotFound only if the backend says so."""
        raise Unsupported(f"{self.kind} has no stat")

    async def scan(self, path: str, after: str | None) -> Page:
        """One page of the directory at ``path``, from the last page's cursor (None: first)."""
        raise Unsupported(f"{self.kind} has no directories")

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        """``size`` bytes of exactly that version, less only at its end; Stale if it is gone."""
        raise Unsupported(f"{self.kind} has no files to read")

    async def read_into(
        self,
        path: str,
        version: Version,
        offset: int,
        buffers: Sequence[memoryview],
        filled: Callable[[], None],
    ) -> None:
        """Fill ``buffers``, one after the other, with that version's bytes from ``offset`` on.

        ``filled`` is called after each: its bytes are good whatever happens to the next. Corrupt
        where the bytes end before the buffers do; else as ``read``. For backends that answer one
        large request more cheaply than many small ones.
        """
        raise Unsupported(f"{self.kind} reads one range at a time")

    def open_nowait(self, path: str, version: Version) -> LocalReader:
        """Bytes of exactly that version that lie on this machine, read without the cache."""
        raise Unsupported(f"{self.kind} has no bytes on this machine")

    async def epoch(self) -> str:
        """A version of the whole subtree, cheap to ask for."""
        raise Unsupported(f"{self.kind} has no version of the whole")

    # --- writing --------------------------------------------------------------------------------

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        """Store a whole object atomically: readers see the old or the new one.

        ``base`` is the version that this content replaces (None: there must be none); Conflict if
        the backend holds another, unless that other one carries ``token``: then it is our own
        earlier attempt and this is success. Returns the stored object with its new version.
        """
        raise Unsupported(f"{self.kind} is read-only")

    def check_name(self, above: str | None, name: bytes, kind: int) -> None:
        """Return if something of that kind (``stat.S_IFMT``) may have that name here.

        InvalidArgument or NotPermitted where the backend could never hold it. ``above`` is the path
        of the directory (None: the backend does not have it yet). Asks nobody: it is called before
        anything is made.
        """

    async def make(self, path: str, node: Node, token: str) -> Node:
        """Make a directory, symlink or special file. Exists if something else is there."""
        raise Unsupported(f"{self.kind} cannot make that")

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        """Remove an object, or an empty directory. Absent is success; Conflict as in ``put``."""
        raise Unsupported(f"{self.kind} is read-only")

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        """Move an object or a directory, replacing what is there. Done already is success.

        A backend whose rename can be conditional replaces the version ``base`` only (None: there
        must be none), and raises Conflict where it holds another.
        """
        raise Unsupported(f"{self.kind} has no rename")

    async def has_begun(self, new_path: str, token: str) -> bool:
        """Whether what stands at ``new_path`` is there by an earlier try of this ``rename``.

        For backends whose rename is not one step: the old path is still there then.
        """
        return False

    def moved(self, path: str) -> int | None:
        """How many objects a ``rename`` of ``path`` that is under way has moved; None: none is.

        For backends whose rename is not one step.
        """
        return None

    def sent(self, path: str) -> int | None:
        """How many bytes of a ``put`` to ``path`` that is under way are stored; None: none is.

        For backends that take large objects in parts, and keep each.
        """
        return None

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        """Keep mode, owner or times at the backend."""
        raise Unsupported(f"{self.kind} keeps no attributes")

    async def commit(
        self, changes: Sequence[tuple[Change, ContentReader | None]]
    ) -> list[Node | UnifsError | None]:
        """Bring many changes to the backend; one outcome each, in order.

        The default is a loop; backends that profit (one hub commit, one CAR) override it. An
        outcome is the stored Node, None where there is none to tell, or the error of that change;
        changes after a failed one are still tried: writeback has ordered only independent ones
        together.
        """
        outcomes: list[Node | UnifsError | None] = []
        for change, content in changes:
            try:
                outcomes.append(await self._apply(change, content))
            except UnifsError as error:
                outcomes.append(error)
        return outcomes

    async def _apply(self, change: Change, content: ContentReader | None) -> Node | None:
        match change.verb:
            case "put" if content is not None:
                return await self.put(change.path, content, change.base, change.token)
            case "make" if change.node is not None:
                return await self.make(change.path, change.node, change.token)
            case "remove":
                await self.remove(change.path, change.base, change.token)
            case "rename":
                await self.rename(change.path, change.new_path, change.token, change.base)
            case "set_attributes":
                await self.set_attributes(change.path, change.attributes, change.token)
            case _:
                raise AssertionError(f"no such change: {change.verb}")
        return None

    # --- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Connections and background tasks of this mount live inside this context."""
        yield

    def supports(self, capability: str) -> bool:
        """Whether this mount overrides the method of that name."""
        return getattr(type(self), capability) is not getattr(Mount, capability)
