"""Adding directories: a walk over a host's tree, depth first, building nodes bottom-up.

Small files are done many at a time in one call of a thread; a directory of many entries is built in
a worker process, so that the event loop keeps its latency. Symbolic links are kept, never followed.
Called by ``node``; memory is one listing per level of depth.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from unifs.ipfs.embedded import large_directory
from unifs.ipfs.embedded.importer import SMALL_BYTES, failure_of, open_file
from unifs.ipfs.embedded.large_directory import build_in_process
from unifs.ipfs.unixfs.directory import build_directory
from unifs.ipfs.unixfs.node import DirEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.ipfs.embedded.importer import Importer
    from unifs.ipfs.unixfs.node import Link

_FILES_MAX: Final = 64
_BATCH_BYTES: Final = 8 << 20


@dataclass(slots=True)
class _Directory:
    """A directory being added: what is left to do, and what is done."""

    path: bytes
    shown: bytes
    files: list[tuple[bytes, int]] = field(default_factory=list)
    symlinks: list[bytes] = field(default_factory=list)
    directories: list[bytes] = field(default_factory=list)
    entries: list[DirEntry] = field(default_factory=list)

    def below(self, name: bytes) -> bytes:
        """How progress names an entry: the path from where the add began."""
        return self.shown + b"/" + name if self.shown else name


class TreeImport:
    """One add of something that has a path."""

    def __init__(self, importer: Importer, has_hidden: bool) -> None:
        self.directories = 0
        #: Sockets, devices and FIFOs below the top: UnixFS has no node for them.
        self.skipped: list[bytes] = []
        self._importer = importer
        self._has_hidden = has_hidden

    async def add(self, path: bytes) -> Link:
        """A file, a symbolic link, or a directory with everything below it."""
        importer = self._importer
        mode = await importer.thread(partial(_mode, path))
        if stat.S_ISLNK(mode):
            return await importer.thread(partial(importer.symlink, path))
        if not stat.S_ISDIR(mode):
            return await importer.add_file(path, b"")
        stack = [await importer.thread(partial(self._list, path, b""))]
        while True:
            directory = stack[-1]
            if directory.directories:
                name = directory.directories.pop()
                below, shown = os.path.join(directory.path, name), directory.below(name)
                stack.append(await importer.thread(partial(self._list, below, shown)))
                continue
            link = await self._finish(directory)
            stack.pop()
            if not stack:
                return link
            name = directory.shown.rpartition(b"/")[2]
            stack[-1].entries.append(DirEntry(name, link.cid, link.tsize))

    def _list(self, path: bytes, shown: bytes) -> _Directory:
        directory = _Directory(path, shown)
        try:
            with os.scandir(path) as found:
                for entry in found:
                    if entry.name.startswith(b".") and not self._has_hidden:
                        continue
                    if entry.is_symlink():
                        directory.symlinks.append(entry.name)
                    elif entry.is_dir():
                        directory.directories.append(entry.name)
                    elif entry.is_file():
                        directory.files.append((entry.name, entry.stat().st_size))
                    else:
                        self.skipped.append(directory.below(entry.name))
        except OSError as error:
            raise failure_of(path, error) from error
        return directory

    async def _finish(self, directory: _Directory) -> Link:
        importer = self._importer
        for batch in _batches(directory.files):
            if len(batch) == 1:
                path = os.path.join(directory.path, batch[0])
                links = [await importer.add_file(path, directory.below(batch[0]))]
            else:
                links = await self._small_files(directory, batch)
            entries = zip(batch, links, strict=True)
            directory.entries += [DirEntry(name, link.cid, link.tsize) for name, link in entries]
        for name in directory.symlinks:
            path = os.path.join(directory.path, name)
            link = await importer.thread(partial(importer.symlink, path))
            directory.entries.append(DirEntry(name, link.cid, link.tsize))
        link = await self._build(directory.entries)
        self.directories += 1
        importer.finished(directory.shown, link.cid)
        return link

    async def _small_files(self, directory: _Directory, names: list[bytes]) -> list[Link]:
        importer = self._importer
        links = await importer.thread(partial(self._small_batch, directory.path, names))
        for name, link in zip(names, links, strict=True):
            importer.advance(directory.below(name), link.size_bytes)
            importer.finished(directory.below(name), link.cid)
        await importer.sync_behind(sum(link.size_bytes for link in links))
        return links

    def _small_batch(self, path: bytes, names: list[bytes]) -> list[Link]:
        links = []
        for name in names:
            fd = open_file(os.path.join(path, name))
            try:
                links.append(self._importer.small_file(fd))
            finally:
                os.close(fd)
        return links

    async def _build(self, entries: list[DirEntry]) -> Link:
        importer = self._importer
        if len(entries) < large_directory.PROCESS_ENTRIES_MIN:
            work = partial(build_directory, entries, importer.profile, importer.put)
            return await importer.thread(work)
        link, made = await build_in_process(entries, importer.profile)
        if importer.blocks is not None:
            await importer.thread(partial(importer.blocks.put_all, made))
        return link


def _batches(files: list[tuple[bytes, int]]) -> Iterator[list[bytes]]:
    """Names to be added in one call of a thread; a large file stands alone."""
    batch: list[bytes] = []
    size = 0
    for name, file_bytes in files:
        if file_bytes > SMALL_BYTES:
            yield [name]
            continue
        batch.append(name)
        size += file_bytes
        if len(batch) == _FILES_MAX or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mode(path: bytes) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError as error:
        raise failure_of(path, error) from error
