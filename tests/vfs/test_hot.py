"""The bounded table of hot inodes: what an operation changes is what the next one finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_directory_whose_new_name_takes_its_place_in_the_table(tmp_path: Path) -> None:
    """It has one subdirectory more, for everybody, also where it was the oldest in the table."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.mkdir("d")
        for number in range(12):
            await fs.write(f"file{number}", b"x")
        fs.tick()
        fs.vfs.inodes.hot_max = 8
        for turn in range(13):
            for number in range(turn):
                await fs.stat(f"file{number}")
            async with fs._walk([b"d"]) as ino:
                await fs.mkdir(f"d/{turn}")
                assert fs.vfs.getattr(ino).st_nlink == 3 + turn
            check(fs)
            fs.tick()
            check(fs)
