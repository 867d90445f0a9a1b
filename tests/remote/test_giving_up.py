"""Changes that are given up by hand leave nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.vfs import invariants
from unifs.errors import PermissionDenied, Unreachable
from unifs.vfs.remotegiveup import give_up
from unifs.waiting import complete

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem

LARGE = bytes(300_000)


async def test_an_upload_without_an_answer_is_given_up_with_its_directory(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("put", Unreachable("the answer was lost"), after=True)
    remote.fail("put", *[PermissionDenied("no")] * 3)
    remote.fail("make", PermissionDenied("no"))
    await system.write("a", LARGE)
    await trio.sleep(10)
    await system.mkdir("d")
    await system.rename("a", "d/a")
    await trio.sleep(10)
    given_up = system.volume.status.quarantined()
    assert [change.path for change in given_up] == [b"/d", b"/d/a"]
    for change in given_up:
        await complete(give_up, system.volume, change.ino)
    await system.sync()
    invariants.check(system)
    assert await system.listdir("") == [b"a"], "the backend has it"
    system.tick()
    await system.storage.flusher.flush()
    system.tick()
    assert system.storage.database.one("select count(*) from content")[0] == 0


async def test_nothing_is_kept_of_a_file_that_was_refused_and_removed(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount
) -> None:
    remote.fail("put", PermissionDenied("no"))
    await system.write("a", b"x")
    await trio.sleep(3)
    await system.unlink("a")
    await system.sync()
    assert system.storage.database.one("select count(*) from remote where path is null")[0] == 0
