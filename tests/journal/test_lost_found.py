"""What a power cut leaves of large contents is kept without copying it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.vfs.harness import FileSystem
from unifs.journal import trust
from unifs.vfs.sealing import Sealer

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(range(256)) * 800


@pytest.fixture(autouse=True)
def _nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "COPIED_MAX", 100_000)


def saved(path: Path) -> list[Path]:
    return sorted(found for found in (path / "lost+found").iterdir() if found.suffix != ".json")


async def cut(fs: FileSystem, container: int, left: bytes) -> int:
    """The machine stops, and of a container that is left; the inode number of that file."""
    await fs.kill(start=False)
    path = fs.path / "data" / f"{container:016x}"
    path.write_bytes(left)
    number = path.stat().st_ino
    await fs.start(boot="another")
    return number


async def test_a_lost_content_is_linked(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", LARGE)
        number = await cut(fs, 1, LARGE[:150_000])
        (kept,) = saved(tmp_path)
        assert kept.stat().st_ino == number
        assert kept.read_bytes() == LARGE[:150_000]
        assert list((tmp_path / "data").iterdir()) == []
        assert fs.receipt is not None
        assert kept.name in fs.receipt.saved[0]


async def test_what_another_content_has_too_is_not_given_away(tmp_path: Path) -> None:
    """Whoever writes to the file in lost+found must not change a file of the tree."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", LARGE)
        storage = fs.storage
        sealer = Sealer(fs.writer, storage.blocks, storage.profile)
        await sealer.seal(next(iter(fs.writer.unsealed.values())))
        await storage.flusher.flush()
        async with fs.open("a", os.O_RDWR) as file:
            await file.write(1000, b"n" * 100_000)
        number = await cut(fs, 2, b"\0" * 1000 + b"n" * 50_000)
        (kept,) = saved(tmp_path)
        assert kept.stat().st_ino == number
        assert kept.read_bytes()[1000:] == b"n" * 50_000
        assert await fs.read("a") == LARGE
        assert [path.name for path in (tmp_path / "data").iterdir()] == [f"{1:016x}"]


async def test_without_hard_links_it_is_copied(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", LARGE)
        with mock.patch("os.link", side_effect=PermissionError):
            number = await cut(fs, 1, LARGE[:150_000])
        (kept,) = saved(tmp_path)
        assert kept.stat().st_ino != number
        assert kept.read_bytes() == LARGE[:150_000].ljust(len(LARGE), b"\0")
