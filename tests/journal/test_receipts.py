"""When a recovery leaves its receipt in lost+found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vfs.harness import FileSystem

if TYPE_CHECKING:
    from pathlib import Path


def receipts(path: Path) -> int:
    return len(list((path / "lost+found").iterdir()))


async def test_starts_that_change_nothing_and_are_killed_leave_no_receipts(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        for _ in range(3):
            await fs.kill()
        assert receipts(tmp_path) == 0
        await fs.write("a", b"1")
        await fs.kill()
        assert receipts(tmp_path) == 1
        for _ in range(3):
            await fs.kill()
        assert receipts(tmp_path) == 1


async def test_a_recovery_that_finds_something_leaves_a_receipt(tmp_path: Path) -> None:
    """Also where the killed start had journaled nothing."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.kill()
        (tmp_path / "data" / f"{99:016x}").write_bytes(b"no content names it")
        await fs.kill()
        assert receipts(tmp_path) == 1


async def test_a_power_cut_leaves_a_receipt_always(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.kill(boot="another")
        assert receipts(tmp_path) == 1
