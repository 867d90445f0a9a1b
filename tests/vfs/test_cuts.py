"""Cuts between sealings: what was cut off stays so, and nothing is left behind, nor by a clean stop
or by sealing that is given up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.contract.cancelling import is_reached
from tests.vfs import invariants
from tests.vfs.harness import FileSystem
from unifs.vfs.sealing import Sealer

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(range(1, 251)) * 1000


async def test_what_was_cut_off_reads_as_zeros_after_sealing(tmp_path: Path) -> None:
    """A content of which only less is left has no container of its own to be completed in."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("file", LARGE)
        await fs.seal()
        async with fs.open("file", os.O_RDWR) as file:
            await file.truncate(1)
            await file.truncate(100_000)
            await fs.seal()
            wanted = LARGE[:1] + bytes(99_999)
            assert await file.read() == wanted
        assert await fs.read("file") == wanted
        await fs.kill()
        assert await fs.read("file") == wanted


async def test_sealing_what_is_left_of_a_file_leaves_the_bytes_before_alone(tmp_path: Path) -> None:
    """The content that was cut may still be what recovery goes back to."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("file", LARGE)
        await fs.seal()
        (container,) = fs.storage.state.data.iterdir()
        before = container.read_bytes()
        await fs.truncate("file", 100_001)
        await fs.seal()
        assert container.read_bytes() == before
        assert await fs.read("file") == LARGE[:100_001]
        invariants.check(fs)


async def test_cuts_leave_no_empty_files_behind(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("file", LARGE)
        for size in range(200_000, 100_000, -10_000):
            await fs.truncate("file", size)
            await fs.seal()
        await fs.storage.flusher.flush()
        fs.tick()
        fs.tick()
        invariants.check(fs, at_rest=True)
        assert await fs.read("file") == LARGE[:110_000]


async def test_files_that_nobody_needs_at_a_clean_stop_are_gone_after_the_next_start(
    tmp_path: Path,
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("file", LARGE)
        await fs.unlink("file")
        await fs.remount()
        assert list(fs.storage.state.data.iterdir()) == []


async def test_sealing_given_up_at_every_step(tmp_path: Path) -> None:
    """Nothing stays held, the bytes are there, and the next attempt seals them."""
    for at in range(1, 20):
        async with FileSystem(tmp_path / str(at), upkeep=False) as fs:
            await fs.write("file", LARGE)
            await fs.seal()
            file = await fs.open_file("file", os.O_RDWR)
            await file.write(7, b"patched")
            await file.truncate(200_000)
            sealer = Sealer(fs.writer, fs.storage.blocks, fs.storage.profile)
            inode = fs.vfs.handle(file.fh).inode
            was_reached = await is_reached(sealer.seal(inode), at)  # type: ignore[arg-type]
            assert not sealer._running
            invariants.check(fs)
            wanted = LARGE[:7] + b"patched" + LARGE[14:200_000]
            assert await file.read() == wanted
            await file.close()
            await fs.seal()
            assert not fs.writer.unsealed
            await fs.storage.flusher.flush()
            fs.tick()
            fs.tick()
            invariants.check(fs, at_rest=True)
            await fs.kill()
            assert await fs.read("file") == wanted
        if not was_reached:
            assert at > 1
            return
    raise AssertionError("sealing never ended by itself")
