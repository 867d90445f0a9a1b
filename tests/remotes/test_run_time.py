"""Backends added, asked, refreshed and removed while the tree is mounted."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.turns import turns_during
from unifs.answers import backends
from unifs.errors import Busy, ConfigInvalid, Exists, NotFound, Stale, Unsupported, Unsynced
from unifs.vfs import remotestatus

if TYPE_CHECKING:
    from tests.control.conftest import Shell
    from tests.remotes.system import DaemonSystem


async def test_a_backend_is_added_without_a_restart_and_remembered(
    system: DaemonSystem, shell: Shell
) -> None:
    (added,) = await shell.json(
        "ctl", "backends", "add", "cold", "--endpoint", "http://127.0.0.1:9", "--bucket", "box",
        "--prefix", "a/", "--anonymous", "--fresh-s", "2", "--durability", "backend",
    )  # fmt: skip
    assert (added["kind"], added["source"]) == ("s3", "http://127.0.0.1:9/box/a")
    assert system.told["cold"].durability == "backend"
    system.choose("cold")
    await system.write("file", b"x")
    await system.sync("/cold")
    assert system.remote("cold").content("file") == b"x"
    await system.remount()
    system.choose("cold")
    assert await system.read("file") == b"x"
    listed = await shell.json("ctl", "backends", "ls")
    assert [(each["name"], each["is_removable"]) for each in listed] == [
        ("cold", True),
        ("s3", False),
    ]
    (root,) = await shell.json("ctl", "explain", "/cold/file")
    assert "at the backend: bucket box, key a/file" in root["notes"]


async def test_a_backend_is_removed_when_nothing_would_be_lost(
    system: DaemonSystem, shell: Shell
) -> None:
    remotes = system.daemon.remotes
    await remotes.add("cold", {"kind": "s3", "endpoint": "http://127.0.0.1:9", "anonymous": True})
    system.choose("cold")
    await system.freeze()
    await system.mkdir("d")
    await system.write("d/file", b"x" * 100_000)
    code, _, err = await shell.run("ctl", "backends", "rm", "cold")
    assert code == Unsynced.exit_code
    assert "2 changes in cold have not reached their backend" in err
    system.remote("cold").thaw()
    await system.sync("/cold")
    async with system.open("d/file") as file:
        with pytest.raises(Busy, match="1 files below cold are open"):
            await remotes.remove("cold", force=False)
        ino = file.ino
    await shell.text("ctl", "backends", "rm", "cold")
    assert b"cold" not in system.vfs.namespace.root.children
    with pytest.raises(Stale):
        system.vfs.inodes.get(ino)
    query = "select count(*) from inode i join mount m on m.id=i.mount where m.name='cold'"
    assert system.storage.database.one(query) == (1,)
    await system.remount()
    assert [remote.name for remote in system.daemon.remotes] == ["s3"]
    # The backend is as it was, and a mount of that name begins anew.
    await system.daemon.mounts.list()
    await remotes_of(system).add("cold", {"kind": "s3", "endpoint": "http://127.0.0.1:9"})
    system.choose("cold")
    assert await system.read("d/file") == b"x" * 100_000


def remotes_of(system: DaemonSystem):  # type: ignore[no-untyped-def]
    return system.daemon.remotes


async def test_force_gives_changes_up(system: DaemonSystem) -> None:
    await system.daemon.remotes.add("cold", {"kind": "s3", "endpoint": "http://127.0.0.1:9"})
    system.choose("cold")
    await system.freeze()
    await system.write("file", b"x" * 100_000)
    await system.daemon.mounts.remove("cold", force=True)
    system.choose("s3")
    await system.write("other", b"x")
    await system.sync()
    await system.remount()
    assert (await system.daemon.status()).warnings == []
    assert system.storage.database.one("select count(*) from content")[0] == 0


async def test_what_cannot_be_is_refused(system: DaemonSystem) -> None:
    remotes = system.daemon.remotes
    with pytest.raises(Exists):
        await remotes.add("s3", {"kind": "s3"})
    with pytest.raises(ConfigInvalid, match="mfs is the name of the mount"):
        await remotes.add("mfs", {"kind": "s3"})
    with pytest.raises(ConfigInvalid, match=r"mounts\.x\.prefix needs mounts\.x\.bucket"):
        await remotes.add("x", {"kind": "s3", "prefix": "a/"})
    with pytest.raises(Unsupported, match="stands in the settings file"):
        await remotes.remove("s3", force=False)
    with pytest.raises(NotFound, match="there is no backend zzz"):
        await remotes.remove("zzz", force=False)
    assert [remote.name for remote in remotes] == ["s3"]


async def test_refresh_asks_again_whatever_is_believed(system: DaemonSystem, shell: Shell) -> None:
    remote = system.remote()
    remote.plant_directory("d")
    remote.change("d/a", b"1")
    assert await system.listdir("d") == [b"a"]
    assert await system.read("d/a") == b"1"
    remote.change("d/a", b"22")
    remote.change("d/b", b"3")
    assert await system.listdir("d") == [b"a"]
    (answer,) = await shell.json("ctl", "refresh", "/s3/d")
    assert answer["asked"] == 3
    assert await system.listdir("d") == [b"a", b"b"]
    assert await system.read("d/a") == b"22"
    remote.change("d/a", b"333")
    await shell.text("ctl", "refresh", "/s3/d/a")
    assert await system.read("d/a") == b"333"
    remote.change("d/a", b"4444")
    await shell.text("ctl", "refresh", "/s3", "--recursive")
    assert await system.read("d/a") == b"4444"
    code, _, err = await shell.run("ctl", "refresh", "/mfs")
    assert code == Unsupported.exit_code
    assert "has no backend that could be asked" in err


async def test_others_are_answered_while_much_is_doubted_or_counted(
    system: DaemonSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotestatus, "STEP_DUES", 1)
    monkeypatch.setattr(backends, "STEP_ROWS", 1)
    remote = system.remote()
    remote.plant_directory("d")
    names = [f"d/{number}" for number in range(40)]
    for name in names:
        remote.change(name, b"old")
    for name in names:
        assert await system.read(name) == b"old"
        remote.change(name, b"newer")
    for name in names:
        await system.write(f"new-{name[2:]}", b"1")
    turns = await turns_during(partial(system.daemon.journal.status, "/s3/d"))
    assert turns >= 30
    counts = await system.daemon.journal.status("/s3")
    assert counts.closed + counts.sealed == 40
    turns = await turns_during(partial(system.daemon.backends.refresh, "/s3/d", True))
    assert turns >= 30
    for name in names:
        assert await system.read(name) == b"newer"


async def test_what_is_open_for_writing_is_counted_and_synced(system: DaemonSystem) -> None:
    async with system.open("a", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, b"1")
        counts = await system.daemon.journal.status("/s3")
        assert counts.open == 1
        await system.sync("/s3")
        assert system.remote().content("a") == b"1"
