"""The journal as people see it: what is unsynced, and of which path a change was."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.vfs.harness import FileSystem
from tests.vfs.historyworld import Told
from tests.vfs.nodeworld import NodeSystem
from unifs.answers.journal import JournalAnswer, Waiting
from unifs.answers.remotejournal import RemoteJournal
from unifs.vfs.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(200_000)


def journal(fs: NodeSystem) -> JournalAnswer:
    remotes = RemoteJournal([], fs.writer)  # type: ignore[arg-type]
    paths = Paths(fs.vfs, Told())
    volumes = {fs.volume.mount_id: fs.volume}
    return JournalAnswer(fs.writer, fs.sealer, fs.roots, paths, volumes, remotes)


async def test_changes_are_unsynced_until_they_are_on_the_disk(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        answer = journal(fs)
        await fs.storage.flusher.flush()
        assert answer.waiting("mfs") == Waiting(0, 0)
        await fs.mkdir("d")
        await fs.write("d/small", b"12345")
        waiting = answer.waiting("mfs")
        assert (waiting.count >= 2, waiting.size_bytes) == (True, 5)
        await fs.storage.flusher.flush()
        assert fs.roots.changed(), "no CID of /mfs has them yet, which is nothing that can be lost"
        assert answer.waiting("mfs") == Waiting(0, 0)
        counts = await answer.status(None)
        assert (counts.open, counts.closed, counts.sealed) == (0, 0, waiting.count)


async def test_a_large_file_is_unsynced_until_its_bytes_are_on_the_disk(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        answer = journal(fs)
        async with fs.open("large", os.O_CREAT | os.O_WRONLY) as file:
            await file.write(0, LARGE)
            await fs.storage.flusher.flush()
            assert answer.waiting("mfs") == Waiting(1, len(LARGE))
        await fs.storage.flusher.flush()
        assert answer.waiting("mfs") == Waiting(1, len(LARGE)), "its record is there, not its bytes"
        await fs.seal()
        assert answer.waiting("mfs") == Waiting(0, 0), "the note that it was sealed is no change"


async def test_a_change_of_what_is_gone_has_the_path_that_it_had(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.mkdir("d")
        await fs.write("d/a", b"1")
        await fs.rename("d/a", "b")
        await fs.unlink("b")
        await fs.rmdir("d")
        await fs.write("c", b"2")
        await FileSystem.link(fs, "c", "other")
        await fs.unlink("c")
        listed = [each async for each in journal(fs).list(None, None, 100)]
        told = {(each.operation, each.path) for each in listed}
        assert ("mkdir", "/mfs/d") not in told, "there is no such operation"
        assert {("rmdir", "/mfs/d"), ("unlink", "/mfs/b"), ("rename", "/mfs/b")} <= told
        assert {("unlink", "/mfs/c"), ("link", "/mfs/other")} <= told, "it has another name still"
        assert ("create", "/mfs/d") in told
        unknown = [each.operation for each in listed if each.path.startswith("inode ")]
        assert unknown == ["create"], "of d/a: its directory is gone too"


async def test_a_change_of_the_root_is_one_of_the_mount(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.setattr("", mode=0o700)
        listed = [each.path async for each in journal(fs).list(None, None, 10)]
        assert listed == ["/mfs"]
