"""A disk that fails at its n-th call, for every n: what was acknowledged is there after a restart.

And tasks that are cancelled at every await of the journal.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio

from tests.journal.faultwork import ENDS, KINDS, prepare, recover_once, run_once
from tests.journal.powercut import Disk, is_container, refused_syncs
from tests.journal.seam import Fault, Observer, Seam
from tests.vfs.harness import BOOT, FileSystem
from tests.vfs.invariants import check
from unifs.errors import JournalFailed, UnifsError
from unifs.fsck.offline import Reader as OfflineReader
from unifs.state.queries import Reader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CREATE = os.O_CREAT | os.O_RDWR
LARGE = bytes(range(256)) * 400


#: Every so many calls, a different start for each fault: ``scripts/campaign faults`` tries all.
STRIDE = 41
RECOVERY_STRIDE = 19
CALLS_MAX = 4000


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_disk_fails_at_its_nth_call(tmp_path: Path, kind: str, end: str) -> None:
    """Once, or from then on, for every ``STRIDE``-th call; what was acknowledged is there."""
    fired = 0
    for number in range(1 + 7 * KINDS.index(kind) + ENDS.index(end), CALLS_MAX, STRIDE):
        path = tmp_path / str(number)
        is_lasting = kind != "short" and number % 3 == 0
        # ``STRIDE`` is odd: every other start holds.
        holds = number % 2 == 0
        told = await run_once(path, kind, number, end, is_lasting=is_lasting, holds=holds)
        if told is None:
            break
        fired += 1
        shutil.rmtree(path)
    else:
        pytest.fail("it never ended")
    assert fired >= 8


@pytest.mark.parametrize("boot", [BOOT, "another"])
async def test_the_disk_fails_in_a_recovery(tmp_path: Path, boot: str) -> None:
    """A start that fails is told, and the next one finds everything."""
    work = await prepare(tmp_path / "left")
    fired = 0
    for kind in KINDS:
        for number in range(1 + KINDS.index(kind), CALLS_MAX, RECOVERY_STRIDE):
            path = tmp_path / "copy"
            ignore = shutil.ignore_patterns("reserve")
            shutil.copytree(tmp_path / "left", path, ignore=ignore)
            is_fired = await recover_once(path, work, kind, number, boot)
            shutil.rmtree(path)
            if is_fired is None:
                break
            fired += 1
    assert fired >= 8


async def test_a_short_write_while_sealing_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sealing copies into a leaf arrives whole, however little the disk takes at once."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", LARGE, fsync=True)
        await fs.seal()
        async with fs.open("a", os.O_RDWR) as file:
            await file.write(50_000, b"patch")
        real = os.pwrite

        def write(descriptor: int, data: bytes, offset: int) -> int:
            return real(descriptor, memoryview(data)[:999], offset)

        monkeypatch.setattr(os, "pwrite", write)
        await fs.seal()
        monkeypatch.undo()
        await fs.remount()
        assert await fs.read("a") == LARGE[:50_000] + b"patch" + LARGE[50_005:]


async def test_bytes_that_cannot_be_read_at_a_start_are_not_given_up(tmp_path: Path) -> None:
    """A disk that fails to read is no proof that they are lost."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("small", b"synced", fsync=True)
        await fs.write("large", LARGE, fsync=True)
        await fs.kill(start=False)
        with pytest.MonkeyPatch.context() as patch:

            def refuse(*_: object) -> bytes:
                raise OSError(errno.EIO, "no")

            patch.setattr("unifs.ipfs.embedded.segments.read_exactly", refuse)
            await fs.start(boot="another")
        assert fs.receipt is not None
        assert not fs.receipt.reverted
        assert any("cannot be read" in words for words in fs.receipt.damaged)
        assert await fs.read("small") == b"synced"
        assert await fs.read("large") == LARGE


async def test_a_checkpoint_that_fails_holds_up_nobody(tmp_path: Path) -> None:
    """The thread goes on after its connection could not be opened, and the next one works."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"x")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("unifs.state.database.VFS", "there is none")
            with trio.fail_after(10):
                await fs.storage.database._restarted()
        await fs.write("a", b"y")
        with trio.fail_after(10):
            await fs.storage.database._restarted()
        await fs.write("a", b"z")
        assert fs.storage.database.wal_bytes < 64 << 10


class Unreadable(Observer):
    """While ``is_armed`` the WAL cannot be read."""

    is_armed = False

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        is_refused = self.is_armed and call == "read" and path.endswith("tree.db-wal")
        return errno.EIO if is_refused else None


async def test_a_connection_that_failed_while_it_was_opened_is_closed(tmp_path: Path) -> None:
    """At once, though the exceptions are still there."""
    observer = Unreadable()
    with Seam(tmp_path, observer):
        async with FileSystem(tmp_path, upkeep=False) as fs:
            await fs.write("a", b"x")
            database = fs.storage.database
            before = apsw.connections()
            observer.is_armed = True
            with pytest.raises(apsw.IOError) as first:
                database._checkpointer()
            with pytest.raises(UnifsError) as second:
                OfflineReader(database.path)
            with pytest.raises(UnifsError), closing(Reader(database.path)) as reader:
                reader.one("select count(*) from inode")
            observer.is_armed = False
            assert first.tb is not None
            assert second.tb is not None
            assert apsw.connections() == before


async def test_a_failed_wal_is_told_to_every_waiter(tmp_path: Path) -> None:
    """Nobody who waited hears success, nobody afterwards does, and the next start is honest."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        disk = Disk(tmp_path)
        files = [await fs.open_file(f"f{index}", CREATE) for index in range(6)]
        told: list[str] = []
        await files[0].write(0, b"synced before")
        with disk:
            await files[0].fsync()
            wal = fs.storage.database.wal

            async def sync(index: int) -> None:
                await files[index].write(0, LARGE if index % 2 else b"small")
                try:
                    await files[index].fsync()
                    told.append("synced")
                except UnifsError as error:
                    told.append(type(error).__name__)

            with refused_syncs(lambda descriptor: descriptor == wal):
                async with trio.open_nursery() as nursery:
                    for index in range(1, 6):
                        nursery.start_soon(sync, index)
            assert len(told) == 5
            assert set(told) <= {"DiskFailed", "JournalFailed"}
            # The disk says nothing any more: that is no success.
            for file in files[1:]:
                with pytest.raises(JournalFailed):
                    await file.fsync()
            await fs.kill(start=False)
            disk.cut("synced")
        await fs.start(boot="another")
        assert await fs.read("f0") == b"synced before"
        for index in range(1, 6):
            assert not await fs.exists(f"f{index}") or await fs.read(f"f{index}") == b""


async def test_a_refusal_does_not_grow(tmp_path: Path) -> None:
    """Each is an exception of its own: one that is raised again keeps every frame it came by."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        fs.storage.database.fail("a test")
        lengths = set()
        for _ in range(3):
            with pytest.raises(JournalFailed) as refused:
                await fs.mkdir("d")
            lengths.add(len(refused.traceback))
        await fs.kill()
        assert len(lengths) == 1


async def test_a_container_that_failed_is_never_called_durable(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("a", CREATE)
        await file.write(0, LARGE)
        with refused_syncs(is_container), pytest.raises((UnifsError, OSError)):
            await file.fsync()
        for _ in range(2):
            with pytest.raises(UnifsError) as failure:
                await file.fsync()
            assert failure.value.errno == errno.EIO
        # Everything else goes on.
        await fs.write("b", LARGE, fsync=True)
        await file.close()
        await fs.write("a", LARGE, fsync=True)


async def test_a_failed_wal_makes_the_tree_read_only(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"x")
        file = await fs.open_file("a", os.O_RDWR)
        wal = fs.storage.database.wal
        with refused_syncs(lambda descriptor: descriptor == wal), pytest.raises(UnifsError):
            await file.fsync()
        calls: list[Callable[[], Any]] = [
            lambda: fs.write("b", b""),
            lambda: fs.mkdir("d"),
            lambda: fs.unlink("a"),
            lambda: fs.rename("a", "c"),
            lambda: fs.setattr("a", mode=0o600),
            lambda: fs.setxattr("a", b"user.x", b""),
            file.fsync,
        ]
        for call in calls:
            with pytest.raises(JournalFailed) as refused:
                await call()
            assert refused.value.errno == errno.EROFS
        assert await fs.read("a") == b"x"
        check(fs)
        await fs.kill()
        assert await fs.read("a") == b"x"
        await fs.write("a", b"y", fsync=True)


# --- cancellation ---------------------------------------------------------------------------------


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when its task has been stepped n times."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and self.left <= 0:
            self.scope.cancel()


async def _work(fs: FileSystem, acknowledged: dict[str, bytes]) -> None:
    async with fs.open("a", CREATE) as file:
        await file.write(0, LARGE)
        await file.fsync()
        acknowledged["a"] = LARGE
        await file.write(0, b"in place")
        acknowledged["a"] = b"in place" + LARGE[8:]
        await file.fsync()
        await file.write(len(LARGE), b"tail")
        await file.fsync()
        acknowledged["a"] = b"in place" + LARGE[8:] + b"tail"
        await file.write(len(LARGE), b"TAIL")
        acknowledged["a"] = b"in place" + LARGE[8:] + b"TAIL"
        await file.fsync()
    await fs.write("b", b"small", fsync=True)
    acknowledged["b"] = b"small"
    await fs.fsyncdir()


async def test_cancelled_at_every_step(tmp_path: Path) -> None:
    steps = 0
    for number in range(1, 200):
        path = tmp_path / str(number)
        acknowledged: dict[str, bytes] = {}
        async with FileSystem(path, upkeep=False) as fs:
            cancel = CancelAt(number)

            async def worker(fs: FileSystem = fs, cancel: CancelAt = cancel) -> None:
                cancel.task = trio.lowlevel.current_task()
                with cancel.scope:
                    await _work(fs, acknowledged)  # noqa: B023

            trio.lowlevel.add_instrument(cancel)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(worker)
            finally:
                trio.lowlevel.remove_instrument(cancel)
            check(fs)
            # The rounds that nobody waits for any more go on.
            await fs.storage.flusher.flush()
            check(fs)
            was_cancelled = cancel.scope.cancelled_caught
            before = await fs.tree()
            await fs.kill(boot="another")
            check(fs)
            assert await fs.tree() == before
            for name, data in acknowledged.items():
                assert len(await fs.read(name)) >= len(data)
        if not was_cancelled:
            break
        steps += 1
    assert steps > 5
