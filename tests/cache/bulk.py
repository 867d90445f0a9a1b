"""A backend that fills many buffers by one request, and can stop or fail at any byte."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.mounts.remote import RemoteMount
from unifs.cache.disk import DiskLimits, DiskTier
from unifs.cache.reads import ReadCache, ReadLimits
from unifs.cache.source import Source
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from unifs.cache.readahead import Window
    from unifs.types import Version

MIB = 1 << 20


class Bulk(RemoteMount):
    """Takes requests of many buffers; ``asked`` has (offset, bytes) of each."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        self.cancelled = 0
        #: From this byte on, up to that, it does not answer until ``release``, or fails with
        #: ``error``.
        self.stops_at: int | None = None
        self.stops_to = 1 << 60
        self.error: Exception | None = None
        self._released = trio.Event()

    def release(self) -> None:
        self.stops_at = None
        self._released.set()
        self._released = trio.Event()

    def _is_stopped(self, end: int) -> bool:
        return self.stops_at is not None and self.stops_at < end <= self.stops_to

    async def read_into(
        self,
        path: str,
        version: Version,
        offset: int,
        buffers: Sequence[memoryview],
        filled: Callable[[], None],
    ) -> None:
        self.asked.append((offset, sum(map(len, buffers))))
        for buffer in buffers:
            try:
                await trio.lowlevel.checkpoint()
                while self._is_stopped(offset + len(buffer)):
                    if self.error is not None:
                        raise self.error
                    await self._released.wait()
            except trio.Cancelled:
                self.cancelled += 1
                raise
            buffer[:] = await self.read(path, version, offset, len(buffer))
            offset += len(buffer)
            filled()


@asynccontextmanager
async def cache_of(
    limits: ReadLimits | None = None, directory: Path | None = None
) -> AsyncIterator[ReadCache]:
    disk = DiskTier(directory, DiskLimits(free_bytes_min=0)) if directory else None
    cache = ReadCache(disk, limits)
    async with cache.serve():
        yield cache


async def source_of(remote: RemoteMount, size_bytes: int, path: str = "a") -> Source:
    """An object in which every KiB is another."""
    remote.change(path, data_of(0, size_bytes))
    node = await remote.stat(path)
    assert node.version is not None
    return Source.of("s3", remote, path, node.version, node.size_bytes)


def data_of(offset: int, size: int) -> bytes:
    assert offset % 1024 == 0
    units = range(offset // 1024, -(-(offset + size) // 1024))
    return b"".join(unit.to_bytes(4, "big") * 256 for unit in units)[:size]


async def read(
    cache: ReadCache, source: Source, window: Window | None, offset: int, size: int = MIB
) -> None:
    """Read, and compare with what is there."""
    got = bytes(await complete(cache.read_nowait, source, offset, size, window))
    assert got == data_of(offset, min(size, source.size_bytes - offset))
