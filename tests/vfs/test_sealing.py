"""Sealing writes to no file that an earlier content names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.journal.extents import ExtentMap
from unifs.vfs.sealing import Sealer

if TYPE_CHECKING:
    from pathlib import Path

#: Three leaves; the second cut falls into the first of them.
DATA = bytes(range(256)) * 10_000
CUT = 700_000


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_a_cut_file_leaves_what_was_there_before_whole(
    tmp_path: Path, is_sealed: bool
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", DATA, fsync=True)
        if is_sealed:
            await fs.seal()
        extents = fs.storage.database.one("select extents from content")[0]
        before = ExtentMap.unpack(extents)
        async with fs.open("a", os.O_RDWR) as file:
            await file.truncate(CUT)
        await fs.seal()
        assert fs.storage.contents.read_extents(before, 0, len(DATA)) == DATA
        assert await fs.read("a") == DATA[:CUT]
        check(fs)


@pytest.mark.parametrize("is_killed", [True, False])
async def test_what_was_cut_off_does_not_come_back(tmp_path: Path, is_killed: bool) -> None:
    wanted = DATA[:CUT].ljust(len(DATA), b"\0")
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", DATA)
        await fs.seal()
        async with fs.open("a", os.O_RDWR) as file:
            await file.truncate(CUT)
            await file.truncate(len(DATA))
        if is_killed:
            await fs.kill()
            # As the daemon does at a start.
            Sealer(fs.writer, fs.storage.blocks, fs.storage.profile).find_closed()
        await fs.seal()
        assert await fs.read("a") == wanted
        fs.tick()
        await fs.remount()
        assert await fs.read("a") == wanted
        check(fs)


async def test_a_container_that_turns_out_to_be_unneeded_goes(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", DATA)
        await fs.seal()
        async with fs.open("a", os.O_RDWR) as file:
            await file.truncate(1 << 20)
        await fs.seal()
        await fs.storage.flusher.flush()
        fs.tick()
        named = {row[0] for row in fs.storage.database.all("select container from holding")}
        files = {int(path.name, 16) for path in fs.storage.state.data.iterdir()}
        assert files - named == fs.writer.dead_containers
        assert len(files - named) == 1


async def test_holes_of_a_sealed_file_take_no_blocks_after_a_patch(tmp_path: Path) -> None:
    """`du` tells what is on the disk, whatever was sealed and changed since."""
    size = 64 << 20

    async def blocks(fs: FileSystem) -> int:
        return fs.vfs.inodes.get((await fs.stat("a")).ino).attributes.st_blocks

    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", DATA)
        async with fs.open("a", os.O_RDWR) as file:
            await file.truncate(size)
        await fs.seal()
        for offset in (size // 2, 0):
            async with fs.open("a", os.O_RDWR) as file:
                await file.write(offset, b"patch")
            # Sealing copies leaves that several files share; what lies dead there is allocated too.
            assert len(DATA) // 512 <= await blocks(fs) < 3 * len(DATA) // 512
            await fs.seal()
        await fs.remount()
        assert await blocks(fs) < 3 * len(DATA) // 512


async def test_sealing_after_a_kill_leaves_no_file_behind(tmp_path: Path) -> None:
    """What an earlier daemon wrote is copied into leaves of a new container; the old one goes."""
    large = bytes(range(256)) * 400
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", large, fsync=True)
        await fs.seal()
        async with fs.open("a", os.O_RDWR) as file:
            await file.write(50_000, b"patch")
        await fs.kill()
        (ino,) = [row[0] for row in fs.storage.database.all("select ino from dentry")]
        inode = fs.vfs.inodes.get(ino)
        fs.writer.content_of(inode)  # type: ignore[arg-type]
        fs.writer.unsealed[ino] = inode  # type: ignore[assignment]
        await fs.seal()
        fs.tick()
        await fs.storage.flusher.flush()
        fs.tick()
        named = {row[0] for row in fs.storage.database.all("select container from holding")}
        there = {int(path.name, 16) for path in fs.storage.state.data.iterdir()}
        assert there - named <= fs.writer.dead_containers
        assert await fs.read("a") == large[:50_000] + b"patch" + large[50_005:]
