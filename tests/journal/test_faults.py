"""A disk that fails at its n-th call, for every n: what was acknowledged is there after a restart.

And tasks that are cancelled at every await of the journal.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.errors import JournalFailed, NoSpace, UnifsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CREATE = os.O_CREAT | os.O_RDWR
LARGE = bytes(range(256)) * 400
CALLS_MAX = 200


class Faults:
    """Counts calls of one function of ``os`` below a directory; the n-th fails."""

    def __init__(self, state: Path, call: str, what: int | str) -> None:
        self.state = str(state)
        self.call = call
        self.what = what
        self.left = 0
        self.fired = False
        self._real: Callable[..., Any] = getattr(os, call)

    def concerns(self, subject: Any) -> bool:
        if isinstance(subject, int):
            try:
                subject = os.readlink(f"/proc/self/fd/{int(subject)}")
            except OSError:
                return False
        path = os.fspath(subject)
        return path.startswith(self.state) and not path.endswith(("lock", "reserve", "-wal"))

    def __call__(self, subject: Any, *rest: Any) -> Any:
        if not self.concerns(subject):
            return self._real(subject, *rest)
        self.left -= 1
        if self.left != 0:
            return self._real(subject, *rest)
        self.fired = True
        if self.what == "short":
            data, offset = rest
            if isinstance(data, tuple):
                data = b"".join(bytes(part) for part in data)
                return os.pwrite(subject, data[: len(data) // 2], offset)
            return self._real(subject, bytes(data)[: len(data) // 2], offset)
        assert isinstance(self.what, int)
        raise OSError(self.what, os.strerror(self.what))

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        self.left = number
        self.fired = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, self.call, self)
            yield


class Scenario:
    """Fixed work; ``kept`` is what each name may show after it: (fsynced or closed) or later."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.kept: dict[str, list[bytes | None]] = {}
        self.errors: list[BaseException] = []
        #: The log may show anything from one to the other.
        self.partly: tuple[bytes, bytes] = (b"", b"")

    async def attempt(self, name: str, after: bytes | None, call: Any) -> bool:
        """``call`` brings ``name`` to ``after``; where it fails, that may have happened or not."""
        versions = self.kept.setdefault(name, [None])
        try:
            await call
        except (UnifsError, OSError) as error:
            self.errors.append(error)
            versions.append(after)
            return False
        self.kept[name] = [after]
        return True

    async def run(self) -> None:
        fs = self.fs
        await self.attempt("a", b"small", fs.write("a", b"small"))
        await self.attempt("b", LARGE, fs.write("b", LARGE, fsync=True))
        await self.attempt("a", b"newer", fs.write("a", b"newer", fsync=True))
        await self._grow()
        await self.attempt("b", b"tiny", fs.write("b", b"tiny"))
        if not await self.attempt("cut", LARGE[:70_000], self._cut()):
            self.kept["cut"] = [None, LARGE, LARGE[:70_000]]
        if await self.attempt("tmp", b"saved", fs.write("tmp", b"saved")):
            before = self.kept.get("a", [None])
            if await self.attempt("tmp", None, fs.rename("tmp", "a")):
                self.kept["a"] = [b"saved"]
            else:
                self.kept["a"] = [*before, b"saved"]
        fs.tick()
        await self.attempt("b", None, fs.unlink("b"))
        await self.attempt("read", b"", self._read_back())

    async def _grow(self) -> None:
        try:
            file = await self.fs.open_file("log", CREATE)
        except (UnifsError, OSError) as error:
            self.errors.append(error)
            return
        written = b""
        for index in range(6):
            line = b"%d" % index * (9000 if index else 64_000)
            allowed = self.kept.get("log", [None])
            if not await self.attempt("log", written + line, self._line(file, written, line)):
                # Part of what failed may be there.
                self.kept["log"] = [*allowed, b""]
                self.partly = (written, written + line)
                break
            written += line
        try:
            await file.close()
        except (UnifsError, OSError) as error:
            self.errors.append(error)

    async def _cut(self) -> None:
        async with self.fs.open("cut", CREATE) as file:
            await file.write(0, LARGE)
            await file.truncate(70_000)

    async def _line(self, file: Any, written: bytes, line: bytes) -> None:
        await file.write(len(written), line)
        await file.fsync()

    async def _read_back(self) -> None:
        for name in await self.fs.listdir():
            await self.fs.read(name)

    async def check(self) -> None:
        for name, versions in self.kept.items():
            if name == "read":
                continue
            found = await self.fs.read(name) if await self.fs.exists(name) else None
            lengths = [None if v is None else len(v) for v in versions][:20]
            size = None if found is None else len(found)
            is_allowed = found in versions or (None in versions and found == b"")
            if name == "log" and found is not None and not is_allowed:
                least, most = self.partly
                is_allowed = len(found) >= len(least) and most.startswith(found)
            assert is_allowed, f"{name}: {size} bytes, allowed {lengths}, {self.errors}"


FAULTS = [
    ("pwrite", errno.ENOSPC),
    ("pwrite", "short"),
    ("pwritev", errno.EIO),
    ("pwritev", "short"),
    ("open", errno.ENOSPC),
    ("fdatasync", errno.EIO),
    ("preadv", errno.EIO),
    ("ftruncate", errno.EIO),
]


@pytest.mark.parametrize(("call", "what"), FAULTS)
async def test_the_disk_fails_at_its_nth_call(tmp_path: Path, call: str, what: int | str) -> None:
    fired = 0
    for number in range(1, CALLS_MAX):
        path = tmp_path / str(number)
        async with FileSystem(path, upkeep=False) as fs:
            faults = Faults(path, call, what)
            scenario = Scenario(fs)
            with faults.at(number):
                await scenario.run()
            check(fs)
            await fs.kill()
            await scenario.check()
            check(fs)
            if not faults.fired:
                assert not scenario.errors
                break
            fired += 1
            if what == "short":
                assert all(isinstance(error, NoSpace) for error in scenario.errors)
    else:
        pytest.fail("it never ended")
    assert fired >= 1


async def test_a_container_that_failed_is_never_called_durable(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("a", CREATE)
        await file.write(0, LARGE)
        faults = Faults(tmp_path, "fdatasync", errno.EIO)
        with faults.at(1), pytest.raises((UnifsError, OSError)):
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
        real = os.fdatasync

        def fail(descriptor: int) -> None:
            if descriptor == wal:
                raise OSError(errno.EIO, "no")
            real(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(UnifsError):
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
    for number in range(1, CALLS_MAX):
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
