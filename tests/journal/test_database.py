"""The database and the state directory: versions, limits, full disks, owners."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import apsw
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.errors import (
    Corrupt,
    InvalidArgument,
    NoSpace,
    StateInUse,
    StateNewer,
    StateUnusable,
    UnifsError,
)
from unifs.state import database as database_module
from unifs.state import queries, schema
from unifs.state.database import Database
from unifs.state.directory import RESERVE_BYTES, StateDirectory, refuse_foreign
from unifs.state.queries import Reader
from unifs.vfs.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CREATE = os.O_CREAT | os.O_RDWR


async def test_an_empty_file_becomes_the_newest_schema(tmp_path: Path) -> None:
    database = Database(tmp_path / "tree.db")
    assert database.one("pragma user_version")[0] == schema.VERSION
    tables = {row[0] for row in database.all("select name from sqlite_master where type='table'")}
    assert {"inode", "dentry", "link", "content", "journal", "meta"} <= tables
    database.check()
    database.close()


def test_a_newer_version_is_refused_in_words(tmp_path: Path) -> None:
    Database(tmp_path / "tree.db").close()
    connection = apsw.Connection(str(tmp_path / "tree.db"))
    connection.execute(f"pragma user_version={schema.VERSION + 1}")
    connection.close()
    before = (tmp_path / "tree.db").read_bytes()
    with pytest.raises(StateNewer, match=f"format {schema.VERSION + 1}, .* up to {schema.VERSION}"):
        Database(tmp_path / "tree.db")
    assert (tmp_path / "tree.db").read_bytes() == before


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "tree.db").write_bytes(b"not a database " * 1000)
    with pytest.raises(Corrupt, match="not a sound database"):
        Database(tmp_path / "tree.db")


def test_a_rollback_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "tree.db")
    database.begin()
    database.set_meta("a", 1)
    database.rollback()
    database.begin()
    database.set_meta("b", 2)
    database.commit()
    assert (database.get_meta("a"), database.get_meta("b")) == (None, 2)
    database.rollback()
    database.close()


async def test_mutations_wait_at_the_wal_limit_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "WAL_LIMIT_BYTES", 200_000)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        database = fs.storage.database
        most = 0
        for index in range(300):
            await fs.write(f"f{index}", b"x")
            if index % 10 == 0:
                await fs.write("synced", b"y" * index, fsync=True)
            most = max(most, database.wal_bytes)
        assert 200_000 < most < 260_000
        assert (tmp_path / "tree.db-wal").stat().st_size < 400_000
        assert len(await fs.listdir()) == 301
        check(fs)
        # A look-up that found something must not keep the WAL from starting over.
        with trio.fail_after(1.5):
            for index in range(300):
                await fs.setattr(f"f{index}", mode=0o600)
        await fs.kill()
        assert len(await fs.listdir()) == 301


async def locked(path: Path) -> None:
    """Return when some connection holds the lock of who writes."""
    with closing(apsw.Connection(str(path), vfs=queries.VFS)) as other, trio.fail_after(60):
        while True:
            try:
                other.execute("begin immediate")
            except apsw.BusyError:
                return
            other.execute("rollback")
            await trio.sleep(0.001)


async def test_nobody_writes_while_the_wal_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who changes memory before he commits waits a little below the limit; the others with him."""
    limit_bytes = 400_000
    monkeypatch.setattr(database_module, "WAL_LIMIT_BYTES", limit_bytes)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        database = fs.storage.database
        index = 0
        while database.wal_bytes <= limit_bytes - limit_bytes // database_module.WAL_ROOM:
            await fs.write(f"f{index}", b"x")
            index += 1
        assert database.wal_bytes <= limit_bytes
        with closing(Reader(database.path)) as reader:
            reader.all("begin")
            reader.all("select count(*) from inode")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(fs.setattr, "f0", mode=0o600))
                await locked(database.path)
                nursery.start_soon(fs.write, "other", b"x")
                await wait_all_tasks_blocked()
                reader.all("rollback")
        assert (await fs.stat("f0")).mode & 0o777 == 0o600
        assert await fs.read("other") == b"x"


# --- the state directory --------------------------------------------------------------------------


async def test_in_use_names_the_first(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", "/mnt/tree")
    with pytest.raises(StateInUse, match=rf"pid {os.getpid()} \(mounted at /mnt/tree\)"):
        StateDirectory(tmp_path / "state")
    state.close()
    StateDirectory(tmp_path / "state").close()


def test_what_cannot_be_a_state_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateUnusable, match="cannot be used"):
            StateDirectory(path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "segments").write_bytes(b"in the way")
    with pytest.raises(StateUnusable):
        StateDirectory(tmp_path / "state")
    (tmp_path / "state" / "segments").unlink()
    StateDirectory(tmp_path / "state").close()


@pytest.mark.parametrize(
    ("names", "foreign"),
    [
        ([], ""),
        (["lost+found", "unifs.toml", "credentials.json", "unifs.log"], ""),
        (["lock", "data", "cache", "reserve"], ""),
        (["tree.db", "anything"], ""),
        (["data"], "data"),
        (["cache", "lost+found"], "cache"),
        (["lock", "notes"], "notes"),
        ([".bashrc"], ".bashrc"),
    ],
)
def test_files_of_others_are_no_state_directory(
    tmp_path: Path, names: list[str], foreign: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    if not foreign:
        refuse_foreign(tmp_path)
        return
    with pytest.raises(InvalidArgument, match=rf"not empty \('{re.escape(foreign)}' is in it\)"):
        refuse_foreign(tmp_path)


def test_a_claim_makes_it_one(tmp_path: Path) -> None:
    StateDirectory(tmp_path).close()
    (tmp_path / "notes").touch()
    refuse_foreign(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Take every free block of a disk."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    return isinstance(error, NoSpace) or getattr(error, "errno", 0) == errno.ENOSPC


@pytest.mark.root
async def test_a_full_disk(small_disk: Path) -> None:
    state = small_disk / "state"
    async with FileSystem(state, upkeep=False) as fs:
        await fs.write("large", b"L" * (2 << 20), fsync=True)
        kept = {}
        for index in range(100_000):
            data = b"%d" % index * 500
            try:
                await fs.write(f"f{index}", data)
            except (UnifsError, OSError) as error:
                failure = error
                break
            kept[f"f{index}"] = data
        assert is_full(failure)
        assert len(kept) > 100
        assert fs.storage.database.failed is None
        fill(small_disk)
        with pytest.raises((NoSpace, OSError)):
            await fs.write("more", b"m" * 5000)
        for name, data in kept.items():
            assert await fs.read(name) == data
        check(fs)
        # Deletes work, thanks to the reserve, and what they free can be used.
        names = [name for name in await fs.listdir() if name != b"large"]
        for name in names[:200]:
            await fs.unlink(name)
        await fs.unlink("large")
        assert not fs.storage.state.has_reserve
        check(fs)
        for name, data in kept.items():
            if name.encode() not in names[:200]:
                assert await fs.read(name) == data
        await fs.kill()
        check(fs)
        for name, data in kept.items():
            if name.encode() not in names[:200]:
                assert await fs.read(name) == data
        (small_disk / "filler").unlink()
        await fs.write("again", b"a" * 5000, fsync=True)
        assert await fs.read("again") == b"a" * 5000


@pytest.mark.root
@pytest.mark.parametrize("has_reserve", [True, False])
async def test_an_end_on_a_full_disk(
    small_disk: Path, caplog: pytest.LogCaptureFixture, has_reserve: bool
) -> None:
    """What needs room at the end takes the reserve; without one the next start needs some."""
    state = small_disk / "state"
    async with FileSystem(state, upkeep=False) as fs:
        await fs.write("kept", b"k" * 5000, fsync=True)
        await fs.open_file("pending", os.O_WRONLY | os.O_CREAT)
        if not has_reserve:
            fs.storage.state.give_up_reserve()
        fill(small_disk)
        with pytest.raises(NoSpace):
            await fs.mkdir("d")
    # What the end took of it is a small part.
    assert ((state / "reserve").stat().st_size >= RESERVE_BYTES // 2) is has_reserve
    if not has_reserve:
        assert "not everything fitted on the disk at the end" in caplog.text
        for _ in range(2):
            with pytest.raises(NoSpace, match=rf"to open the state directory {state}: free a few"):
                Storage(state)
        (small_disk / "filler").unlink()
    async with FileSystem(state, upkeep=False) as fs:
        assert await fs.read("kept") == b"k" * 5000
        (small_disk / "filler").unlink(missing_ok=True)
        await fs.mkdir("d")
        check(fs)


def test_a_part_of_the_reserve_becomes_all_of_it_where_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, room = os.posix_fallocate, RESERVE_BYTES // 4

    def some(descriptor: int, offset: int, size: int) -> None:
        if size > room:
            raise OSError(errno.ENOSPC, "no space")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", some)
    state = StateDirectory(tmp_path / "state")
    reserve = tmp_path / "state" / "reserve"
    assert state.has_reserve
    assert reserve.stat().st_size == room
    with monkeypatch.context() as patch:
        # It is not let go of for nothing.
        patch.setattr(StateDirectory, "free_bytes", lambda _: 0)
        room = 0
        assert state.restore_reserve()
    assert reserve.stat().st_size == RESERVE_BYTES // 4
    room = RESERVE_BYTES
    assert state.restore_reserve()
    assert reserve.stat().st_size == RESERVE_BYTES
    assert state.give_up_reserve()
    assert not state.has_reserve
    state.close()
