"""The DAG of /mfs: from the tree's rows to one root CID, rebuilding only what changed.

The tree's owner shows its rows as a ``TreeView`` and gets back the new root and the new link of
every directory that changed, to be kept with its rows. A directory of which few names changed is
updated along their paths; otherwise, or where its old blocks are gone or damaged, it is built anew
from rows, which are the truth. Children come before parents.

Not in the DAG: FIFOs, sockets and devices; files whose bytes have no CID yet (they come with the
next build). Hard links are separate entries of one CID. No mode, owner or time is stored.

``RootBuilder`` is synchronous and does no I/O but ``get`` and ``put``; ``build_root`` runs it off
the event loop. Neither keeps state between builds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import trio

from unifs.errors import Corrupt, NotADirectory, NotAvailableOffline
from unifs.ipfs.embedded import large_directory
from unifs.ipfs.embedded.large_directory import build_in_process
from unifs.ipfs.unixfs.builder import build_symlink
from unifs.ipfs.unixfs.directory import build_directory, update_directory
from unifs.ipfs.unixfs.node import DirEntry, Link

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.embedded.large_directory import LeafText
    from unifs.ipfs.unixfs.node import Get, Put
    from unifs.ipfs.unixfs.profiles import Profile

#: Above this part of changed names a rebuild from rows is cheaper (100,000 entries: 0.33 s whole,
#: 0.02 ms for each change of a batch).
_UPDATE_PART_MAX: Final = 0.05
#: Directories built in one call of a thread.
_SLICE: Final = 64


@dataclass(frozen=True, slots=True)
class Child:
    """One name of a directory. ``cid`` and ``tsize`` are a file's; ``target`` is a symlink's.

    ``cid`` is that of the file's last sealed content, None if it has none yet. ``kind`` "special"
    is what UnixFS cannot hold.
    """

    name: bytes
    ino: int
    kind: Literal["file", "directory", "symlink", "special"]
    cid: Cid | None = None
    tsize: int = 0
    target: bytes = b""


@dataclass(frozen=True, slots=True)
class Dirty:
    """A directory that changed since the last build: the names added, removed or changed in it.

    ``names`` None: not known, or all. A file's name counts as changed when its CID does.
    """

    ino: int
    names: Collection[bytes] | None = None


class TreeView(Protocol):
    """The rows of one tree at one moment. Called in threads, one call at a time."""

    root: int

    def dirty_directories(self) -> Iterable[Dirty]:
        """What changed since the last build; new directories are among them."""
        ...

    def parent(self, ino: int) -> tuple[int, bytes] | None:
        """The directory that holds this one, and its name there; None for what has no name."""
        ...

    def count(self, ino: int) -> int:
        """How many entries a directory has."""
        ...

    def children(self, ino: int) -> Iterable[Child]:
        """All entries of a directory, in any order.

        Rows may change meanwhile (their directory is then changed again): a name may come twice.
        """
        ...

    def many_children(self, ino: int) -> Iterable[Child | LeafText]:
        """As ``children``, of a large directory: those that can be text as text."""
        ...

    def child(self, ino: int, name: bytes) -> Child | None:
        """One entry of a directory."""
        ...

    def directory_link(self, ino: int) -> Link | None:
        """What the last build said of this directory; None if it is new."""
        ...


@dataclass(slots=True)
class MfsRoot:
    """What a build made. ``directories`` are the new links, the root's among them.

    ``unfinished``: inodes of files left out because they have no CID yet. ``lost``: directories
    whose old blocks were missing or damaged and that were built anew from rows.
    """

    root: Link
    directories: dict[int, Link]
    unfinished: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


class Large(NamedTuple):
    """The entries of a large directory, as ``build_in_process`` takes them."""

    entries: list[DirEntry]
    leaves: list[LeafText]


class RootBuilder:
    """One build. ``run`` until ``is_done``."""

    def __init__(self, view: TreeView, profile: Profile, get: Get, put: Put) -> None:
        self._view = view
        self._profile = profile
        self._get = get
        self._put = put
        self._links: dict[int, Link] = {}
        #: Directories to build: the names that changed, None for all.
        self._changed: dict[int, set[bytes] | None] = {}
        self._stack: list[int] = []
        self._is_planned = False
        self._unfinished: set[int] = set()
        self._lost: list[int] = []

    @property
    def is_done(self) -> bool:
        """Whether everything is built."""
        return self._is_planned and not self._stack

    def result(self) -> MfsRoot:
        """The root and all new links, once ``is_done``."""
        assert self.is_done, "there are directories left to build"
        root = self._links.get(self._view.root) or self._view.directory_link(self._view.root)
        assert root is not None, "the root is dirty until it was built once"
        return MfsRoot(root, self._links, sorted(self._unfinished), self._lost)

    def run(self, budget: int) -> Large | None:
        """Build up to ``budget`` directories.

        Returns the entries of one that is large, for the caller to build elsewhere and ``accept``.
        """
        if not self._is_planned:
            self._plan()
        while self._stack and budget > 0:
            ino = self._stack[-1]
            if ino in self._links:
                self._stack.pop()
                continue
            large = self._build(ino)
            if self._stack[-1] != ino:
                continue
            budget -= 1
            if large is not None:
                return large
        return None

    def accept(self, link: Link) -> None:
        """The large directory that ``run`` gave out is built."""
        self._links[self._stack[-1]] = link

    # --- what to build --------------------------------------------------------------------------

    def _plan(self) -> None:
        """Dirty directories and all that is above them, the deepest on top of the stack."""
        view = self._view
        depths: dict[int, int] = {}
        for dirty in view.dirty_directories():
            if self._place(dirty.ino, depths):
                self._mark(dirty.ino, dirty.names)
        if view.root not in depths and view.directory_link(view.root) is None:
            self._mark(view.root, None)
            depths[view.root] = 0
        self._stack = sorted(depths, key=depths.__getitem__)
        self._is_planned = True

    def _place(self, ino: int, depths: dict[int, int]) -> bool:
        """Find out how deep a directory lies, and mark what is above; False if not below the root.

        The way up ends at the first directory whose own is known.
        """
        way: list[tuple[int, int, bytes]] = []
        while ino not in depths:
            if ino == self._view.root:
                depths[ino] = 0
                break
            above = self._view.parent(ino)
            if above is None:
                return False
            way.append((ino, *above))
            ino = above[0]
        depth = depths[ino]
        for below, parent, name in reversed(way):
            depth += 1
            depths[below] = depth
            self._mark(parent, (name,))
        return True

    def _mark(self, ino: int, names: Collection[bytes] | None) -> None:
        known = self._changed.setdefault(ino, set())
        if names is None or known is None:
            self._changed[ino] = None
        else:
            known.update(names)

    def _push(self, new: list[int]) -> None:
        """Put directories that were never built on top of the stack."""
        for ino in new:
            self._changed[ino] = None
        self._stack += new

    def _is_new(self, child: Child) -> bool:
        return child.kind == "directory" and self._link(child.ino) is None

    def _link(self, ino: int) -> Link | None:
        return self._links.get(ino) or self._view.directory_link(ino)

    def _names_to_update(self, ino: int) -> set[bytes] | None:
        """The changed names, if changing only them is possible and cheaper; else None."""
        names = self._changed[ino]
        if names is None or self._view.directory_link(ino) is None:
            return None
        return names if len(names) <= self._view.count(ino) * _UPDATE_PART_MAX else None

    # --- building -------------------------------------------------------------------------------

    def _build(self, ino: int) -> Large | None:
        """Build a directory; the entries of a large one, to be built elsewhere.

        Nothing is built where there are new directories in it: they are on the stack now.
        """
        names = self._names_to_update(ino)
        old = self._view.directory_link(ino)
        if names is not None and old is not None:
            self._update(ino, names, old)
            return None
        is_large = self._view.count(ino) >= large_directory.PROCESS_ENTRIES_MIN
        view = self._view
        leaves: list[LeafText] = []
        entries: dict[bytes, DirEntry] = {}
        new: list[int] = []
        # One at a time: the rows of 100,000 children are 80 MiB.
        for child in view.many_children(ino) if is_large else view.children(ino):
            if isinstance(child, str):
                leaves.append(child)
            elif self._is_new(child):
                new.append(child.ino)
            elif not new and (link := self._child_link(child)) is not None:
                entries[child.name] = DirEntry(child.name, link.cid, link.tsize)
        if new:
            self._push(new)
        elif is_large:
            return Large([*entries.values()], leaves)
        else:
            self._links[ino] = build_directory(entries.values(), self._profile, self._put)
        return None

    def _update(self, ino: int, names: set[bytes], old: Link) -> None:
        """Change some names of a directory along their paths."""
        found = (self._view.child(ino, name) for name in names)
        children = [child for child in found if child is not None]
        if new := [child.ino for child in children if self._is_new(child)]:
            self._push(new)
            return
        changes: dict[bytes, Link | None] = dict.fromkeys(names)
        changes.update((child.name, self._child_link(child)) for child in children)
        try:
            self._links[ino] = update_directory(
                old.cid, changes, self._get, self._put, self._profile
            )
        except (NotAvailableOffline, Corrupt, NotADirectory):
            self._lost.append(ino)
            self._changed[ino] = None

    def _child_link(self, child: Child) -> Link | None:
        match child.kind:
            case "directory":
                return self._link(child.ino)
            case "symlink":
                return build_symlink(child.target, self._profile, self._put)
            case "file" if child.cid is not None:
                return Link(child.cid, child.tsize)
            case "file":
                self._unfinished.add(child.ino)
        return None


async def build_root(
    view: TreeView, profile: Profile, blocks: Blocks, limiter: trio.CapacityLimiter
) -> MfsRoot:
    """Build off the event loop; all blocks are durable when it returns.

    Call it, and commit the root, inside ``Blocks.importing()``. Cancelling leaves unlinked blocks.
    """
    builder = RootBuilder(view, profile, blocks.get, blocks.put)
    while not builder.is_done:
        large = await trio.to_thread.run_sync(partial(builder.run, _SLICE), limiter=limiter)
        if large is not None:
            link, made = await build_in_process(large.entries, profile, large.leaves)
            await trio.to_thread.run_sync(partial(blocks.put_all, made), limiter=limiter)
            builder.accept(link)
    await trio.to_thread.run_sync(blocks.sync, limiter=limiter)
    return builder.result()
