"""Random work, random power cuts: what was fsynced is there, what was not is old or new."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.journal.powercut import Disk
from tests.vfs.harness import File, FileSystem
from tests.vfs.invariants import check
from unifs.vfs.sealing import Sealer
from unifs.vfs.treerename import RENAME_EXCHANGE

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a", "b", "c", "tmp", "log")
SIZES = (0, 1, 700, 5000, 65_536, 65_537, 150_000)


@dataclass
class History:
    """What a name may show after a cut: contents since the last durable one, None: no such name."""

    versions: list[bytes | None] = field(default_factory=lambda: [None])
    #: Changed in place, by an open handle, since the last fsync: pages of both may be there.
    is_mixed: bool = False
    #: Taken away by a rename, which is undone where the bytes of what it moved are lost.
    is_moved: bool = False

    @property
    def last(self) -> bytes | None:
        return self.versions[-1]

    def allows(self, found: bytes | None) -> bool:
        if found in self.versions:
            return True
        if found == b"" and None in self.versions:
            # Created in the window: the name may be durable and the bytes not.
            return True
        if found is None or not self.is_mixed:
            return False
        known = [version for version in self.versions if version is not None]
        if len(found) not in {len(version) for version in known}:
            return False
        return all(
            any(index < len(version) and version[index] == byte for version in known)
            for index, byte in enumerate(found)
        )


class Work:
    """Random calls on a file system, and what they promise."""

    def __init__(self, fs: FileSystem, chance: random.Random) -> None:
        self.fs = fs
        self.chance = chance
        self.names = {name: History() for name in NAMES}
        self.files: dict[str, File] = {}
        self.done: list[str] = []

    async def step(self) -> None:
        kinds = (
            self.write,
            self.write,
            self.append,
            self.append,
            self.overwrite,
            self.rename,
            self.rename,
            self.exchange,
            self.unlink,
            self.fsync,
            self.truncate,
            self.close,
            self.tick,
        )
        action = self.chance.choice(kinds)
        name = self.chance.choice(NAMES)
        await action(name)

    def note(self, what: str) -> None:
        self.done.append(what)

    async def drop(self, name: str) -> None:
        if name in self.files:
            await self.files.pop(name).close()

    def flushed(self) -> None:
        """A flush round: names that are gone stay gone."""
        for history in self.names.values():
            if history.last is None and not history.is_moved:
                history.versions = [None]

    def synced(self, name: str) -> None:
        history = self.names[name]
        history.versions = [history.last]
        history.is_mixed = history.is_moved = False
        self.flushed()

    async def write(self, name: str) -> None:
        await self.drop(name)
        data = self.chance.randbytes(self.chance.choice(SIZES))
        is_synced = self.chance.random() < 0.3
        self.note(f"write {name} {len(data)} fsync={is_synced}")
        if self.names[name].last is not None:
            # Opened with O_TRUNC, and a commit of an open file may have come in between.
            self.names[name].versions.append(b"")
        await self.fs.write(name, data, fsync=is_synced)
        if self.names[name].last == b"" and self.names[name].versions[-2:-1] != [b""]:
            self.names[name].versions.pop()
        self.names[name].versions.append(data)
        if is_synced:
            self.synced(name)

    async def opened(self, name: str) -> File | None:
        if self.names[name].last is None:
            return None
        if name not in self.files:
            self.files[name] = await self.fs.open_file(name, os.O_RDWR)
        return self.files[name]

    async def change(self, name: str, offset: int, data: bytes) -> None:
        file = await self.opened(name)
        history = self.names[name]
        if file is None or history.last is None:
            return
        is_synced = self.chance.random() < 0.5
        self.note(f"change {name} {offset} {len(data)} fsync={is_synced}")
        await file.write(offset, data)
        before = history.last.ljust(offset, b"\0")
        after = before[:offset] + data + before[offset + len(data) :]
        history.versions.append(after)
        history.is_mixed = True
        if is_synced:
            await file.fsync()
            self.synced(name)
        elif self.chance.random() < 0.3:
            await file.flush()

    async def append(self, name: str) -> None:
        last = self.names[name].last
        size = self.chance.choice((1, 100, 5000, 30_000))
        await self.change(name, len(last or b""), self.chance.randbytes(size))

    async def overwrite(self, name: str) -> None:
        last = self.names[name].last
        if last:
            offset = self.chance.choice((0, self.chance.randrange(len(last))))
            await self.change(name, offset, self.chance.randbytes(self.chance.choice((10, 5000))))

    async def fsync(self, name: str) -> None:
        file = await self.opened(name)
        if file is not None:
            self.note(f"fsync {name}")
            await file.fsync()
            self.synced(name)

    async def truncate(self, name: str) -> None:
        file = await self.opened(name)
        last = self.names[name].last
        if file is None or last is None:
            return
        size = self.chance.choice((0, len(last) // 2, len(last) + 10, 100_000))
        self.note(f"truncate {name} {size}")
        await file.truncate(size)
        self.names[name].versions.append(last[:size].ljust(size, b"\0"))
        self.names[name].is_mixed = True

    async def close(self, name: str) -> None:
        self.note(f"close {name}")
        await self.drop(name)

    async def rename(self, name: str) -> None:
        target = self.chance.choice(NAMES)
        source = self.names[name]
        if source.last is None or target == name:
            return
        self.note(f"rename {name} {target}")
        await self.drop(target)
        await self.fs.rename(name, target)
        if name in self.files:
            self.files[target] = self.files.pop(name)
        over = self.names[target]
        # All versions of the source: one of them may be what its inode goes back to.
        last = source.last
        over.versions += [v for v in source.versions if v is not None and v is not last]
        over.versions.append(last)
        over.is_mixed |= source.is_mixed
        source.versions.append(None)
        source.is_moved = True

    async def exchange(self, name: str) -> None:
        target = self.chance.choice(NAMES)
        one, other = self.names[name], self.names[target]
        if one.last is None or other.last is None or target == name:
            return
        self.note(f"exchange {name} {target}")
        await self.fs.rename(name, target, RENAME_EXCHANGE)
        files = {name: self.files.pop(name, None), target: self.files.pop(target, None)}
        self.files.update(
            {to: file for to, file in zip((target, name), files.values(), strict=True) if file}
        )
        # Each name may show again what it showed, or whatever came to it may go back to.
        versions = [v for v in one.versions + other.versions if v is not None]
        kept = [None] if None in one.versions else [], [None] if None in other.versions else []
        lasts = one.last, other.last
        one.versions = [*kept[0], *versions, lasts[1]]
        other.versions = [*kept[1], *versions, lasts[0]]
        one.is_mixed = other.is_mixed = one.is_mixed or other.is_mixed

    async def unlink(self, name: str) -> None:
        if self.names[name].last is None:
            return
        self.note(f"unlink {name}")
        await self.drop(name)
        await self.fs.unlink(name)
        self.names[name].is_moved = False
        self.names[name].versions.append(None)

    async def tick(self, name: str) -> None:
        self.note("tick")
        self.fs.tick()
        storage = self.fs.storage
        sealer = Sealer(self.fs.writer, storage.blocks, storage.profile)
        for inode in list(self.fs.writer.unsealed.values()):
            if self.chance.random() < 0.3:
                self.note(f"seal {inode.ino}")
                await sealer.seal(inode)
        self.fs.tick()

    async def killed(self) -> None:
        """What was closed is there; what an open handle wrote and nobody committed may be gone."""
        for name, history in self.names.items():
            found = await self.read(name)
            assert history.allows(found), (name, self.done)
            history.versions.append(found)

    async def read(self, name: str) -> bytes | None:
        return await self.fs.read(name) if await self.fs.exists(name) else None


@pytest.mark.parametrize("seed", range(120))
async def test_a_power_cut_leaves_old_or_new(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        with Disk(tmp_path) as disk:
            work = Work(fs, chance)
            for _ in range(chance.randint(3, 40)):
                await work.step()
                if chance.random() < 0.02:
                    work.files.clear()
                    work.note("kill")
                    await fs.kill()
                    await work.killed()
            await fs.kill(start=False)
            chosen = disk.cut("wal" if seed % 3 == 0 else chance)
        await fs.start(boot="another")
        told = f"{work.done} {chosen} {fs.receipt}"
        for name, history in work.names.items():
            found = await work.read(name)
            lengths = [None if v is None else len(v) for v in history.versions]
            size = None if found is None else len(found)
            assert history.allows(found), f"{name}: {size} bytes, allowed {lengths}: {told}"
        check(fs)
        before = await fs.tree()
        await fs.kill(boot="a third")
        assert await fs.tree() == before
        check(fs)


@pytest.mark.parametrize("seed", range(24))
async def test_what_was_on_the_way_to_a_shorter_file_does_not_come_back(
    tmp_path: Path, seed: int
) -> None:
    """A file that is cut by who writes to it is committed when it is closed, and not on the way."""
    old, far = b"old" * 30, 190_000
    async with FileSystem(tmp_path, upkeep=False) as fs:
        with Disk(tmp_path) as disk:
            await fs.write("a", old, fsync=True)
            async with fs.open("a", os.O_RDWR) as file:
                await file.write(len(old), b"near" * 2000)
                await file.write(far, b"far")
                await file.truncate(35_000)
            await fs.kill(start=False)
            chosen = disk.cut(random.Random(seed))
        await fs.start(boot="another")
        cut = (old + b"near" * 2000).ljust(35_000, b"\0")
        assert await fs.read("a") in (old, cut), chosen
        check(fs)


async def test_what_a_row_names_is_not_cut_from_under_it(tmp_path: Path) -> None:
    """A file is cut while it is open, and the cut never becomes durable: its bytes are there."""
    old = bytes(range(256)) * 600
    async with FileSystem(tmp_path, upkeep=False) as fs:
        with Disk(tmp_path) as disk:
            file = await fs.open_file("a", os.O_CREAT | os.O_RDWR)
            await file.write(0, old)
            await file.fsync()
            await file.truncate(1000)
            await file.write(90_000, b"new")
            await fs.kill(start=False)
            data = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
            disk.cut("synced")
            # The kernel had written out all of the data, and nothing of the WAL.
            for path, written in data.items():
                path.write_bytes(written)
        await fs.start(boot="another")
        assert await fs.read("a") == old
        check(fs)
