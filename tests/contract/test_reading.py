"""What every mount answers to stat, scan and read."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import READ_ONLY, Bytes
from unifs.errors import IsADirectory, NotADirectory, NotFound, Stale, Unsupported
from unifs.types import Node, SetAttributes, Version

if TYPE_CHECKING:
    from tests.contract.subjects import Subject
    from unifs.mounts.base import Mount
    from unifs.types import Entry

BYTES = bytes(index * 7 % 251 for index in range(300_000))
ODD_NAMES = [
    b"n" * 255,
    b"\xff\xfe\x80",
    b"new\nline",
    b"-rf",
    b" ",
    b"...",
    b"\x01\x7f",
    "ü€".encode(),
]


def joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


async def scanned(mount: Mount, path: str) -> list[Entry]:
    entries: list[Entry] = []
    after: str | None = None
    for _ in range(1000):
        page = await mount.scan(path, after)
        entries += page.entries
        after = page.after
        if after is None:
            return entries
    raise AssertionError("the scan does not end")


async def file_node(subject: Subject, path: str) -> tuple[Node, Version]:
    node = await subject.mount.stat(path)
    assert node.version is not None
    return node, node.version


async def test_stat_tells_type_size_and_version(subject: Subject) -> None:
    top = await subject.seed({"d": None, "d/f": BYTES, "d/empty": b""})
    node, version = await file_node(subject, joined(top, "d/f"))
    assert stat.S_ISREG(node.mode)
    assert node.size_bytes == len(BYTES)
    again = await subject.mount.stat(joined(top, "d/f"))
    assert again.version == version
    assert (await subject.mount.stat(joined(top, "d/empty"))).size_bytes == 0
    assert stat.S_ISDIR((await subject.mount.stat(joined(top, "d"))).mode)
    assert stat.S_ISDIR((await subject.mount.stat("")).mode)


async def test_absence_is_not_found_and_a_file_is_no_directory(subject: Subject) -> None:
    top = await subject.seed({"d": None, "f": b"x"})
    for absent in ("g", "d/g", "no/such", "x" * 200):
        with pytest.raises(NotFound):
            await subject.mount.stat(joined(top, absent))
    with pytest.raises((NotADirectory, NotFound)):
        await subject.mount.stat(joined(top, "f/below"))
    with pytest.raises(NotADirectory):
        await subject.mount.scan(joined(top, "f"), None)
    with pytest.raises(NotFound):
        await subject.mount.scan(joined(top, "no"), None)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (0, 300_000), (299_999, 10), (300_000, 10), (400_000, 1), (65_536, 131_072), (7, 0)],
)
async def test_any_range_of_a_file(subject: Subject, offset: int, size: int) -> None:
    top = await subject.seed({"f": BYTES})
    path = joined(top, "f")
    _, version = await file_node(subject, path)
    data = await subject.mount.read(path, version, offset, size)
    assert data == BYTES[offset : offset + size]


async def test_another_version_is_stale_and_a_directory_is_not_read(subject: Subject) -> None:
    top = await subject.seed({"f": BYTES, "d": None})
    with pytest.raises(Stale):
        await subject.mount.read(joined(top, "f"), Version("another"), 0, 10)
    with pytest.raises((IsADirectory, Stale)):
        await subject.mount.read(joined(top, "d"), Version("any"), 0, 10)
    with pytest.raises((NotFound, Stale)):
        await subject.mount.read(joined(top, "no"), Version("any"), 0, 10)


async def test_a_version_names_the_bytes_it_was_given_for(
    writable: Subject, subject: Subject
) -> None:
    top = await subject.seed({"f": BYTES})
    path = joined(top, "f")
    _, version = await file_node(subject, path)
    subject.change(path, BYTES[::-1])
    with pytest.raises(Stale):
        await subject.mount.read(path, version, 0, 10)
    _, changed = await file_node(subject, path)
    assert changed != version
    assert await subject.mount.read(path, changed, 0, 10) == BYTES[::-1][:10]


async def test_a_scan_tells_what_stat_tells(subject: Subject) -> None:
    top = await subject.seed({"d": None, "d/a": b"1", "d/b": b"22", "d/c": None})
    entries = await scanned(subject.mount, joined(top, "d"))
    assert sorted(entry.name for entry in entries) == [b"a", b"b", b"c"]
    for entry in entries:
        node = await subject.mount.stat(joined(top, "d", os.fsdecode(entry.name)))
        assert entry.node == node
    assert await scanned(subject.mount, joined(top, "d/c")) == []


@pytest.mark.slow
async def test_a_large_directory_comes_in_pages_and_a_cursor_resumes(subject: Subject) -> None:
    names = [f"file-{number:04}" for number in range(2500)]
    top = await subject.seed({"d": None} | {f"d/{name}": b"" for name in names})
    path = joined(top, "d")
    first = await subject.mount.scan(path, None)
    assert first.after is not None
    seen = [entry.name for entry in first.entries]
    after: str | None = first.after
    while after is not None:
        page = await subject.mount.scan(path, after)
        repeated = await subject.mount.scan(path, after)
        assert page.entries == repeated.entries
        seen += [entry.name for entry in page.entries]
        after = page.after
    assert sorted(seen) == [name.encode() for name in names]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names(subject: Subject, name: bytes) -> None:
    text = os.fsdecode(name)
    top = await subject.seed({"d": None, f"d/{text}": b"odd"})
    (entry,) = await scanned(subject.mount, joined(top, "d"))
    assert entry.name == name
    path = joined(top, "d", text)
    _, version = await file_node(subject, path)
    assert await subject.mount.read(path, version, 0, 10) == b"odd"


async def test_a_capability_is_an_overridden_method(subject: Subject) -> None:
    mount = subject.mount
    calls = {
        "epoch": lambda: mount.epoch(),
        "put": lambda: mount.put("f", Bytes(b""), None, "t"),
        "make": lambda: mount.make("d", Node(stat.S_IFDIR), "t"),
        "remove": lambda: mount.remove("f", None, "t"),
        "rename": lambda: mount.rename("f", "g", "t"),
        "set_attributes": lambda: mount.set_attributes("f", SetAttributes(mode=0o600), "t"),
    }
    assert mount.supports("stat")
    for name, call in calls.items():
        if not mount.supports(name):
            with pytest.raises(Unsupported):
                await call()
    assert mount.supports("put") == (mount.kind not in READ_ONLY)
