"""Overlays and contents against a byte array, through commits, remounts and kills."""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.journal.overlay import PROOF_RANGES, Overlay, _note_unsynced
from unifs.journal.redo import CARRY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vfs.harness import File

OFFSETS = (0, 1, 4095, 65_530, 65_536, 100_000, 300_000)
LENGTHS = (1, 100, 4096, 65_536, 200_000)


@pytest.mark.parametrize("seed", range(25))
async def test_a_file_is_an_array_of_bytes(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        model = bytearray()
        committed = b""
        files: list[File] = []
        for _ in range(chance.randint(5, 60)):
            if not files or chance.random() < 0.15:
                files.append(await fs.open_file("a", os.O_CREAT | os.O_RDWR))
            file = chance.choice(files)
            match chance.choice("wwwwttrrfscCkm"):
                case "w":
                    offset = chance.choice((*OFFSETS, len(model)))
                    data = chance.randbytes(chance.choice(LENGTHS))
                    await file.write(offset, data)
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + len(data)] = data
                case "t":
                    size = chance.choice((*OFFSETS, len(model) // 2))
                    overlay = fs.vfs.handle(file.fh).inode.overlay  # type: ignore[attr-defined]
                    is_named = overlay is not None and overlay.content is not None
                    if is_named and 0 < size < len(model):
                        # What a row names is not cut from under it.
                        committed = bytes(model)
                    await file.truncate(size)
                    model[size:] = bytes(max(0, size - len(model)))
                case "r":
                    offset = chance.choice(OFFSETS)
                    assert await file.read(offset, 150_000) == model[offset : offset + 150_000]
                case "f":
                    await file.flush()
                    committed = bytes(model)
                case "s":
                    await file.fsync()
                    committed = bytes(model)
                case "c":
                    files.remove(file)
                    await file.close()
                    committed = bytes(model)
                case "C":
                    fs.tick()
                    committed = bytes(model)
                case "k":
                    files.clear()
                    await fs.kill()
                    found = await fs.read("a") if await fs.exists("a") else b""
                    # What was overwritten in place is there, like in any page cache.
                    now = bytes(model[: len(found)]).ljust(len(found), b"\0")
                    assert len(found) == len(committed)
                    pairs = zip(found, committed, now, strict=True)
                    assert all(byte in (old, new) for byte, old, new in pairs)
                    model = bytearray(found)
                case "m":
                    for one in files:
                        await one.close()
                    files.clear()
                    await fs.remount()
                    committed = bytes(model)
            check(fs)
        for file in files:
            assert await file.read(0, 1 << 20) == model
            await file.close()
        assert await fs.read("a") == model
        await fs.storage.flusher.flush()
        check(fs)


def test_what_is_written_during_a_round_is_not_marked_synced() -> None:
    overlay = Overlay()
    _note_unsynced(overlay, 0, 10)
    mark = overlay.ranges_noted()
    _note_unsynced(overlay, 10, 20)
    overlay.synced(mark, True)
    assert overlay.unsynced == [(10, 20)]
    second = overlay.ranges_noted()
    overlay.synced(mark, True)
    assert overlay.unsynced is not None
    assert (10, 20) in overlay.unsynced
    overlay.synced(second, True)
    assert overlay.unsynced == []


def test_a_mark_says_nothing_of_a_later_list() -> None:
    overlay = Overlay()
    _note_unsynced(overlay, 0, 10)
    mark = overlay.ranges_noted()
    for index in range(PROOF_RANGES + 1):
        overlay.writes += 1
        _note_unsynced(overlay, 100 * index + 100, 100 * index + 101)
        if overlay.unsynced is None:
            break
    assert overlay.unsynced is None
    overlay.synced(overlay.ranges_noted(), False)
    assert overlay.unsynced == []
    overlay.writes += 1
    _note_unsynced(overlay, 7, 9)
    overlay.synced(mark, True)
    assert overlay.unsynced == [(7, 9)]


def test_unlisted_writes_during_a_round_keep_the_list_away() -> None:
    overlay = Overlay()
    overlay.unsynced = None
    mark = overlay.ranges_noted()
    overlay.writes += 1
    overlay.synced(mark, False)
    assert overlay.unsynced is None


def test_the_durable_form_never_goes_back() -> None:
    overlay = Overlay()
    overlay.set_durable(2, 20, b"second")
    overlay.set_durable(1, 10, b"first")
    assert overlay.durable == (20, b"second")


async def test_a_proven_range_is_rewritten_after_it_is_confirmed(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", bytes(200_000), fsync=True)
        async with fs.open("a", os.O_RDWR) as file:
            overlay = lambda: fs.vfs.handle(file.fh).inode.overlay  # type: ignore[attr-defined] # noqa: E731
            await file.write(0, b"x" * 100)
            await file.fsync()
            assert overlay().proven == []
            # Too much to be carried.
            await file.write(0, b"y" * (CARRY_BYTES + 1))
            await file.fsync()
            assert overlay().is_proven(50, 60)
            rounds = fs.storage.flusher.rounds
            await file.write(200_000, b"appended")
            assert fs.storage.flusher.rounds == rounds
            await file.write(99, b"z")
            assert fs.storage.flusher.rounds == rounds + 2
            assert overlay().proven == []
            await file.write(99, b"z")
            assert fs.storage.flusher.rounds == rounds + 2


@pytest.mark.parametrize("seed", range(12))
async def test_what_is_hashed_ahead_is_what_is_closed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("a", os.O_CREAT | os.O_RDWR)
        model = bytearray()
        for _ in range(30):
            match chance.choice("aaawt"):
                case "a":
                    data = chance.randbytes(chance.choice((1, 100, 4096)))
                    await file.write(len(model), data)
                    model += data
                case "w":
                    offset = chance.randrange(len(model) + 5)
                    await file.write(offset, b"over")
                    model.extend(bytes(max(0, offset + 4 - len(model))))
                    model[offset : offset + 4] = b"over"
                case "t":
                    size = chance.randrange(len(model) + 100)
                    await file.truncate(size)
                    model[size:] = bytes(max(0, size - len(model)))
            fs.storage.overlays.hash_ahead()
        await file.write(len(model), b"end")
        model += b"end"
        await file.close()
        # The first read since a start trusts only bytes that hash to what the row says.
        await fs.kill()
        assert await fs.read("a") == bytes(model)


async def test_an_appended_buffer_is_hashed_while_the_loop_is_idle(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("a", os.O_CREAT | os.O_RDWR)
        await file.write(0, b"abc")
        fs.storage.overlays.hash_ahead()
        overlay = fs.vfs.handle(file.fh).inode.overlay  # type: ignore[attr-defined]
        assert (overlay.hashed, overlay.hash.digest()) == (3, hashlib.sha256(b"abc").digest())
        await file.write(3, b"d")
        assert overlay.digest() == hashlib.sha256(b"abcd").digest()
        await file.close()


async def test_zeros_over_what_was_there_are_zeros(tmp_path: Path) -> None:
    """A range that was written is a change, whatever bytes it has: a hole is no evidence."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", bytes(range(1, 251)) * 800, fsync=True)
        await fs.seal()
        async with fs.open("a", os.O_RDWR) as file:
            await file.write(8192, bytes(16384))
            assert await file.read(8192, 16384) == bytes(16384)
        await fs.seal()
        await fs.kill(boot="another")
        assert (await fs.read("a"))[8192 : 8192 + 16384] == bytes(16384)
