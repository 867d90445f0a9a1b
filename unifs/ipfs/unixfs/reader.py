"""Reads files and nodes out of DAGs that anybody may have made.

The /ipfs and /mfs mounts and the control operations call this with a ``get`` that returns a block
whose hash it has checked, and raises ``NotAvailableOffline`` where there is none; nothing here
checks hashes or waits. Every shape that the UnixFS specification allows is read: balanced, trickle
and mixed depth, raw and dag-pb leaves, data in front of links.

What a foreign DAG can cost is bounded: 8 MiB per block, 64 levels, and sizes that must add up at
every node, so that a cycle or a lie is ``Corrupt`` after at most 64 blocks. A reader keeps decoded
interior nodes (64 Ki links) and the last leaf: random reads cost one leaf, sequential small reads
none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

from unifs.errors import (
    Corrupt,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    Unsupported,
)
from unifs.ipfs import dagpb
from unifs.ipfs.cid import DAG_PB, RAW, Cid
from unifs.ipfs.unixfs.directory import lookup
from unifs.ipfs.unixfs.node import DataType, UnixfsData, decode_data, load, unwrap_leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unifs.ipfs.unixfs.node import Get

    NodeKind = Literal["file", "directory", "hamt", "symlink", "raw"]

DEPTH_MAX: Final = 64
SIZE_MAX_BYTES: Final = (1 << 63) - 1
#: Decoded links kept per reader: 64 Ki are 64 GiB of a file in 1 MiB leaves, and 8 MiB here.
CACHED_LINKS_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class UnixfsStat:
    """What one node says of itself: ``blocks`` counts its links, ``mode`` has permission bits only.

    ``size_bytes`` is the file's or the target's length, 0 for directories. ``mode`` and
    ``mtime_ns`` are None where the node does not carry them, which is the rule.
    """

    kind: NodeKind
    size_bytes: int
    blocks: int = 0
    target: bytes | None = None
    mode: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A range of a file that lies in one block.

    The ``length`` bytes at ``file_offset`` of the file are those at ``inner_offset`` of the block's
    own content, which is ``leaf_bytes`` long: the whole block if it is raw, else its UnixFS data.
    An identity CID carries its content itself; no store has it.
    """

    cid: Cid
    file_offset: int
    length: int
    inner_offset: int
    leaf_bytes: int


def stat_node(cid: Cid, get: Get) -> UnixfsStat:
    """What is at ``cid``, from its root block alone."""
    if cid.codec == RAW:
        return UnixfsStat("raw", len(load(cid, get)))
    _check_codec(cid)
    node = dagpb.decode(load(cid, get))
    data = decode_data(node.data)
    mode = None if data.mode is None else data.mode & 0o7777
    blocks = len(node.links)
    match data.kind:
        case DataType.FILE | DataType.RAW:
            size = _checked_size(cid, node.links, data)
            return UnixfsStat("file", size, blocks, None, mode, data.mtime_ns)
        case DataType.DIRECTORY:
            return UnixfsStat("directory", 0, blocks, None, mode, data.mtime_ns)
        case DataType.HAMT_SHARD:
            return UnixfsStat("hamt", 0, blocks, None, mode, data.mtime_ns)
        case DataType.SYMLINK:
            target = data.data or b""
            if node.links:
                raise Corrupt(f"{cid}: a symbolic link with children")
            return UnixfsStat("symlink", len(target), 0, target, mode, data.mtime_ns)
        case DataType.METADATA:
            raise Unsupported(f"{cid} is a UnixFS metadata node, neither file nor directory")


def resolve(root: Cid, segments: Iterable[bytes], get: Get) -> Cid:
    """The CID that a path below ``root`` leads to. ``.`` and empty segments stay where they are.

    Raises ``NotFound``, ``NotADirectory`` for a path through a file or a symbolic link (links are
    the caller's to follow), ``InvalidArgument`` for a ``..`` above the root.
    """
    path: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if not path:
                raise InvalidArgument("the path leads above its root")
            path.pop()
        elif segment and segment != b".":
            path.append(segment)
    cid = root
    for segment in path:
        entry = lookup(cid, segment, get)
        if entry is None:
            raise NotFound(f"{cid} has no entry {segment.decode(errors='replace')!r}")
        cid = entry.cid
    return cid


class _Interior:
    """A decoded file node: its own data, then its children, by the offsets at which they end."""

    __slots__ = ("children", "ends", "inline", "size_bytes")

    def __init__(self, cid: Cid, block: bytes | memoryview) -> None:
        node = dagpb.decode(block)
        data = decode_data(node.data)
        if data.kind is not DataType.FILE and data.kind is not DataType.RAW:
            raise _not_a_file(cid, data.kind)
        self.size_bytes = _checked_size(cid, node.links, data)
        self.inline = data.data or b""
        self.children = [link.cid_binary for link in node.links]
        self.ends = list(accumulate(data.block_sizes, initial=len(self.inline)))[1:]

    def start(self, index: int) -> int:
        return self.ends[index - 1] if index else len(self.inline)


class FileReader:
    """One file, read at any offset. Not safe for several threads at once: each takes its own.

    ``is_leaf`` may say of a dag-pb CID that the caller knows it as a leaf (it has the chunk in a
    container); such blocks are then not asked for by ``leaves``.
    """

    def __init__(self, root: Cid, get: Get, is_leaf: Callable[[Cid], bool] | None = None) -> None:
        self.root = root
        self._get = get
        self._is_leaf = is_leaf
        self._interiors: OrderedDict[bytes, _Interior] = OrderedDict()
        self._cached_links = 0
        self._last: tuple[bytes, memoryview] = (b"", memoryview(b""))
        if root.codec != RAW:
            _check_codec(root)
        opened = self._open(root, root.binary)
        self.size_bytes = opened.size_bytes if isinstance(opened, _Interior) else len(opened)

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; fewer only at the end of the file, else an error."""
        pieces = [
            self._own_content(leaf)[leaf.inner_offset : leaf.inner_offset + leaf.length]
            for leaf in self.leaves(offset, size)
        ]
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def leaves(self, offset: int, size: int) -> Iterator[Leaf]:
        """The pieces of ``[offset, offset + size)`` in order, without gaps, up to the file's end.

        Raw leaves are not read for this; dag-pb ones are, unless ``is_leaf`` knows them.
        """
        stop = min(offset + size, self.size_bytes)
        if offset < 0 or offset >= stop:
            return
        pending = [(self.root.binary, 0, self.size_bytes)]
        depths = [0]
        while pending:
            binary, base, length = pending.pop()
            depth = depths.pop()
            cid = Cid.decode(binary)
            first, last = max(offset, base), min(stop, base + length)
            node = self._node(cid, binary, length, depth)
            if node is None:
                yield Leaf(cid, first, last - first, first - base, length)
                continue
            inline = len(node.inline)
            if first - base < inline:
                end = min(last, base + inline)
                yield Leaf(cid, first, end - first, first - base, inline)
            low = bisect_right(node.ends, first - base)
            children = []
            for index in range(low, len(node.children)):
                start = node.start(index)
                if base + start >= last:
                    break
                if node.ends[index] > start:
                    child = node.children[index]
                    children.append((child, base + start, node.ends[index] - start))
            pending += reversed(children)
            depths += [depth + 1] * len(children)

    def _node(self, cid: Cid, binary: bytes, length: int, depth: int) -> _Interior | None:
        """The decoded node, or None if it is a leaf; its size must be what its parent says."""
        if depth > DEPTH_MAX:
            raise Corrupt(f"{self.root}: the DAG is deeper than {DEPTH_MAX} levels")
        if cid.codec == RAW:
            return None
        _check_codec(cid)
        if self._is_leaf is not None and self._is_leaf(cid):
            return None
        opened = self._open(cid, binary)
        if isinstance(opened, _Interior):
            _check_length(cid, opened.size_bytes, length)
            return opened
        _check_length(cid, len(opened), length)
        return None

    def _own_content(self, leaf: Leaf) -> memoryview:
        """The bytes that a block carries itself, in a leaf or in front of its children."""
        opened = self._open(leaf.cid, leaf.cid.binary)
        content = memoryview(opened.inline) if isinstance(opened, _Interior) else opened
        _check_length(leaf.cid, len(content), leaf.leaf_bytes)
        return content

    def _open(self, cid: Cid, binary: bytes) -> _Interior | memoryview:
        """A node with children, decoded, or the content of a leaf."""
        if self._last[0] == binary:
            return self._last[1]
        interior = self._interiors.get(binary)
        if interior is not None:
            self._interiors.move_to_end(binary)
            return interior
        block = load(cid, self._get)
        content = memoryview(block) if cid.codec == RAW else unwrap_leaf(block)
        if content is None:
            interior = _Interior(cid, block)
            if interior.children:
                self._keep(binary, interior)
                return interior
            content = memoryview(interior.inline)
        self._last = (binary, content)
        return content

    def _keep(self, binary: bytes, interior: _Interior) -> None:
        self._interiors[binary] = interior
        self._cached_links += len(interior.children)
        while self._cached_links > CACHED_LINKS_MAX and len(self._interiors) > 1:
            _, old = self._interiors.popitem(last=False)
            self._cached_links -= len(old.children)


def _checked_size(cid: Cid, links: list[dagpb.PbLink], data: UnixfsData) -> int:
    """The size of a file node, which its parts must add up to."""
    if len(links) != len(data.block_sizes):
        raise Corrupt(f"{cid}: {len(links)} links but {len(data.block_sizes)} block sizes")
    size = data.content_bytes
    if size != (data.size_bytes or 0):
        raise Corrupt(f"{cid}: the node says {data.size_bytes} bytes, its parts have {size}")
    if size > SIZE_MAX_BYTES:
        raise Corrupt(f"{cid}: a file of {size} bytes")
    for link in links:
        if link.name:
            raise Corrupt(f"{cid}: a part of a file has a name")
    return size


def _check_length(cid: Cid, actual: int, expected: int) -> None:
    if actual != expected:
        raise Corrupt(f"{cid}: {actual} bytes where its parent says {expected}")


def _check_codec(cid: Cid) -> None:
    if cid.codec != DAG_PB:
        raise Unsupported(f"{cid} is neither a file nor a directory (codec 0x{cid.codec:x})")


def _not_a_file(cid: Cid, kind: DataType) -> Exception:
    if kind in (DataType.DIRECTORY, DataType.HAMT_SHARD):
        return IsADirectory(f"{cid} is a directory")
    return NotADirectory(f"{cid} is a {kind.name.lower()}, not a file")
