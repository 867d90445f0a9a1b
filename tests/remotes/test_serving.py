"""A remote mount from the settings to the backend: shown, written back, explained, kept apart."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from tests.mounts.remote import RemoteMount
from tests.remotes.system import S3, DaemonSystem
from unifs.errors import NotFound, PermissionDenied, ReadOnly, Unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.config_mounts import RemoteBase
    from unifs.mounts.base import Mount


async def test_what_is_written_reaches_the_backend_and_what_is_there_is_read(
    system: DaemonSystem,
) -> None:
    system.remote().change("there", b"from somebody")
    await system.mkdir("docs")
    await system.write("docs/a", b"mine")
    assert await system.read("there") == b"from somebody"
    counts = await system.sync()
    assert system.remote().content("docs/a") == b"mine"
    assert (counts.open, counts.closed, counts.sealed, counts.quarantined) == (0, 0, 0, 0)
    assert await system.getxattr("docs/a", b"user.unifs.state") == b"synced"
    assert system.told["s3"].source() == "http://127.0.0.1:1"


async def test_changes_survive_a_kill_and_go_out_at_the_next_start(system: DaemonSystem) -> None:
    await system.freeze()
    await system.write("a", b"x" * 100_000)
    assert await _unsynced(system, "/s3") == 1
    await system.kill()
    system.remote().thaw()
    await system.sync("/s3")
    assert system.remote().content("a") == b"x" * 100_000


async def test_the_answer_of_one_path_is_about_that_path(system: DaemonSystem) -> None:
    await system.freeze()
    for name in ("a", "b"):
        await system.mkdir(name)
        await system.write(f"{name}/file", name.encode())
    journal = system.daemon.journal
    assert [await _unsynced(system, path) for path in ("/s3/a", "/s3", "/", "/mfs")] == [2, 4, 4, 0]
    with trio.move_on_after(0.3) as scope:
        await journal.sync("/mfs", "synced", None)
    assert not scope.cancelled_caught
    system.remote().thaw()
    await system.sync("/s3/a")
    assert system.remote().content("a/file") == b"a"


async def test_removals_and_hard_links_belong_to_their_directory(system: DaemonSystem) -> None:
    remote = system.remote()
    for name in ("a", "b"):
        remote.plant_directory(name)
        remote.change(f"{name}/old", b"x")
        assert await system.listdir(name) == [b"old"]
    await system.freeze()
    await system.unlink("a/old")
    await system.write("a/new", b"x")
    await system.link("a/new", "b/linked")
    assert [await _unsynced(system, path) for path in ("/s3/a", "/s3/b", "/s3")] == [2, 1, 2]
    explained = await system.daemon.explain("/s3/a")
    assert len(explained.unsynced) == 2
    status = await system.daemon.journal.status("/s3/b")
    assert status.oldest_unsynced_s is not None
    remote.thaw()
    await system.sync("/s3/a")
    with pytest.raises(NotFound):
        remote.content("a/old")


async def test_counting_many_changes_does_not_hold_up_the_loop(system: DaemonSystem) -> None:
    await system.freeze()
    await system.mkdir("d")
    for number in range(300):
        await system.write(f"d/{number}", b"x")
    explained = await system.daemon.explain("/s3/d")
    assert len(explained.unsynced) == 21
    assert explained.unsynced[-1] == "and 281 more"
    queries = 0
    database = system.storage.database
    one = database.one

    def counted(*arguments):  # type: ignore[no-untyped-def]
        nonlocal queries
        queries += 1
        return one(*arguments)

    database.one = counted  # type: ignore[method-assign]
    assert system.daemon.journal.count().sealed + system.daemon.journal.count().closed >= 300
    assert queries < 20


async def test_limits_of_the_settings_hold_for_each_mount(tmp_path: Path) -> None:
    system = DaemonSystem(tmp_path, s3={**S3, "parallel_max": 4, "fresh_s": 7})
    system.journal = {
        "writeback_delay_s": 0.5,
        "writeback_age_max_s": 9.0,
        "dirty_bytes_max": "5 MiB",
    }
    async with system:
        limits = system.volume.writeback.limits
        assert (limits.delay_s, limits.age_max_s, limits.parallel_max) == (0.5, 9.0, 4)
        assert system.volume.unsynced.max_bytes == 5 << 20
        assert (system.volume.fresh_s, system.volume.timeout_s) == (7.0, 7.0)


async def _unsynced(system: DaemonSystem, path: str) -> int:
    counts = await system.daemon.journal.status(path)
    return counts.closed + counts.sealed


async def test_records_of_a_backend_do_not_count_as_changes_of_mfs(system: DaemonSystem) -> None:
    for number in range(20):
        await system.write(f"f{number}", b"x")
    await system.unlink("f0")
    await system.sync()
    journal = system.daemon.journal
    paths = system.daemon.files._paths
    await paths.mkdir("/mfs/d")
    assert journal.waiting("mfs").count == 1
    assert journal.waiting("s3").count == 0
    assert (await system.daemon.status()).unsynced == 1
    counts = await journal.status(None)
    assert counts.closed + counts.sealed == 1


async def test_the_journal_lists_what_was_tried_and_why_it_failed(system: DaemonSystem) -> None:
    system.remote().fail("put", *[Unreachable("no route to there")] * 5)
    await system.write("a", b"1")
    listed = []
    with trio.fail_after(120):
        while not listed or not listed[0].tries:
            await trio.sleep(0.01)
            listed = [each async for each in system.daemon.journal.list("/s3", None, 10)]
    record = listed[0]
    assert (record.path, record.operation, record.tries) == ("/s3/a", "create", 1)
    assert record.reason == "no route to there"
    assert record.next_try_s is not None
    explained = await system.daemon.explain("/s3/a")
    assert explained.unsynced == ["/s3/a is sealed; tried 1 times: no route to there"] or (
        explained.unsynced == ["/s3/a is closed; tried 1 times: no route to there"]
    )
    assert any("does not work since" in note for note in explained.notes)


async def test_what_is_refused_for_good_is_retried_or_dropped_by_hand(
    system: DaemonSystem,
) -> None:
    remote, journal = system.remote(), system.daemon.journal
    remote.change("old", b"theirs")
    assert await system.read("old") == b"theirs"
    refusal = PermissionDenied("the key may not write here")
    remote.fail("put", refusal, refusal)
    await system.write("old", b"mine")
    await system.write("new", b"mine too")
    await system.until_given_up(2)
    given_up = [each async for each in journal.list(None, "quarantined", 10)]
    assert sorted(each.path for each in given_up) == ["/s3/new", "/s3/old"]
    assert {each.reason for each in given_up} == {"the key may not write here"}
    with pytest.raises(PermissionDenied):
        await journal.sync("/s3/old", "synced", None)
    assert len(await journal.drop("/s3/old", False)) == 1
    assert (await journal.status("/s3")).quarantined == 2
    dropped = await journal.drop("/s3/old", True)
    assert [each.path for each in dropped] == ["/s3/old"]
    assert await system.read("old") == b"theirs"
    assert await journal.retry("/s3") == 1
    await system.sync()
    assert remote.content("new") == b"mine too"
    assert remote.content("old") == b"theirs"
    assert (await journal.status(None)).quarantined == 0


async def test_each_record_that_is_listed_is_of_something(system: DaemonSystem) -> None:
    for size in (200_000, 300_000):
        await system.write("a", bytes(size))
        await system.sync()
    assert system.storage.database.all("select seq from journal where ino=0")
    listed = [each async for each in system.daemon.journal.list(None, None, 100)]
    assert listed
    assert {each.path for each in listed} == {"/s3/a"}


@pytest.mark.parametrize("is_noted", [True, False])
async def test_what_an_earlier_daemon_gave_up_says_why(
    system: DaemonSystem, is_noted: bool
) -> None:
    """Or how to learn it, where a version before this one has not noted it."""
    refusal = PermissionDenied("the key may not write here")
    system.remote().fail("put", refusal)
    await system.write("new", b"mine")
    await system.until_given_up(1)
    if not is_noted:
        system.storage.database.execute("delete from meta where key like 'refused/%'")
    await system.kill()
    journal = system.daemon.journal
    (given_up,) = [each async for each in journal.list(None, "quarantined", 10)]
    if is_noted:
        assert given_up.reason == "the key may not write here"
        with pytest.raises(PermissionDenied, match="the key may not write here"):
            await journal.sync("/s3", "synced", None)
    else:
        assert "before the last start; `unifs ctl journal retry`" in str(given_up.reason)
    assert await journal.retry("/s3") == 1
    await system.sync()
    assert system.remote().content("new") == b"mine"
    assert not system.storage.database.all("select key from meta where key like 'refused/%'")


async def test_why_something_was_given_up_goes_with_it(system: DaemonSystem) -> None:
    system.remote().fail("put", PermissionDenied("the key may not write here"))
    await system.write("new", b"mine")
    await system.until_given_up(1)
    await system.unlink("new")
    await system.sync()
    assert not system.storage.database.all("select key from meta where key like 'refused/%'")


async def test_a_removal_that_is_dropped_brings_the_object_back(system: DaemonSystem) -> None:
    remote, journal = system.remote(), system.daemon.journal
    remote.change("a", b"kept")
    assert await system.listdir() == [b"a"]
    remote.fail("remove", PermissionDenied("no deletes"))
    await system.unlink("a")
    await system.until_given_up(1)
    assert not await system.exists("a")
    await journal.drop("/s3", True)
    assert await system.read("a") == b"kept"
    assert (await journal.status(None)).quarantined == 0


async def test_a_new_object_that_is_dropped_is_gone(system: DaemonSystem) -> None:
    remote, journal = system.remote(), system.daemon.journal
    remote.fail("put", PermissionDenied("no"))
    await system.write("a", b"lost " * 50_000)
    await system.until_given_up(1)
    await journal.drop("/s3/a", True)
    assert not await system.exists("a")
    assert system.volume.unsynced.size_bytes == 0
    await system.remount()
    assert await system.listdir() == []
    assert (await system.daemon.journal.status(None)).quarantined == 0


async def test_a_read_only_mount_refuses_changes_and_sends_what_was_written_before(
    tmp_path: Path,
) -> None:
    async with DaemonSystem(tmp_path, s3=S3) as system:
        assert isinstance(system, DaemonSystem)
        await system.freeze()
        await system.write("a", b"before")
        await system.kill(start=False)
        system.mounts["s3"] = {**S3, "read_only": True}
        system.remote().thaw()
        await system.start()
        await system.sync()
        assert system.remote().content("a") == b"before"
        with pytest.raises(ReadOnly):
            await system.write("b", b"x")
        with pytest.raises(ReadOnly):
            await system.unlink("a")
        (info,) = [each for each in await system.daemon.mounts.list() if each.name == "s3"]
        assert info.is_read_only


async def test_fsync_waits_for_the_backend_where_it_is_told_to(tmp_path: Path) -> None:
    async with DaemonSystem(tmp_path, s3={**S3, "durability": "backend"}) as system:
        assert isinstance(system, DaemonSystem)
        system.journal = {"writeback_delay_s": 60.0}
        await system.mkdir("d")
        async with system.open("d/a", os.O_RDWR | os.O_CREAT) as file:
            await file.write(0, b"one")
            await file.fsync()
            assert system.remote().content("d/a") == b"one"
            await file.write(0, b"two")
            await file.fsync()
            assert system.remote().content("d/a") == b"two"
        await system.write("d/b", b"")
        await system.fsyncdir("d")
        assert system.remote().content("d/b") == b""
        assert "confirmed" in (await system.daemon.explain("/s3/d/a")).fsync


async def test_fsync_tells_why_the_backend_does_not_have_it(tmp_path: Path) -> None:
    async with DaemonSystem(tmp_path, s3={**S3, "durability": "backend"}) as system:
        assert isinstance(system, DaemonSystem)
        async with system.open("a", os.O_RDWR | os.O_CREAT) as file:
            await file.write(0, b"one")
            system.remote().fail("put", PermissionDenied("may not write"))
            with pytest.raises(PermissionDenied, match="may not write"):
                await file.fsync()


async def test_a_backend_that_does_not_work_is_named_everywhere(
    system: DaemonSystem, caplog: pytest.LogCaptureFixture
) -> None:
    remote = system.remote()
    remote.fail("stat", Unreachable("nothing listens there"))
    with pytest.raises(Unreachable, match="nothing listens there"):
        await system.stat("a")
    status = await system.daemon.status()
    assert "s3 does not work: nothing listens there" in status.warnings
    (info,) = [each for each in await system.daemon.mounts.list() if each.name == "s3"]
    assert info.problem == "nothing listens there"
    assert "backend fails: mount=s3 error=nothing listens there" in caplog.text
    caplog.clear()
    remote.fail("stat", Unreachable("nothing listens there"))
    explained = await system.daemon.explain("/s3/a")
    assert explained.notes == ["the backend does not work: nothing listens there"]
    metrics = system.daemon.metrics.export()[0].decode()
    assert 'unifs_backend_up{mount="s3"} 0.0' in metrics
    assert 'unifs_backend_errors_total{error_code="UNREACHABLE",mount="s3"} 2.0' in metrics
    with pytest.raises(NotFound):
        await system.stat("a")
    assert (await system.daemon.status()).warnings == []


async def test_a_mount_that_cannot_begin_stops_no_other(tmp_path: Path) -> None:
    class Broken(RemoteMount):
        attempts = 0

        def serve(self):  # type: ignore[no-untyped-def]
            self.attempts += 1
            if self.attempts < 3:
                raise Unreachable("the service is not there")
            return super().serve()

    system = DaemonSystem(tmp_path, s3=S3, other=S3)
    system.backends["s3"] = Broken()
    async with system:
        system.choose("other")
        await system.write("a", b"fine")
        await system.sync("/other")
        system.choose("s3")
        with pytest.raises(Unreachable, match="s3 is not served: the service is not there"):
            await system.stat("a")
        with trio.fail_after(120):
            while system.daemon.remotes.get("s3").problem:  # noqa: ASYNC110
                await trio.sleep(0.05)
        with pytest.raises(NotFound):
            await system.stat("a")


async def test_a_mount_that_cannot_be_made_is_named_and_stops_no_other(tmp_path: Path) -> None:
    class WithoutKey(DaemonSystem):
        def make(self, name: str, settings: RemoteBase, /) -> Mount:
            if name == "s3":
                raise NotFound("there are no credentials called 'key'")
            return super().make(name, settings)

    async with WithoutKey(tmp_path, s3=S3, other=S3) as system:
        assert isinstance(system, DaemonSystem)
        system.choose("other")
        await system.write("a", b"fine")
        await system.sync("/other")
        assert b"s3" not in system.vfs.namespace.root.children
        warning = "s3 is not shown: there are no credentials called 'key'"
        assert warning in (await system.daemon.status()).warnings
        listed = {each.name: each.problem for each in await system.daemon.backends.list()}
        assert listed["s3"] == "not shown: there are no credentials called 'key'"
        with pytest.raises(NotFound, match="there is no backend s3: there are no credentials"):
            await system.daemon.backends.test("s3")


async def test_rows_of_another_backend_are_forgotten_unless_they_wait(tmp_path: Path) -> None:
    async with DaemonSystem(tmp_path, s3=S3) as system:
        assert isinstance(system, DaemonSystem)
        await system.mkdir("d")
        await system.write("d/big", b"b" * 200_000)
        await system.sync()
        await system.stop()
        first, second = {**S3}, {**S3, "endpoint": "http://127.0.0.1:2"}
        system.mounts["s3"] = second
        system.backends["s3"] = RemoteMount()
        await system.start()
        assert await system.listdir() == []
        await system.freeze()
        await system.write("mine", b"for the second")
        await system.kill(start=False)
        system.mounts["s3"] = first
        await system.start()
        (problem,) = system.daemon.remotes.problems.values()
        assert "1 changes in s3 are meant for http://127.0.0.1:2" in problem
        assert b"s3" not in system.vfs.namespace.root.children
        assert any("s3 is not shown" in each for each in (await system.daemon.status()).warnings)
        await system.stop()
        system.mounts["s3"] = second
        system.remote().thaw()
        await system.start()
        await system.sync()
        assert system.remote().content("mine") == b"for the second"


async def test_changes_of_a_mount_that_left_the_settings_are_named(tmp_path: Path) -> None:
    async with DaemonSystem(tmp_path, s3=S3) as system:
        assert isinstance(system, DaemonSystem)
        await system.freeze()
        await system.write("mine", b"x" * 100_000)
        await system.kill(start=False)
        del system.mounts["s3"]
        await system.start()
        (warning,) = (await system.daemon.status()).warnings
        assert "1 changes in it have not reached http://127.0.0.1:1" in warning
