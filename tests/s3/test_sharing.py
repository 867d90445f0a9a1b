"""``unifs ctl files cp`` of bytes that are on this machine: they are named twice, not copied."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.s3.test_cids import read_whole, xattr
from unifs.errors import Exists, ReadOnly
from unifs.fsck import offline
from unifs.vfs import sealing
from unifs.vfs.paths import Paths
from unifs.vfs.sharing import share
from unifs.vfs.treeinode import TreeInode
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.s3.operations import Bench

MIB = 1 << 20
REFS = "select refs from content order by id"


@contextmanager
def in_mfs(bench: Bench) -> Iterator[None]:
    """Calls by path mean /mfs."""
    volumes = bench.system.daemon.trees.volumes.values()
    (mfs,) = [each for each in volumes if each.name == "mfs"]
    bench.system.volume = mfs  # type: ignore[assignment]
    try:
        yield
    finally:
        bench.system.choose("s3")


async def write(bench: Bench, path: str, data: bytes) -> None:
    """A file of /mfs."""
    with in_mfs(bench):
        await bench.system.write(path, data)


async def copy(bench: Bench, source: str, target: str) -> list[str]:
    """``files cp``; the files whose bytes were copied."""
    copied: list[str] = []
    copy_file = Paths.copy_file

    async def noted(paths: Paths, source: str, target: str) -> int:
        copied.append(source)
        return await copy_file(paths, source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Paths, "copy_file", noted)
        await bench.shell.text("ctl", "files", "cp", source, target)
    return copied


async def same(bench: Bench, **files: bytes) -> None:
    """What the files read as."""
    places = {"mfs": "/mfs", "s3": bench.top}
    for name, data in files.items():
        top, _, rest = name.partition("_")
        assert await read_whole(bench.system, f"{places[top]}/{rest}", len(data)) == data, name


async def test_what_is_in_mfs_goes_to_a_service_without_a_copy(bench: Bench) -> None:
    system, data = bench.system, os.urandom(3 * MIB + 5)
    await write(bench, "a", data)
    assert await copy(bench, "/mfs/a", f"{bench.top}/b") == []
    assert system.storage.tree.database.all(REFS, ()) == [(2,)]
    volume = system.volume
    assert volume.unsynced.size_bytes == len(data)
    await same(bench, mfs_a=data, s3_b=data)
    assert await xattr(system, f"{bench.top}/b") == await xattr(system, "/mfs/a")
    await system.sync()
    assert bench.get("b") == data
    assert volume.unsynced.size_bytes == 0
    # Neither hears of what is written to the other.
    await bench.write("b", b"theirs" * 20_000)
    await same(bench, mfs_a=data, s3_b=b"theirs" * 20_000)
    await copy(bench, "/mfs/a", f"{bench.top}/c")
    await write(bench, "a", b"mine" * 20_000)
    await same(bench, mfs_a=b"mine" * 20_000, s3_c=data)
    await system.sync()
    assert bench.get("c") == data


async def test_what_is_shared_survives_its_other_file_and_kills(bench: Bench) -> None:
    system, data = bench.system, os.urandom(2 * MIB)
    await write(bench, "a", data)
    assert await copy(bench, "/mfs/a", f"{bench.top}/b") == []
    bench.server.stop()
    await system.kill()
    with in_mfs(bench):
        await system.unlink("a")
    # Recovery trusts what is sealed, after a power cut too.
    await system.kill(boot="another")
    await same(bench, s3_b=data)
    bench.server.start()
    await system.sync()
    assert bench.get("b") == data
    await system.stop()
    assert offline.examine(system.path, is_thorough=True).found == []
    await system.start()


async def test_what_one_of_two_names_no_more_stays_for_the_other(bench: Bench) -> None:
    system, data = bench.system, os.urandom(2 * MIB)
    await bench.write("b", data)
    assert await copy(bench, f"{bench.top}/b", f"{bench.top}/c") == []
    await system.unlink(f"{bench.bucket}/b")
    await system.sync()
    # All that is released is let go.
    await system.stop()
    await system.start()
    await system.stop()
    assert offline.examine(system.path, is_thorough=True).found == []
    await system.start()
    assert system.storage.tree.database.all(REFS, ()) == [(1,)]
    await same(bench, s3_c=data)
    assert bench.get("c") == data


async def test_between_two_files_of_one_mount_and_below_directories(bench: Bench) -> None:
    system, data = bench.system, os.urandom(MIB)
    with in_mfs(bench):
        await system.mkdir("d")
    await write(bench, "d/large", data)
    await write(bench, "d/small", b"small")
    assert await copy(bench, "/mfs/d/large", "/mfs/again") == []
    assert await copy(bench, "/mfs/d", f"{bench.top}/d") == ["/mfs/d/small"]
    assert await copy(bench, f"{bench.top}/d/large", f"{bench.top}/e") == []
    assert system.storage.tree.database.all(REFS, ()) == [(4,)]
    await system.sync()
    assert [bench.get(key) for key in ("d/large", "d/small", "e")] == [data, b"small", data]
    with pytest.raises(Exists):
        await system.daemon.files.copy("/mfs/again", f"{bench.top}/e")


async def test_a_file_that_is_being_written_is_copied(bench: Bench) -> None:
    system, data = bench.system, os.urandom(MIB)
    await write(bench, "a", data)
    with in_mfs(bench):
        async with system.open("a", os.O_RDWR) as file:
            await file.write(0, b"open")
            assert await copy(bench, "/mfs/a", f"{bench.top}/b") == ["/mfs/a"]
            await file.write(0, b"more")
    await same(bench, mfs_a=b"more" + data[4:], s3_b=b"open" + data[4:])


async def test_what_is_not_sealed_yet_is_not_shared(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may take a part of it: from one file, not from two."""
    monkeypatch.setattr(sealing, "QUIET_S", 1e9)
    monkeypatch.setattr(sealing, "OPEN_S", 1e9)
    await write(bench, "a", os.urandom(MIB))
    find = bench.system.daemon.files._paths.find
    inode, parent = await find("/mfs/a"), await find(bench.top)
    assert isinstance(inode, TreeInode)
    assert isinstance(parent, TreeInode)
    shared = partial(share, inode, parent, b"b", bench.system.caller)
    assert not await complete(shared)
    await bench.system.daemon.sealer.seal(inode)
    assert await complete(shared)


@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "written-anew"])
async def test_what_has_gone_meanwhile_is_not_shared(bench: Bench, is_removed: bool) -> None:
    """Its content is let go of while the copy waits, by the inode that it found at first too."""
    system = bench.system
    await write(bench, "a", os.urandom(MIB))
    find = system.daemon.files._paths.find
    inode, parent = await find("/mfs/a"), await find(bench.top)
    assert isinstance(inode, TreeInode)
    assert isinstance(parent, TreeInode)
    await system.daemon.sealer.seal(inode)
    if is_removed:
        with in_mfs(bench):
            await system.unlink("a")
    else:
        # Nobody needs the object: it has made room for others.
        del system.vfs.inodes.hot[inode.ino]
        await write(bench, "a", b"anew")
    assert not await complete(partial(share, inode, parent, b"b", system.caller))
    assert await system.listdir(bench.bucket) == []


async def test_nothing_is_made_where_nothing_may_change(bench: Bench) -> None:
    await write(bench, "a", os.urandom(MIB))
    bench.system.volume.refuses_changes = True
    with pytest.raises(ReadOnly):
        await bench.system.daemon.files.copy("/mfs/a", f"{bench.top}/b")


async def test_a_state_directory_is_clean_after_an_upload(bench: Bench) -> None:
    """What an upload held is released by a record of nobody's, which is no fault."""
    await bench.write("large", os.urandom(2 * MIB))
    await bench.system.sync()
    sync = "select count(*) from journal where ino=0"
    assert bench.system.storage.tree.database.one(sync, ()) == (1,)
    await bench.system.stop()
    assert offline.examine(bench.system.path, is_thorough=True).found == []
    await bench.system.start()
