"""Carried bytes: crash window 13 of ``unifs.journal.recovery``, and what makes rows of redo go."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.journal.powercut import refused_syncs
from tests.journal.test_recovery import CREATE, LARGE, NEWER, Cut, power
from tests.vfs.invariants import check
from unifs.errors import DiskFailed
from unifs.journal.redo import CARRIED_BYTES_MAX, CARRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vfs.harness import FileSystem

__all__ = ["power"]

LINE = b"%07d\n"


@contextmanager
def synced_names() -> Iterator[list[str]]:
    """The directories of the files that are fdatasynced."""
    seen: list[str] = []
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        seen.append(os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real(descriptor)

    with mock.patch("os.fdatasync", sync):
        yield seen


def rows(fs: FileSystem) -> int:
    return int(fs.storage.database.one("select count(*) from redo")[0])


async def test_13_an_appended_log_syncs_the_wal_alone(power: Cut) -> None:
    fs = power.fs
    file = await fs.open_file("log", CREATE)
    written = b""
    for index in range(40):
        line = LINE % index
        await file.write(len(written), line)
        with synced_names() as names:
            await file.fsync()
        written += line
        assert index < 3 or "data" not in names
    assert rows(fs) > 30
    receipt = await power.cut()
    assert await fs.read("log") == written
    assert receipt.carried_bytes == 8 * rows_expected(written)
    assert not receipt.has_losses()
    assert rows(fs) == 0


def rows_expected(written: bytes) -> int:
    """All lines but the three that a segment, or the sync of the new container, brought."""
    return len(written) // 8 - 3


@pytest.mark.parametrize("how", ["wal", "synced"])
async def test_13_a_container_that_never_reached_the_disk_is_made_again(
    power: Cut, how: str
) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    await fs.seal()
    file = await fs.open_file("a", os.O_RDWR)
    await file.write(len(LARGE) + 5000, b"end")
    await file.fsync()
    await file.write(100, b"patched")
    await file.fsync()
    await power.cut(how)
    wanted = (LARGE[:100] + b"patched" + LARGE[107:]).ljust(len(LARGE) + 5000, b"\0") + b"end"
    assert await fs.read("a") == wanted
    assert (await fs.stat("a")).size == len(wanted)


async def base(fs: FileSystem) -> None:
    """A sealed file, so that the next change of it is carried."""
    await fs.write("a", LARGE, fsync=True)
    await fs.seal()


async def carry(fs: FileSystem) -> None:
    """An fsync whose bytes its transaction carries."""
    async with fs.open("a", os.O_RDWR) as file:
        await file.write(0, b"carried")
        await file.fsync()


async def test_13_the_last_of_several_stores_wins(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    file = await fs.open_file("a", os.O_RDWR)
    for data in (b"first", b"other", b"third"):
        await file.write(7, data)
        await file.fsync()
    await file.write(9, b"never synced")
    await power.cut()
    assert await fs.read("a") == LARGE[:7] + b"third" + LARGE[12:]


async def test_13_bytes_that_are_synced_later_are_not_overwritten(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    file = await fs.open_file("a", os.O_RDWR)
    await file.write(7, b"carried")
    await file.fsync()
    assert rows(fs) == 1
    await file.write(0, NEWER[: CARRY_BYTES + 1])
    await file.fsync()
    assert rows(fs) == 0
    await power.cut()
    assert await fs.read("a") == NEWER[: CARRY_BYTES + 1] + LARGE[CARRY_BYTES + 1 :]


async def test_13_cut_between_the_sync_of_the_file_and_its_row(power: Cut) -> None:
    """The row of the first fsync is what is durable: its bytes come back."""
    fs = power.fs
    await base(fs)
    file = await fs.open_file("a", os.O_RDWR)
    await file.write(7, b"carried")
    await file.fsync()
    await file.write(7, b"changed")
    await fs.kill(start=False)
    container = max((power.path / "data").iterdir())
    os.fdatasync(descriptor := os.open(container, os.O_RDONLY))
    os.close(descriptor)
    power.disk.cut("synced")
    await fs.start(boot="another")
    assert await fs.read("a") == LARGE[:7] + b"carried" + LARGE[14:]


async def test_13_closed_without_a_sync_after_a_sync(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    async with fs.open("a", os.O_RDWR) as file:
        await file.write(len(LARGE), b"synced")
        await file.fsync()
        await file.write(len(LARGE) + 6, NEWER)
    await power.flush()
    await power.cut()
    assert await fs.read("a") == LARGE + b"synced"


async def test_13_cut_off_and_written_again(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    file = await fs.open_file("a", os.O_RDWR)
    await file.write(len(LARGE), b"carried")
    await file.fsync()
    await file.truncate(len(LARGE) + 3)
    await file.fsync()
    await file.write(len(LARGE) + 5, b"more")
    await file.fsync()
    await power.cut()
    assert await fs.read("a") == LARGE + b"car\0\0more"


async def test_13_renamed_and_removed(power: Cut) -> None:
    fs = power.fs
    for name in ("a", "b", "c"):
        await fs.write(name, LARGE, fsync=True)
    await fs.seal()
    for name in ("a", "b", "c"):
        async with fs.open(name, os.O_RDWR) as file:
            await file.write(0, name.encode())
            await file.fsync()
    await fs.rename("a", "moved")
    await fs.unlink("b")
    await fs.rename("c", "moved")
    await fs.fsyncdir()
    for _ in range(3):
        fs.tick()
    check(fs)
    await power.cut()
    assert await fs.listdir() == [b"moved"]
    assert await fs.read("moved") == b"c" + LARGE[1:]


async def test_13_sealing_makes_rows_go(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    await carry(fs)
    assert rows(fs) == 1
    await fs.seal()
    assert rows(fs) == 0
    await power.flush()
    receipt = await power.cut()
    assert await fs.read("a") == b"carried" + LARGE[7:]
    assert receipt.carried_bytes == 0


async def test_11_killed_then_cut_keeps_what_was_closed(power: Cut) -> None:
    """On the same boot the container is newer than what was carried for it."""
    fs = power.fs
    await base(fs)
    async with fs.open("a", os.O_RDWR) as file:
        await file.write(0, b"carried")
        await file.fsync()
        await file.write(0, b"changed")
    await fs.kill()
    assert rows(fs) == 0
    assert await fs.read("a") == b"changed" + LARGE[7:]
    await power.cut()
    assert await fs.read("a") == b"changed" + LARGE[7:]


async def test_12_stopped_then_cut(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    await carry(fs)
    await fs.stop()
    power.disk.cut("synced")
    await fs.start(boot="another")
    assert await fs.read("a") == b"carried" + LARGE[7:]
    check(fs)


async def test_what_is_carried_is_bounded(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    file = await fs.open_file("a", os.O_RDWR)
    piece = NEWER[:CARRY_BYTES]
    most = 0
    for index in range(20):
        await file.write(index * CARRY_BYTES, piece)
        await file.fsync()
        held = fs.storage.database.one("select coalesce(sum(length(bytes)),0) from redo")[0]
        most = max(most, held)
    assert CARRIED_BYTES_MAX - CARRY_BYTES < most <= CARRIED_BYTES_MAX
    await power.cut()
    assert await fs.read("a") == (piece * 20 + LARGE)[: max(len(LARGE), 20 * CARRY_BYTES)]


async def test_a_container_that_the_disk_refused_is_never_sealed(power: Cut) -> None:
    """What is carried stays: it is all that is left of these bytes."""
    fs = power.fs
    await base(fs)
    await carry(fs)
    container = max((power.path / "data").iterdir())
    with (
        refused_syncs(lambda descriptor: os.path.samefile(descriptor, container)),
        pytest.raises(DiskFailed),
    ):
        await fs.seal()
    with pytest.raises(DiskFailed):
        await fs.seal()
    assert rows(fs) == 1
    await power.cut()
    assert await fs.read("a") == b"carried" + LARGE[7:]


async def damaged(fs: FileSystem, change: str) -> None:
    """Rows change; the file that they are for has reached the disk."""
    database = fs.storage.database
    database.begin()
    database.execute(change)
    database.commit()
    data = fs.path / "data"
    for path in (*data.iterdir(), data):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    await fs.storage.flusher.flush()


@pytest.mark.parametrize(
    "change",
    [
        "update redo set offset=-7",
        "update redo set offset='x'",
        "update redo set bytes=cast(bytes as text)",
        "update redo set bytes=cast(x'ff' as text)",
        "update redo set bytes=null",
        "update redo set container=(select container from holding h join content c"
        " on c.id=h.content where c.state=2)",
    ],
)
async def test_a_damaged_row_is_written_over_nothing(power: Cut, change: str) -> None:
    """After a cut it is kept in a file, and named; what is sealed stays what it was."""
    fs = power.fs
    await fs.write("sealed", NEWER, fsync=True)
    await fs.seal()
    await base(fs)
    await carry(fs)
    await damaged(fs, change)
    receipt = await power.cut()
    assert await fs.read("sealed") == NEWER
    assert receipt.carried_bytes == 0
    (sentence,) = receipt.damaged
    assert "that an fsync wrote" in sentence
    (kept,) = (power.path / "lost+found").glob(f"{receipt.time_ns}-carried-*")
    assert kept.name in sentence
    assert rows(fs) == 0
    assert await fs.read("a") == b"carried" + LARGE[7:]


async def test_rows_of_a_file_that_is_gone_are_no_damage(power: Cut) -> None:
    fs = power.fs
    await base(fs)
    await carry(fs)
    await damaged(fs, "update redo set container=4242")
    receipt = await power.cut()
    assert receipt.damaged == []
    assert not (power.path / "data" / f"{4242:016x}").exists()
