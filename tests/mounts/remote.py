"""An in-memory remote that is slow, frozen, failing, full, lying or conflicting on command.

A complete mount: it passes the contract suite. Tests of the cache, of writeback and of the driver
use it where a backend must misbehave at a moment they choose. ``calls`` records what reached the
backend.

    remote.freeze()                        nothing answers until thaw() remote.delay_s = 0.2
    every call takes that long (use trio's autojump clock) remote.fail("put", RateLimited())
    the next put fails before it does anything remote.fail("put", Unreachable(), after=True)   …
    after it has done its work: the answer is lost remote.full_bytes = 1000               a put
    that would store more is NoSpace remote.lie("a", b"...")                reads of that path
    return these bytes, cut to what is asked remote.change("a", b"...")             somebody else
    writes; foreign=... removes
"""

from __future__ import annotations

import stat
from collections import defaultdict, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from unifs.errors import (
    Conflict,
    Corrupt,
    Exists,
    InvalidArgument,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    Stale,
    UnifsError,
)
from unifs.mounts.base import Mount
from unifs.types import Entry, Node, Page, Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unifs.mounts.base import ContentReader
    from unifs.types import SetAttributes

PAGE_ENTRIES = 100


@dataclass(slots=True, eq=False)
class _Object:
    node: Node
    data: bytes = b""
    token: str = ""
    children: dict[str, _Object] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.node.mode)


class RemoteMount(Mount):
    """A backend in memory that does as it is told."""

    kind = "remote"

    def __init__(self) -> None:
        self._root = _Object(Node(stat.S_IFDIR | 0o755))
        self._versions = 0
        self._frozen: trio.Event | None = None
        self._failures: dict[str, deque[tuple[UnifsError, bool]]] = defaultdict(deque)
        self._lies: dict[str, bytes] = {}
        self.delay_s = 0.0
        self.full_bytes: int | None = None
        self.page_entries = PAGE_ENTRIES
        self.calls: list[tuple[str, str]] = []
        self.is_serving = False

    # --- commands -------------------------------------------------------------------------------

    def freeze(self) -> None:
        """From now on nothing answers."""
        self._frozen = trio.Event()

    def thaw(self) -> None:
        """Whoever waits is answered now."""
        if self._frozen is not None:
            self._frozen.set()
            self._frozen = None

    def fail(self, method: str, *errors: UnifsError, after: bool = False) -> None:
        """The next calls of ``method`` fail with these, one each."""
        self._failures[method].extend((error, after) for error in errors)

    def lie(self, path: str, data: bytes) -> None:
        """Reads of ``path`` return ``data`` from its start, whatever offset is asked for."""
        self._lies[path] = data

    def change(self, path: str, data: bytes | None) -> Version | None:
        """Somebody else stores ``data`` at ``path`` behind our back, or removes it (None)."""
        parent, name = self._parent(path)
        if data is None:
            del parent.children[name]
            return None
        parent.children[name] = made = self._file(data, "")
        return made.node.version

    def plant_directory(self, path: str) -> None:
        """Somebody else makes a directory."""
        parent, name = self._parent(path)
        parent.children[name] = _Object(Node(stat.S_IFDIR | 0o755))

    def content(self, path: str) -> bytes:
        """What the backend holds at ``path``."""
        return self._find(path).data

    def count(self, method: str) -> int:
        """How many calls of ``method`` reached the backend."""
        return sum(called == method for called, _ in self.calls)

    # --- reading --------------------------------------------------------------------------------

    async def stat(self, path: str) -> Node:
        async with self._call("stat", path):
            return self._find(path).node

    async def scan(self, path: str, after: str | None) -> Page:
        async with self._call("scan", path):
            directory = self._find(path)
            if not directory.is_directory:
                raise NotADirectory(path)
            names = sorted(directory.children)
            if after is not None:
                names = [name for name in names if name > after]
            page = names[: self.page_entries]
            entries = tuple(
                Entry(name.encode("utf-8", "surrogateescape"), directory.children[name].node)
                for name in page
            )
            return Page(entries, page[-1] if len(names) > len(page) else None)

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        async with self._call("read", path):
            found = self._find(path)
            if found.is_directory:
                raise IsADirectory(path)
            if found.node.version != version:
                raise Stale(path)
            if path in self._lies:
                return self._lies[path][:size]
            return found.data[offset : offset + size]

    async def epoch(self) -> str:
        async with self._call("epoch", ""):
            return str(self._versions)

    # --- writing --------------------------------------------------------------------------------

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        data = b""
        while len(data) < content.size_bytes:
            part = await content.read(len(data), content.size_bytes - len(data))
            if not part:
                raise Corrupt("the content ended before its size")
            data += part
        async with self._call("put", path):
            parent, name = self._parent(path)
            there = parent.children.get(name)
            if there is not None and there.is_directory:
                raise IsADirectory(path)
            if there is not None and there.token == token:
                return there.node
            if (there.node.version if there is not None else None) != base:
                raise Conflict(path)
            if self.full_bytes is not None and self._used() + len(data) > self.full_bytes:
                raise NoSpace(path)
            parent.children[name] = made = self._file(data, token)
            return made.node

    async def make(self, path: str, node: Node, token: str) -> Node:
        async with self._call("make", path):
            if stat.S_ISREG(node.mode):
                raise InvalidArgument(path)
            parent, name = self._parent(path)
            there = parent.children.get(name)
            if there is not None:
                if there.token == token:
                    return there.node
                raise Exists(path)
            version = None if stat.S_ISDIR(node.mode) else self._next_version()
            made = Node(node.mode, version=version, target=node.target, rdev=node.rdev)
            parent.children[name] = _Object(made, token=token)
            return made

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        async with self._call("remove", path):
            try:
                parent, name = self._parent(path)
            except NotFound:
                return
            there = parent.children.get(name)
            if there is None:
                return
            if there.children:
                raise NotEmpty(path)
            if there.node.version != base:
                raise Conflict(path)
            del parent.children[name]

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        async with self._call("rename", path):
            self._move(path, new_path, token)

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        async with self._call("set_attributes", path):
            found = self._find(path)
            node = found.node
            mode = node.mode
            if changes.mode is not None:
                mode = stat.S_IFMT(mode) | stat.S_IMODE(changes.mode)
            mtime_ns = node.mtime_ns if changes.mtime_ns is None else changes.mtime_ns
            found.node = Node(
                mode, node.size_bytes, node.version, mtime_ns, True, node.target, node.rdev
            )

    # --- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        self.is_serving = True
        try:
            yield
        finally:
            self.is_serving = False

    @asynccontextmanager
    async def _call(self, method: str, path: str) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if self.delay_s:
            await trio.sleep(self.delay_s)
        while self._frozen is not None:
            await self._frozen.wait()
        self.calls.append((method, path))
        failures = self._failures[method]
        error, is_late = failures.popleft() if failures else (None, False)
        if error is not None and not is_late:
            raise error
        # What the body does happens between two checkpoints: the backend does it whole or not.
        yield
        await trio.lowlevel.cancel_shielded_checkpoint()
        if error is not None:
            raise error

    # --- the objects ----------------------------------------------------------------------------

    def _find(self, path: str) -> _Object:
        found = self._root
        for name in path.split("/") if path else ():
            if not found.is_directory:
                raise NotADirectory(path)
            child = found.children.get(name)
            if child is None:
                raise NotFound(path)
            found = child
        return found

    def _parent(self, path: str) -> tuple[_Object, str]:
        if not path:
            raise InvalidArgument("the root stays where it is")
        above, _, name = path.rpartition("/")
        parent = self._find(above)
        if not parent.is_directory:
            raise NotADirectory(path)
        return parent, name

    def _file(self, data: bytes, token: str) -> _Object:
        node = Node(stat.S_IFREG | 0o644, len(data), self._next_version())
        return _Object(node, data, token)

    def _move(self, path: str, new_path: str, token: str) -> None:
        parent, name = self._parent(path)
        moved = parent.children.get(name)
        new_parent, new_name = self._parent(new_path)
        there = new_parent.children.get(new_name)
        if moved is None:
            if there is not None and there.token == token:
                return
            raise NotFound(path)
        if f"{new_path}/".startswith(f"{path}/"):
            raise InvalidArgument(new_path)
        if there is not None and there.is_directory != moved.is_directory:
            raise IsADirectory(new_path) if there.is_directory else NotADirectory(new_path)
        if there is not None and there.children:
            raise NotEmpty(new_path)
        del parent.children[name]
        moved.token = token
        new_parent.children[new_name] = moved

    def _next_version(self) -> Version:
        self._versions += 1
        return Version(f"v{self._versions}")

    def _used(self) -> int:
        pending, total = [self._root], 0
        while pending:
            found = pending.pop()
            total += len(found.data)
            pending.extend(found.children.values())
        return total
