"""The WAL ends between any two transactions of a program's work: what its file shows then."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.journal.powercut import Disk
from tests.vfs.harness import File, FileSystem
from tests.vfs.invariants import check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from unifs.state.database import Database

    Work = Callable[[FileSystem, File], Awaitable[None]]

WAL_HEADER_BYTES = 32
SMALL, LARGE = b"old" * 3000, bytes(range(256)) * 600


class Ends:
    """Where the WAL ends after each transaction of a database."""

    def __init__(self, database: Database) -> None:
        self.found = [0]
        self._database = database
        self._execute = database.execute_batch
        database.execute_batch = self._then_look  # type: ignore[method-assign]

    def _then_look(self, batch: object, may_hold: bool = True) -> None:
        self._execute(batch, may_hold)  # type: ignore[arg-type]
        self.found.append(WAL_HEADER_BYTES + self._database.wal_bytes)


async def shown(tmp_path: Path, old: bytes, work: Work, written: str) -> list[bytes]:
    """What a file with ``old``, synced, shows after a cut, for each end of the WAL since.

    ``written``: what of the containers and segments had reached the disk, "all" or "synced".
    """
    state = tmp_path / "state"
    async with FileSystem(state, upkeep=False) as fs:
        with Disk(state) as disk:
            await fs.write("a", old, fsync=True)
            await fs.fsyncdir()
            ends = Ends(fs.storage.database)
            ends.found = [WAL_HEADER_BYTES + fs.storage.database.wal_bytes]
            file = await fs.open_file("a", os.O_RDWR)
            await work(fs, file)
            await file.close()
            await fs.kill(start=False)
            if written == "synced":
                disk.cut("wal")
            contents = []
            for number, end in enumerate(ends.found):
                left = tmp_path / f"{number}"
                shutil.copytree(state, left)
                os.truncate(left / "tree.db-wal", end)
                async with FileSystem(left, boot="another") as after:
                    contents.append(await after.read("a"))
                    check(after)
            assert len(contents) > 1
            await fs.start(boot="another")
    return contents


async def rewrite_and_cut(fs: FileSystem, file: File) -> None:
    """As a program that saves in place does."""
    await file.write(0, b"new" * 1000)
    await file.truncate(3000)


async def cut_and_rewrite(fs: FileSystem, file: File) -> None:
    await file.truncate(0)
    await file.write(0, b"new" * 1000)


async def cut_in_steps(fs: FileSystem, file: File) -> None:
    size = file.stat().size
    for part in (2, 3, 4):
        await file.truncate(size // part)
        await file.write(size // part, b"tail")
    await file.truncate(0)
    await file.write(0, b"new" * 1000)


@pytest.mark.parametrize("written", ["all", "synced"])
@pytest.mark.parametrize("work", [rewrite_and_cut, cut_and_rewrite, cut_in_steps])
@pytest.mark.parametrize("old", [SMALL, LARGE])
async def test_a_file_that_is_cut_and_rewritten_is_old_or_new(
    tmp_path: Path, old: bytes, work: Work, written: str
) -> None:
    """Never empty, and never the beginning of one and the end of the other."""
    contents = await shown(tmp_path, old, work, written)
    assert set(contents) <= {old, b"new" * 1000}
    assert contents[0] == old


@pytest.mark.parametrize("written", ["all", "synced"])
@pytest.mark.parametrize("old", [SMALL, LARGE])
async def test_a_file_that_was_synced_on_the_way_goes_through_what_it_was(
    tmp_path: Path, old: bytes, written: str
) -> None:
    """What a row names is not cut from under it, so what was written since is committed first."""
    first, more, cut = b"first" * 20_000, b"more" * 2000, 50_000

    async def work(fs: FileSystem, file: File) -> None:
        await file.write(0, first)
        await file.fsync()
        await file.write(len(first), more)
        await file.truncate(cut)

    synced = first + old[len(first) :]
    states = [old, synced, first + more + old[len(first) + len(more) :], first[:cut]]
    found = [states.index(content) for content in await shown(tmp_path, old, work, written)]
    assert found == sorted(found)


@pytest.mark.parametrize("written", ["all", "synced"])
@pytest.mark.parametrize("old", [SMALL, LARGE])
async def test_a_longer_file_is_old_or_new(tmp_path: Path, old: bytes, written: str) -> None:
    async def work(fs: FileSystem, file: File) -> None:
        await file.truncate(200_000)
        await file.write(190_000, b"far")

    new = (old.ljust(190_000, b"\0") + b"far").ljust(200_000, b"\0")
    assert set(await shown(tmp_path, old, work, written)) <= {old, new}


@pytest.mark.parametrize("written", ["all", "synced"])
@pytest.mark.parametrize("old", [SMALL, LARGE])
async def test_a_cut_by_path_of_a_file_that_somebody_writes_to(
    tmp_path: Path, old: bytes, written: str
) -> None:
    """It is done when it is answered; what was written before is committed first."""
    first, more = b"first" * 2000, b"more"

    async def work(fs: FileSystem, file: File) -> None:
        await file.write(0, first)
        await fs.truncate("a", 5000)
        await file.write(5000, more)

    cut = first[:5000]
    states = [old, first + old[len(first) :], cut, cut + more]
    found = [states.index(content) for content in await shown(tmp_path, old, work, written)]
    assert found == sorted(found)
    if (old, written) == (SMALL, "all"):
        assert found == [0, 1, 2, 3]
