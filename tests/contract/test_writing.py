"""What every writable mount does on put, make, remove, rename, set_attributes and commit."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from tests.contract.cancelling import is_reached
from tests.contract.subjects import Bytes, Cut
from tests.contract.test_reading import ODD_NAMES, scanned
from unifs.errors import (
    Conflict,
    Corrupt,
    Exists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    Stale,
    Unsupported,
)
from unifs.types import Change, Node, SetAttributes, Version

if TYPE_CHECKING:
    from tests.contract.subjects import Subject

DIRECTORY = Node(stat.S_IFDIR | 0o755)
OLD, NEW = b"old" * 100_000, b"new!" * 400_000


async def names(subject: Subject, path: str = "") -> list[str]:
    return sorted(os.fsdecode(entry.name) for entry in await scanned(subject.mount, path))


async def put(subject: Subject, path: str, data: bytes, token: str = "t1") -> Version:
    node = await subject.mount.put(path, Bytes(data), None, token)
    assert node.version is not None
    return node.version


# --- put ----------------------------------------------------------------------------------------


def timed(told: Node, later: Node) -> Node:
    """What a put told, with the time that the backend told later where it told none at once."""
    return told if told.mtime_ns is not None else replace(told, mtime_ns=later.mtime_ns)


@pytest.mark.parametrize("data", [b"", b"x", NEW])
async def test_what_was_put_is_there(writable: Subject, data: bytes) -> None:
    node = await writable.mount.put("f", Bytes(data), None, "t1")
    assert timed(node, there := await writable.mount.stat("f")) == there
    assert (stat.S_ISREG(node.mode), node.size_bytes) == (True, len(data))
    assert node.version is not None
    assert await writable.mount.read("f", node.version, 0, len(data) + 1) == data
    assert writable.content("f") == data
    assert await names(writable) == ["f"]
    assert writable.leftovers() == []


async def test_replacing_needs_the_version_that_is_there(writable: Subject) -> None:
    first = await put(writable, "f", OLD)
    second = await writable.mount.put("f", Bytes(NEW), first, "t2")
    assert second.version not in (None, first)
    for base in (first, None, Version("made up")):
        with pytest.raises(Conflict):
            await writable.mount.put("f", Bytes(b"lost"), base, "t3")
    assert writable.content("f") == NEW
    assert writable.leftovers() == []


async def test_a_change_behind_our_back_is_a_conflict_and_stays(writable: Subject) -> None:
    version = await put(writable, "f", OLD)
    writable.change("f", b"theirs")
    with pytest.raises(Conflict):
        await writable.mount.put("f", Bytes(NEW), version, "t2")
    assert writable.content("f") == b"theirs"
    writable.change("f", None)
    with pytest.raises(Conflict):
        await writable.mount.put("f", Bytes(NEW), version, "t3")
    assert await names(writable) == []
    writable.change("g", b"theirs")
    with pytest.raises(Conflict):
        await writable.mount.put("g", Bytes(NEW), None, "t4")
    assert writable.content("g") == b"theirs"


async def test_our_own_earlier_attempt_is_success(writable: Subject) -> None:
    assert writable.mount.is_conditional
    base = await put(writable, "f", OLD, "t1")
    first = await writable.mount.put("f", Bytes(NEW), base, "t2")
    again = await writable.mount.put("f", Bytes(NEW), base, "t2")
    assert timed(first, again) == again
    with pytest.raises(Conflict):
        await writable.mount.put("f", Bytes(b"x"), base, "t1")


async def test_readers_see_the_old_or_the_new_file(writable: Subject) -> None:
    mount = writable.mount
    version = await put(writable, "f", OLD)
    seen: set[bytes] = set()
    finished = trio.Event()

    async def reader() -> None:
        while not (finished.is_set() and seen):
            node = await mount.stat("f")
            assert node.version is not None
            try:
                data = await mount.read("f", node.version, 0, len(NEW))
            except Stale:
                continue
            assert len(data) == node.size_bytes
            seen.add(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        for number in range(20):
            content = Bytes(NEW if number % 2 == 0 else OLD)
            version_now = (await mount.put("f", content, version, f"t{number + 2}")).version
            assert version_now is not None
            version = version_now
        finished.set()
    assert seen <= {OLD, NEW}
    assert seen


async def test_where_a_file_cannot_be_put(writable: Subject) -> None:
    await writable.seed({"d": None, "f": b"x"})
    for path, error in (("d", IsADirectory), ("f/below", NotADirectory), ("no/such", NotFound)):
        with pytest.raises(error):
            await writable.mount.put(path, Bytes(b"y"), None, "t1")
    assert await names(writable) == ["d", "f"]
    assert writable.content("f") == b"x"


async def test_a_content_that_ends_early_is_not_stored(writable: Subject) -> None:
    with pytest.raises(Corrupt):
        await writable.mount.put("f", Cut(b"short"), None, "t1")
    assert await names(writable) == []
    assert writable.leftovers() == []


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names_are_kept(writable: Subject, name: bytes) -> None:
    path = os.fsdecode(name)
    version = await put(writable, path, b"odd")
    assert await names(writable) == [path]
    await writable.mount.remove(path, version, "t2")
    await writable.mount.make(path, DIRECTORY, "t3")
    await put(writable, f"{path}/{path}", b"odd", "t4")
    await writable.mount.rename(path, "plain", "t5")
    assert await names(writable, "plain") == [path]


# --- make, remove, rename -------------------------------------------------------------------------


async def test_directories_are_made_once(writable: Subject) -> None:
    mount = writable.mount
    await mount.make("d", DIRECTORY, "t1")
    await mount.make("d", DIRECTORY, "t1")
    with pytest.raises(Exists):
        await mount.make("d", DIRECTORY, "t2")
    await put(writable, "f", b"x")
    with pytest.raises(Exists):
        await mount.make("f", DIRECTORY, "t3")
    with pytest.raises(NotFound):
        await mount.make("no/such", DIRECTORY, "t4")
    with pytest.raises(InvalidArgument):
        await mount.make("g", Node(stat.S_IFREG | 0o644), "t5")
    assert await names(writable) == ["d", "f"]


async def test_symlinks_and_fifos_where_they_can_be_made(writable: Subject) -> None:
    link = Node(stat.S_IFLNK | 0o777, target=b"../\xff/target")
    fifo = Node(stat.S_IFIFO | 0o644)
    for path, node in (("link", link), ("fifo", fifo)):
        try:
            made = await writable.mount.make(path, node, "t1")
        except Unsupported:
            continue
        assert stat.S_IFMT(made.mode) == stat.S_IFMT(node.mode)
        assert made == await writable.mount.stat(path)
        assert made.target == node.target
        await writable.mount.make(path, node, "t1")
        with pytest.raises(Exists):
            await writable.mount.make(path, DIRECTORY, "t2")


async def test_removing(writable: Subject) -> None:
    mount = writable.mount
    await writable.seed({"d": None, "d/e": None})
    version = await put(writable, "f", OLD)
    with pytest.raises(NotEmpty):
        await mount.remove("d", None, "t1")
    await mount.remove("d/e", None, "t2")
    await mount.remove("d", None, "t3")
    for base in (None, Version("made up")):
        with pytest.raises(Conflict):
            await mount.remove("f", base, "t4")
    await mount.remove("f", version, "t5")
    await mount.remove("f", version, "t5")
    await mount.remove("no/such", None, "t6")
    assert await names(writable) == []
    assert writable.leftovers() == []


async def test_what_somebody_else_changed_is_not_removed(writable: Subject) -> None:
    version = await put(writable, "f", OLD)
    writable.change("f", b"theirs")
    with pytest.raises(Conflict):
        await writable.mount.remove("f", version, "t2")
    assert writable.content("f") == b"theirs"


async def test_renaming(writable: Subject) -> None:
    mount = writable.mount
    await writable.seed({"a": None, "a/f": b"1", "b": None, "full": None, "full/x": b"", "g": b"2"})
    await mount.rename("a", "b/moved", "t1")
    assert writable.content("b/moved/f") == b"1"
    await mount.rename("a", "b/moved", "t1")
    base = (await mount.stat("b/moved/f")).version
    await mount.rename("g", "b/moved/f", "t2", base)
    assert writable.content("b/moved/f") == b"2"
    assert await names(writable) == ["b", "full"]
    with pytest.raises(NotFound):
        await mount.rename("absent", "elsewhere", "t3")
    with pytest.raises(NotFound):
        await mount.rename("b", "no/such", "t4")
    with pytest.raises(NotEmpty):
        await mount.rename("b", "full", "t5")
    with pytest.raises(InvalidArgument):
        await mount.rename("b", "b/moved/inside", "t6")
    assert writable.content("b/moved/f") == b"2"


async def test_renaming_keeps_types_apart(writable: Subject) -> None:
    await writable.seed({"d": None, "f": b"x"})
    with pytest.raises(IsADirectory):
        await writable.mount.rename("f", "d", "t1")
    with pytest.raises(NotADirectory):
        await writable.mount.rename("d", "f", "t2")
    assert await names(writable) == ["d", "f"]


async def test_attributes_that_the_backend_keeps(writable: Subject) -> None:
    await put(writable, "f", b"x")
    changes = SetAttributes(mode=0o640, mtime_ns=1_500_000_000_000_000_000)
    if not writable.mount.supports("set_attributes"):
        before = await writable.mount.stat("f")
        with pytest.raises(Unsupported):
            await writable.mount.set_attributes("f", changes, "t2")
        assert await writable.mount.stat("f") == before
        return
    await writable.mount.set_attributes("f", changes, "t2")
    node = await writable.mount.stat("f")
    assert node.has_permissions
    assert stat.S_IMODE(node.mode) == 0o640
    assert node.mtime_ns == 1_500_000_000_000_000_000
    with pytest.raises(NotFound):
        await writable.mount.set_attributes("no", changes, "t3")


# --- many at once -------------------------------------------------------------------------------


async def test_commit_has_one_outcome_for_each_change(writable: Subject) -> None:
    outcomes = await writable.mount.commit(
        [
            (Change("make", "d", "t1", node=DIRECTORY), None),
            (Change("put", "d/f", "t2"), Bytes(b"data")),
            (Change("put", "no/such", "t3"), Bytes(b"data")),
            (Change("rename", "d/f", "t4", new_path="g"), None),
            (Change("remove", "d", "t5"), None),
            (Change("set_attributes", "g", "t6", attributes=SetAttributes(mode=0o600)), None),
        ]
    )
    assert len(outcomes) == 6
    assert isinstance(outcomes[0], Node)
    assert isinstance(outcomes[1], Node)
    assert isinstance(outcomes[2], NotFound)
    assert outcomes[3:5] == [None, None]
    assert await names(writable) == ["g"]
    assert writable.content("g") == b"data"


# --- cancellation -------------------------------------------------------------------------------


async def test_a_put_cancelled_anywhere_has_happened_or_not(writable: Subject) -> None:
    for at in range(1, 100):
        path = f"f{at}"
        base = await put(writable, path, OLD, f"before{at}")
        call = writable.mount.put(path, Bytes(NEW), base, f"token{at}")
        was_reached = await is_reached(call, at)
        assert writable.content(path) in (OLD, NEW)
        assert writable.leftovers() == []
        stored = await writable.mount.put(path, Bytes(NEW), base, f"token{at}")
        assert (writable.content(path), stored.size_bytes) == (NEW, len(NEW))
        if not was_reached:
            break
    assert at > 1
    assert not was_reached
    assert await names(writable) == sorted(f"f{number}" for number in range(1, at + 1))


@pytest.mark.parametrize("verb", ["make", "remove", "rename"])
async def test_other_changes_cancelled_anywhere_can_be_repeated(
    writable: Subject, verb: str
) -> None:
    mount = writable.mount
    for at in range(1, 100):
        version = await put(writable, f"f{at}", OLD, f"before{at}")

        def call(at: int = at, version: Version = version):  # type: ignore[no-untyped-def]
            if verb == "make":
                return mount.make(f"d{at}", DIRECTORY, f"token{at}")
            if verb == "remove":
                return mount.remove(f"f{at}", version, f"token{at}")
            return mount.rename(f"f{at}", f"g{at}", f"token{at}")

        was_reached = await is_reached(call(), at)
        await call()
        there = await names(writable)
        expected = {"make": [f"d{at}", f"f{at}"], "remove": [], "rename": [f"g{at}"]}[verb]
        assert [name for name in there if name[1:] == str(at)] == expected
        assert writable.leftovers() == []
        if not was_reached:
            break
    assert at > 1
    assert not was_reached


async def test_reads_cancelled_anywhere_leave_the_mount_usable(subject: Subject) -> None:
    top = await subject.seed({"d": None, "d/f": OLD})
    path = f"{top}/d/f" if top else "d/f"
    node = await subject.mount.stat(path)
    assert node.version is not None
    for at in range(1, 20):
        await is_reached(subject.mount.stat(path), at)
        await is_reached(subject.mount.scan(path.removesuffix("/f"), None), at)
        await is_reached(subject.mount.read(path, node.version, 0, 10), at)
    assert await subject.mount.read(path, node.version, 0, 10) == OLD[:10]
