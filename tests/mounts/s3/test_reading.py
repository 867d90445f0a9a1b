"""Names, listings and reads on a real server."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import Bytes
from tests.contract.test_reading import scanned
from unifs.errors import Corrupt, InvalidArgument, IsADirectory, NotADirectory, NotFound, Stale
from unifs.mounts.s3 import reading
from unifs.types import Version

if TYPE_CHECKING:
    from tests.mounts.s3.conftest import World
    from unifs.mounts.s3.mount import S3Mount


async def shown(mount: S3Mount, path: str = "") -> dict[str, str]:
    """Name -> "file" or "dir", each as stat tells it too."""
    found: dict[str, str] = {}
    for entry in await scanned(mount, path):
        name = os.fsdecode(entry.name)
        assert name not in found
        node = await mount.stat(f"{path}/{name}" if path else name)
        assert node == entry.node
        found[name] = "dir" if stat.S_ISDIR(node.mode) else "file"
    return found


async def walked(mount: S3Mount, path: str = "") -> dict[str, bytes | None]:
    """Path -> bytes of every file, None for directories."""
    found: dict[str, bytes | None] = {}
    for name, kind in (await shown(mount, path)).items():
        below = f"{path}/{name}" if path else name
        if kind == "dir":
            found[below] = None
            found |= await walked(mount, below)
        else:
            node = await mount.stat(below)
            assert node.version is not None
            found[below] = await mount.read(below, node.version, 0, 1 << 20)
    return found


async def test_a_prefix_is_a_directory_with_and_without_a_marker(world: World) -> None:
    world.put("implicit/a/f", b"1")
    world.put("marked/", b"")
    assert await walked(world.mount) == {
        "implicit": None,
        "implicit/a": None,
        "implicit/a/f": b"1",
        "marked": None,
    }


async def test_a_key_that_is_object_and_prefix_is_both(world: World) -> None:
    world.put("k", b"object")
    world.put("k/x", b"below")
    assert await walked(world.mount) == {"k": b"object", "k%%": None, "k%%/x": b"below"}
    with pytest.raises(NotFound):
        await world.mount.stat("other%%")
    world.client.delete_object(Bucket=world.bucket, Key="k")
    assert await shown(world.mount) == {"k": "dir"}
    with pytest.raises(NotFound):
        await world.mount.stat("k%%")


@pytest.mark.parametrize("size", [253, 254, 255])
async def test_a_long_key_that_is_object_and_prefix_is_both(world: World, size: int) -> None:
    key = "é" * (size // 2) + "x" * (size % 2)
    world.put(key, b"object")
    world.put(f"{key}/x", b"below")
    files = {path: data for path, data in (await walked(world.mount)).items() if data is not None}
    (below,) = [path for path in files if path != key]
    assert files == {key: b"object", below: b"below"}
    assert below.endswith("%%/x")
    above = below.removesuffix("/x")
    content = Bytes(b"new")
    await world.mount.put(f"{above}/y", content, None, "token")
    assert world.get(f"{key}/y") == b"new"
    await world.mount.remove(below, (await world.mount.stat(below)).version, "token")
    assert await shown(world.mount, above) == {"y": "file"}


async def test_object_and_prefix_on_different_pages(
    moto: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("k", "k!", "k-a", "k.txt", "k/x", "k0", "kk/y"):
        moto.put(key)
    for count in (1, 2, 3, 1000):
        monkeypatch.setattr(reading, "PAGE_KEYS", count)
        assert await shown(moto.mount) == {
            "k": "file",
            "k!": "file",
            "k%%": "dir",
            "k-a": "file",
            "k.txt": "file",
            "k0": "file",
            "kk": "dir",
        }


async def test_odd_keys_are_shown_and_read(moto: World) -> None:
    keys = {
        "a//b": b"1",
        "/lead": b"2",
        "trail/": b"3",
        "./x": b"4",
        "q/../z": b"5",
        "50%%2F": b"6",
        "%%FF": b"7",
        "back\\slash": b"8",
        "control\x01": b"9",
        "plus + space": b"10",
        "x" * 300: b"11",
        "x" * 300 + "/" + "y" * 600: b"12",
        "é" * 200: b"13",
        "k" * 1024: b"14",
    }
    for key, data in keys.items():
        moto.put(key, data)
    files = {path: data for path, data in (await walked(moto.mount)).items() if data is not None}
    assert sorted(files.values()) == sorted(keys.values())
    assert files["a/%%/b"] == b"1"
    assert files["trail/%%"] == b"3"
    assert files["%%2E/x"] == b"4"
    assert files["\udcff"] == b"7"
    for path, data in files.items():
        node = await moto.mount.stat(path)
        put = await moto.mount.put(path, Again(data), node.version, f"t{len(data)}")
        assert put.version is not None
    assert sorted(moto.listed()) == sorted(keys)


class Again:
    """The same bytes and one more."""

    def __init__(self, data: bytes) -> None:
        self.data = data + b"!"
        self.size_bytes = len(self.data)

    async def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


async def test_a_cursor_outlives_the_services_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_KEYS", 2)
    for key in ("a", "b/x", "c", "d/x", "e"):
        world.put(key)
    first = await world.mount.scan("", None)
    assert first.after is not None
    cursor = reading._Cursor.of(first.after)
    forgotten = reading._Cursor("", cursor.last, cursor.objects).text()
    rest = await world.mount.scan("", forgotten)
    assert rest == await world.mount.scan("", first.after)
    with pytest.raises(InvalidArgument):
        await world.mount.scan("", "no cursor")


async def test_what_is_no_directory(world: World) -> None:
    world.put("f")
    with pytest.raises(NotADirectory):
        await world.mount.scan("f", None)
    for absent in ("no", "a%%2Fb", "no%%+"):
        with pytest.raises(NotFound):
            await world.mount.scan(absent, None)
        with pytest.raises(NotFound):
            await world.mount.stat(absent)


async def test_a_version_that_is_gone_is_stale_and_never_mixed(world: World) -> None:
    old = Version(world.put("f", b"old"))
    assert await world.mount.read("f", old, 1, 10) == b"ld"
    new = Version(world.put("f", b"new"))
    for version in (old, Version("made up"), Version('"quoted"'), Version("line\r\nbreak")):
        with pytest.raises(Stale):
            await world.mount.read("f", version, 0, 10)
    assert await world.mount.read("f", new, 3, 10) == b""
    assert await world.mount.read("f", new, 0, 0) == b""


async def test_attributes_of_s3fs_and_rclone(keeping: World) -> None:
    keeping.put("s3fs", Metadata={"mode": "33188", "uid": "5", "mtime": "1500000000"})
    keeping.put("rclone", Metadata={"mtime": "1500000000.123456789"})
    keeping.put("link", b"../target", Metadata={"mode": str(stat.S_IFLNK | 0o777)})
    keeping.put("odd", Metadata={"mode": "rwx", "mtime": "noon"})
    keeping.put("octal", Metadata={"mode": "100640", "mtime": "1533715688.888"})
    keeping.put("octal link", b"octal", Metadata={"mode": "120777"})
    s3fs = await keeping.mount.stat("s3fs")
    assert (s3fs.mode, s3fs.has_permissions) == (stat.S_IFREG | 0o644, True)
    assert s3fs.mtime_ns == 1_500_000_000_000_000_000
    rclone = await keeping.mount.stat("rclone")
    assert (rclone.mtime_ns, rclone.has_permissions) == (1_500_000_000_123_456_789, False)
    link = await keeping.mount.stat("link")
    assert (stat.S_IFMT(link.mode), link.target) == (stat.S_IFLNK, b"../target")
    octal = await keeping.mount.stat("octal")
    assert (octal.mode, octal.has_permissions) == (stat.S_IFREG | 0o640, True)
    for odd in ("odd", "octal link"):
        found = await keeping.mount.stat(odd)
        assert (found.mode, found.has_permissions) == (stat.S_IFREG | 0o644, False)
    await shown(keeping.mount)


async def test_without_attributes_a_listing_needs_one_request(world: World) -> None:
    for number in range(20):
        world.put(f"d/{number}", Metadata={"mode": str(stat.S_IFLNK | 0o777)})
    before = world.mount.service.requests
    entries = await scanned(world.mount, "d")
    assert world.mount.service.requests == before + 1
    assert all(stat.S_ISREG(entry.node.mode) for entry in entries)
    assert not world.mount.supports("set_attributes")


async def test_one_request_fills_many_buffers(world: World) -> None:
    data = bytes(range(256)) * 4096
    version = Version(world.put("f", data))
    buffers = [memoryview(bytearray(size)) for size in (300_000, 5, 500_000)]
    filled: list[int] = []
    before = world.mount.service.requests
    await world.mount.read_into("f", version, 77, buffers, lambda: filled.append(len(filled)))
    assert world.mount.service.requests == before + 1
    assert b"".join(buffers) == data[77 : 77 + 800_005]
    assert filled == [0, 1, 2]
    with pytest.raises(Corrupt):
        await world.mount.read_into(
            "f", version, len(data) - 10, [memoryview(bytearray(11))], filled.clear
        )
    world.put("f", data[::-1])
    with pytest.raises(Stale):
        await world.mount.read_into("f", version, 77, buffers, filled.clear)
    assert filled == [0, 1, 2], "no byte of another version was handed on"
    with pytest.raises(IsADirectory):
        await world.mount.read_into("", version, 0, buffers, filled.clear)


async def test_a_bucket_with_versions_still_serves_the_pinned_one(world: World) -> None:
    world.client.put_bucket_versioning(
        Bucket=world.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    first = Version(world.put("f", b"first"))
    world.put("f.txt", b"another")
    second = Version(world.put("f", b"second!"))
    assert await world.mount.read("f", first, 0, 100) == b"first"
    assert await world.mount.read("f", first, 2, 2) == b"rs"
    assert await world.mount.read("f", second, 0, 100) == b"second!"
    found = await world.mount.versions("f")
    assert [(one.version, one.is_latest) for one in found] == [(second, True), (first, False)]
    world.client.delete_object(Bucket=world.bucket, Key="f")
    assert await world.mount.read("f", second, 0, 100) == b"second!"
    with pytest.raises(NotFound):
        await world.mount.stat("f")
    with pytest.raises(Stale):
        await world.mount.read("f", Version("made up"), 0, 1)
    await world.mount.restore("f", found[1].id)
    assert world.get("f") == b"first"
    assert (await world.mount.stat("f")).version == first
