"""The node protocol: what anything that speaks IPFS must answer, and the values it answers with.

Two implementations: ``embedded.node.EmbeddedNode``, the default, and later a Kubo daemon. Control
operations, the /ipfs mount and writeback to IPFS call it; nothing here does anything.

Content that is not on this machine is ``NotAvailableOffline``, never ``NotFound``, and never zeros:
``NotFound`` is a name that a directory, which is here, does not have. What a node cannot do it
refuses with ``Unsupported``, saying why. Every async method is cancellable at every await and
leaves nothing behind that a collection would not take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import unquote_to_bytes

from unifs.errors import InvalidArgument, InvalidCid, Unsupported
from unifs.ipfs.cid import Cid

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from unifs.ipfs.unixfs.profiles import Profile
    from unifs.ipfs.unixfs.reader import UnixfsStat

    PinMode = Literal["recursive", "direct"]


@dataclass(frozen=True, slots=True)
class NodeId:
    """Who the node is. ``peer_id`` is None where it takes part in no peer-to-peer network."""

    kind: str
    agent: str
    profile: str
    peer_id: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostSource:
    """A file or directory of this machine, read by the node itself: no byte crosses a socket."""

    path: Path
    has_hidden: bool = True


@dataclass(frozen=True, slots=True)
class StreamSource:
    """One file's bytes, in pieces of any length."""

    pieces: AsyncIterable[bytes]


@dataclass(frozen=True, slots=True)
class AddOptions:
    """How to add. ``profile`` None: the node's. ``wrap``: a directory around it, with its name."""

    profile: Profile | None = None
    only_hash: bool = False
    pin: bool = True
    pin_name: str | None = None
    wrap: str | None = None


@dataclass(frozen=True, slots=True)
class AddProgress:
    """Told while adding. ``cid`` is set when the file or directory at ``path`` is finished."""

    path: bytes
    bytes_done: int
    bytes_total: int | None = None
    cid: Cid | None = None


@dataclass(slots=True)
class Added:
    """What an add made. ``skipped``: sockets, devices, FIFOs, which UnixFS has no node for."""

    cid: Cid
    size_bytes: int
    tsize: int
    files: int = 0
    directories: int = 0
    skipped: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NodeStat:
    """One object: its CID and what its root block says. ``block_bytes`` is that block's length."""

    cid: Cid
    node: UnixfsStat
    block_bytes: int


@dataclass(frozen=True, slots=True)
class LsEntry:
    """One name in a directory. ``node`` is None where the entry's root block is not here."""

    name: bytes
    cid: Cid
    tsize: int
    node: UnixfsStat | None


@dataclass(frozen=True, slots=True)
class WalkItem:
    """One object below a path, parents first; ``path`` is relative, b"" for the top."""

    path: bytes
    cid: Cid
    node: UnixfsStat


@dataclass(frozen=True, slots=True)
class PinEntry:
    """One pinned root. ``created_s`` counts from the epoch."""

    cid: Cid
    mode: PinMode
    name: str
    created_s: int


@dataclass(frozen=True, slots=True)
class PinVerdict:
    """Whether everything that a pin promises is here and right; at most 1,000 CIDs in each list."""

    pin: PinEntry
    missing: tuple[Cid, ...]
    damaged: tuple[Cid, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What a CAR import brought. ``roots`` are those that the archive names."""

    roots: tuple[Cid, ...]
    blocks: int
    size_bytes: int
    pinned: tuple[Cid, ...]


@dataclass(frozen=True, slots=True)
class RepoStat:
    """The blockstore in numbers. ``limit_bytes`` None: no limit."""

    blocks: int
    own_bytes: int
    content_bytes: int
    segments: int
    limit_bytes: int | None
    pins: int


@dataclass(frozen=True, slots=True)
class RepoCollected:
    """What a collection did; ``missing`` and ``damages`` name what it came across."""

    removed_blocks: int
    removed_bytes: int
    freed_bytes: int
    duration_s: float
    missing: tuple[str, ...] = ()
    damages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RepoDamage:
    """One damaged thing: the block (None for bytes that are no block), where, and why."""

    cid: Cid | None
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class RepoVerified:
    """What a verification read and found."""

    blocks: int
    size_bytes: int
    damages: tuple[RepoDamage, ...]
    is_index_rebuilt: bool = False


class NodeFile(Protocol):
    """One file of a node, open for reading at any offset."""

    cid: Cid
    size_bytes: int

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray:
        """Up to ``size`` verified bytes, fewer only at the end; WouldBlock if that would wait."""
        ...

    async def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` verified bytes, fewer only at the end."""
        ...


class Node(Protocol):
    """One IPFS node. Paths are ``/ipfs/<cid>[/name…]``, ``ipfs://…`` or a bare CID."""

    profile: Profile

    def serve(self) -> AbstractAsyncContextManager[None]:
        """The node's background tasks live inside this context."""
        ...

    async def id(self) -> NodeId: ...

    # --- content ----------------------------------------------------------------------------------

    async def add(
        self,
        source: HostSource | StreamSource,
        options: AddOptions,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> Added:
        """Import; durable, and pinned where asked for, when it returns."""
        ...

    def cat(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A file's bytes in order; close the iterator if it is not read to its end."""
        ...

    def ls(self, path: str) -> AsyncIterator[list[LsEntry]]:
        """A directory in pages of its own order."""
        ...

    def walk(self, path: str) -> AsyncIterator[WalkItem]:
        """Everything at and below a path, parents first: what ``get`` writes out."""
        ...

    async def resolve(self, path: str) -> Cid:
        """The CID that a path leads to; symbolic links are not followed."""
        ...

    async def stat(self, path: str) -> NodeStat:
        """What is at a path."""
        ...

    def open(self, cid: Cid) -> NodeFile:
        """The file with this root; WouldBlock where its root block has to be waited for."""
        ...

    def read_nowait(self, cid: Cid, offset: int, size: int) -> bytes | bytearray:
        """As ``open(cid).read_nowait``, with the open file kept for the next call."""
        ...

    # --- blocks and archives ----------------------------------------------------------------------

    async def block_get(self, cid: Cid) -> bytes: ...

    async def block_put(self, data: bytes, codec: int = 0x55, pin: bool = False) -> Cid: ...

    async def block_stat(self, cid: Cid) -> int:
        """The block's length in bytes."""
        ...

    def dag_export(self, roots: Sequence[Cid]) -> AsyncIterator[bytes]:
        """A CAR with all blocks of these DAGs; an incomplete one fails before the first byte."""
        ...

    async def dag_import(
        self, pieces: AsyncIterable[bytes], pin_roots: bool = True, pin_name: str | None = None
    ) -> Imported:
        """Take in a CAR, each block verified. Corrupt, with nothing pinned, if it ends early."""
        ...

    # --- pins -------------------------------------------------------------------------------------

    async def pins_add(
        self, cid: Cid, mode: PinMode = "recursive", name: str | None = None
    ) -> PinEntry:
        """Pin; NotAvailableOffline, naming a block, if the DAG is not complete here."""
        ...

    async def pins_remove(self, cid: Cid) -> PinEntry: ...

    async def pins_scan(
        self, mode: PinMode | None = None, name: str | None = None
    ) -> list[PinEntry]: ...

    def pins_verify(self) -> AsyncIterator[PinVerdict]: ...

    def hold(self, cid: Cid) -> AbstractAsyncContextManager[None]:
        """Keep a DAG from being collected while it is linked elsewhere.

        NotAvailableOffline if its root block is not here; what is below is not looked at.
        """
        ...

    def hold_nowait(self, cid: Cid) -> None:
        """Keep a DAG from being collected until ``let_go``: somebody has it open."""
        ...

    def let_go(self, cid: Cid) -> None:
        """The end of one ``hold_nowait``."""
        ...

    # --- the repository ---------------------------------------------------------------------------

    async def repo_stat(self) -> RepoStat: ...

    async def repo_gc(self) -> RepoCollected: ...

    async def repo_verify(self, progress: Callable[[int], None] | None = None) -> RepoVerified:
        """Hash everything again; ``progress`` gets the number of blocks read so far."""
        ...


def parse_path(path: str) -> tuple[Cid, list[bytes]]:
    """The root and the names of an IPFS path. Names are bytes, by surrogateescape.

    InvalidCid where no CID stands, Unsupported for /ipns. In ``ipfs://`` names are percent-decoded.
    """
    rest = path
    is_url = False
    for prefix in ("ipfs://", "ipfs:"):
        if rest.startswith(prefix):
            rest, is_url = rest.removeprefix(prefix), True
            break
    if rest.startswith(("/ipns/", "ipns:")):
        raise Unsupported("names below /ipns are not resolved by this node")
    rest = rest.removeprefix("/ipfs/")
    text, _, below = rest.partition("/")
    if not text:
        raise InvalidCid(f"{path!r} has no CID")
    if "\0" in below:
        raise InvalidArgument("a path cannot have a zero byte")
    encoded = below.encode("utf-8", "surrogateescape")
    names = [name for name in encoded.split(b"/") if name]
    return Cid.parse(text), [unquote_to_bytes(name) if is_url else name for name in names]
