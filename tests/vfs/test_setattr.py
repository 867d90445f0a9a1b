"""A change of attributes that is answered with an error has not happened, in memory and in rows."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio

from tests.vfs.harness import FileSystem
from unifs.errors import NoSpace
from unifs.state import database as database_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SMALL = b"small bytes"
LARGE = bytes(range(256)) * 1000


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    async with FileSystem(tmp_path, upkeep=False) as system:
        yield system


CHANGES: list[dict[str, Any]] = [
    {"size_bytes": 0},
    {"size_bytes": 5},
    {"size_bytes": 300_000},
    {"mode": 0o600},
    {"uid": 7, "gid": 8, "atime_ns": 1, "mtime_ns": 2},
    {"size_bytes": 5, "mode": 0o600},
]


async def seen(fs: FileSystem) -> tuple[object, ...]:
    found = await fs.stat("a")
    return (found.size, found.mode, found.uid, found.gid, found.mtime_ns, await fs.read("a"))


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("how", ["deadline", "room", "full"])
async def test_what_failed_has_not_happened(
    fs: FileSystem,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    data: bytes,
    is_open: bool,
    how: str,
) -> None:
    await fs.write("a", data)
    file = await fs.open_file("a", os.O_RDWR) if is_open else None
    if file is not None:
        await file.write(len(data), b"more")
    before = await seen(fs)
    database = fs.storage.database
    limit = database_module.WAL_LIMIT_BYTES
    if how == "full":
        await _fails_on_a_full_disk(fs, monkeypatch, changes)
    else:
        monkeypatch.setattr(database, "_restarted", trio.sleep_forever)
        # Room for a part of it, or for nothing: the limit is met in the middle or at once.
        database.wal_bytes = limit + 1 if how == "deadline" else limit - 1
        with trio.move_on_after(0.01) as scope:
            await fs.setattr("a", **changes)
        if not scope.cancelled_caught:
            # The commit of what was written before has told the WAL's real size.
            assert (how, is_open) == ("room", True)
            before = await seen(fs)
        database.wal_bytes = 0
        monkeypatch.undo()
    assert await seen(fs) == before
    if file is not None:
        await file.write(0, b"S")
        assert (await seen(fs))[-1] == b"S" + before[-1][1:]  # type: ignore[index]
        await file.close()
    kept = await seen(fs)
    await fs.kill()
    assert await seen(fs) == kept


async def _fails_on_a_full_disk(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    database = fs.storage.database
    execute = database.execute
    # What was written before may go in; the change itself does not.
    left = 1 if await _is_dirty(fs) and "size_bytes" in changes else 0

    def full(sql: str, *bindings: Any) -> apsw.Cursor:
        nonlocal left
        if sql == "commit":
            if not left:
                raise apsw.FullError("database or disk is full")
            left -= 1
        return execute(sql, *bindings)

    monkeypatch.setattr(database, "execute", full)
    with pytest.raises(NoSpace) as failed:
        await fs.setattr("a", **changes)
    assert failed.value.errno == errno.ENOSPC
    monkeypatch.undo()


async def _is_dirty(fs: FileSystem) -> bool:
    inode = fs.vfs.inodes.get((await fs.stat("a")).ino)
    return inode.is_dirty()  # type: ignore[attr-defined, no-any-return]
