"""Checkpoint, undelete and rollback while the disk has no room, at each of their calls.

They say so, leave nothing half made, lose nothing, and the same command again succeeds.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from tests.journal.faultwork import Nth
from tests.journal.powercut import Disk
from tests.journal.seam import SYNCS, Fault, Seam
from tests.vfs.historyworld import HistorySystem, Seen
from tests.vfs.invariants import check
from tests.vfs.test_history_back import LARGE, fill
from unifs.errors import NoSpace
from unifs.fsck.offline import examine
from unifs.vfs.rollback import TEMPORARY

if TYPE_CHECKING:
    from pathlib import Path

CALLS_MAX = 2_000
#: Every so many calls, a different start for one that fails once and all that follow.
STRIDE = 3
#: Bytes of files, by path.
Bytes = dict[bytes, bytes]


class FullDisk(Nth):
    """No call finds space from the n-th on, until the reserve is given up."""

    def __init__(self, number: int, disk: Disk, is_lasting: bool) -> None:
        super().__init__("ENOSPC", number, disk, is_lasting=is_lasting)

    def applies(self, call: str, path: str, flags: int) -> bool:
        # A sync that fails is told to all, and makes the tree read-only: tests/journal.
        return call not in SYNCS and super().applies(call, path, flags)

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        if self.fired and call == "truncate" and path.endswith("/reserve"):
            self.is_armed = False
        return super().before(call, path, flags)


@dataclass
class Prepared:
    """A state directory that is copied for each call, and what was in it."""

    path: Path
    then: Bytes
    live: Bytes


def only_bytes(seen: dict[bytes, Seen]) -> Bytes:
    return {path: each.data for path, each in seen.items()}


async def prepare(path: Path) -> tuple[Bytes, Bytes]:
    async with HistorySystem(path) as fs:
        await fill(fs)
        await fs.history.checkpoint("then")
        then = only_bytes(await fs.seen(await fs.at("/mfs/d")))
        await fs.unlink("d/sub/same")
        await fs.rmdir("d/sub")
        await fs.write("d/small", b"changed")
        await fs.write("d/large", LARGE[::-1])
        await fs.write("d/new", LARGE)
        return then, only_bytes(await fs.live())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path = tmp_path_factory.mktemp("full") / "state"
    return Prepared(path, *trio.run(prepare, path))


async def act(fs: HistorySystem, what: str) -> None:
    if what == "checkpoint":
        await fs.answer.checkpoint("now-then")
    elif what == "undelete":
        await fs.answer.undelete("/mfs/d", "then", "back")
    else:
        await fs.answer.rollback("/mfs/d", "then")


async def check_failed(fs: HistorySystem, what: str, prepared: Prepared) -> None:
    """Nothing of it is there, or, of a rollback, each file is old or new."""
    names = [name for name, _ in fs.history.checkpoints()]
    assert names == ["then"]
    live = only_bytes(await fs.live())
    if what != "rollback":
        assert live == prepared.live
        return
    for path, data in live.items():
        if path.startswith(b"/d/") and TEMPORARY not in path:
            known = (prepared.live.get(path), prepared.then.get(path[2:]))
            assert data in known, path


async def check_done(fs: HistorySystem, what: str, prepared: Prepared) -> None:
    if what == "checkpoint":
        assert only_bytes(await fs.then("now-then")) == prepared.live
        return
    top = "/mfs/back" if what == "undelete" else "/mfs/d"
    assert only_bytes(await fs.seen(await fs.at(top))) == prepared.then


async def full_at(
    path: Path, what: str, prepared: Prepared, number: int, is_lasting: bool
) -> tuple[str, str] | None:
    """One run with one fault; the call that was refused."""
    shutil.copytree(prepared.path, path, ignore=shutil.ignore_patterns("reserve"))
    disk = FullDisk(number, Disk(path), is_lasting)
    with Seam(path, disk):
        async with HistorySystem(path) as fs:
            # Something that nobody has sealed, and a file that is being written to.
            await fs.write("d/new", LARGE)
            file = await fs.open_file("d/large", os.O_RDWR)
            await file.write(0, prepared.live[b"/d/large"])
            if what == "rollback":
                await file.close()
            disk.is_armed = True
            is_done = True
            try:
                await act(fs, what)
            except NoSpace:
                is_done = False
            disk.is_armed = False
            assert is_done or disk.fired
            if what != "rollback":
                await file.close()
            if not is_done:
                await check_failed(fs, what, prepared)
                await act(fs, what)
            await check_done(fs, what, prepared)
            check(fs)
            await fs.kill()
            await check_done(fs, what, prepared)
    found = examine(path).found
    assert not found, found
    shutil.rmtree(path)
    return disk.fired


@pytest.mark.parametrize("is_lasting", [False, True])
@pytest.mark.parametrize("what", ["checkpoint", "undelete", "rollback"])
async def test_no_space_at_each_call(
    tmp_path: Path, prepared: Prepared, what: str, is_lasting: bool
) -> None:
    fired = 0
    for number in range(1 + is_lasting, CALLS_MAX, STRIDE):
        told = await full_at(tmp_path / str(number), what, prepared, number, is_lasting)
        if told is None:
            break
        fired += 1
    assert 8 < fired < CALLS_MAX // STRIDE
