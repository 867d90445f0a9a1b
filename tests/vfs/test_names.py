"""Names: what may be one, links, renames, removals and listings, as POSIX has them."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    Stale,
    TooManyLinks,
)
from unifs.fsck.offline import examine
from unifs.types import PlainCaller
from unifs.vfs.tree import NEW_DIRECTORIES_MAX, NEW_NAMES_MAX
from unifs.vfs.treerename import RENAME_EXCHANGE, RENAME_NOREPLACE
from unifs.vfs.vfs import DOT_DOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STRANGE = (
    b"x" * 255,
    b"\xff\xfe not UTF-8",
    b"two\nlines",
    b"-rf",
    b" ",
    b"...",
    b"\xe2\x82\xac",
    b"a\\b*?\"'$(x)",
)


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    async with FileSystem(tmp_path, upkeep=False) as system:
        yield system
        check(system)
        before = await system.tree()
        await system.kill()
        assert await system.tree() == before
        check(system)


@pytest.mark.parametrize("name", STRANGE)
async def test_any_bytes_may_be_a_name(fs: FileSystem, name: bytes) -> None:
    await fs.write(name, b"1")
    await fs.mkdir(b"d")
    await fs.rename(name, b"d/" + name)
    await fs.symlink(name, b"d/s")
    await fs.setxattr(b"d/" + name, b"user.a", b"v")
    assert await fs.listdir("d") == [name, b"s"]
    assert await fs.readlink("d/s") == name
    assert await fs.read(b"d/" + name) == b"1"


@pytest.mark.parametrize("name", [b"x" * 256, b"\xff" * 256])
async def test_256_bytes_are_too_long(fs: FileSystem, name: bytes) -> None:
    await fs.write("a", b"")
    calls = [fs.write(name, b""), fs.mkdir(name), fs.link("a", name), fs.rename("a", name)]
    calls += [fs.symlink(b"t", name), fs.mknod(name), fs.stat(name)]
    for call in calls:
        with pytest.raises(NameTooLong):
            await call


@pytest.mark.parametrize("name", [b".", b"..", b"a\0b"])
async def test_what_cannot_be_a_name(fs: FileSystem, name: bytes) -> None:
    await fs.write("a", b"")
    calls = [fs.write(name, b""), fs.mkdir(name), fs.link("a", name), fs.rename("a", name)]
    for call in calls:
        with pytest.raises((InvalidArgument, NotFound)):
            await call
    assert await fs.listdir() == [b"a"]


@pytest.mark.parametrize("how", ["unlink", "rename"])
async def test_nothing_is_left_of_links_when_the_last_name_goes(tmp_path: Path, how: str) -> None:
    """Not in the rows either: `unifs fsck` finds nothing."""
    path = tmp_path / "linked"
    async with FileSystem(path, upkeep=False) as system:
        await system.mkdir("d")
        await system.write("d/a", b"x")
        await system.link("d/a", "b")
        await system.unlink("b")
        if how == "unlink":
            await system.unlink("d/a")
        else:
            await system.write("new", b"y")
            await system.rename("new", "d/a")
        check(system)
    assert examine(path).found == []


async def test_link_counts(fs: FileSystem) -> None:
    await fs.mkdir("d")
    await fs.mkdir("d/e")
    await fs.mkdir("f")
    await fs.write("a", b"x")
    await fs.link("a", "d/b")
    await fs.link("d/b", "d/e/c")
    assert [(await fs.stat(p)).nlink for p in ("", "d", "d/e", "f", "a", "d/b")] == [
        4, 3, 2, 2, 3, 3
    ]  # fmt: skip
    await fs.rename("d/e", "f/e")
    assert [(await fs.stat(p)).nlink for p in ("d", "f")] == [2, 3]
    await fs.unlink("a")
    await fs.unlink("d/b")
    assert (await fs.stat("f/e/c")).nlink == 1
    await fs.rename("f/e/c", "a")
    await fs.link("a", "b")
    await fs.rename("a", "b")
    assert {b"a", b"b"} <= set(await fs.listdir())
    await fs.rmdir("f/e")
    await fs.kill()
    assert [(await fs.stat(p)).nlink for p in ("", "d", "f", "a")] == [4, 2, 2, 2]


async def test_a_name_taken_or_missing(fs: FileSystem) -> None:
    await fs.mkdir("d")
    await fs.write("d/a", b"x")
    await fs.write("f", b"x")
    for call in (fs.mkdir("f"), fs.link("f", "d"), fs.symlink(b"x", "f"), fs.mknod("f")):
        with pytest.raises(Exists):
            await call
    with pytest.raises(Exists):
        await fs.open_file("f", os.O_CREAT | os.O_EXCL)
    for missing in (fs.unlink("x"), fs.rmdir("x"), fs.rename("x", "y"), fs.stat("d/x")):
        with pytest.raises(NotFound):
            await missing
    with pytest.raises(IsADirectory):
        await fs.unlink("d")
    with pytest.raises(NotADirectory):
        await fs.rmdir("f")
    with pytest.raises(NotEmpty):
        await fs.rmdir("d")
    with pytest.raises(NotPermitted):
        await fs.link("d", "e")
    with pytest.raises(IsADirectory):
        await fs.open_file("d", os.O_RDWR)


async def test_a_pending_file_keeps_its_directory(fs: FileSystem) -> None:
    await fs.mkdir("d")
    file = await fs.open_file("d/new", os.O_CREAT | os.O_RDWR)
    with pytest.raises(NotEmpty):
        await fs.rmdir("d")
    await fs.mkdir("e")
    with pytest.raises(NotEmpty):
        await fs.rename("e", "d")
    await fs.unlink("d/new")
    await fs.rmdir("d")
    await file.write(0, b"nobody sees this")
    assert await file.read() == b"nobody sees this"
    await file.close()
    await fs.rmdir("e")


async def test_nothing_is_made_in_a_removed_directory(fs: FileSystem) -> None:
    await fs.mkdir("d")
    await fs.write("a", b"")
    ino = (await fs.stat("d")).ino
    fs.vfs.lookup(fs.volume.root, b"d", fs.caller)
    await fs.rmdir("d")
    ours = fs.caller
    with pytest.raises(NotFound):
        fs.vfs.mkdir(ino, b"x", 0o755, ours)
    with pytest.raises(NotFound):
        fs.vfs.create(ino, b"x", 0o644, os.O_RDWR, ours)
    with pytest.raises(NotFound):
        fs.vfs.rename(fs.volume.root, b"a", ino, b"x", 0, ours)
    with pytest.raises(NotFound):
        fs.vfs.link((await fs.stat("a")).ino, ino, b"x", ours)
    assert fs.vfs.getattr(ino).st_nlink == 0
    fs.vfs.forget([(ino, 1)])
    fs.tick()
    with pytest.raises(Stale):
        fs.vfs.getattr(ino)


# --- rename ---------------------------------------------------------------------------------------


async def test_rename_replaces(fs: FileSystem) -> None:
    await fs.write("a", b"new")
    await fs.write("b", b"old")
    held = await fs.open_file("b")
    await fs.rename("a", "b")
    assert await fs.listdir() == [b"b"]
    assert await fs.read("b") == b"new"
    # The replaced inode stays openable until it is closed.
    assert await held.read() == b"old"
    assert held.stat().nlink == 0
    await held.close()


async def test_rename_with_flags(fs: FileSystem) -> None:
    await fs.write("a", b"1")
    await fs.mkdir("d")
    await fs.write("d/b", b"2")
    with pytest.raises(Exists):
        await fs.rename("a", "d/b", RENAME_NOREPLACE)
    await fs.rename("a", "d/b", RENAME_EXCHANGE)
    assert (await fs.read("a"), await fs.read("d/b")) == (b"2", b"1")
    with pytest.raises(NotFound):
        await fs.rename("a", "x", RENAME_EXCHANGE)
    await fs.rename("a", "x", RENAME_NOREPLACE)
    with pytest.raises(InvalidArgument):
        await fs.rename("x", "y", 4)
    await fs.mkdir("e")
    await fs.mkdir("e/sub")
    await fs.rename("e", "x", RENAME_EXCHANGE)
    assert stat.S_ISREG((await fs.stat("e")).mode)
    assert await fs.listdir("x") == [b"sub"]
    await fs.rename("x", "d/b", RENAME_EXCHANGE)
    assert [(await fs.stat(p)).nlink for p in ("", "d", "d/b")] == [3, 3, 3]


async def test_rename_of_directories(fs: FileSystem) -> None:
    await fs.mkdir("a")
    await fs.mkdir("a/b")
    await fs.mkdir("empty")
    await fs.write("file", b"")
    with pytest.raises(NotEmpty):
        await fs.rename("empty", "a")
    with pytest.raises(NotADirectory):
        await fs.rename("a", "file")
    with pytest.raises(IsADirectory):
        await fs.rename("file", "empty")
    await fs.rename("a", "empty")
    assert await fs.listdir("empty") == [b"b"]
    await fs.rename("empty", "empty")
    assert [(await fs.stat(p)).nlink for p in ("", "empty")] == [3, 3]


async def test_no_directory_moves_below_itself(fs: FileSystem) -> None:
    await fs.mkdir("a")
    await fs.mkdir("a/b")
    await fs.mkdir("a/b/c")
    await fs.write("a/b/f", b"x")
    for target in ("a/x", "a/b/x", "a/b/c/x", "a/b/c"):
        with pytest.raises(InvalidArgument):
            await fs.rename("a", target)
    for one, other in (("a", "a/b"), ("a/b/c", "a"), ("a/b/f", "a"), ("a", "a/b/f")):
        with pytest.raises(InvalidArgument):
            await fs.rename(one, other, RENAME_EXCHANGE)
    # A file with a second name does not say in which directory it lies.
    await fs.link("a/b/f", "second")
    for one, other in (("a/b/f", "a"), ("a", "a/b/f"), ("a/b/f", "a/b")):
        with pytest.raises(InvalidArgument):
            await fs.rename(one, other, RENAME_EXCHANGE)
    await fs.rename("second", "a", RENAME_EXCHANGE)
    assert await fs.listdir("second") == [b"b"]


async def test_a_file_may_have_so_many_links(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unifs.vfs.treenames.LINKS_MAX", 3)
    await fs.write("a", b"x")
    await fs.link("a", "b")
    await fs.link("a", "c")
    with pytest.raises(TooManyLinks) as caught:
        await fs.link("a", "d")
    assert caught.value.errno == errno.EMLINK
    await fs.unlink("b")
    await fs.link("a", "d")
    assert (await fs.stat("a")).nlink == 3


async def test_hard_links_move_one_by_one(fs: FileSystem) -> None:
    for name in ("d", "e"):
        await fs.mkdir(name)
    await fs.write("d/a", b"x")
    await fs.link("d/a", "e/b")
    await fs.rename("d/a", "e/a")
    await fs.rename("e/b", "d/b", RENAME_NOREPLACE)
    await fs.write("other", b"y")
    await fs.rename("other", "d/b")
    assert (await fs.stat("e/a")).nlink == 1
    assert await fs.read("e/a") == b"x"
    await fs.link("e/a", "e/c")
    await fs.rename("e/c", "d/b", RENAME_EXCHANGE)
    assert (await fs.read("d/b"), await fs.read("e/c")) == (b"x", b"y")
    await fs.kill()
    check(fs)
    assert (await fs.stat("d/b")).ino == (await fs.stat("e/a")).ino


async def test_rename_over_a_directory_that_is_listed(fs: FileSystem) -> None:
    await fs.write("pending", b"")
    await fs.write("b", b"")
    file = await fs.open_file("new", os.O_CREAT | os.O_WRONLY)
    await file.write(0, b"not closed")
    await fs.rename("new", "b")
    assert await fs.read("b") == b"not closed"
    await file.write(10, b"!")
    await file.close()
    assert await fs.read("b") == b"not closed!"


# --- owners ---------------------------------------------------------------------------------------


async def test_owner_and_group(fs: FileSystem) -> None:
    fs.caller = PlainCaller(uid=5, gid=6)
    await fs.mkdir("plain")
    await fs.mkdir("shared")
    await fs.setattr("shared", mode=0o2775, gid=77)
    await fs.mkdir("shared/sub")
    await fs.write("shared/file", b"")
    await fs.mkdir("plain/sub")
    await fs.symlink(b"x", "shared/link")
    owners = {}
    for path in ("plain/sub", "shared/sub", "shared/file", "shared/link"):
        found = await fs.stat(path)
        owners[path] = (found.uid, found.gid, bool(found.mode & stat.S_ISGID))
    assert owners == {
        "plain/sub": (5, 6, False),
        "shared/sub": (5, 77, True),
        "shared/file": (5, 77, False),
        "shared/link": (5, 77, False),
    }


async def test_special_files(fs: FileSystem) -> None:
    await fs.mknod("fifo", stat.S_IFIFO | 0o640)
    await fs.mknod("socket", stat.S_IFSOCK | 0o640)
    await fs.mknod("device", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    assert (await fs.stat("device")).rdev == os.makedev(8, 1)
    assert stat.S_ISFIFO((await fs.stat("fifo")).mode)
    with pytest.raises(InvalidArgument):
        await fs.mknod("x", stat.S_IFDIR | 0o755)
    with pytest.raises(InvalidArgument):
        await fs.truncate("fifo", 10)


async def test_symlinks(fs: FileSystem) -> None:
    target = b"/" + b"x" * 4094
    await fs.symlink(target, "a")
    assert await fs.readlink("a") == target
    assert (await fs.stat("a")).size == 4095
    with pytest.raises(NameTooLong):
        await fs.symlink(target + b"x", "b")
    await fs.link("a", "c")
    await fs.setattr("a", mtime_ns=5)
    assert await fs.readlink("c") == target
    with pytest.raises(InvalidArgument):
        await fs.readlink("")


# --- listings -------------------------------------------------------------------------------------


class Stream:
    """readdir in steps of a few entries, as the kernel asks."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.fh = fs.vfs.opendir(fs.volume.root, fs.caller)
        self.offset = DOT_DOT
        #: Of what came last.
        self.sizes: list[int] = []

    def next(self, count: int) -> list[bytes]:
        names: list[bytes] = []
        self.sizes.clear()

        def emit(name: bytes, attributes: object, offset: int) -> bool:
            if len(names) == count:
                return False
            names.append(name)
            self.sizes.append(attributes.st_size)  # type: ignore[attr-defined]
            self.fs.vfs.forget([(attributes.st_ino, 0)])  # type: ignore[attr-defined]
            if name not in (b".", b".."):
                seen.append((attributes.st_ino, 1))  # type: ignore[attr-defined]
            self.offset = offset
            return True

        seen: list[tuple[int, int]] = []
        self.fs.vfs.readdir(self.fh, self.offset, emit)
        self.fs.vfs.forget(seen)
        return names

    def close(self) -> None:
        self.fs.vfs.releasedir(self.fh)


@pytest.mark.parametrize("leaving", ["nobody", "all at the start", "all on the way", "some"])
async def test_a_stream_whatever_is_hot(fs: FileSystem, leaving: str) -> None:
    for index in range(600):
        await fs.write(b"%03d" % index, bytes(index))
    fs.tick()
    hot = fs.vfs.inodes.hot
    stream = Stream(fs)

    def leave(step: int) -> None:
        for ino in [ino for ino, inode in hot.items() if not inode.is_busy()][::step]:
            del hot[ino]

    if leaving == "all at the start":
        leave(1)
    seen = {}
    while page := stream.next(7):
        seen |= zip(page, stream.sizes, strict=True)
        if len(seen) == 70 and leaving in ("all on the way", "some"):
            leave(1 if leaving == "all on the way" else 3)
    assert seen == {b"%03d" % index: index for index in range(600)}
    stream.close()


async def test_a_stream_under_changes(fs: FileSystem) -> None:
    for index in range(600):
        await fs.write(b"%03d" % index, b"")
    stream = Stream(fs)
    seen = stream.next(10)
    assert seen == [b"%03d" % index for index in range(10)]
    for index in (5, 10, 11, 300, 599):
        await fs.unlink(b"%03d" % index)
    await fs.write("later", b"")
    fs.tick()
    while page := stream.next(7):
        seen += page
    gone = {b"010", b"011", b"300", b"599"}
    wanted = [b"%03d" % index for index in range(600) if b"%03d" % index not in gone]
    # What comes after the stream's start is for the next one: so every listing ends.
    assert wanted == seen
    stream.offset = DOT_DOT
    assert stream.next(3) == [b"000", b"001", b"002"]
    assert stream.next(1000)[-1] == b"later"
    stream.close()


async def test_a_listing_starts_with_dots_and_goes_on_in_the_same_reply(fs: FileSystem) -> None:
    await fs.write("a", b"")
    open_file = await fs.open_file("b", os.O_CREAT | os.O_RDWR)
    stream = Stream(fs)
    stream.offset = 0
    assert stream.next(9) == [b".", b"..", b"a", b"b"]
    assert stream.next(9) == []
    await fs.write("c", b"")
    assert stream.next(9) == []
    stream.offset = 0
    assert [stream.next(1) for _ in range(6)] == [[b"."], [b".."], [b"a"], [b"b"], [b"c"], []]
    stream.close()
    await open_file.close()


@pytest.mark.parametrize("where", ["", "new/"])
async def test_a_name_is_looked_for_again_after_every_change(fs: FileSystem, where: str) -> None:
    await fs.mkdir("new")
    a, b, c = where + "a", where + "b", where + "c"
    assert not await fs.exists(a)
    await fs.write(a, b"1")
    assert await fs.read(a) == b"1"
    await fs.rename(a, b)
    assert not await fs.exists(a)
    await fs.write(a, b"2")
    await fs.rename(a, b)
    assert await fs.read(b) == b"2"
    await fs.link(b, c)
    await fs.unlink(b)
    assert (await fs.exists(b), await fs.exists(c)) == (False, True)
    await fs.symlink(b"c", a)
    await fs.rename(a, c, RENAME_EXCHANGE)
    assert (await fs.read(a), await fs.readlink(c)) == (b"2", b"c")
    await fs.mkdir(where + "d")
    with pytest.raises(Exists):
        await fs.mkdir(where + "d")


async def test_more_new_directories_and_names_than_are_kept_in_mind(fs: FileSystem) -> None:
    for index in range(NEW_NAMES_MAX + 2):
        await fs.mkdir(f"{index}")
    await fs.mkdir("many")
    for index in range(NEW_NAMES_MAX + 2):
        await fs.mknod(f"many/{index}")
    assert await fs.exists("0")
    assert await fs.exists(f"many/{NEW_NAMES_MAX + 1}")
    assert not await fs.exists(f"many/{NEW_NAMES_MAX + 2}")
    known = fs.volume.tree._names_of_new
    assert len(known) == NEW_DIRECTORIES_MAX - 1
    assert fs.volume.root not in known


async def test_removing_while_listing_finds_everything(fs: FileSystem) -> None:
    for index in range(600):
        await fs.write(b"%03d" % index, b"")
    stream = Stream(fs)
    while page := stream.next(25):
        for name in page:
            await fs.unlink(name)
    stream.close()
    assert await fs.listdir() == []


async def test_a_listing_shows_files_that_are_still_open(fs: FileSystem) -> None:
    file = await fs.open_file("new", os.O_CREAT | os.O_RDWR)
    assert await fs.listdir() == [b"new"]
    await file.write(0, b"abc")
    assert (await fs.stat("new")).size == 3
    await file.close()
