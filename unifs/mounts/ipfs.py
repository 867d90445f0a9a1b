"""/ipfs: everything that a node has, by CID, read-only and never changing.

A path is ``<cid>/name/…``. A version is the CID of the object itself, so the bytes of a version
are found, and verified by the node, without their path, and the same file under two roots is
cached once. A name at the root that is no CID is NotFound at once. What the node does not have is
NotAvailableOffline, never NotFound and never a guess: also a directory with entries whose root
blocks are missing (their type is unknown, and the kernel does not forgive a type that changes) is
listed as far as it is known and then ends with that error.

The root's own listing is what people may look for there, pinned roots and those used lately; a CID
that is not listed may still be there (``is_root_open``).

Listings of the node are streams; a page's cursor is a position in one. The last few streams are
kept open at their position, so that reading a directory in pages lists it once; any other cursor
lists again from the start. Belongs to the event loop's thread.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from unifs.errors import InvalidArgument, InvalidCid, NotAvailableOffline, NotFound, Stale
from unifs.ipfs.cid import RAW, Cid
from unifs.mounts.base import Mount
from unifs.types import Entry, Node, Page, Version
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from unifs.ipfs.node import LsEntry
    from unifs.ipfs.node import Node as IpfsNode
    from unifs.ipfs.unixfs.reader import UnixfsStat

#: Roots used lately that the root's listing shows.
RECENT_MAX: Final = 64
#: Entries of the root in one page: each costs a look at its root block, about 150 µs.
ROOT_PAGE: Final = 256
#: Listings kept open between their pages.
STREAMS_MAX: Final = 16

_TYPES: Final = {
    "file": stat.S_IFREG | 0o444,
    "raw": stat.S_IFREG | 0o444,
    "directory": stat.S_IFDIR | 0o555,
    "hamt": stat.S_IFDIR | 0o555,
    "symlink": stat.S_IFLNK | 0o777,
}
_ROOT: Final = Node(stat.S_IFDIR | 0o555)


class _Listing:
    """A directory's stream of entries, how many it has given, and how many had no type."""

    __slots__ = ("given", "hidden", "stream")

    def __init__(self, stream: AsyncGenerator[list[LsEntry], None]) -> None:
        self.stream = stream
        self.given = 0
        self.hidden = 0


class IpfsMount(Mount):
    """The content of a node as a tree."""

    kind = "ipfs"
    is_immutable = True
    #: The root has more names than a scan of it shows; absence there is the node's to tell.
    is_root_open: ClassVar[bool] = True

    def __init__(self, node: IpfsNode) -> None:
        self._node = node
        self._recent: OrderedDict[Cid, None] = OrderedDict()
        self._listings: OrderedDict[tuple[str, str], _Listing] = OrderedDict()

    # --- objects --------------------------------------------------------------------------------

    async def stat(self, path: str) -> Node:
        if not path:
            return _ROOT
        root, place = _place(path)
        found = await self._node.stat(place)
        self._use(root)
        return _node(found.cid, found.node)

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        cid = _cid_of(version)
        return bytes(await complete(self._node.read_nowait, cid, offset, size))

    def read_nowait(
        self, path: str, version: Version, offset: int, size: int
    ) -> bytes | bytearray | memoryview:
        """As ``read`` where the bytes are verified and in the page cache; else WouldBlock."""
        return self._node.read_nowait(_cid_of(version), offset, size)

    def hold(self, version: Version) -> None:
        """Somebody has opened this object: it stays until ``let_go``, pinned or not."""
        self._node.hold_nowait(_cid_of(version))

    def let_go(self, version: Version) -> None:
        """The end of one ``hold``."""
        self._node.let_go(_cid_of(version))

    # --- listings -------------------------------------------------------------------------------

    async def scan(self, path: str, after: str | None) -> Page:
        if not path:
            return await self._scan_root(after)
        position, is_end = _position(after)
        listing = self._listings.pop((path, after or ""), None)
        if listing is None:
            listing = await self._listed(path, position)
        if is_end:
            await listing.stream.aclose()
            if not listing.hidden:
                # What was missing has come meanwhile: the listing begins again.
                return Page((), "0")
            raise NotAvailableOffline(
                f"{listing.hidden} entries of {path} are not on this machine", path=path
            )
        page = await anext(listing.stream, None)
        if page is None:
            return Page((), _cursor(listing, True) if listing.hidden else None)
        entries = _take(listing, page)
        cursor = _cursor(listing, False)
        await self._keep((path, cursor), listing)
        return Page(entries, cursor)

    async def _listed(self, path: str, position: int) -> _Listing:
        root, place = _place(path)
        listing = _Listing(self._node.ls(place))  # type: ignore[arg-type]
        try:
            while listing.given < position:
                page = await anext(listing.stream, None)
                if page is None:
                    break
                _take(listing, page)
        except BaseException:
            await _close(listing)
            raise
        self._use(root)
        return listing

    async def _keep(self, key: tuple[str, str], listing: _Listing) -> None:
        other = self._listings.pop(key, None)
        self._listings[key] = listing
        if other is None and len(self._listings) > STREAMS_MAX:
            _, other = self._listings.popitem(last=False)
        if other is not None:
            await _close(other)

    async def _scan_root(self, after: str | None) -> Page:
        pinned = {pin.cid for pin in await self._node.pins_scan()}
        by_name = {str(cid): cid for cid in (*pinned, *self._recent)}
        names = sorted(name for name in by_name if after is None or name > after)
        entries: list[Entry] = []
        for name in names[:ROOT_PAGE]:
            try:
                found = await self._node.stat(name)
            except NotAvailableOffline:
                continue
            entries.append(Entry(name.encode(), _node(found.cid, found.node)))
        cursor = names[ROOT_PAGE - 1] if len(names) > ROOT_PAGE else None
        return Page(tuple(entries), cursor)

    def _use(self, root: Cid) -> None:
        self._recent[root] = None
        self._recent.move_to_end(root)
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    # --- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listings that readers left in the middle are closed at the end of this."""
        try:
            yield
        finally:
            while self._listings:
                await _close(self._listings.popitem()[1])


def _place(path: str) -> tuple[Cid, str]:
    """The root of a mount path, and the path as the node reads it."""
    text = path.partition("/")[0]
    try:
        return Cid.parse(text), f"/ipfs/{path}"
    except InvalidCid as error:
        raise NotFound(f"{text!r} is not a CID") from error


def _cid_of(version: Version) -> Cid:
    try:
        return Cid.parse(version)
    except InvalidCid as error:
        raise Stale(f"{version!r} is not a version of this mount") from error


def _node(cid: Cid, found: UnixfsStat) -> Node:
    mode = _TYPES[found.kind]
    if found.mode is not None:
        mode = stat.S_IFMT(mode) | found.mode
    return Node(
        mode,
        found.size_bytes,
        Version(str(cid)),
        found.mtime_ns,
        has_permissions=found.mode is not None,
        target=found.target,
    )


def _take(listing: _Listing, page: list[LsEntry]) -> tuple[Entry, ...]:
    """The entries of a page whose type is known. A raw block is a file of its link's size."""
    entries: list[Entry] = []
    for entry in page:
        if entry.node is not None:
            entries.append(Entry(entry.name, _node(entry.cid, entry.node)))
        elif entry.cid.codec == RAW:
            node = Node(_TYPES["raw"], entry.tsize, Version(str(entry.cid)))
            entries.append(Entry(entry.name, node))
        else:
            listing.hidden += 1
    listing.given += len(page)
    return tuple(entries)


def _cursor(listing: _Listing, is_end: bool) -> str:
    return f"{listing.given}{'!' if is_end else ''}"


def _position(after: str | None) -> tuple[int, bool]:
    """How many entries came before, and whether there are no more but those without a type."""
    if after is None:
        return 0, False
    digits = after.removesuffix("!")
    if not digits.isdecimal():
        raise InvalidArgument("that is no cursor of a listing")
    return int(digits), after.endswith("!")


async def _close(listing: _Listing) -> None:
    with trio.CancelScope(shield=True):
        # Nothing is waited for: the stream stands between two pages.
        await listing.stream.aclose()
