"""Rollback and undelete that end in the middle, and epochs that go while they are looked for."""

from __future__ import annotations

import errno
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.journal.powercut import Disk
from tests.vfs.historyworld import HistorySystem
from tests.vfs.invariants import check
from tests.vfs.test_history_back import LARGE, fill
from tests.vfs.test_history_model import NOTHING
from unifs.errors import Corrupt, Exists, NoSpace, NotFound, UnifsError
from unifs.fsck.offline import examine
from unifs.vfs.rollback import TEMPORARY
from unifs.vfs.tree import Tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FILES = (b"/small", b"/large", b"/empty", b"/sub/same")


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[HistorySystem]:
    async with HistorySystem(tmp_path) as system:
        yield system
        check(system)


class Killed(BaseException):
    """The process ends here."""


def failing(patch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """The n-th transaction of the tree does not come."""
    commit, left = Tree.commit, number

    def counted(*args: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise error
        commit(*args, **options)

    patch.setattr(Tree, "commit", counted)


async def removed(fs: HistorySystem) -> None:
    for name in ("sub/same", "small", "large", "empty", "link", "fifo", "device"):
        await fs.unlink(f"d/{name}")
    await fs.rmdir("d/sub")
    await fs.rmdir("d")


async def test_a_killed_undelete_leaves_all_of_a_directory_or_nothing(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same command again brings it back."""
    await fill(fs)
    was = await fs.seen(await fs.at("/mfs/d"))
    await fs.history.checkpoint("then")
    await removed(fs)
    for number in range(1, 40):
        with monkeypatch.context() as patch:
            failing(patch, number, Killed())
            try:
                await fs.answer.undelete("/mfs/d", "then", None)
            except Killed:
                pass
        await fs.kill()
        if await fs.exists("d"):
            break
    assert number > 8
    assert await fs.seen(await fs.at("/mfs/d")) == was
    left = [name for name in await fs.listdir("") if name.startswith(TEMPORARY)]
    assert left
    first = fs.history.shown()[-1].number
    await fs.answer.rollback("/mfs", "then")
    assert await fs.listdir("") == [b"d"]
    assert fs.history.is_shown(first)


async def test_an_undelete_that_fails_takes_away_what_it_made(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(fs)
    await fs.history.checkpoint("then")
    await removed(fs)
    with monkeypatch.context() as patch:
        failing(patch, 6, NoSpace())
        with pytest.raises(NoSpace):
            await fs.answer.undelete("/mfs/d", "then", None)
    assert await fs.listdir("") == []


async def test_a_checkpoint_names_the_file_that_the_disk_does_not_take(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fs.mkdir("d")
    await fs.write("d/large", LARGE)

    async def fail(inode: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(fs.history, "seal", fail)
        with pytest.raises(UnifsError, match="/d/large cannot be brought to the disk: Input/outp"):
            await fs.history.checkpoint("then")
    assert not fs.history.checkpoints()
    await fs.history.checkpoint("then")
    assert await fs.seen(await fs.at("/.unifs/history/mfs/then"))


@pytest.mark.parametrize("call", ["seal", "flush"])
async def test_a_checkpoint_has_its_name_once_it_is_on_the_disk(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What fails after its epoch has ended leaves no checkpoint, and the name is free."""
    await fs.write("large", LARGE)
    number = fs.storage.tree.epoch
    owner = fs.history if call == "seal" else fs.storage.flusher
    real = getattr(owner, call)

    async def failing_later(*args: Any) -> None:
        if fs.storage.tree.epoch > number:
            raise NoSpace
        await real(*args)
        if call == "seal":
            # Somebody closes a file while the checkpoint is made.
            await fs.write("later", LARGE)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, failing_later)
        with pytest.raises(NoSpace):
            await fs.history.checkpoint("then")
    assert fs.history.checkpoints() == []
    await fs.history.checkpoint("then")
    assert set(await fs.then("then")) == set(await fs.live())


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_undelete_never_touches_what_came_meanwhile(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    await fill(fs)
    await fs.history.checkpoint("then")
    path = "d/small" if kind == "file" else "d/sub"
    if kind == "directory":
        await fs.unlink("d/sub/same")
        await fs.rmdir(path)
    else:
        await fs.unlink(path)
    real = type(fs.answer)._live

    async def live(*args: Any) -> Any:
        found = await real(*args)
        await fs.write(path, b"new")
        return found

    monkeypatch.setattr(type(fs.answer), "_live", live)
    with pytest.raises(Exists):
        await fs.answer.undelete(f"/mfs/{path}", "then", None)
    assert await fs.read(path) == b"new"
    assert not [name for name in await fs.listdir("d") if name.startswith(TEMPORARY)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("what", ["rollback", "undelete"])
async def test_a_power_cut_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, seed: int
) -> None:
    """Each file is old or new, the checkpoint is whole, and the same command again ends well."""
    chance = Random(seed)
    async with HistorySystem(tmp_path) as fs:
        with Disk(tmp_path) as disk:
            await fill(fs)
            was = await fs.seen(await fs.at("/mfs/d"))
            await fs.history.checkpoint("then")
            then = await fs.then("then")
            if what == "undelete":
                await removed(fs)
            else:
                await fs.write("d/small", b"changed")
                await fs.write("d/large", LARGE[::-1])
                await fs.write("d/empty", b"filled")
            changed = dict.fromkeys(FILES, (b"changed", LARGE[::-1], b"filled", b"changed"))
            if chance.random() < 0.5:
                await fs.storage.flusher.flush()
            with monkeypatch.context() as patch:
                failing(patch, chance.randrange(1, 20), Killed())
                try:
                    await getattr(fs.answer, what)("/mfs/d", "then", *[None] * (what[0] == "u"))
                except Killed:
                    pass
            await fs.kill(start=False)
            chosen = disk.cut(chance.choice(["synced", "wal", chance]))
        await fs.start(boot="another")
        assert await fs.then("then") == then, chosen
        is_there = await fs.exists("d")
        if is_there:
            seen = await fs.seen(await fs.at("/mfs/d"))
            for path in FILES:
                allowed = (was[path].data, *changed[path])
                assert path not in seen or seen[path].data in allowed, (path, chosen)
        await fs.answer.rollback("/mfs/d", "then")
        again = await fs.seen(await fs.at("/mfs/d"))
        assert {path: each.data for path, each in again.items()} == {
            path: each.data for path, each in was.items()
        }


@pytest.mark.parametrize("since", ["nothing", "bytes", "attributes", "removed"])
async def test_an_epoch_without_a_name_after_a_cut(tmp_path: Path, since: str) -> None:
    """A file that nobody synced is there as in the present, or an error, and never other bytes."""
    path = tmp_path / "state"
    async with HistorySystem(path) as fs:
        await fs.write("before", b"x", fsync=True)
        await fs.history.checkpoint("named")
        with Disk(path) as disk:
            await fs.write("a", LARGE)
            number = await fs.history.end_epoch()
            if since == "bytes":
                await fs.write("a", LARGE[::-1], fsync=True)
            elif since == "attributes":
                await fs.setattr("a", mode=0o600)
            elif since == "removed":
                await fs.unlink("a")
            await fs.fsyncdir()
            await fs.kill(start=False)
            disk.cut("synced")
        await fs.start(boot="another")
        if since == "nothing":
            assert (await fs.then(number))[b"/a"].data == await fs.read("a") == b""
        else:
            with pytest.raises(Corrupt, match="the machine stopped before these bytes were stored"):
                await fs.then(number)
        if since == "bytes":
            assert await fs.read("a") == LARGE[::-1]
        assert (await fs.then("named"))[b"/before"].data == b"x"
    outcome = examine(path, repair=True)
    assert {each.code for each in outcome.found} <= {"CONTAINER_LOST"}
    assert outcome.left == []
    async with HistorySystem(path) as fs:
        seen = await fs.then(number)
        assert seen[b"/before"].data == b"x"
        assert (b"/a" in seen) == (since == "nothing")


async def test_what_undelete_looks_for_is_not_thinned_meanwhile(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(fs)
    was = await fs.seen(await fs.at("/mfs/d"))
    await fs.history.end_epoch()
    await removed(fs)
    real = type(fs.history).in_thread

    async def slow(*args: Any) -> Any:
        found = await real(*args)
        fs.prune(NOTHING)
        return found

    monkeypatch.setattr(type(fs.history), "in_thread", slow)
    await fs.answer.undelete("/mfs/d", None, None)
    assert await fs.seen(await fs.at("/mfs/d")) == was


async def test_diff_finds_its_epochs_after_the_present_ended(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes a while: an epoch that is thinned meanwhile is named, not called empty."""
    await fs.write("a", b"one")
    first = await fs.history.end_epoch()
    await fs.write("a", b"two")
    real = type(fs.history).end_epoch

    async def slow(*args: Any) -> int:
        number = await real(*args)
        fs.prune(NOTHING)
        return number

    monkeypatch.setattr(type(fs.history), "end_epoch", slow)
    with pytest.raises(NotFound, match="is not kept"):
        [each async for each in fs.answer.diff(str(first), "now", "/mfs")]


async def test_a_checkpoint_made_while_others_are_thinned_is_whole(fs: HistorySystem) -> None:
    """Thinning takes several transactions; between any two of them somebody names the present."""
    for number in range(6):
        await fs.write("a", bytes((number,)) * 10)
        await fs.write(f"b{number}", b"x")
        await fs.history.end_epoch()
    retention = fs.retention(NOTHING)
    names = []
    for number in range(4):
        has_more = retention.prune()
        name = f"c{number}"
        await fs.history.checkpoint(name)
        names.append((name, await fs.then(name)))
        await fs.write("a", b"later" * (number + 1))
    assert not has_more
    fs.prune(NOTHING)
    for name, seen in names:
        assert await fs.then(name) == seen
