"""Names that change while somebody writes to the file: its row goes on naming the bytes before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs import invariants
from tests.vfs.harness import FileSystem
from unifs.fsck.offline import CLEAN, examine
from unifs.vfs.treerename import RENAME_EXCHANGE

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(range(1, 251)) * 2000
MORE = b"newer and longer "


async def unlink(fs: FileSystem) -> str:
    await fs.unlink("file")
    return "link"


async def replace(fs: FileSystem) -> str:
    await fs.rename("other", "file")
    return "link"


async def exchange(fs: FileSystem) -> str:
    await fs.rename("other", "link", RENAME_EXCHANGE)
    return "file"


@pytest.mark.parametrize("change", [unlink, replace, exchange])
@pytest.mark.parametrize("old", [b"", b"old", LARGE], ids=["empty", "small", "large"])
async def test_a_kill_leaves_the_size_of_the_bytes_that_are_there(
    tmp_path: Path, change: object, old: bytes
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("file", old)
        await fs.link("file", "link")
        await fs.write("other", b"other")
        before = await fs.stat("file")
        file = await fs.open_file("file", os.O_RDWR)
        await file.write(0, MORE + old)
        left = await change(fs)  # type: ignore[operator]
        assert file.stat().size == len(MORE + old)
        assert await file.read() == MORE + old
        await fs.kill()
        after = await fs.stat(left)
        assert (after.size, after.mtime_ns) == (before.size, before.mtime_ns)
        assert await fs.read(left) == old
        invariants.check(fs)
        await fs.stop()
        assert examine(tmp_path).exit_code == CLEAN
        await fs.start()


@pytest.mark.parametrize("change", [unlink, replace, exchange])
async def test_what_is_written_is_committed_at_close_all_the_same(
    tmp_path: Path, change: object
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("file", b"old")
        await fs.link("file", "link")
        await fs.write("other", b"other")
        async with fs.open("file", os.O_RDWR) as file:
            await file.write(0, MORE)
            left = await change(fs)  # type: ignore[operator]
        seen = await fs.stat(left)
        await fs.kill()
        assert await fs.read(left) == MORE
        assert (await fs.stat(left)).mtime_ns == seen.mtime_ns
