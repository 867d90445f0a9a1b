"""A disk that fails at its n-th call, and fixed work on it that knows what it was promised.

``run_once`` does the work of ``Work`` with one fault at call ``number`` of the journal, overlays,
segments and databases, then kills the daemon or cuts the power, starts again and compares. It
raises AssertionError where a promise is broken, and says whether the fault came to pass: counting
up until it does not tries every call there is.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import apsw

from tests.journal.powercut import Disk
from tests.journal.seam import SYNCS, Fault, Observer, Seam
from tests.vfs.harness import BOOT, FileSystem, _drop
from tests.vfs.invariants import check
from tests.vfs.nodeworld import NodeSystem
from unifs.errors import JournalFailed, UnifsError
from unifs.fsck.offline import examine
from unifs.vfs.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from pathlib import Path

    from unifs.ipfs.cid import Cid

    Call = Coroutine[Any, Any, Any]

CREATE = os.O_CREAT | os.O_RDWR
SMALL = b"small"
LARGE = bytes(range(256)) * 400
SAVED = b"saved" * 20_000
PATCH = b"patch" * 3000
ADDED = bytes(range(255, -1, -1)) * 700
DIRECTORY = "a directory"

#: What a name may show: bytes, a directory, or nothing (None).
State = bytes | str | None

WRITES = ("pwrite", "pwritev", "write")
#: Calls that need space, besides opens that make a file.
SPACE = (*WRITES, "posix_fallocate", "link", "mkdir", "rename", "ftruncate", *SYNCS)
KINDS = ("ENOSPC", "EIO", "short")
ENDS = ("kill", "cut")


class Nth(Observer):
    """Refuses the n-th call to which the fault applies, and every later one if it is lasting."""

    is_syncing = False

    def __init__(self, kind: str, number: int, disk: Disk, *, is_lasting: bool = False) -> None:
        self.kind = kind
        self.left = number
        self.is_lasting = is_lasting
        self.is_armed = False
        #: What was refused first: the call and its path.
        self.fired: tuple[str, str] | None = None
        self._disk = disk

    def applies(self, call: str, path: str, flags: int) -> bool:
        if self.kind == "short":
            return call in WRITES
        if self.kind == "EIO":
            return True
        if call == "open":
            return bool(flags & os.O_CREAT) and not os.path.exists(path)
        return call in SPACE

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        if not self.is_armed or not self.applies(call, path, flags):
            return None
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.is_lasting):
            return None
        self.fired = self.fired or (call, path)
        return "short" if self.kind == "short" else getattr(errno, self.kind)

    def synced(self, path: str) -> None:
        self._disk.synced(path)


@dataclass
class Promise:
    """What one name may show now, and after a power cut."""

    live: list[State] = field(default_factory=lambda: [None])
    #: All since the last fsync that returned.
    durable: list[State] = field(default_factory=lambda: [None])
    #: A change of the bytes failed: each byte is one that some version has there.
    is_torn: bool = False

    def allows(self, found: State, is_cut: bool) -> bool:
        versions = self.durable if is_cut else self.live
        if found in versions:
            return True
        if found == b"" and None in versions:
            # Made, and its first bytes failed or are not durable yet.
            return True
        return self.is_torn and isinstance(found, bytes) and self._is_mixed(found, versions)

    @staticmethod
    def _is_mixed(found: bytes, versions: list[State]) -> bool:
        known = [version for version in versions if isinstance(version, bytes)]
        if len(found) > max(map(len, known), default=0):
            return False
        padded = [version.ljust(len(found), b"\0") for version in known]
        return all(any(held[at] == byte for held in padded) for at, byte in enumerate(found))


class Work:
    """Fixed work on a file system; ``names`` is what it was promised."""

    def __init__(self, fs: NodeSystem) -> None:
        self.fs = fs
        self.names: dict[str, Promise] = {}
        self.pinned: dict[Cid, bytes] = {}
        #: As text: a traceback would keep connections to the database open.
        self.errors: list[str] = []

    def promise(self, name: str) -> Promise:
        return self.names.setdefault(name, Promise())

    async def attempt(self, call: Awaitable[Any]) -> bool:
        try:
            await call
        except (UnifsError, OSError) as error:
            self.errors.append(repr(error))
            return False
        return True

    async def store(
        self, name: str, after: State, call: Call, *, fsync: bool = False, whole: bool = True
    ) -> bool:
        """``call`` brings ``name`` to ``after``; without ``whole`` only from what it was."""
        promise = self.promise(name)
        if not whole and (len(promise.live) > 1 or promise.is_torn):
            # Nobody knows what it would come to.
            call.close()
            return False
        if isinstance(promise.live[-1], bytes) and isinstance(after, bytes) and whole:
            # Opened with O_TRUNC.
            promise.durable.append(b"")
        if await self.attempt(call):
            promise.live = [after]
            promise.durable = [after] if fsync else [*promise.durable, after]
            promise.is_torn = False
            return True
        promise.live += [b"", after] if whole and isinstance(after, bytes) else [after]
        promise.durable.append(after)
        promise.is_torn = isinstance(after, bytes)
        return False

    async def rename(self, old: str, new: str) -> None:
        source, target = self.promise(old), self.promise(new)
        states = [state for state in source.live if state is not None]
        durable = [state for state in source.durable if state is not None]
        is_done = await self.attempt(self.fs.rename(old, new))
        target.live = [*([] if is_done else target.live), *states]
        target.durable += durable
        target.is_torn = source.is_torn or (target.is_torn and not is_done)
        source.live = [None] if is_done else [*source.live, None]
        source.durable.append(None)

    async def run(self) -> None:
        """Everything once: each step goes on whatever became of those before."""
        fs = self.fs
        await self.store("a", SMALL, fs.write("a", SMALL))
        await self.store("b", LARGE, fs.write("b", LARGE, fsync=True), fsync=True)
        await self.store("c", LARGE, fs.write("c", LARGE))
        await self.store("a", b"newer", fs.write("a", b"newer", fsync=True), fsync=True)
        await self._log()
        after = LARGE[:5000] + PATCH + LARGE[5000 + len(PATCH) :]
        patched = self._patch("b", 5000, PATCH, fsync=True)
        await self.store("b", after, patched, fsync=True, whole=False)
        await self.store("c", LARGE[:70_000], self._cut("c", 70_000), whole=False)
        await self.store("tmp", SAVED, fs.write("tmp", SAVED))
        await self.rename("tmp", "a")
        await self.store("d", DIRECTORY, fs.mkdir("d"), whole=False)
        await self.store("d/x", b"x", fs.write("d/x", b"x"))
        await self._link("d/x", "y")
        await self.attempt(fs.symlink(b"target", "s"))
        await self.attempt(fs.setattr("b", mode=0o600))
        await self.attempt(fs.setxattr("b", b"user.x", b"value"))
        await self.attempt(fs.settle())
        await self.attempt(fs.collect())
        after = after[:100] + PATCH + after[100 + len(PATCH) :]
        await self.store("b", after, self._patch("b", 100, PATCH), whole=False)
        await self.attempt(fs.fsyncdir())
        await self.attempt(fs.storage.database._restarted())
        await self._pin()
        await self.store("y", None, fs.unlink("y"), whole=False)
        await self.store("c", None, fs.unlink("c"), whole=False)
        await self.attempt(fs.settle(keep_s=0.0))
        fs.storage.segments.roll()
        fs.storage.nodes.roll()
        await self.attempt(fs.storage.flusher.flush())
        await self.attempt(fs.collect())
        await self.store("last", SMALL, fs.write("last", SMALL, fsync=True), fsync=True)

    async def run_last(self) -> None:
        """Changes without a checkpoint between them and what comes next."""
        await self.store("late", SMALL, self.fs.write("late", SMALL))
        await self.rename("late", "later")
        await self.store("a", None, self.fs.unlink("a"), whole=False)
        await self.store("e", DIRECTORY, self.fs.mkdir("e"), whole=False)

    async def _log(self) -> None:
        """Lines that grow from a small file to a large one, each synced."""
        try:
            file = await self.fs.open_file("log", CREATE)
        except (UnifsError, OSError) as error:
            self.errors.append(repr(error))
            return
        written = b""

        async def append(line: bytes) -> None:
            await file.write(len(written), line)
            await file.fsync()

        for index in range(6):
            line = b"%d" % index * (9000 if index else 64_000)
            done = await self.store("log", written + line, append(line), fsync=True, whole=False)
            if not done:
                break
            written += line
        await self.attempt(file.close())

    async def _patch(self, name: str, offset: int, data: bytes, *, fsync: bool = False) -> None:
        async with self.fs.open(name, os.O_RDWR) as file:
            await file.write(offset, data)
            if fsync:
                await file.fsync()

    async def _cut(self, name: str, size: int) -> None:
        async with self.fs.open(name, os.O_RDWR) as file:
            await file.write(0, LARGE[:100])
            await file.truncate(size)

    async def _link(self, name: str, new: str) -> None:
        source, made = self.promise(name), self.promise(new)
        # ``NodeSystem.link`` links by CID.
        is_done = await self.attempt(FileSystem.link(self.fs, name, new))
        made.live = [*([] if is_done else made.live), *source.live]
        made.durable += source.durable
        made.is_torn = source.is_torn

    async def _pin(self) -> None:
        try:
            cid = await self.fs.add(ADDED, pin=True, wrap=None)
        except (UnifsError, OSError) as error:
            self.errors.append(repr(error))
            return
        self.pinned[cid] = ADDED
        await self.store("linked", ADDED, self.fs.link(cid, "linked"), whole=False)

    # --- afterwards -------------------------------------------------------------------------------

    async def check(self, is_cut: bool, told: str) -> None:
        """Every name shows what it may, nothing else is there, and what is pinned is whole."""
        for name, promise in self.names.items():
            found = await self._found(name)
            known = promise.durable if is_cut else promise.live
            assert promise.allows(found, is_cut), (
                f"{name}: {_brief(found)}, allowed {[_brief(state) for state in known]}, {told},"
                f" {self.errors}"
            )
        listed = {name.decode() for name in await self.fs.listdir()}
        if "d" in listed:
            listed |= {f"d/{name.decode()}" for name in await self.fs.listdir("d")}
        ghosts = listed - {*self.names, "s"}
        assert not ghosts, f"{ghosts}, {told}"
        for cid, data in self.pinned.items():
            read = b"".join([piece async for piece in self.fs.node.cat(f"/ipfs/{cid}")])
            assert read == data, f"pinned {cid}, {told}"

    async def _found(self, name: str) -> State:
        if not await self.fs.exists(name):
            return None
        if (await self.fs.stat(name)).mode >> 12 == 4:
            return DIRECTORY
        file = await self.fs.open_file(name)
        try:
            return await file.read()
        finally:
            try:
                await file.close()
            except JournalFailed:
                # What nobody could commit cannot be committed by its reader either.
                assert self.fs.storage.database.failed is not None


def _brief(state: State) -> str:
    return f"{len(state)} bytes" if isinstance(state, bytes) else str(state)


async def run_once(
    path: Path, kind: str, number: int, end: str, *, is_lasting: bool = False, holds: bool = False
) -> tuple[str, str] | None:
    """Work with one fault, a crash, a start, a comparison; the call that was refused, or None.

    ``holds``: changes are acknowledged ahead of their commit, the last ones before the crash too.
    """
    disk = Disk(path)
    nth = Nth(kind, number, disk, is_lasting=is_lasting)
    with Seam(path, nth):
        async with NodeSystem(path, holds=holds) as fs:
            disk.begin()
            work = Work(fs)
            nth.is_armed = True
            try:
                await work.run()
            finally:
                nth.is_armed = False
            told = f"{kind} at call {number}: {nth.fired}, then {end}"
            assert nth.fired or not work.errors, work.errors
            if not (is_lasting and kind == "EIO" and fs.storage.database.held.batches):
                # Else the disk did not even answer when what is held was to be shown.
                check(fs)
                await work.check(False, f"{told}, before")
            await work.run_last()
            await fs.kill(start=False)
            # One that is closed after the cut would checkpoint by the WAL's index of before it.
            left = [each.filename for each in apsw.connections() if str(path) in each.filename]
            assert not left, f"still open: {left}, {told}"
            if end == "cut":
                disk.cut("synced")
            await fs.start(boot="another" if end == "cut" else None)
            check(fs)
            await work.check(end == "cut", told)
            await _goes_on(fs, work, told)
    _is_sound(path, told)
    return nth.fired


async def _goes_on(fs: NodeSystem, work: Work, told: str) -> None:
    """The tree works, a collection takes nothing that is needed, and a restart changes nothing."""
    before = await fs.tree()
    await fs.settle()
    await fs.collect()
    assert await fs.tree() == before, told
    await fs.write("new", SAVED, fsync=True)
    await fs.kill(boot="a third")
    check(fs)
    assert await fs.read("new") == SAVED
    await fs.unlink("new")
    assert await fs.tree() == before, told
    for cid, data in work.pinned.items():
        assert b"".join([piece async for piece in fs.node.cat(f"/ipfs/{cid}")]) == data, told


def _is_sound(path: Path, told: str) -> None:
    found = examine(path).found
    assert not found, f"fsck: {found}, {told}"


async def prepare(path: Path) -> Work:
    """A state directory as kill -9 leaves it after the work, for ``recover_once``."""
    with Seam(path, Nth("EIO", 0, Disk(path))):
        async with NodeSystem(path, holds=True) as fs:
            work = Work(fs)
            await work.run()
            await work.store("late large", LARGE, fs.write("late large", LARGE))
            await work.store("late small", SMALL, fs.write("late small", SMALL))
            await work.store("a", LARGE, fs.write("a", LARGE))
            await work.run_last()
            assert fs.storage.database.held.batches
            await fs.kill(start=False)
    assert not work.errors
    return work


async def recover_once(
    path: Path, work: Work, kind: str, number: int, boot: str, *, is_lasting: bool = False
) -> tuple[str, str] | None:
    """Open what ``prepare`` left with one fault, then start without; the call that was refused."""
    nth = Nth(kind, number, Disk(path), is_lasting=is_lasting)
    with Seam(path, nth):
        nth.is_armed = True
        try:
            with mock.patch("unifs.state.directory.boot_id", return_value=boot):
                storage = Storage(path)
        except (UnifsError, OSError):
            nth.is_armed = False
            assert nth.fired
        else:
            nth.is_armed = False
            _drop(storage)
        told = f"{kind} at call {number} of a recovery: {nth.fired}"
        async with NodeSystem(path) as fs:
            work.fs = fs
            check(fs)
            await work.check(boot != BOOT, told)
            await _goes_on(fs, work, told)
    _is_sound(path, told)
    return nth.fired
