"""``/.unifs/versions`` on real services: every version of every object as a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.mounts.s3.identities import Fixed
from tests.s3.operations import Bench, daemon_of
from unifs.errors import NotADirectory, NotFound, ReadOnly
from unifs.mounts.s3 import versions, versionsview
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import Credentials, S3Options
from unifs.waiting import complete

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server

MIB = 1 << 20
TOP = "/.unifs/versions"


async def listed(bench: Bench, path: str) -> list[str]:
    return [each.name async for each in bench.system.daemon.files.ls(path)]


async def read(bench: Bench, path: str) -> bytes:
    """A file whole, by way of the vfs."""
    system = bench.system
    inode = await system.daemon.files._paths.find(path)
    handle = await complete(system.vfs.open, inode.ino, os.O_RDONLY, system.caller)
    data = b""
    try:
        while piece := bytes(await complete(system.vfs.read, handle.fh, len(data), 128 << 10)):
            data += piece
    finally:
        system.vfs.release(handle.fh)
    return data


async def test_every_version_of_an_object_is_a_file(both: Bench) -> None:
    both.keep_versions()
    first, second = os.urandom(2 * MIB + 11), b"second"
    ids = [both.put("d/f.txt", data)["VersionId"] for data in (first, second)]
    both.put("d/e/deep", b"deep")
    both.put("top", b"top")
    assert "versions" in await listed(both, "/.unifs")
    assert await listed(both, TOP) == ["s3"]
    assert both.bucket in await listed(both, f"{TOP}/s3")
    top = f"{TOP}/s3/{both.bucket}"
    assert sorted(await listed(both, top)) == ["d", "top"]
    assert sorted(await listed(both, f"{top}/d")) == ["e", "f.txt"]
    assert sorted(await listed(both, f"{top}/d/f.txt")) == sorted(ids)
    assert await read(both, f"{top}/d/f.txt/{ids[0]}") == first
    assert await read(both, f"{top}/d/f.txt/{ids[1]}") == second
    told = await both.system.daemon.files.stat(f"{top}/d/f.txt/{ids[0]}")
    assert (told.size_bytes, told.mode, told.kind) == (len(first), "0444", "file")
    assert (
        abs(
            told.mtime_s
            - both.client.head_object(Bucket=both.bucket, Key="d/f.txt", VersionId=ids[0])[
                "LastModified"
            ].timestamp()
        )
        < 1
    )
    assert "versions" not in await listed(both, "/")
    (why,) = await both.shell.json("explain", f"{top}/d/f.txt/{ids[0]}")
    assert (why["kind"], "in exactly this version" in why["bytes_from"]) == ("view", True)


async def test_what_was_deleted_is_read_and_copied_back(both: Bench) -> None:
    both.keep_versions()
    made = both.put("gone", b"was here")["VersionId"]
    both.client.delete_object(Bucket=both.bucket, Key="gone")
    path = f"{TOP}/s3/{both.bucket}/gone"
    assert await listed(both, path) == [made]
    await both.system.daemon.files.copy(f"{path}/{made}", f"{both.top}/back")
    await both.system.sync()
    assert both.get("back") == b"was here"


async def test_an_object_and_the_keys_below_it_share_a_directory(moto_bench: Bench) -> None:
    moto_bench.keep_versions()
    made = moto_bench.put("k", b"object")["VersionId"]
    below = moto_bench.put("k/below", b"below")["VersionId"]
    path = f"{TOP}/s3/{moto_bench.bucket}/k"
    assert sorted(await listed(moto_bench, path)) == sorted(["below", made])
    assert await read(moto_bench, f"{path}/{made}") == b"object"
    assert await read(moto_bench, f"{path}/below/{below}") == b"below"


async def test_odd_keys_are_found_as_the_mount_writes_them(moto_bench: Bench) -> None:
    for key in ("a b+ü%", "x//y", "dir/", "50%%2F"):
        moto_bench.put(key, b"")
    moto_bench.keep_versions()
    made = moto_bench.put("x//y", b"inside")["VersionId"]
    top = f"{TOP}/s3/{moto_bench.bucket}"
    assert sorted(await listed(moto_bench, top)) == ["50%%25%2F", "a b+ü%", "dir", "x"]
    assert await listed(moto_bench, f"{top}/dir") == []
    assert await listed(moto_bench, f"{top}/a b+ü%") == ["null"]
    assert await read(moto_bench, f"{top}/x/%%/y/{made}") == b"inside"


async def test_what_is_not_there_is_absent_and_nothing_is_changed(bench: Bench) -> None:
    bench.put("f", b"1")
    top, files = f"{TOP}/s3/{bench.bucket}", bench.system.daemon.files
    for path in (
        f"{TOP}/mfs",
        f"{TOP}/s3/no-such-bucket-here",
        f"{top}/g",
        f"{top}/f/nonsense",
        f"{top}/f/null/deeper",
        f"{top}/a%%2Fb",
    ):
        with pytest.raises((NotFound, NotADirectory)):
            await files.stat(path)
    inode = await files._paths.find(f"{top}/f")
    with pytest.raises(ReadOnly):
        bench.system.vfs.mkdir(inode.ino, b"new", 0o755, bench.system.caller)
    with pytest.raises(ReadOnly):
        await files.remove(f"{top}/f/null", recursive=False)
    with pytest.raises(ReadOnly):
        bench.system.vfs.open(inode.ino, os.O_WRONLY, bench.system.caller)
    assert bench.get("f") == b"1"


async def test_a_version_called_null_is_another_file_when_its_bytes_change(bench: Bench) -> None:
    bench.put("f", b"first")
    path = f"{TOP}/s3/{bench.bucket}/f/null"
    assert await read(bench, path) == b"first"
    before = (await bench.system.daemon.files._paths.find(path)).ino
    bench.put("f", b"other")
    for each in bench.system.vfs.inodes.hot.values():
        # As after the time for which it is believed.
        if hasattr(each, "checked_s"):
            each.checked_s -= 60
    assert await read(bench, path) == b"other"
    assert (await bench.system.daemon.files._paths.find(path)).ino != before


async def test_a_mount_of_one_prefix_shows_what_it_shows(
    s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    for key in ("in/here/d/f", "elsewhere"):
        s3_server.client().put_object(Bucket=bucket, Key=key, Body=b"below")
    options = {"bucket": bucket, "prefix": "in/here/"}
    async with daemon_of(s3_server, tmp_path, **options) as system:
        files = system.daemon.files
        assert [each.name async for each in files.ls(f"{TOP}/s3")] == ["d"]
        assert [each.name async for each in files.ls(f"{TOP}/s3/d")] == ["f"]
        assert (await files.stat(f"{TOP}/s3/d/f/null")).size_bytes == 5


async def test_listings_of_many_pages_name_each_key_once(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "PAGE_VERSIONS", 3)
    monkeypatch.setattr(versions.version_page, "__defaults__", ("", None, 3))
    bucket, client = moto_server.bucket(), moto_server.client()
    told = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=told)
    wanted = [f"k{number}" for number in range(5)]
    ids = {
        key: [client.put_object(Bucket=bucket, Key=key, Body=b"x")["VersionId"] for _ in range(5)]
        for key in wanted
    }
    identity = Fixed(Credentials(moto_server.access_key, moto_server.secret_key))
    options = S3Options(endpoint=moto_server.endpoint, bucket=bucket)
    mount = S3Mount("s3", options, identity)
    view = versionsview.S3Versions(mount)
    names: list[str] = []
    after: str | None = None
    pages = 0
    while True:
        page = await view.scan("", after)
        names += [entry.name.decode() for entry in page.entries]
        after, pages = page.after, pages + 1
        if after is None:
            break
    assert (names, pages > 5) == (wanted, True)
    found = {entry.name.decode() for entry in (await view.scan("k3", None)).entries}
    assert found == set(ids["k3"])
    mount.service.close()
