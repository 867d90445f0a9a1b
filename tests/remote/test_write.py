"""The write side: what reaches the backend, when, in which order and how often."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import trio

from unifs.errors import (
    NoSpace,
    NotFound,
    PermissionDenied,
    RateLimited,
    ReadOnly,
    Stale,
    UnifsError,
    Unreachable,
)
from unifs.types import Node
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem

BIG = bytes(range(256)) * 1200
DIRECTORY = Node(stat.S_IFDIR | 0o755)
STATE = b"user.unifs.state"


def writes(remote: RemoteMount) -> list[tuple[str, str]]:
    """The calls that changed the backend, attributes aside."""
    return [call for call in remote.calls if call[0] in ("put", "make", "remove", "rename")]


@pytest.mark.parametrize("data", [b"", b"small", BIG])
async def test_a_file_reaches_the_backend_two_seconds_after_close(
    clock: MockClock,
    system: RemoteSystem,
    remote: RemoteMount,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, quiet_s, is_sent = remote.put, [], trio.Event()

    async def noted(*arguments: Any) -> Any:
        (due,) = system.volume.writeback.dues.values()
        assert due.changed_at >= began
        quiet_s.append(trio.current_time() - due.changed_at)
        is_sent.set()
        return await put(*arguments)

    monkeypatch.setattr(remote, "put", noted)
    began = trio.current_time()
    await system.write("a", data)
    assert await system.getxattr("a", STATE) in (b"closed", b"sealed")
    with trio.fail_after(3600):
        await is_sent.wait()
    await system.sync()
    assert await system.getxattr("a", STATE) == b"synced"
    # What comes to rest does not wait for the age at which what goes on changing is sent.
    limits = system.volume.writeback.limits
    assert [2.0 <= each < limits.age_max_s for each in quiet_s] == [True]
    assert writes(remote) == [("put", "a")]
    assert remote.content("a") == data
    assert await system.read("a") == data
    assert remote.count("read") == 0


async def test_ten_saves_are_one_upload(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    for number in range(10):
        await system.write("a", b"%d" % number)
    await system.sync()
    assert writes(remote) == [("put", "a")]
    assert remote.content("a") == b"9"


async def test_what_is_created_and_removed_is_nothing(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"x")
    await system.mkdir("d")
    await system.write("d/b", b"x")
    await system.unlink("a")
    await system.unlink("d/b")
    await system.rmdir("d")
    await system.sync()
    assert writes(remote) == []
    assert system.volume.statistics()["waiting"] == 0


async def test_an_atomic_save_replaces_in_one_call(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"old")
    assert await system.read("a") == b"old"
    await system.write("a.tmp", b"new")
    await system.rename("a.tmp", "a")
    await system.sync()
    assert writes(remote) == [("put", "a")]
    assert remote.content("a") == b"new"


async def test_an_uploaded_file_renamed_over_another_is_one_rename(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"a")
    await system.write("b", b"b")
    await system.sync()
    remote.calls.clear()
    await system.rename("a", "b")
    await system.sync()
    assert writes(remote) == [("rename", "a")]
    assert remote.content("b") == b"a"


async def test_directories_come_before_their_children_and_go_after_them(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.mkdir("d/e")
    await system.write("d/e/f", b"x")
    await system.sync()
    assert writes(remote) == [("make", "d"), ("make", "d/e"), ("put", "d/e/f")]
    remote.calls.clear()
    await system.unlink("d/e/f")
    await system.rmdir("d/e")
    await system.rmdir("d")
    await system.sync()
    assert writes(remote) == [("remove", "d/e/f"), ("remove", "d/e"), ("remove", "d")]


async def test_children_never_uploaded_go_to_the_new_place(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.write("d/old", b"1")
    await system.sync()
    remote.calls.clear()
    await system.write("d/new", b"2")
    await system.rename("d", "e")
    await system.write("e/newer", b"3")
    await system.sync()
    assert writes(remote)[0] == ("rename", "d")
    assert sorted(writes(remote)[1:]) == [("put", "e/new"), ("put", "e/newer")]
    assert remote.content("e/old") == b"1"
    assert await system.read("e/old") == b"1"


@pytest.mark.parametrize("is_directory", [False, True])
async def test_an_exchange_is_three_steps(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, is_directory: bool
) -> None:
    for name in ("a", "b"):
        if is_directory:
            await system.mkdir(name)
            await system.write(f"{name}/in", name.encode())
        else:
            await system.write(name, name.encode())
    await system.sync()
    remote.calls.clear()
    await system.rename("a", "b", 2)
    await system.sync()
    assert [verb for verb, _ in writes(remote)] == ["rename"] * 3
    inside = "/in" if is_directory else ""
    assert remote.content(f"a{inside}") == b"b"
    assert remote.content(f"b{inside}") == b"a"
    assert await system.read(f"a{inside}") == b"b"


async def test_a_child_takes_its_parents_place(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.mkdir("d/s")
    await system.write("d/s/f", b"x")
    await system.sync()
    await system.rename("d/s", "t")
    await system.rename("d", "t/d")
    await system.rename("t", "d")
    await system.sync()
    assert remote.content("d/f") == b"x"
    assert await system.listdir("d/d") == []
    assert {name.node.mode for name in (await remote.scan("d/d", None)).entries} == set()


async def test_a_partial_write_keeps_the_rest_of_the_base(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", BIG)
    async with system.open("a", os.O_RDWR) as file:
        assert await file.read(0, 4) == BIG[:4]
        await file.write(2, b"__")
        assert await file.read(0, 6) == BIG[:2] + b"__" + BIG[4:6]
    await system.sync()
    assert remote.content("a") == BIG[:2] + b"__" + BIG[4:]


async def test_truncating_needs_no_base(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", BIG)
    await system.write("a", b"new")
    await system.sync()
    assert remote.content("a") == b"new"
    assert remote.count("read") == 0


async def test_a_clean_handle_follows_the_first_write(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"0123")
    async with system.open("a") as reader, system.open("a", os.O_RDWR) as writer:
        assert await reader.read() == b"0123"
        await writer.write(0, b"ab")
        assert await reader.read() == b"ab23"


async def test_writing_through_an_old_handle_is_stale(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"0123")
    async with system.open("a", os.O_RDWR) as old:
        remote.change("a", b"4567")
        await trio.sleep(31)
        await system.stat("a")
        with pytest.raises(Stale):
            await old.write(0, b"x")
        for size in (0, 2):
            with pytest.raises(Stale):
                await old.truncate(size)
    await system.sync()
    assert remote.content("a") == b"4567"
    assert await system.read("a") == b"4567"


async def test_an_open_file_is_written_back_at_thirty_seconds(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    async with system.open("log", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"one")
        await file.flush()
        await trio.sleep(25)
        assert writes(remote) == []
        await trio.sleep(10)
        assert remote.content("log") == b"one"
        await file.write(3, b"two")
    await system.sync()
    assert remote.content("log") == b"onetwo"


async def test_what_passes_is_tried_again_no_sooner_than_asked(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("put", Unreachable(), RateLimited("slowly", retry_after_s=100.0))
    await system.write("a", b"x")
    await trio.sleep(60)
    assert remote.count("put") == 2
    await trio.sleep(60)
    assert remote.count("put") == 3
    assert remote.content("a") == b"x"


async def test_an_answer_that_was_lost_is_no_conflict(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("put", Unreachable(), after=True)
    await system.write("a", b"x")
    await system.sync()
    assert await system.listdir("") == [b"a"]
    assert remote.count("put") == 2


async def test_a_file_changed_after_a_lost_answer_is_no_conflict(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("put", Unreachable(), after=True)
    await system.write("a", b"x")
    await trio.sleep(2.1)
    await system.write("a", b"y")
    await system.sync()
    assert await system.listdir("") == [b"a"]
    assert remote.content("a") == b"y"


@pytest.mark.parametrize("after", [False, True])
async def test_removing_during_an_upload_leaves_nothing(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, after: bool
) -> None:
    remote.fail("put", Unreachable(), after=after)
    await system.write("a", b"x")
    await trio.sleep(2.1)
    await system.unlink("a")
    await system.sync()
    with pytest.raises(NotFound):
        remote.content("a")
    await trio.sleep(60)
    assert await system.listdir("") == []


async def test_removing_waits_for_the_answer_to_what_was_sent(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.delay_s = 20
    await system.write("a", b"x")
    await trio.sleep(5)
    await system.unlink("a")
    await system.sync()
    assert writes(remote) == [("put", "a"), ("remove", "a")]
    with pytest.raises(NotFound):
        remote.content("a")


async def test_what_cannot_succeed_is_quarantined_and_named(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("put", PermissionDenied("no"))
    await system.write("a", b"x")
    with pytest.raises(PermissionDenied):
        await system.sync()
    await system.write("b", b"y")
    await trio.sleep(600)
    assert remote.count("put") == 2
    assert remote.content("b") == b"y"
    assert [entry.path for entry in system.volume.status.quarantined()] == [b"/a"]
    await system.remount()
    ino = (await system.stat("a")).ino
    assert [entry.ino for entry in system.volume.status.quarantined()] == [ino]
    system.volume.writeback.retry(ino)
    await system.sync()
    assert remote.content("a") == b"x"


async def test_writers_wait_and_then_hear_that_there_is_no_space(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    system.volume.unsynced.max_bytes = 1000
    await system.listdir("")
    remote.fail("put", *[Unreachable() for _ in range(4)])
    await system.write("a", bytes(900))
    async with system.open("b", os.O_WRONLY | os.O_CREAT) as file:
        await file.write(0, bytes(900))
    remote.freeze()
    with pytest.raises(NoSpace):
        await system.write("c", bytes(900))
    remote.thaw()
    await system.sync()
    assert system.volume.unsynced.size_bytes == 0
    assert remote.content("b") == bytes(900)


async def test_a_full_backend_is_tried_again(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.full_bytes = 3
    await system.write("a", b"12345")
    await trio.sleep(60)
    remote.full_bytes = None
    await system.sync()
    assert remote.content("a") == b"12345"


async def test_what_the_backend_lacks_lives_in_the_tree(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"x")
    await system.link("a", "b")
    await system.setxattr("a", b"user.k", b"v")
    await system.symlink(b"a", "s")
    await system.setattr("a", mode=0o600)
    await system.sync()
    assert sorted(writes(remote)) == [("make", "s"), ("put", "a")]
    await system.unlink("a")
    await system.sync()
    assert remote.content("b") == b"x"
    assert await system.getxattr("b", b"user.k") == b"v"
    assert (await system.stat("b")).mode & 0o777 == 0o600


async def test_unsynced_changes_are_counted(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.write("a", b"12345")
    assert system.volume.status.count() == 1
    assert system.volume.unsynced.size_bytes == 5
    await system.sync()
    assert system.volume.status.count() == 0
    assert system.volume.unsynced.size_bytes == 0


async def test_a_mount_that_cannot_write_refuses(clock: MockClock, tmp_path: object) -> None:
    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem
    from unifs.mounts.base import Mount

    class Reading(RemoteMount):
        put = Mount.put

    mount = Reading()
    mount.change("a", b"x")
    async with RemoteSystem(tmp_path / "s", mount) as system:  # type: ignore[operator]
        for attempt in (
            system.write("a", b"y"),
            system.write("b", b"y"),
            system.unlink("a"),
            system.mkdir("d"),
            system.setattr("a", mode=0),
            system.setxattr("a", b"user.x", b""),
            system.rename("a", "b"),
        ):
            with pytest.raises(ReadOnly):
                await attempt
        assert await system.read("a") == b"x"


async def test_a_bug_in_a_mount_costs_one_change_and_not_the_tree(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, caplog: pytest.LogCaptureFixture
) -> None:
    remote.fail("put", ZeroDivisionError("oops"))  # type: ignore[arg-type]
    await system.write("a", b"x")
    with pytest.raises(UnifsError, match="oops"):
        await system.sync()
    assert "oops" in caplog.text
    await system.write("b", b"y")
    await trio.sleep(10)
    assert remote.content("b") == b"y"
    assert await system.read("a") == b"x"


async def test_a_base_that_cannot_be_had_fails_the_write(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"base")
    remote.fail("read", Unreachable("cut"))
    async with system.open("a", os.O_RDWR) as file:
        with pytest.raises(Unreachable):
            await file.write(1, b"x")
        await file.write(1, b"x")
        assert await file.read() == b"bxse"


async def test_two_writers_bring_the_base_once(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.change("a", b"0123")
    remote.delay_s = 1
    one = await system.open_file("a", os.O_RDWR)
    two = await system.open_file("a", os.O_RDWR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.write, 0, b"a")
        nursery.start_soon(two.write, 3, b"b")
    assert remote.count("read") == 1
    assert await one.read() == b"a12b"
    await one.close()
    await two.close()


async def test_what_waits_is_listed_by_path(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    await system.mkdir("d")
    await system.write("d/f", b"123")
    await system.write("e", b"1")
    top = (await system.stat("d")).ino
    status = system.volume.status
    assert [waiting.path for waiting in status.waiting(top)] == [b"/d", b"/d/f"]
    await system.volume.writeback.sync(status.inos(top))
    assert status.waiting(top) == []
    assert [(waiting.path, waiting.size_bytes) for waiting in status.waiting()] == [(b"/e", 1)]


@pytest.mark.parametrize("error", [NoSpace("full"), WouldBlock(trio.sleep_forever)])
async def test_giving_up_on_a_full_disk_ends_nothing(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, error: Exception
) -> None:
    """What cannot be noted is known until the next start, and writeback goes on."""
    remote.fail("put", PermissionDenied("no"))
    commit = system.volume.tree.commit

    def full(batch: list[Any], **options: Any) -> None:
        if batch[0][0].startswith("update journal set state=?"):
            raise error
        commit(batch, **options)

    with mock.patch.object(system.volume.tree, "commit", full):
        await system.write("a", b"refused")
        await trio.sleep(5)
        assert system.volume.writeback.statistics()["quarantined"] == 1
        await system.write("a", b"released")
        await trio.sleep(5)
    await system.write("b", b"later")
    await system.sync()
    assert remote.content("a") == b"released"
    assert remote.content("b") == b"later"
