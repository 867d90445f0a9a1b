"""CIDs of files below /s3: which are known, which are not, and what a copy makes of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from tests.s3.operations import Bench, daemon_of
from unifs.errors import NoAttribute
from unifs.ipfs.unixfs.builder import FileBuilder
from unifs.vfs import remotecold
from unifs.vfs.paths import Paths
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from tests.remotes.system import DaemonSystem
    from tests.servers.s3 import S3Server

MIB = 1 << 20


def cid_of(system: DaemonSystem, data: bytes) -> str:
    """As ``unifs ctl add --only-hash``."""
    profile = system.storage.profile
    builder = FileBuilder(profile, None)
    for start in range(0, len(data), profile.chunk_bytes):
        builder.add_leaf(data[start : start + profile.chunk_bytes])
    return str(builder.finish().cid)


async def xattr(system: DaemonSystem, path: str) -> str:
    inode = await system.daemon.files._paths.find(path)
    value: bytes = await complete(inode.volume.getxattr, inode, b"ipfs.cid")
    return value.decode()


async def cool(system: DaemonSystem, *paths: str) -> None:
    """As a minute after everything has arrived: the bytes are in the cache only."""
    await trio.lowlevel.checkpoint()
    for inode in list(system.writer.unsealed.values()):
        await system.daemon.sealer.seal(inode)
    await system.storage.flusher.flush()
    for path in paths:
        inode = await system.daemon.files._paths.find(path)
        await system.volume.cold._try(inode.ino)
        assert inode.stored[0] == remotecold.remote_blob(0, "")[0]


async def test_what_was_written_here_has_its_cid_also_when_its_bytes_are_gone(
    both: Bench,
) -> None:
    system = both.system
    contents = {"empty": b"", "small": b"small", "large": os.urandom(2 * MIB + 5)}
    for name, data in contents.items():
        await both.write(name, data)
        assert await xattr(system, f"{both.top}/{name}") == cid_of(system, data)
    await system.sync()
    await cool(system, f"{both.top}/small", f"{both.top}/large")
    for name, data in contents.items():
        assert await xattr(system, f"{both.top}/{name}") == cid_of(system, data)
    await system.stop()
    await system.start()
    system.choose("s3")
    for name, data in contents.items():
        assert await xattr(system, f"{both.top}/{name}") == cid_of(system, data)
    told = await both.shell.json("ctl", "files", "stat", f"{both.top}/large")
    assert told[0]["cid"] == cid_of(system, contents["large"])


async def test_somebody_elses_bytes_have_none_until_they_are_hashed(bench: Bench) -> None:
    system, data = bench.system, os.urandom(3 * MIB + 1)
    bench.put("theirs", data)
    path = f"{bench.top}/theirs"
    with pytest.raises(NoAttribute):
        await xattr(system, path)
    fetched = system.daemon.cache.statistics().fetched_bytes
    assert fetched == 0
    told = await bench.one("cid", path)
    assert (told["cid"], told["size_bytes"]) == (cid_of(system, data), len(data))
    assert await xattr(system, path) == told["cid"]
    # Another version has another one, and nobody knows it.
    bench.put("theirs", b"changed")
    await bench.shell.json("ctl", "refresh", path)
    with pytest.raises(NoAttribute):
        await xattr(system, path)
    assert (await bench.one("cid", path))["cid"] == cid_of(system, b"changed")


async def test_another_storage_class_has_the_same_bytes_under_another_version(
    moto_bench: Bench,
) -> None:
    """An object of parts gets another ETag by a copy."""
    system, data = moto_bench.system, os.urandom(17 * MIB)
    await moto_bench.write("large", data)
    await system.sync()
    path = f"{moto_bench.top}/large"
    cid = await xattr(system, path)
    before = (await system.daemon.files._paths.find(path)).version  # type: ignore[attr-defined]
    await moto_bench.ctl("storage-class", "set", path, "STANDARD_IA")
    after = (await system.daemon.files._paths.find(path)).version  # type: ignore[attr-defined]
    assert "-" in before
    assert before != after
    assert await xattr(system, path) == cid
    assert await read_whole(system, path, len(data)) == data
    assert await moto_bench.names() == ["large"]


async def test_a_cid_that_the_service_tells_is_not_believed(bench: Bench) -> None:
    lie = cid_of(bench.system, b"something else")
    bench.put("f", b"bytes", Metadata={"unifs-cid": lie})
    with pytest.raises(NoAttribute):
        await xattr(bench.system, f"{bench.top}/f")
    assert (await bench.one("cid", f"{bench.top}/f"))["cid"] == cid_of(bench.system, b"bytes")


async def test_open_bytes_have_no_cid(bench: Bench) -> None:
    async with bench.system.open(f"{bench.bucket}/f", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"x" * 100_000)
        with pytest.raises(NoAttribute):
            await xattr(bench.system, f"{bench.top}/f")


async def test_a_copy_to_mfs_of_what_is_here_moves_no_byte(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, data = bench.system, os.urandom(5 * MIB)
    await bench.write("large", data)
    cid = await xattr(system, f"{bench.top}/large")

    async def refuse(paths: Paths, source: str, target: str) -> int:
        raise AssertionError("bytes were copied")

    files = system.daemon.files
    with monkeypatch.context() as patch:
        patch.setattr(Paths, "copy_file", refuse)
        await files.copy(f"{bench.top}/large", "/mfs/copy")
    assert await xattr(system, "/mfs/copy") == cid
    # It needs neither the file that it was made from, nor the service.
    await system.sync()
    await system.unlink(f"{bench.bucket}/large")
    await system.sync()
    bench.server.stop()
    system.choose("mfs")
    assert await read_whole(system, "/mfs/copy", len(data)) == data


async def test_a_copy_of_what_is_not_here_any_more_brings_its_bytes(bench: Bench) -> None:
    system, data = bench.system, os.urandom(2 * MIB)
    await bench.write("large", data)
    await system.sync()
    await cool(system, f"{bench.top}/large")
    cid = await xattr(system, f"{bench.top}/large")
    # The blocks are nobody's any more.
    system.upkeep.tick(trio.current_time())
    for container in system.daemon.keeper.dead_containers():
        system.storage.blocks.index.forget_container(container)
        system.daemon.keeper.drop_container(container)
    await system.daemon.node.repo_gc()
    await system.daemon.files.copy(f"{bench.top}/large", "/mfs/copy")
    assert await read_whole(system, "/mfs/copy", len(data)) == data
    assert await xattr(system, "/mfs/copy") == cid


async def read_whole(system: DaemonSystem, path: str, size: int) -> bytes:
    inode = await system.daemon.files._paths.find(path)
    handle = await complete(system.vfs.open, inode.ino, os.O_RDONLY, system.caller)
    try:
        parts = [
            bytes(await complete(system.vfs.read, handle.fh, offset, MIB))
            for offset in range(0, size, MIB)
        ]
    finally:
        await complete(system.vfs.release, handle.fh)
    return b"".join(parts)


async def test_by_option_the_object_tells_its_cid(s3_server: S3Server, tmp_path: Path) -> None:
    bucket, client = s3_server.bucket(), s3_server.client()
    contents = {"small": b"small", "large": os.urandom(17 * MIB)}
    prepared = daemon_of(s3_server, tmp_path, keeps_cid=True)
    # They rest before they go out, as with the default.
    prepared.journal = {"writeback_delay_s": 60}
    async with prepared as system:
        for name, data in contents.items():
            await system.write(f"{bucket}/{name}", data)
            assert await xattr(system, f"/s3/{bucket}/{name}")
        await system.sync()
        await system.rename(f"{bucket}/large", f"{bucket}/moved")
        await system.sync()
        for name, key in (("small", "small"), ("large", "moved")):
            told = client.head_object(Bucket=bucket, Key=key)["Metadata"]
            assert told["unifs-cid"] == cid_of(system, contents[name])


async def test_without_the_option_it_does_not(bench: Bench) -> None:
    await bench.write("f", b"bytes")
    await bench.system.sync()
    told = bench.client.head_object(Bucket=bench.bucket, Key="f")["Metadata"]
    assert "unifs-cid" not in told
