"""Reading files out of the blockstore: from the page cache at once, else in a thread.

The /ipfs mount reads through ``EmbeddedFile.read_nowait`` on the event loop. Where the leaf has
been verified and its pages are in memory, that is one preadv(RWF_NOWAIT); otherwise it raises
WouldBlock, whose wait reads and verifies in a thread and brings the answer along.

A file's reader is used by one thread at a time (``_lock``, never waited for on the event loop).
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from unifs.errors import NotAvailableOffline, NotFound
from unifs.ipfs.embedded.block_index import PlaceKind
from unifs.ipfs.embedded.segment_file import named
from unifs.ipfs.unixfs.reader import FileReader
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks, Located
    from unifs.ipfs.unixfs.reader import Leaf

#: Open files kept for ``read_nowait(cid, …)``; each holds at most one leaf and its interior nodes.
FILES_MAX: Final = 64
_SPAN_SHIFT: Final = 18
#: Remembered leaves of one file: 1 GiB of 1 MiB leaves, 200 KiB here.
_SPANS_MAX: Final = 1024
#: preadv answers EAGAIN where pages are not in memory; other file systems refuse the flag.
_NOT_NOW: Final = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL)


class _Span(NamedTuple):
    """A verified leaf in a segment: the file's ``start`` to ``end`` lie ``shift`` bytes further on.

    Sections never change and ``fd`` keeps their file, so a span stays true whatever is collected.
    """

    start: int
    end: int
    fd: int
    shift: int


class EmbeddedFile:
    """One file, open for reading. Blocks are read and verified as they are needed."""

    def __init__(self, cid: Cid, blocks: Blocks, limiter: trio.CapacityLimiter) -> None:
        """Reads the root block, blocking. NotAvailableOffline, Corrupt, IsADirectory."""
        self.cid = cid
        self._blocks = blocks
        self._limiter = limiter
        self._lock = threading.Lock()
        #: Set, under the lock, while no block may be waited for: what to raise instead.
        self._refusal: WouldBlock | None = None
        #: By offset in units of 256 KiB, the smallest leaf of any profile but for the last.
        self._spans: dict[int, _Span] = {}
        self._reader = FileReader(cid, self._get, self._is_leaf)
        self.size_bytes = self._reader.size_bytes

    def _get(self, cid: Cid) -> bytes:
        """Interior nodes that the reader has not decoded yet, and leaves it reads itself."""
        if self._refusal is not None:
            raise self._refusal
        return self._blocks.get(cid)

    def _is_leaf(self, cid: Cid) -> bool:
        """Whether a dag-pb block is known to be a leaf: its chunk lies in a container."""
        places = self._blocks.index.some_places(cid.multihash)
        return bool(places) and places[0].kind is PlaceKind.WRAPPED

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray:
        """Up to ``size`` verified bytes, fewer only at the end; WouldBlock if that would wait."""
        size = min(size, self.size_bytes - offset)
        if size <= 0:
            return b""
        span = self._spans.get(offset >> _SPAN_SHIFT)
        if span is not None and span.start <= offset and offset + size <= span.end:
            buffer = bytearray(size)
            if _read_now(span.fd, memoryview(buffer), offset + span.shift):
                return buffer
        blocked = WouldBlock(partial(self.read, offset, size))
        if not self._lock.acquire(blocking=False):
            raise blocked
        self._refusal = blocked
        try:
            return self._read_cached(offset, size, blocked)
        finally:
            self._refusal = None
            self._lock.release()

    def _read_cached(self, offset: int, size: int, blocked: WouldBlock) -> bytearray:
        buffer = bytearray(size)
        view, filled = memoryview(buffer), 0
        for leaf in self._reader.leaves(offset, size):
            located = self._located(leaf)
            if located is None or not located.is_verified:
                raise blocked
            end = filled + leaf.length
            if not _read_now(located.fd, view[filled:end], located.offset + leaf.inner_offset):
                raise blocked
            self._remember(leaf, located)
            filled = end
        return buffer

    def _remember(self, leaf: Leaf, located: Located) -> None:
        if located.place.kind is not PlaceKind.SECTION:
            return
        if len(self._spans) >= _SPANS_MAX:
            self._spans.clear()
        start = leaf.file_offset - leaf.inner_offset
        end = start + leaf.leaf_bytes
        span = _Span(start, end, located.fd, located.offset - start)
        self._spans[leaf.file_offset >> _SPAN_SHIFT] = span

    def _located(self, leaf: Leaf) -> Located | None:
        """Where a leaf's own bytes begin; None where they are no plain range, or not here."""
        if leaf.cid.is_identity:
            return None
        try:
            located = self._blocks.locate(leaf.cid)
        except (NotFound, NotAvailableOffline):
            return None
        return located if located.length == leaf.leaf_bytes else None

    async def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` verified bytes, fewer only at the end."""
        work = partial(self._read_blocking, offset, size)
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _read_blocking(self, offset: int, size: int) -> bytes:
        with self._lock:
            return self._reader.read(offset, size)


def _read_now(fd: int, view: memoryview, offset: int) -> bool:
    """Fill ``view`` from pages that are in memory; False if that would wait."""
    try:
        return os.preadv(fd, [view], offset, os.RWF_NOWAIT) == len(view)
    except OSError as error:
        if error.errno in _NOT_NOW:
            return False
        raise named(error) from error


class OpenFiles:
    """The files read lately by CID, least recently used first. Event loop only."""

    def __init__(self, blocks: Blocks, limiter: trio.CapacityLimiter) -> None:
        self._blocks = blocks
        self._limiter = limiter
        self._files: OrderedDict[Cid, EmbeddedFile] = OrderedDict()

    def open(self, cid: Cid) -> EmbeddedFile:
        """The file with this root; WouldBlock until its root block has been read."""
        file = self._files.get(cid)
        if file is None:
            raise WouldBlock(partial(self._load, cid))
        self._files.move_to_end(cid)
        return file

    async def _load(self, cid: Cid) -> object:
        await self.load(cid)
        return RETRY

    async def load(self, cid: Cid) -> EmbeddedFile:
        """As ``open``, waiting."""
        file = self._files.get(cid)
        if file is None:
            make = partial(EmbeddedFile, cid, self._blocks, self._limiter)
            file = await trio.to_thread.run_sync(make, limiter=self._limiter)
            self._files[cid] = file
            if len(self._files) > FILES_MAX:
                self._files.popitem(last=False)
        return file

    def read_nowait(self, cid: Cid, offset: int, size: int) -> bytes | bytearray:
        """Bytes of the file with this root; WouldBlock if that would wait."""
        return self.open(cid).read_nowait(offset, size)
