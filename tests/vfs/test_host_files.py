"""Files of /local: reading, writing, syncing, and what is open without a name."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from tests.vfs.hostworld import PREFIX, ROOT, World, read
from unifs.errors import Stale
from unifs.types import PlainCaller, SetAttributes
from unifs.vfs.volume import INO_SHIFT
from unifs.waiting import WouldBlock, complete

if TYPE_CHECKING:
    from pathlib import Path


# --- files --------------------------------------------------------------------------------------


async def test_what_is_written_is_in_the_host_file_at_once(world: World) -> None:
    inode, handle = world.volume.create(world.root, b"a", 0o640, os.O_RDWR, ROOT)
    assert handle.write(0, b"hello") == 5
    assert (world.directory / "a").read_bytes() == b"hello"
    assert await read(handle, 1, 100) == b"ello"
    assert await read(handle, 5, 100) == b""
    handle.flush()
    handle.release()
    attributes = world.volume.getattr(inode)
    assert stat.S_IMODE(attributes.st_mode) == 0o640
    assert (attributes.st_size, attributes.st_ino) == (5, inode.ino)
    assert inode.ino >> INO_SHIFT == PREFIX


@pytest.mark.parametrize("size", [4096, 128 << 10, (128 << 10) + 1, 1 << 20])
async def test_small_writes_are_inline_and_large_ones_wait_for_a_thread(
    world: World, size: int
) -> None:
    _, handle = world.volume.create(world.root, b"a", 0o644, os.O_RDWR, ROOT)
    data = os.urandom(size)
    if size > 128 << 10:
        with pytest.raises(WouldBlock) as blocked:
            handle.write(0, data)
        assert blocked.value.mount == "local/test"
    assert await complete(handle.write, 3, data) == size
    assert (world.directory / "a").read_bytes() == b"\0\0\0" + data
    assert await read(handle, 3, size) == data
    handle.release()


async def test_a_read_of_cold_pages_comes_from_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make(b"a", b"cold bytes")
    handle = world.volume.open(world.find(b"a"), os.O_RDONLY, ROOT)

    def cold(*args: object) -> int:
        raise OSError(errno.EAGAIN, "would block")

    monkeypatch.setattr(os, "preadv", cold)
    with pytest.raises(WouldBlock):
        handle.read(0, 4)
    assert await read(handle, 5, 100) == b"bytes"
    handle.release()


async def test_a_short_inline_read_is_completed_unless_the_file_ends_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make(b"a", b"0123456789")
    handle = world.volume.open(world.find(b"a"), os.O_RDONLY, ROOT)
    whole = os.preadv

    def half(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        return whole(fd, [buffers[0][:4]], offset, flags)

    monkeypatch.setattr(os, "preadv", half)
    with pytest.raises(WouldBlock):
        handle.read(0, 8)
    assert await read(handle, 0, 8) == b"01234567"
    assert bytes(handle.read(6, 8)) == b"6789"
    handle.release()


async def test_appending_goes_to_the_end_whoever_made_it_longer(world: World) -> None:
    world.make(b"log", b"one\n")
    handle = world.volume.open(world.find(b"log"), os.O_WRONLY | os.O_APPEND, ROOT)
    with (world.directory / "log").open("ab") as other:
        other.write(b"two\n")
    handle.write(4, b"three\n")
    handle.release()
    assert (world.directory / "log").read_bytes() == b"one\ntwo\nthree\n"


async def test_fsync_of_files_and_directories_returns_when_a_thread_has_done_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_sync, real_data = os.fsync, os.fdatasync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append("all"), real_sync(fd))[1])
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append("data"), real_data(fd))[1])
    _, handle = world.volume.create(world.root, b"a", 0o644, os.O_RDWR, ROOT)
    await complete(handle.fsync, True)
    await complete(handle.fsync, False)
    handle.release()
    directory = world.volume.opendir(world.root)
    await complete(directory.fsync, False)
    directory.release()
    assert synced == ["data", "all", "all"]


async def test_a_synchronous_handle_writes_through_to_the_disk(world: World) -> None:
    _, handle = world.volume.create(world.root, b"a", 0o644, os.O_RDWR | os.O_SYNC, ROOT)
    with pytest.raises(WouldBlock):
        handle.write(0, b"x")
    assert await complete(handle.write, 0, b"x") == 1
    handle.release()


async def test_flush_reports_what_the_host_reports_at_close(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handle = world.volume.create(world.root, b"a", 0o644, os.O_RDWR, ROOT)
    handle.flush()
    handle.write(0, b"x")
    with monkeypatch.context() as patch:

        def full(fd: int) -> int:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        patch.setattr(os, "dup", full)
        with pytest.raises(OSError, match="quota"):
            handle.flush()
    handle.flush()
    handle.release()


async def test_a_disk_that_fills_up_midway_is_a_short_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handle = world.volume.create(world.root, b"a", 0o644, os.O_RDWR, ROOT)
    whole = os.pwrite

    def filling(fd: int, data: bytes, offset: int) -> int:
        if offset >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(fd, data[:3], offset)

    monkeypatch.setattr(os, "pwrite", filling)
    assert handle.write(0, b"0123456789") == 6
    with pytest.raises(OSError, match="space"):
        handle.write(6, b"6789")
    handle.release()


async def test_an_unlinked_open_file_stays_usable(world: World) -> None:
    inode = world.make(b"a", b"still here")
    handle = world.volume.open(inode, os.O_RDWR, ROOT)
    world.volume.unlink(world.root, b"a", ROOT)
    assert await read(handle, 0, 100) == b"still here"
    assert world.volume.getattr(inode).st_nlink == 0
    world.volume.setattr(inode, SetAttributes(mode=0o600, size_bytes=5), None, ROOT)
    assert world.volume.getattr(inode).st_size == 5
    handle.release()
    world.volume.forgotten(inode.ino)
    with pytest.raises(Stale):
        world.volume.load(inode.ino)


@pytest.mark.parametrize("how", ["unlink", "rename", "rmdir"])
async def test_what_lost_its_name_is_reachable_until_it_is_forgotten(
    world: World, how: str
) -> None:
    if how == "rmdir":
        inode = world.volume.mkdir(world.root, b"a", 0o755, ROOT)
        world.volume.rmdir(world.root, b"a", ROOT)
    else:
        inode = world.make(b"a", b"old")
        if how == "unlink":
            world.volume.unlink(world.root, b"a", ROOT)
        else:
            world.make(b"new", b"new")
            world.volume.rename(world.root, b"new", world.root, b"a", 0)
    assert world.volume.getattr(inode).st_ino == inode.ino
    if how == "rename":
        handle = world.volume.open(inode, os.O_RDONLY, ROOT)
        assert await read(handle, 0, 10) == b"old"
        handle.release()
        assert world.find(b"a").ino != inode.ino
    world.volume.forgotten(inode.ino)
    with pytest.raises(Stale):
        world.volume.load(inode.ino)


async def test_open_truncates_and_clears_set_id_for_ordinary_callers(world: World) -> None:
    world.make(b"a", b"x" * 10)
    os.chmod(world.directory / "a", 0o6777)
    world.volume.open(world.find(b"a"), os.O_WRONLY | os.O_TRUNC, ROOT).release()
    if os.geteuid() == 0:
        assert stat.S_IMODE(os.stat(world.directory / "a").st_mode) == 0o6777
    caller = PlainCaller(uid=1234, gid=1234)
    world.volume.open(world.find(b"a"), os.O_WRONLY | os.O_TRUNC, caller).release()
    status = os.stat(world.directory / "a")
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (0, 0o777)


async def test_creating_what_exists_opens_it_unless_exclusive(world: World) -> None:
    first = world.make(b"a", b"content")
    again, handle = world.volume.create(world.root, b"a", 0o600, os.O_RDWR, ROOT)
    assert again.ino == first.ino
    assert await read(handle, 0, 10) == b"content"
    handle.release()
    with pytest.raises(FileExistsError):
        world.volume.create(world.root, b"a", 0o600, os.O_RDWR | os.O_EXCL, ROOT)


# --- pages that the kernel may keep ---------------------------------------------------------------


async def test_cached_pages_are_kept_only_while_the_file_is_unchanged(world: World) -> None:
    inode = world.make(b"a", b"one")
    path = world.directory / "a"

    def opened() -> bool:
        handle = world.volume.open(inode, os.O_RDONLY, ROOT)
        handle.release()
        return handle.keep_cache

    settle(path)
    assert not opened()
    assert opened()
    path.write_bytes(b"two")
    settle(path)
    assert not opened()
    assert opened()


async def test_a_file_younger_than_two_ticks_is_not_trusted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = world.make(b"a", b"one")
    born_ns = os.stat(world.directory / "a").st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: born_ns + 10_000_000)
    for _ in range(3):
        handle = world.volume.open(inode, os.O_RDONLY, ROOT)
        handle.release()
        assert not handle.keep_cache


def settle(path: Path) -> None:
    """Wait until the file's last change is two clock ticks old."""
    while time.time_ns() - os.stat(path).st_ctime_ns <= 20_000_000:
        time.sleep(0.001)
