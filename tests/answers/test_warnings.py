"""What `unifs status` warns of, and what the receipt of a recovery names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.vfs.harness import FileSystem
from unifs.answers.explain import DAMAGES_MAX, state_warnings

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(range(256)) * 800


async def test_all_is_well(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"bytes", fsync=True)
        await fs.kill()
        assert state_warnings(fs.storage) == []


async def test_what_rotted_is_named(tmp_path: Path) -> None:
    """A length that is none any more: the bytes up to the next record are no block."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        for number in range(3):
            await fs.write(f"{number}", b"%d" % number * 100, fsync=True)
        await fs.kill(start=False)
        path = tmp_path / "segments" / "1.car"
        data = bytearray(path.read_bytes())
        data[data.index(b"1" * 100) - 38] ^= 0x55
        path.write_bytes(data)
        await fs.start()
        (warning,) = state_warnings(fs.storage)
        assert warning.startswith("damaged: segments/1.car, ")
        assert "no block can be read there" in warning
        assert fs.receipt is not None
        assert [f"damaged: {place}" for place in fs.receipt.damaged] == [warning]
        (receipt,) = (tmp_path / "lost+found").glob(f"receipt-{fs.receipt.time_ns}.json")
        assert json.loads(receipt.read_text())["damaged"] == fs.receipt.damaged


async def test_a_torn_end_stands_in_the_receipt_and_is_no_lasting_damage(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"bytes" * 100, fsync=True)
        await fs.kill(start=False)
        path = tmp_path / "segments" / "1.car"
        whole = path.read_bytes()
        path.write_bytes(whole + whole[11:100])
        await fs.start()
        assert fs.receipt is not None
        (torn,) = fs.receipt.damaged
        assert "never written completely" in torn
        assert state_warnings(fs.storage) == []


async def test_many_damages_are_counted(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        fs.storage.damages = lambda is_lasting=False: [f"place {n}" for n in range(99)]  # type: ignore[method-assign]
        warnings = state_warnings(fs.storage)
        assert len(warnings) == DAMAGES_MAX + 1
        assert "89 more" in warnings[-1]


async def test_what_a_power_cut_took_is_told(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", LARGE)
        await fs.kill(start=False)
        for path in (tmp_path / "data").iterdir():
            path.write_bytes(b"")
        await fs.start(boot="another")
        (warning,) = state_warnings(fs.storage)
        assert "1 file went back" in warning
