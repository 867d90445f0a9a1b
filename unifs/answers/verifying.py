"""``unifs ctl verify``: every file's bytes from the disk, against the hashes that name them.

Files come in the order of their inode numbers, which never change: so a run that was ended goes on
where it was. Reading asks the kernel to drop the pages first and believes no bitmap; it goes on in
threads, a leaf at a time, and pauses between them to keep to its rate.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.control.checks_protocol import FileDamage, Verified, Verifying
from unifs.errors import Corrupt, IsADirectory, NotAvailableOffline, UnifsError
from unifs.ipfs.embedded.links import links
from unifs.ipfs.unixfs.builder import leaf_block_parts
from unifs.ipfs.unixfs.reader import FileReader
from unifs.journal.content import (
    LARGE,
    LINKED,
    REMOTE,
    SEALED,
    SMALL,
    large_id,
    read_pieces,
    small_content,
)
from unifs.vfs.ipfsvolume import IpfsVolume
from unifs.vfs.namespace import ROOT_INO
from unifs.vfs.roots import unpack_link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unifs.ipfs.cid import Cid
    from unifs.journal.content import LargeContent
    from unifs.vfs.paths import Paths
    from unifs.vfs.storage import Storage
    from unifs.vfs.treevolume import TreeVolume

    Damages = list[tuple[int, int, str]]

ROWS = (
    "select ino,mount,content from inode where ino>? and gone is null"
    " and substr(content,1,1) in (x'01',x'02',x'04',x'06') order by ino limit 256"
)


class Pace:
    """Waits so that no more than a rate is read."""

    def __init__(self, rate_bytes: float | None) -> None:
        self._rate_bytes = rate_bytes
        self._began = trio.current_time()
        self._bytes = 0

    async def read(self, size_bytes: int) -> None:
        """So much was read."""
        self._bytes += size_bytes
        due = self._bytes / self._rate_bytes if self._rate_bytes else 0.0
        await trio.sleep(max(0.0, self._began + due - trio.current_time()))


class FileVerifier:
    """Verifies the files of the tree's volumes. Belongs to the event loop."""

    def __init__(self, storage: Storage, paths: Paths, volumes: dict[int, TreeVolume]) -> None:
        self._storage = storage
        self._paths = paths
        self._volumes = volumes

    async def verify(
        self,
        path: str | None,
        rate_bytes: float | None,
        after: int,
    ) -> AsyncIterator[FileDamage | Verifying | Verified]:
        """Damages as they are found, how far it is after each file, then what was read."""
        top = None if path is None else await self._paths.find(path)
        below = None if top is None or top.ino == ROOT_INO else top.ino
        pace, result = (
            Pace(rate_bytes),
            Verified(files=0, size_bytes=0, damaged=0, unhashed=0, absent=0),
        )
        storage = self._storage
        while rows := storage.database.all(ROWS, (after,)):
            for ino, mount, content in rows:
                after = ino
                volume = self._volumes.get(mount)
                if volume is None or not storage.tree.is_below(ino, below):
                    continue
                if isinstance(volume, IpfsVolume):
                    # Its rows are answers; the node's blocks have `repo verify`.
                    continue
                damages = await self._file(ino, content, pace, result)
                if damages:
                    result.damaged += 1
                    name = f"/{volume.name}{os.fsdecode(storage.tree.path(ino) or b'?')}"
                for offset, size, reason in damages:
                    yield FileDamage(path=name, offset=offset, size_bytes=size, reason=reason)
                yield Verifying(files=result.files, bytes_done=result.size_bytes, after=ino)
        yield result

    async def _file(self, ino: int, content: bytes, pace: Pace, result: Verified) -> Damages:
        """What is wrong with one file; again where it changed meanwhile."""
        while True:
            before = (result.unhashed, result.absent)
            damages, size = await self._content(content, pace, result)
            row = self._storage.database.one("select content from inode where ino=?", (ino,))
            if not damages or row is None or row[0] == content:
                if row is not None:
                    result.files += 1
                    result.size_bytes += size
                return damages if row is not None else []
            result.unhashed, result.absent = before
            content = row[0]

    async def _content(self, content: bytes, pace: Pace, result: Verified) -> tuple[Damages, int]:
        kind = content[0] if content else 0
        if kind == SMALL:
            return await self._small(content, pace)
        if kind == LARGE:
            return await self._large(content, pace, result)
        if kind == LINKED:
            return await self._linked(unpack_link(content[1:]).cid, pace, result)
        if kind == REMOTE:
            result.absent += 1
        return [], 0

    async def _small(self, blob: bytes, pace: Pace) -> tuple[Damages, int]:
        small = small_content(blob)
        try:
            descriptor = self._storage.segments.descriptor(small.segment)
        except UnifsError as error:
            return [(0, small.length, str(error))], 0
        piece = [(os.dup(descriptor), small.offset, small.offset + small.length)]
        digest, problem = await trio.to_thread.run_sync(_hash, piece, b"", b"")
        await pace.read(small.length)
        if problem or digest != small.digest:
            return [(0, small.length, problem or "the bytes do not match their hash")], small.length
        return [], small.length

    async def _large(self, blob: bytes, pace: Pace, result: Verified) -> tuple[Damages, int]:
        contents, profile = self._storage.contents, self._storage.profile
        try:
            large = contents.large(large_id(blob))
        except Corrupt as error:
            return [(0, 0, str(error))], 0
        is_hashed = large.state == SEALED
        result.unhashed += not is_hashed
        damages: Damages = []
        chunk = profile.chunk_bytes
        for leaf, start in enumerate(range(0, large.size, chunk)):
            end = min(start + chunk, large.size)
            try:
                pieces = contents.duplicate(large.extents, start, end)
            except OSError as error:
                damages.append((start, end - start, f"its container: {error.strerror}"))
                continue
            parts = leaf_block_parts(profile, end - start)
            digest, problem = await trio.to_thread.run_sync(_hash, pieces, *parts)
            await pace.read(end - start)
            if not problem and is_hashed and digest != _leaf(large, leaf):
                problem = "the bytes do not match their hash"
            if problem:
                damages.append((start, end - start, problem))
        return damages, large.size

    async def _linked(self, cid: Cid, pace: Pace, result: Verified) -> tuple[Damages, int]:
        """A file of the node, leaf by leaf; what is not here is no damage."""
        damages: Damages = []
        try:
            leaves = await trio.to_thread.run_sync(partial(self._leaves, cid))
        except NotAvailableOffline:
            result.absent += 1
            return [], 0
        except IsADirectory:
            return await self._linked_directory(cid, pace, result)
        except UnifsError as error:
            return [(0, 0, str(error))], 0
        size, is_absent = 0, False
        for leaf, offset, length in leaves:
            try:
                await trio.to_thread.run_sync(self._fresh, leaf)
            except NotAvailableOffline:
                is_absent = True
            except UnifsError as error:
                damages.append((offset, length, str(error)))
            size += length
            await pace.read(length)
        result.absent += is_absent
        return damages, size

    async def _linked_directory(
        self, cid: Cid, pace: Pace, result: Verified
    ) -> tuple[Damages, int]:
        """Each block of a directory that nobody has looked into yet: nothing below it has a row."""
        damages: Damages = []
        size, is_absent = 0, False
        waiting, known = [cid], {cid.multihash}
        while waiting:
            block = waiting.pop()
            try:
                data = await trio.to_thread.run_sync(self._fresh, block)
                below = links(block, data)
            except NotAvailableOffline:
                is_absent = True
                continue
            except UnifsError as error:
                damages.append((0, 0, str(error)))
                continue
            size += len(data)
            await pace.read(len(data))
            for each in below:
                if each.multihash not in known:
                    known.add(each.multihash)
                    waiting.append(each)
        result.absent += is_absent
        return damages, size

    def _leaves(self, cid: Cid) -> list[tuple[Cid, int, int]]:
        """(leaf, offset in the file, bytes); raises for an interior node that cannot be had."""
        if cid.codec != 0x70:
            return [(cid, 0, self._storage.blocks.size(cid))]
        reader = FileReader(cid, self._fresh)
        leaves = reader.leaves(0, reader.size_bytes)
        return [(leaf.cid, leaf.file_offset, leaf.length) for leaf in leaves]

    def _fresh(self, cid: Cid) -> bytes:
        """A block, hashed now, from the first of its places that is right."""
        blocks = self._storage.blocks
        if cid.is_identity:
            return cid.digest
        failure: UnifsError = NotAvailableOffline(f"block {cid} is not on this machine")
        for place in blocks.index.some_places(cid.multihash):
            try:
                return blocks.read_checked(cid, place)
            except UnifsError as error:
                failure = error
        raise failure


def _leaf(large: LargeContent, number: int) -> bytes:
    return large.leaves[number * 32 : number * 32 + 32]


def _hash(pieces: list[tuple[int, int, int]], prefix: bytes, suffix: bytes) -> tuple[bytes, str]:
    """The digest of a leaf block from the disk, and why there is none; closes the descriptors."""
    digest = hashlib.sha256(prefix)
    try:
        for part in read_pieces(pieces, is_fresh=True):
            digest.update(part)
    except (OSError, Corrupt) as error:
        return b"", str(error)
    digest.update(suffix)
    return digest.digest(), ""
