"""Changes that were cut off and arrive later: nothing removed comes back, nothing new is taken."""

from __future__ import annotations

import hashlib
import stat
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests.mounts.remote import RemoteMount
from tests.remote.system import RemoteSystem
from tests.remote.test_random import everything, shown
from tests.vfs import invariants
from unifs.errors import UnifsError, Unreachable
from unifs.types import Node, Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import _Object
    from unifs.mounts.base import ContentReader
    from unifs.types import SetAttributes

#: When what was cut off arrives: before or after the tree looks for it the first time.
LATE_S = (0.1, 5.0, 50.0)
#: What happens to the daemon after what was cut off has been repeated and answered.
RESTARTS = ("none", "remount", "kill", "reboot")
PIECE_BYTES = 1 << 20


class LateMount(RemoteMount):
    """While ``late_s`` is set, what is changed gets no answer and happens so much later.

    The same bytes have the same version, as at S3.
    """

    def __init__(self, nursery: trio.Nursery, keeps_attributes: bool) -> None:
        super().__init__()
        self._nursery = nursery
        self._keeps_attributes = keeps_attributes
        self.late_s: float | None = None
        #: Whoever changes attributes hears nothing at all.
        self.is_silent = False
        self.arrived = 0

    def supports(self, capability: str) -> bool:
        if capability == "set_attributes":
            return self._keeps_attributes
        return super().supports(capability)

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        if self.late_s is None:
            return await super().put(path, content, base, token)
        self._nursery.start_soon(self._arrive, super().put, path, content, base, token)
        raise Unreachable("cut off")

    async def make(self, path: str, node: Node, token: str) -> Node:
        if self.late_s is None:
            return await super().make(path, node, token)
        self._nursery.start_soon(self._arrive, super().make, path, node, token)
        raise Unreachable("cut off")

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        if self.late_s is None:
            return await super().remove(path, base, token)
        self._nursery.start_soon(self._arrive, super().remove, path, base, token)
        raise Unreachable("cut off")

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        if self.late_s is None:
            return await super().rename(path, new_path, token, base)
        self._nursery.start_soon(self._arrive, super().rename, path, new_path, token, base)
        raise Unreachable("cut off")

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        if self.late_s is None:
            return await super().set_attributes(path, changes, token)
        self._nursery.start_soon(self._arrive, super().set_attributes, path, changes, token)
        if self.is_silent:
            await trio.sleep_forever()
        raise Unreachable("cut off")

    def _file(self, data: bytes, token: str) -> _Object:
        made = super()._file(data, token)
        version = Version(hashlib.md5(data, usedforsecurity=False).hexdigest())
        made.node = Node(stat.S_IFREG | 0o644, len(data), version)
        return made

    async def _arrive(self, store: object, *arguments: object) -> None:
        assert self.late_s is not None
        await trio.sleep(self.late_s)
        with suppress(UnifsError):
            await store(*arguments)  # type: ignore[operator]
            self.arrived += 1


@asynccontextmanager
async def late_system(
    path: Path, *, keeps_attributes: bool = True
) -> AsyncIterator[tuple[RemoteSystem, LateMount]]:
    async with trio.open_nursery() as nursery:
        mount = LateMount(nursery, keeps_attributes)
        async with RemoteSystem(path / "state", mount) as system:
            yield system, mount


@asynccontextmanager
async def late(mount: LateMount, late_s: float) -> AsyncIterator[None]:
    """What is changed in here is sent at the end, and arrives so much later."""
    mount.late_s = late_s
    yield
    await trio.sleep(2.01)
    mount.late_s = None


async def restarted(system: RemoteSystem, restart: str) -> None:
    if restart == "remount":
        await system.remount()
    elif restart != "none":
        await system.kill(boot="another" if restart == "reboot" else None)


async def ended(system: RemoteSystem, mount: LateMount) -> dict[str, bytes | None]:
    """What is there when all that was late has arrived; the tree shows the same."""
    await system.sync()
    await trio.sleep(120)
    await system.sync()
    assert await shown(system) == everything(mount)
    invariants.check(system)
    return everything(mount)


@pytest.mark.parametrize("late_s", LATE_S)
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_removed_file(
    clock: MockClock, tmp_path: Path, late_s: float, is_killed: bool
) -> None:
    async with late_system(tmp_path) as (system, mount):
        async with late(mount, late_s):
            await system.write("a", b"x")
        await system.unlink("a")
        if is_killed:
            await system.kill()
        assert await ended(system, mount) == {}
        assert mount.arrived == 1


@pytest.mark.parametrize("late_s", LATE_S)
async def test_a_removed_file_in_a_removed_directory(
    clock: MockClock, tmp_path: Path, late_s: float
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.mkdir("d")
        await system.sync()
        async with late(mount, late_s):
            await system.write("d/a", b"x")
        await system.unlink("d/a")
        await system.rmdir("d")
        assert await ended(system, mount) == {}
        assert mount.arrived == 1
        assert [call for call in mount.calls if call[0] == "remove"] == [
            ("remove", "d/a"),
            ("remove", "d"),
        ]


@pytest.mark.parametrize("late_s", LATE_S)
async def test_a_removed_file_in_a_renamed_directory(
    clock: MockClock, tmp_path: Path, late_s: float
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.mkdir("d")
        await system.sync()
        async with late(mount, late_s):
            await system.write("d/a", b"x")
        await system.unlink("d/a")
        await system.rename("d", "e")
        assert await ended(system, mount) == {"e": None}
        assert mount.arrived == 1


@pytest.mark.parametrize("late_s", LATE_S)
async def test_a_removed_directory(clock: MockClock, tmp_path: Path, late_s: float) -> None:
    async with late_system(tmp_path) as (system, mount):
        async with late(mount, late_s):
            await system.mkdir("d")
        await system.rmdir("d")
        assert await ended(system, mount) == {}
        assert mount.arrived == 1


@pytest.mark.parametrize("late_s", LATE_S)
async def test_a_renamed_file_goes_on_at_once(
    clock: MockClock, tmp_path: Path, late_s: float
) -> None:
    async with late_system(tmp_path) as (system, mount):
        async with late(mount, late_s):
            await system.write("a", b"x")
        await system.rename("a", "b")
        # What has arrived might come a second time; to move it away waits for that to be over.
        with trio.fail_after(10 if late_s > 1 else 70):
            await system.volume.writeback.sync([(await system.stat("b")).ino])
        assert mount.content("b") == b"x"
        assert await ended(system, mount) == {"b": b"x"}
        assert mount.arrived == 1


@pytest.mark.parametrize("late_s", [0.001, *LATE_S])
async def test_another_file_in_its_place(clock: MockClock, tmp_path: Path, late_s: float) -> None:
    async with late_system(tmp_path) as (system, mount):
        async with late(mount, late_s):
            await system.write("a", b"x")
        await system.unlink("a")
        await system.write("a", b"new")
        assert await ended(system, mount) == {"a": b"new"}


@pytest.mark.parametrize("late_s", LATE_S)
@pytest.mark.parametrize("is_moved", [False, True])
@pytest.mark.parametrize("restart", RESTARTS)
async def test_a_file_that_is_removed_after_its_upload_was_repeated(
    clock: MockClock, tmp_path: Path, late_s: float, is_moved: bool, restart: str
) -> None:
    async with late_system(tmp_path) as (system, mount):
        async with late(mount, late_s):
            await system.write("a", b"x")
        await system.volume.writeback.sync([(await system.stat("a")).ino])
        assert mount.content("a") == b"x"
        await restarted(system, restart)
        if is_moved:
            await system.rename("a", "b")
        else:
            await system.unlink("a")
        assert await ended(system, mount) == ({"b": b"x"} if is_moved else {})


@pytest.mark.parametrize("late_s", LATE_S)
@pytest.mark.parametrize("is_repeated", [False, True])
@pytest.mark.parametrize("restart", RESTARTS)
async def test_a_new_file_of_the_same_bytes_outlives_the_removal_of_the_old_one(
    clock: MockClock, tmp_path: Path, late_s: float, is_repeated: bool, restart: str
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.write("a", b"same")
        await system.sync()
        async with late(mount, late_s):
            await system.unlink("a")
        if is_repeated:
            await system.sync()
        await restarted(system, restart)
        await system.write("a", b"same")
        assert await ended(system, mount) == {"a": b"same"}
        assert mount.arrived == 1


@pytest.mark.parametrize("late_s", LATE_S)
@pytest.mark.parametrize("restart", RESTARTS)
async def test_bytes_that_are_stored_again_outlive_the_change_between_them(
    clock: MockClock, tmp_path: Path, late_s: float, restart: str
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.write("a", b"one")
        await system.sync()
        async with late(mount, late_s):
            await system.write("a", b"two")
        await system.volume.writeback.sync([(await system.stat("a")).ino])
        await restarted(system, restart)
        await system.write("a", b"one")
        assert await ended(system, mount) == {"a": b"one"}


@pytest.mark.parametrize("restart", RESTARTS)
async def test_the_same_bytes_outlive_a_removal_that_was_cut_off_before_their_upload_was(
    clock: MockClock, tmp_path: Path, restart: str
) -> None:
    async with late_system(tmp_path, keeps_attributes=False) as (system, mount):
        await system.write("a", b"same")
        await system.sync()
        async with late(mount, 50.0):
            await system.unlink("a")
        mount.fail("put", Unreachable())
        await system.write("a", b"same")
        await trio.sleep(2.01)
        await restarted(system, restart)
        assert await ended(system, mount) == {"a": b"same"}


async def test_the_same_bytes_outlive_the_first_of_two_removals(
    clock: MockClock, tmp_path: Path
) -> None:
    async with late_system(tmp_path, keeps_attributes=False) as (system, mount):
        await system.write("a", b"same")
        await system.sync()
        async with late(mount, 50.0):
            await system.unlink("a")
        await system.write("a", b"other")
        await system.volume.writeback.sync([(await system.stat("a")).ino])
        async with late(mount, 0.1):
            await system.unlink("a")
        await system.write("a", b"same")
        assert await ended(system, mount) == {"a": b"same"}


@pytest.mark.parametrize("next_", ["told", "changed", "unheard", "written"])
@pytest.mark.parametrize("restart", ["none", "kill"])
async def test_a_mode_outlives_the_one_before(
    clock: MockClock, tmp_path: Path, next_: str, restart: str
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.write("a", b"x")
        await system.sync()
        mount.is_silent = next_ == "unheard"
        async with late(mount, 50.0):
            await system.setattr("a", mode=0o600)
        if next_ == "told":
            await system.sync()
        elif next_ == "written":
            await system.write("a", b"xx")
        await restarted(system, restart)
        await system.setattr("a", mode=0o640)
        await ended(system, mount)
        assert stat.S_IMODE((await mount.stat("a")).mode) == 0o640


def notes(system: RemoteSystem) -> list[bytes]:
    """The paths of which the rows tell that something may still arrive there."""
    query = "select key from meta where key like 'late/%'"
    rows = system.storage.database.all(query)
    return [bytes.fromhex(key.rpartition("/")[2]) for (key,) in rows]


async def test_what_is_noted_of_late_calls_goes_with_the_time(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", trio.current_time)
    names = (b"\xff\n", b"b", b"c")
    async with late_system(tmp_path) as (system, mount):
        for name in names:
            async with late(mount, 1.0):
                await system.write(name, b"x")
            await system.volume.writeback.sync([(await system.stat(name)).ino])
            await trio.sleep(40)
        # The first is over; the third has said so.
        assert notes(system) == [b"b", b"c"]
        await system.remount()
        assert notes(system) == [b"c"]
        await system.kill(boot="another")
        await trio.sleep(55)
        # Another machine's clock says nothing: it is waited for again.
        await system.remount()
        assert notes(system) == [b"c"]
        await trio.sleep(10)
        await system.remount()
        assert notes(system) == []


@pytest.mark.parametrize("late_s", LATE_S)
async def test_a_rename_that_was_given_up(clock: MockClock, tmp_path: Path, late_s: float) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.write("a", b"x")
        await system.write("b", b"y")
        await system.sync()
        async with late(mount, late_s):
            await system.rename("a", "moved")
            await system.rename("b", "gone")
        await system.rename("moved", "a")
        await system.unlink("gone")
        assert await ended(system, mount) == {"a": b"x"}


@pytest.mark.parametrize("late_s", [0.001, *LATE_S])
async def test_a_file_that_is_saved_again_is_no_conflict(
    clock: MockClock, tmp_path: Path, late_s: float
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.write("b", b"before")
        await system.sync()
        async with late(mount, late_s):
            await system.write("a", b"one")
            await system.write("b", b"one")
        await system.write("a", b"two")
        await system.write("b", b"two")
        assert await ended(system, mount) == {"a": b"two", "b": b"two"}


@pytest.mark.parametrize("late_s", [0.001, *LATE_S])
async def test_a_directory_that_is_renamed_around_it(
    clock: MockClock, tmp_path: Path, late_s: float
) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.mkdir("d")
        await system.sync()
        async with late(mount, late_s):
            await system.write("d/a", b"x")
            await system.mkdir("d/sub")
        await system.rename("d", "e")
        assert await ended(system, mount) == {"e": None, "e/a": b"x", "e/sub": None}


async def test_below_a_rename_without_an_answer(clock: MockClock, tmp_path: Path) -> None:
    async with late_system(tmp_path) as (system, mount):
        await system.mkdir("d")
        for name in ("gone", "out", "changed"):
            await system.write(f"d/{name}", name.encode())
        await system.sync()
        mount.fail("rename", Unreachable("the answer was lost"), after=True)
        await system.rename("d", "e")
        await trio.sleep(2.01)
        assert mount.count("rename") == 1
        await system.unlink("e/gone")
        await system.rename("e/out", "out")
        await system.write("e/changed", b"again")
        system.volume.writeback.hurry()
        wanted = {"e": None, "e/changed": b"again", "out": b"out"}
        assert await ended(system, mount) == wanted


async def test_another_directory_in_its_place(clock: MockClock, tmp_path: Path) -> None:
    """What became of the first one's attempt is asked for when the second one is there."""
    async with late_system(tmp_path) as (system, mount):
        mount.fail("make", Unreachable())
        await system.mkdir("d")
        await trio.sleep(2.01)
        await system.rmdir("d")
        mount.fail("stat", *[Unreachable()] * 9)
        await trio.sleep(90)
        await system.listdir("")
        await system.mkdir("d")
        await trio.sleep(2.01)
        assert everything(mount) == {"d": None}
        assert await ended(system, mount) == {"d": None}


async def test_an_upload_that_was_never_heard_of_is_forgotten_after_a_while(
    clock: MockClock, tmp_path: Path
) -> None:
    async with late_system(tmp_path) as (system, mount):
        mount.fail("put", Unreachable())
        await system.write("a", b"x")
        await trio.sleep(2.01)
        await system.unlink("a")
        start = trio.current_time()
        await system.sync()
        assert 50 < trio.current_time() - start < 65
        assert system.volume.statistics()["waiting"] == 0


class InPieces(RemoteMount):
    """Takes a second for each MiB that it is sent."""

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        for offset in range(0, content.size_bytes, PIECE_BYTES):
            await content.read(offset, PIECE_BYTES)
            await trio.sleep(1)
        return await super().put(path, content, base, token)


async def test_an_upload_of_which_bytes_are_missing_is_stopped(
    clock: MockClock, tmp_path: Path
) -> None:
    mount = InPieces()
    async with RemoteSystem(tmp_path / "state", mount) as system:
        await system.write("a", bytes(20 * PIECE_BYTES))
        await trio.sleep(5)
        assert system.volume.statistics()["running"] == 1
        await system.unlink("a")
        with trio.fail_after(5):
            await system.sync()
        assert mount.count("put") == 0
