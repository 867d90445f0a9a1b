"""Files: reading and writing, sizes, times, attributes, several handles, files without a name."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.errors import (
    AttributeNamespace,
    BadHandle,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotFound,
    NotPermitted,
    Stale,
    TooLarge,
)
from unifs.journal.content import LargeContent, SmallContent
from unifs.types import PlainCaller, SetAttributes
from unifs.vfs.treefile import FILE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CREATE = os.O_CREAT | os.O_RDWR
SMALL = 65_536


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    async with FileSystem(tmp_path, upkeep=False) as system:
        yield system
        check(system)
        fd_count = len(os.listdir("/proc/self/fd"))
        before = await system.tree()
        await system.kill()
        assert await system.tree() == before
        check(system)
        assert len(os.listdir("/proc/self/fd")) <= fd_count + 8


def noise(size: int, seed: int = 1) -> bytes:
    return bytes((index * 31 + seed * 17 + index // 251) % 256 for index in range(size))


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 3 << 20])
async def test_sizes_around_the_limit_of_small_files(fs: FileSystem, size: int) -> None:
    data = noise(size)
    await fs.write("a", data)
    assert await fs.read("a") == data
    async with fs.open("a") as file:
        content = fs.vfs.handle(file.fh).inode.content  # type: ignore[attr-defined]
        kind = type(None) if not size else SmallContent if size <= SMALL else LargeContent
        assert isinstance(content, kind)
        assert await file.read(size, 10) == b""
        assert await file.read(max(0, size - 3), 10) == data[-3:]
        assert await file.read(size + 1000, 10) == b""


async def test_a_read_larger_than_the_buffer(fs: FileSystem) -> None:
    data = noise(3 << 20)
    await fs.write("a", data)
    async with fs.open("a") as file:
        assert await file.read(5, (3 << 20) - 9) == data[5:-4]


async def test_handles_that_may_not(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    async with fs.open("a", os.O_RDONLY) as reader, fs.open("a", os.O_WRONLY) as writer:
        with pytest.raises(BadHandle):
            await reader.write(0, b"y")
        with pytest.raises(BadHandle):
            await writer.read()
    with pytest.raises(BadHandle):
        await reader.read()
    with pytest.raises(TooLarge):
        await fs.truncate("a", FILE_BYTES_MAX + 1)
    async with fs.open("a", os.O_RDWR) as file:
        with pytest.raises(TooLarge):
            await file.write(FILE_BYTES_MAX - 1, b"ab")
    with pytest.raises(InvalidArgument):
        await fs.truncate("a", -1)
    with pytest.raises(IsADirectory):
        await fs.truncate("", 0)


async def test_what_the_largest_file_holds(fs: FileSystem) -> None:
    async with fs.open("a", CREATE) as file:
        await file.write(FILE_BYTES_MAX - 1, b"z")
        assert await file.read(FILE_BYTES_MAX - 3, 10) == b"\0\0z"
    await fs.unlink("a")


async def test_holes_read_as_zeros(fs: FileSystem) -> None:
    async with fs.open("a", CREATE) as file:
        await file.write(200_000, b"end")
        await file.write(100_000, b"mid")
        await file.truncate(300_000)
        wanted = bytes(100_000) + b"mid" + bytes(99_997) + b"end" + bytes(99_997)
        assert await file.read(0, 1 << 20) == wanted
    assert await fs.read("a") == wanted
    async with fs.open("s", CREATE) as file:
        await file.write(10, b"x")
        assert await file.read() == bytes(10) + b"x"


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize("first", [True, False])
async def test_what_was_cut_off_does_not_come_back(fs: FileSystem, size: int, first: bool) -> None:
    data = noise(size)
    async with fs.open("a", CREATE) as file:
        await file.write(0, data)
        if first:
            await file.flush()
        await file.truncate(size // 2)
        await file.truncate(size)
        assert await file.read(0, size) == data[: size // 2] + bytes(size - size // 2)
        await file.truncate(0)
        await file.truncate(size)
        await file.write(size // 2, b"new")
        wanted = bytes(size // 2) + b"new" + bytes(size - size // 2 - 3)
        assert await file.read(0, size) == wanted
    assert await fs.read("a") == wanted
    await fs.truncate("a", 5)
    await fs.truncate("a", 70_000)
    assert await fs.read("a") == bytes(70_000)


async def test_truncate_of_closed_files(fs: FileSystem) -> None:
    for name, data in (("small", noise(5000)), ("large", noise(500_000))):
        await fs.write(name, data)
        await fs.truncate(name, 4000)
        assert await fs.read(name) == data[:4000]
        await fs.truncate(name, 0)
        assert await fs.read(name) == b""
        await fs.truncate(name, 100)
        assert await fs.read(name) == bytes(100)
        assert (await fs.stat(name)).size == 100
    assert not fs.writer.open


async def test_an_appended_log_moves_to_a_container(fs: FileSystem) -> None:
    lines = [b"line %d\n" % index for index in range(50)]
    async with fs.open("log", CREATE) as file:
        offset = 0
        for index, line in enumerate(lines):
            await file.write(offset, line)
            offset += len(line)
            await (file.fsync() if index % 2 else file.flush())
    assert await fs.read("log") == b"".join(lines)
    sections = sum(1 for _ in fs.storage.segments.iterate(1))
    assert sections == 2
    fs.tick()
    assert len(list(fs.storage.state.data.iterdir())) == 1


async def test_a_small_file_grows_large_under_its_handles(fs: FileSystem) -> None:
    await fs.write("a", noise(60_000))
    one = await fs.open_file("a", os.O_RDWR)
    other = await fs.open_file("a", os.O_RDWR)
    reader = await fs.open_file("a", os.O_RDONLY)
    await one.write(60_000, noise(10_000, 2))
    await other.write(5, b"other")
    wanted = bytearray(noise(60_000) + noise(10_000, 2))
    wanted[5:10] = b"other"
    for file in (one, other, reader):
        assert await file.read(0, 1 << 20) == wanted if file is not reader else True
    assert await reader.read(0, 1 << 20) == wanted
    await one.close()
    assert await reader.read(0, 1 << 20) == wanted
    await other.write(70_000, b"!")
    await other.close()
    assert await reader.read(0, 1 << 20) == wanted + b"!"
    await reader.close()
    assert not fs.writer.open


async def test_stores_after_flush_are_committed_by_release(fs: FileSystem) -> None:
    file = await fs.open_file("a", CREATE)
    await file.write(0, b"before")
    await file.flush()
    await file.write(0, b"mapped")
    fs.vfs.release(file.fh)
    fs.vfs.forget([(file.ino, 1)])
    await fs.kill()
    assert await fs.read("a") == b"mapped"


async def test_late_commits(fs: FileSystem) -> None:
    file = await fs.open_file("a", CREATE)
    await file.write(0, b"1")
    fs.tick()
    await file.write(1, b"2")
    fs.tick()
    await fs.kill()
    assert await fs.read("a") == b"12"


# --- files without a name -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 200_000])
@pytest.mark.parametrize("is_committed", [True, False])
async def test_an_unlinked_file_lives_while_it_is_open(
    fs: FileSystem, size: int, is_committed: bool
) -> None:
    data = noise(size)
    file = await fs.open_file("a", CREATE)
    reader = await fs.open_file("a")
    await file.write(0, data)
    if is_committed:
        await file.flush()
    await fs.unlink("a")
    with pytest.raises(NotFound):
        await fs.stat("a")
    assert file.stat().nlink == 0
    await file.write(size, b"more")
    await file.flush()
    await file.fsync()
    await file.write(0, b"X")
    fs.tick()
    wanted = b"X" + data[1:] + b"more"
    assert await file.read(0, 1 << 20) == wanted
    await file.close()
    assert await reader.read(0, 1 << 20) == wanted
    await fs.write("a", b"another file")
    assert await reader.read(0, 1 << 20) == wanted
    ino = reader.ino
    await reader.close()
    await fs.storage.flusher.flush()
    fs.tick()
    await fs.storage.flusher.flush()
    fs.tick()
    with pytest.raises(Stale):
        fs.vfs.getattr(ino)
    assert fs.storage.database.one("select count(*) from content")[0] == 0


async def test_a_file_without_a_name_opens_until_the_kernel_forgets(fs: FileSystem) -> None:
    await fs.write("a", b"still here")
    ino = fs.vfs.lookup(fs.volume.root, b"a", fs.caller).st_ino
    await fs.unlink("a")
    for _ in range(2):
        handle = fs.vfs.open(ino, os.O_RDONLY, fs.caller)
        assert bytes(fs.vfs.read(handle.fh, 0, 100)) == b"still here"
        fs.vfs.release(handle.fh)
        fs.tick()
    fs.vfs.forget([(ino, 1)])
    fs.tick()
    with pytest.raises(Stale):
        fs.vfs.open(ino, os.O_RDONLY, fs.caller)


# --- attributes -----------------------------------------------------------------------------------


async def test_chmod_and_chown_survive(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    await fs.setattr("a", mode=0o4751, uid=7)
    await fs.setattr("a", gid=9)
    found = await fs.stat("a")
    assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o4751, 7, 9)
    assert stat.S_ISREG(found.mode)


async def test_attributes_of_a_file_that_is_not_committed(fs: FileSystem) -> None:
    file = await fs.open_file("a", CREATE)
    await fs.setattr("a", mode=0o600, uid=3, mtime_ns=77)
    await file.close()
    found = await fs.stat("a")
    assert (stat.S_IMODE(found.mode), found.uid, found.mtime_ns) == (0o600, 3, 77)


@pytest.mark.parametrize("uid", [0, 1000])
async def test_truncating_open_clears_suid(fs: FileSystem, uid: int) -> None:
    for mode in (0o4755, 0o2755, 0o2644):
        await fs.write("a", b"x")
        await fs.setattr("a", mode=mode)
        fs.caller = PlainCaller(uid=uid, gid=uid)
        async with fs.open("a", os.O_WRONLY | os.O_TRUNC):
            pass
        fs.caller = PlainCaller()
        left = mode if uid == 0 or mode == 0o2644 else 0o755
        assert stat.S_IMODE((await fs.stat("a")).mode) == left
        assert (await fs.stat("a")).size == 0


async def test_truncating_open_for_reading_is_kept(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    async with fs.open("a", os.O_RDONLY | os.O_TRUNC):
        pass
    await fs.kill()
    assert await fs.read("a") == b""
    assert not fs.writer.open


@pytest.mark.parametrize("when", [-1, 0, 253402300800 * 10**9, -(10**20), 10**20])
async def test_any_time_is_kept_or_clamped(fs: FileSystem, when: int) -> None:
    await fs.write("a", b"x")
    found = await fs.setattr("a", atime_ns=when, mtime_ns=when)
    wanted = max(-(1 << 63), min(when, (1 << 63) - 1))
    assert (found.atime_ns, found.mtime_ns) == (wanted, wanted)
    await fs.setattr("a", mode=0o600)
    await fs.kill()
    assert (await fs.stat("a")).mtime_ns == wanted


async def test_times_of_directories(fs: FileSystem) -> None:
    await fs.mkdir("d")
    await fs.mkdir("e")

    async def moved(call: object) -> set[str]:
        before = {path: await fs.stat(path) for path in ("d", "e")}
        await call  # type: ignore[misc]
        after = {path: await fs.stat(path) for path in ("d", "e")}
        times = {p: (after[p].mtime_ns, after[p].ctime_ns) for p in after}
        return {p for p in after if times[p] != (before[p].mtime_ns, before[p].ctime_ns)}

    assert await moved(fs.write("d/a", b"")) == {"d"}
    assert await moved(fs.write("d/a", b"again")) == set()
    assert await moved(fs.rename("d/a", "e/a")) == {"d", "e"}
    assert await moved(fs.link("e/a", "d/b")) == {"d"}
    assert await moved(fs.unlink("d/b")) == {"d"}
    assert await moved(fs.mkdir("e/sub")) == {"e"}
    assert await moved(fs.rmdir("e/sub")) == {"e"}
    fs.tick()
    known = [await fs.stat(path) for path in ("d", "e")]
    await fs.kill()
    after = [await fs.stat(path) for path in ("d", "e")]
    assert [s.mtime_ns for s in known] <= [s.mtime_ns for s in after]
    assert all(b.mtime_ns - a.mtime_ns < 10**8 for a, b in zip(known, after, strict=True))


async def test_writing_moves_mtime_and_ctime(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    before = await fs.setattr("a", mtime_ns=1, atime_ns=1)
    async with fs.open("a", os.O_RDWR) as file:
        await file.write(0, b"y")
        after = file.stat()
    assert after.mtime_ns > 1
    assert after.ctime_ns > before.ctime_ns
    linked = await fs.link("a", "b")
    assert linked.ctime_ns > after.ctime_ns
    assert linked.mtime_ns == after.mtime_ns


async def test_relatime(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    now = time.time_ns()
    await fs.setattr("a", atime_ns=now - 10**9, mtime_ns=now)
    assert await fs.read("a") == b"x"
    first = (await fs.stat("a")).atime_ns
    assert first > now
    assert await fs.read("a") == b"x"
    assert (await fs.stat("a")).atime_ns == first
    await fs.setattr("a", atime_ns=now - 25 * 3600 * 10**9, mtime_ns=now - 26 * 3600 * 10**9)
    assert await fs.read("a") == b"x"
    assert (await fs.stat("a")).atime_ns > now
    fs.tick()
    await fs.kill()
    assert (await fs.stat("a")).atime_ns > now


# --- extended attributes --------------------------------------------------------------------------


async def test_xattrs(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    await fs.mkdir("d")
    for path in ("a", "d"):
        await fs.setxattr(path, b"user.one", b"\0\xff")
        await fs.setxattr(path, b"user.two", b"")
        await fs.setxattr(path, b"user.one", b"changed")
        assert sorted(await fs.listxattr(path)) == [b"user.one", b"user.two"]
        assert await fs.getxattr(path, b"user.one") == b"changed"
        await fs.removexattr(path, b"user.two")
        with pytest.raises(NoAttribute):
            await fs.getxattr(path, b"user.two")
        with pytest.raises(NoAttribute):
            await fs.removexattr(path, b"user.two")
    await fs.setxattr("a", b"user.big", bytes(65_536))
    with pytest.raises(TooLarge):
        await fs.setxattr("a", b"user.big", bytes(65_537))
    with pytest.raises(NameTooLong):
        await fs.setxattr("a", b"user." + b"x" * 251, b"")
    await fs.rename("a", "d/a")
    assert await fs.getxattr("d/a", b"user.one") == b"changed"


async def test_virtual_and_foreign_xattrs(fs: FileSystem) -> None:
    await fs.write("a", b"x")
    assert await fs.getxattr("a", b"user.unifs.state") == b"closed"
    async with fs.open("a", os.O_RDWR):
        assert await fs.getxattr("a", b"user.unifs.state") == b"open"
    await fs.storage.flusher.flush()
    assert await fs.getxattr("a", b"user.unifs.state") == b"sealed"
    assert await fs.listxattr("a") == []
    for name in (b"ipfs.cid", b"user.unifs.state", b"user.unifs.anything"):
        with pytest.raises(NotPermitted):
            await fs.setxattr("a", name, b"")
        with pytest.raises(NotPermitted):
            await fs.removexattr("a", name)
    for name in (b"security.selinux", b"system.posix_acl_access", b"trusted.x", b"what"):
        with pytest.raises(AttributeNamespace):
            await fs.getxattr("a", name)
        with pytest.raises(AttributeNamespace):
            await fs.setxattr("a", name, b"")


async def test_xattrs_of_a_file_that_is_not_committed(fs: FileSystem) -> None:
    file = await fs.open_file("a", CREATE)
    await fs.setxattr("a", b"user.x", b"1")
    await fs.kill()
    assert await fs.getxattr("a", b"user.x") == b"1"
    assert file.ino == (await fs.stat("a")).ino


async def test_an_inode_out_of_the_hot_table_is_the_same(fs: FileSystem) -> None:
    fs.vfs.inodes.hot_max = 4
    for index in range(40):
        await fs.write(f"f{index}", b"%d" % index)
    file = await fs.open_file("f3", os.O_RDWR)
    await file.write(0, b"three")
    for index in range(40):
        assert await fs.read(f"f{index}") == (b"three" if index == 3 else b"%d" % index)
    await file.close()
    assert fs.vfs.inodes.evictions > 20
    assert await fs.getxattr("f5", b"user.unifs.state") == b"closed"


async def test_statfs(fs: FileSystem) -> None:
    space = fs.vfs.statfs()
    assert 0 < space.available_bytes <= space.total_bytes
    assert space.name_max_bytes == 255
    changes = SetAttributes(mode=0o700)
    with pytest.raises(Stale):
        fs.vfs.setattr(999_999, changes, None, fs.caller)
