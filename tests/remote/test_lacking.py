"""Backends that lack something, and one that profits from batches."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown
from unifs.errors import CrossMount, NotFound, UnifsError, Unreachable, Unsupported
from unifs.mounts.base import Mount

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from unifs.mounts.base import ContentReader
    from unifs.types import Change, Node


class NoRename(RemoteMount):
    rename = Mount.rename


class FilesOnly(RemoteMount):
    """No symlinks, no attributes."""

    set_attributes = Mount.set_attributes

    async def make(self, path: str, node: Node, token: str) -> Node:
        if not stat.S_ISDIR(node.mode):
            raise Unsupported("only files and directories")
        return await super().make(path, node, token)


class Batching(RemoteMount):
    """Takes many changes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def commit(
        self, changes: Sequence[tuple[Change, ContentReader | None]]
    ) -> list[Node | UnifsError | None]:
        self.batches.append(len(changes))
        return await super().commit(changes)


async def test_a_file_moves_without_rename(clock: MockClock, tmp_path: Path) -> None:
    mount = NoRename()
    mount.change("theirs", b"remote")
    async with RemoteSystem(tmp_path / "s", mount) as system:
        await system.write("mine", b"local")
        await system.sync()
        await system.rename("mine", "mine2")
        await system.rename("theirs", "theirs2")
        await system.sync()
        assert everything(mount) == {"mine2": b"local", "theirs2": b"remote"}
        assert await shown(system) == everything(mount)
        await system.rename("mine2", "theirs2")
        await system.sync()
        assert everything(mount) == {"theirs2": b"local"}


async def test_a_directory_without_rename_is_another_file_system(
    clock: MockClock, tmp_path: Path
) -> None:
    async with RemoteSystem(tmp_path / "s", NoRename()) as system:
        await system.mkdir("d")
        with pytest.raises(CrossMount):
            await system.rename("d", "e")


async def test_a_lost_answer_while_moving_leaves_no_copy(clock: MockClock, tmp_path: Path) -> None:
    mount = NoRename()
    async with RemoteSystem(tmp_path / "s", mount) as system:
        await system.write("a", b"x")
        await system.sync()
        await system.rename("a", "b")
        mount.fail("put", Unreachable(), after=True)
        mount.fail("remove", Unreachable(), after=True)
        await system.sync()
        assert everything(mount) == {"b": b"x"}


async def test_what_cannot_be_kept_there_is_kept_here(clock: MockClock, tmp_path: Path) -> None:
    mount = FilesOnly()
    async with RemoteSystem(tmp_path / "s", mount) as system:
        await system.mkdir("d", 0o700)
        await system.symlink(b"target", "d/s")
        await system.mknod("d/fifo", stat.S_IFIFO | 0o600)
        await system.write("d/f", b"x")
        await system.setattr("d/f", mode=0o755)
        await system.sync()
        assert everything(mount) == {"d": None, "d/f": b"x"}
        await system.remount()
        assert await system.readlink("d/s") == b"target"
        assert stat.S_ISFIFO((await system.stat("d/fifo")).mode)
        assert (await system.stat("d/f")).mode & 0o777 == 0o755
        await system.unlink("d/s")
        await system.unlink("d/fifo")
        await system.sync()
        with pytest.raises(NotFound):
            await system.stat("d/s")


async def test_local_attributes_survive_a_remote_change(clock: MockClock, tmp_path: Path) -> None:
    import trio

    mount = FilesOnly()
    mount.change("a", b"1")
    async with RemoteSystem(tmp_path / "s", mount) as system:
        await system.setattr("a", mode=0o755)
        await system.sync()
        mount.change("a", b"22")
        await trio.sleep(31)
        found = await system.stat("a")
        assert (found.size, found.mode & 0o777) == (2, 0o755)


async def test_independent_changes_go_in_one_batch(clock: MockClock, tmp_path: Path) -> None:
    mount = Batching()
    async with RemoteSystem(tmp_path / "s", mount) as system:
        await system.mkdir("d")
        for number in range(20):
            await system.write(f"d/f{number}", b"%d" % number)
        mount.fail("put", Unreachable())
        await system.sync()
        assert mount.batches[:3] == [1, 1, 20]
        expected: dict[str, Any] = {f"d/f{number}": b"%d" % number for number in range(20)}
        assert everything(mount) == {"d": None, **expected}
