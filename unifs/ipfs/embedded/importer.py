"""Adding files: of this machine, or a stream, into the blockstore.

Reading, hashing, writing and syncing of a large file overlap: a batch of chunks per worker is under
way in a thread (hashlib and the system calls release the GIL), and the interior nodes are built
from their digests in order. ``import_tree`` adds directories with this.

Called by ``node`` inside ``Blocks.importing()``. Nothing is pinned or linked here; what a cancelled
add leaves behind is garbage for the next collection. Memory: one chunk per worker.
"""

from __future__ import annotations

import os
import stat
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from unifs.errors import TryAgain, UnifsError, Unsupported, from_os_error
from unifs.ipfs.node import AddProgress
from unifs.ipfs.unixfs.builder import (
    FileBuilder,
    build_symlink,
    hash_leaf,
    leaf_block_parts,
    leaf_cid,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator

    from unifs.ipfs.cid import Cid
    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.unixfs.node import Link
    from unifs.ipfs.unixfs.profiles import Profile

    Progress = Callable[[AddProgress], None]

T = TypeVar("T")

#: Bytes read, hashed and written in one call of a thread; a call costs 60 µs.
_BATCH_BYTES: Final = 4 << 20
#: One batch is hashed while the other is written; a third gains nothing on two cores.
_WORKERS: Final = 2
#: Data brought to disk while the rest is still being hashed: 1 GiB takes 1.1 s with 16 MiB, 1.3 s
#: with 64 MiB, 2.2 s if it is only synced at the end (cp and sync: 0.9 s).
_SYNC_BYTES: Final = 16 << 20
#: Files up to this size are read whole, in one call of a thread.
SMALL_BYTES: Final = 1 << 20


class Importer:
    """One add. ``blocks`` None only computes CIDs."""

    def __init__(
        self,
        profile: Profile,
        blocks: Blocks | None,
        limiter: trio.CapacityLimiter,
        progress: Progress | None = None,
    ) -> None:
        self.profile = profile
        self.blocks = blocks
        self.put = None if blocks is None else blocks.put
        self.files = 0
        self.bytes_done = 0
        self.bytes_total: int | None = None
        self._limiter = limiter
        self._progress = progress
        self._unsynced = 0
        self._is_syncing = False

    async def add_file(self, path: bytes, shown: bytes) -> Link:
        """A file by its path; TryAgain if it becomes shorter meanwhile.

        ``shown`` is what it is called in the directory that is added; of a file alone nothing.
        """
        fd = await self.thread(partial(open_file, path))
        try:
            size = (await self.thread(partial(os.fstat, fd))).st_size
            if not shown:
                self.bytes_total = size or None
            if size <= SMALL_BYTES:
                link = await self.thread(partial(self.small_file, fd))
                self.advance(shown, link.size_bytes)
            else:
                link = await self._large_file(fd, size, shown)
        finally:
            # The file may lie in our own mounted tree: its close waits for the event loop's answer.
            with trio.CancelScope(shield=True):
                await self.thread(partial(os.close, fd))
        self.finished(shown, link.cid)
        return link

    async def _large_file(self, fd: int, size: int, shown: bytes) -> Link:
        builder = FileBuilder(self.profile, self.put)
        chunk_bytes = self.profile.chunk_bytes
        step = max(chunk_bytes, _BATCH_BYTES // chunk_bytes * chunk_bytes)
        starts = iter(range(0, size, step))
        done: dict[int, list[tuple[bytes, int]]] = {}
        turn = trio.Condition()
        due = 0

        async def work() -> None:
            nonlocal due
            buffer = memoryview(bytearray(chunk_bytes))
            for start in starts:
                length = min(step, size - start)
                read = partial(self._batch_of_file, fd, start, length, buffer)
                done[start] = await self.thread(read)
                self.advance(shown, length)
                while due in done:
                    for digest, chunk_length in done.pop(due):
                        builder.leaf_digest(digest, chunk_length)
                    due += step
                async with turn:
                    turn.notify_all()
                    # At most one batch per worker is kept out of order.
                    while start >= due + step * _WORKERS:
                        await turn.wait()
                self._sync_beside(nursery, length)

        async with _workers() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(work)
        assert due >= size, "every batch was linked"
        self.files += 1
        return builder.finish()

    def _batch_of_file(
        self, fd: int, start: int, length: int, buffer: memoryview
    ) -> list[tuple[bytes, int]]:
        """Read, hash and store some chunks, one at a time while it is in the processor's cache."""
        leaves = []
        for at in range(start, start + length, len(buffer)):
            chunk = buffer[: min(len(buffer), start + length - at)]
            filled = 0
            while filled < len(chunk):
                try:
                    count = os.preadv(fd, [chunk[filled:]], at + filled)
                except OSError as error:
                    raise failure_of(_path_of(fd), error) from error
                if count == 0:
                    shown = os.fsdecode(_path_of(fd))
                    raise TryAgain(f"{shown} became shorter while it was added")
                filled += count
            leaves.append((self._leaf(chunk), len(chunk)))
        return leaves

    def _leaf(self, chunk: memoryview | bytes) -> bytes:
        digest = hash_leaf(self.profile, chunk)
        if self.blocks is not None:
            prefix, suffix = leaf_block_parts(self.profile, len(chunk))
            block = b"".join((prefix, chunk, suffix)) if prefix else chunk
            self.blocks.put(leaf_cid(self.profile, digest), block)
        return digest

    def small_file(self, fd: int) -> Link:
        """A file read to its end, whatever its size says (files below /proc say 0). Blocks."""
        builder = FileBuilder(self.profile, self.put)
        for chunk in _read_chunks(fd, self.profile.chunk_bytes, os.fstat(fd).st_size):
            builder.leaf_digest(self._leaf(chunk), len(chunk))
        self.files += 1
        return builder.finish()

    async def add_stream(self, pieces: AsyncIterable[bytes]) -> Link:
        """One file from pieces of any length. A batch is stored while the next one arrives."""
        builder = FileBuilder(self.profile, self.put)
        chunk_bytes = self.profile.chunk_bytes
        step = max(chunk_bytes, _BATCH_BYTES // chunk_bytes * chunk_bytes)
        send, receive = trio.open_memory_channel[bytearray](1)

        async def store() -> None:
            async for batch in receive:
                for digest, length in await self.thread(partial(self._batch, memoryview(batch))):
                    builder.leaf_digest(digest, length)
                self._sync_beside(nursery, len(batch))

        async with _workers() as nursery:
            nursery.start_soon(store)
            async with send:
                pending = bytearray()
                async for piece in pieces:
                    pending += piece
                    self.advance(b"", len(piece))
                    while len(pending) >= step:
                        await send.send(pending[:step])
                        del pending[:step]
                if pending:
                    await send.send(pending)
        self.files += 1
        link = builder.finish()
        self.finished(b"", link.cid)
        return link

    def _batch(self, batch: memoryview) -> list[tuple[bytes, int]]:
        chunk_bytes = self.profile.chunk_bytes
        chunks = (batch[at : at + chunk_bytes] for at in range(0, len(batch), chunk_bytes))
        return [(self._leaf(chunk), len(chunk)) for chunk in chunks]

    def symlink(self, path: bytes) -> Link:
        """A symbolic link of this machine. Blocks."""
        try:
            target = os.readlink(path)
        except OSError as error:
            raise failure_of(path, error) from error
        return build_symlink(target, self.profile, self.put)

    def _sync_beside(self, nursery: trio.Nursery, written: int) -> None:
        """As ``sync_behind``, while the caller goes on."""
        self._unsynced += written
        if self._unsynced >= _SYNC_BYTES and not self._is_syncing:
            nursery.start_soon(self.sync_behind, 0)

    async def sync_behind(self, written: int) -> None:
        """Bring data to disk while the rest is being hashed."""
        self._unsynced += written
        if self.blocks is None or self._unsynced < _SYNC_BYTES or self._is_syncing:
            return
        self._unsynced, self._is_syncing = 0, True
        try:
            await self.thread(self.blocks.sync)
        finally:
            self._is_syncing = False

    def advance(self, shown: bytes, count: int) -> None:
        """Tell that more bytes are done."""
        self.bytes_done += count
        if self._progress is not None:
            self._progress(AddProgress(shown, self.bytes_done, self.bytes_total))

    def finished(self, shown: bytes, cid: Cid) -> None:
        """Tell that a file or directory is done."""
        if self._progress is not None:
            self._progress(AddProgress(shown, self.bytes_done, self.bytes_total, cid))

    async def thread(self, work: Callable[[], T]) -> T:
        """Run blocking work of this add."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


@asynccontextmanager
async def _workers() -> AsyncIterator[trio.Nursery]:
    """A nursery whose failure is the first failure in it, not a group: callers know the names."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        failures, _ = group.split((UnifsError, OSError))
        failed: BaseException = failures or group
        while failures is not None and isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
        raise failed from group


def failure_of(path: bytes, error: OSError) -> UnifsError | OSError:
    """The failure under its name, saying which file it is: a directory may have a million."""
    return from_os_error(OSError(error.errno, f"{os.fsdecode(path)}: {error.strerror}"))


def _path_of(fd: int) -> bytes:
    return os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))


def open_file(path: bytes) -> int:
    """A descriptor of a file for reading; failures under their names.

    Unsupported where it is no regular file: a FIFO would be waited for, and a device has no end.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise failure_of(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unsupported(f"{os.fsdecode(path)} is no regular file")
    return fd


def _read_chunks(fd: int, chunk_bytes: int, expected: int) -> Iterator[bytes]:
    """The rest of a file in chunks of exactly this length, but for the last."""
    # One byte more than expected finds the end of the file without a second buffer.
    ask = min(chunk_bytes, max(expected + 1, 4096))
    while True:
        parts: list[bytes] = []
        filled = 0
        while filled < chunk_bytes:
            try:
                piece = os.read(fd, min(ask, chunk_bytes - filled))
            except OSError as error:
                raise failure_of(_path_of(fd), error) from error
            if not piece:
                break
            parts.append(piece)
            filled += len(piece)
        if parts:
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        if filled < chunk_bytes:
            return
