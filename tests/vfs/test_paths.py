"""Operations by path, as `unifs ctl files` asks for them: what bars the way is named."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.turns import turns_during
from tests.vfs.historyworld import Told
from tests.vfs.nodeworld import NodeSystem
from unifs.answers.files import FilesAnswer
from unifs.errors import Exists, InvalidArgument, NotADirectory, NotFound
from unifs.types import PlainCaller
from unifs.vfs.paths import COPY_BYTES, Paths
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.ipfs.cid import Cid
    from unifs.vfs.volume import Inode

#: More than Python's stack has frames for.
DEPTH = 400


def files(fs: NodeSystem) -> FilesAnswer:
    async def is_here(cid: Cid) -> bool:
        return True

    return FilesAnswer(Paths(fs.vfs, Told()), fs.node, is_here, fs.sealer.seal)


@pytest.mark.parametrize("source", ["/mfs/d", "/mfs//d", "/mfs/./d", "/mfs/d/", "//mfs/d"])
async def test_a_directory_goes_into_itself_by_no_spelling(tmp_path: Path, source: str) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.mkdir("d")
        await fs.write("d/file", b"1")
        for change in (files(fs).copy, files(fs).move):
            with pytest.raises(InvalidArgument, match=rf"^/mfs/d/d lies in {source}$"):
                await change(source, "/mfs/d")
        assert await fs.listdir("d") == [b"file"]


async def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        answer = files(fs)
        for change in (answer.copy("/mfs/x", "/mfs/y"), answer.move("/mfs/x", "/mfs/y")):
            with pytest.raises(NotFound, match=r"^/mfs/x does not exist$"):
                await change
        with pytest.raises(NotFound, match=r"^/mfs/x does not exist$"):
            await answer.remove("/mfs/x", recursive=True)


@pytest.mark.parametrize(
    ("mode", "copied"),
    [(0o755, 0o755), (0o600, 0o600), (0o666, 0o644), (0o4711, 0o711), (0o444, 0o644)],
)
@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_copy_has_the_permissions_of_its_source(
    tmp_path: Path, mode: int, copied: int, size: int
) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.mkdir("d", mode=0o700)
        await fs.write("d/file", bytes(size))
        await fs.setattr("d/file", mode=mode)
        await files(fs).copy("/mfs/d", "/mfs/copy")
        assert stat.S_IMODE((await fs.stat("copy/file")).mode) == copied
        assert stat.S_IMODE((await fs.stat("copy")).mode) == 0o700


async def test_symlinks_and_special_files_are_copied_as_what_they_are(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.mkdir("d")
        await fs.symlink(b"anywhere", "d/link")
        await fs.mknod("d/fifo", stat.S_IFIFO | 0o600)
        await fs.mknod("d/null", stat.S_IFCHR | 0o666, 0x103)
        answer = files(fs)
        await answer.copy("/mfs/d", "/mfs/copy")
        await answer.copy("/mfs/d/link", "/mfs/copied")
        assert await fs.readlink("copy/link") == await fs.readlink("copied") == b"anywhere"
        assert (await fs.stat("copy/fifo")).mode == stat.S_IFIFO | 0o600
        assert (await fs.stat("copy/null")).mode == stat.S_IFCHR | 0o644
        assert fs.vfs.inodes.get((await fs.stat("copy/null")).ino).attributes.st_rdev == 0x103


async def test_a_deep_tree_is_copied_and_removed(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        ino = fs.volume.root
        for _ in range(DEPTH):
            made = await complete(fs.vfs.mkdir, ino, b"a", 0o755, PlainCaller())
            ino = made.st_ino
        await files(fs).copy("/mfs/a", "/mfs/copy")
        await files(fs).remove("/mfs/a", True)
        assert await fs.listdir() == [b"copy"]
        assert await fs.exists("copy" + "/a" * (DEPTH - 1))


async def test_an_operation_on_a_deep_tree_walks_no_way_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NodeSystem(tmp_path) as fs:
        ino = fs.volume.root
        for _ in range(DEPTH):
            made = await complete(fs.vfs.mkdir, ino, b"a", 0o755, PlainCaller())
            ino = made.st_ino
        steps = 0
        step = Paths._step

        def counted(paths: Paths, parent: Inode, name: bytes) -> Inode:
            nonlocal steps
            steps += 1
            return step(paths, parent, name)

        monkeypatch.setattr(Paths, "_step", counted)
        known = dict(enumerate(fs.vfs.inodes.counts))
        await files(fs).copy("/mfs/a", "/mfs/copy")
        await files(fs).remove("/mfs/copy", True)
        assert DEPTH <= steps <= 20 * DEPTH
        assert await fs.listdir() == [b"a"]
        assert dict(enumerate(fs.vfs.inodes.counts)) == known, "nothing is held any more"


async def test_an_operation_lets_go_of_directories_beyond_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unifs.vfs.paths.HELD_MAX", 3)
    async with NodeSystem(tmp_path) as fs:
        for path in ("d", "d/e", "d/e/f", "d/e/f/g", "d/h"):
            await fs.mkdir(path)
        known = list(fs.vfs.inodes.counts)
        with Paths(fs.vfs, Told()).holding() as paths:
            for path in ("/mfs/d/e/f/g", "/mfs/d/h", "/mfs/d/e/f", "/mfs/d/h"):
                assert stat.S_ISDIR((await paths.stat(path)).mode)
                assert sum(fs.vfs.inodes.counts) == sum(known) + 3
            await fs.rmdir("d/h")
            with pytest.raises(NotFound, match=r"^/mfs/d/h/x does not exist$"):
                await paths.find("/mfs/d/h/x")
        assert list(fs.vfs.inodes.counts) == known


async def test_others_are_answered_while_a_large_file_is_copied(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        # One piece more than the turns: whose turn comes first is chance.
        await fs.write("large", bytes(33 * COPY_BYTES))
        copy = partial(Paths(fs.vfs, Told()).copy_file, "/mfs/large", "/mfs/copy")
        assert await turns_during(copy) >= 32
        assert await fs.read("copy") == bytes(33 * COPY_BYTES)


async def test_directories_above_are_made_but_not_through_a_file(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        paths = Paths(fs.vfs, Told())
        await paths.mkdir("/mfs/a/b", parents=True)
        await paths.mkdir("/mfs/a/b", parents=True)
        await fs.write("a/file", b"")
        for below in ("c", "c/d"):
            with pytest.raises(NotADirectory, match=r"^/mfs/a/file is not a directory$"):
                await paths.mkdir(f"/mfs/a/file/{below}", parents=True)
        with pytest.raises(Exists):
            await paths.mkdir("/mfs/a/file", parents=True)
        assert sorted(await fs.listdir("a")) == [b"b", b"file"]
