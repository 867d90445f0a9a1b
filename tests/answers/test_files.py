"""`unifs ctl files`: what it does by path, without a kernel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.turns import turns_during
from unifs import config
from unifs.daemon import Daemon
from unifs.errors import Busy, CrossMount, Exists, InvalidArgument, NotADirectory, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: More than Python's limit of calls in calls.
LEVELS = 480
#: Names in a directory that takes a while.
NAMES = 100


@pytest.fixture
def host(tmp_path: Path) -> Path:
    made = tmp_path / "host"
    made.mkdir()
    (made / "note").write_text("on the host")
    return made


@pytest.fixture
async def daemon(tmp_path: Path, host: Path) -> AsyncIterator[Daemon]:
    shown = {"mounts": {"local": {"directories": {"h": str(host)}}}}
    settings = config.load(state=tmp_path / "state", overrides=shown, environment={})
    made = Daemon(settings, str(tmp_path / "mnt"))
    yield made
    made.close(is_clean=False)


@pytest.mark.parametrize("path", ["/mfs", "/local", "/local/h", "/ipfs"])
async def test_nothing_of_a_mount_goes_where_its_removal_is_refused(
    daemon: Daemon, host: Path, path: str
) -> None:
    await daemon.files.mkdir("/mfs/kept/deep", parents=True)
    for recursive in (True, False):
        with pytest.raises(Busy, match=f"^{path} is a mount"):
            await daemon.files.remove(path, recursive)
    assert (host / "note").read_text() == "on the host"
    assert (await daemon.files.stat("/mfs/kept/deep")).kind == "directory"


async def test_a_deep_tree_is_copied_and_removed(daemon: Daemon) -> None:
    deepest = "/mfs/a" + "/d" * LEVELS
    await daemon.files.mkdir(deepest, parents=True)
    await daemon.files.copy("/mfs/a", "/mfs/b")
    assert (await daemon.files.stat("/mfs/b" + "/d" * LEVELS)).kind == "directory"
    await daemon.files.remove("/mfs/a", recursive=True)
    with pytest.raises(NotFound):
        await daemon.files.stat("/mfs/a")


@pytest.mark.parametrize("verb", ["copy", "remove"])
async def test_others_are_answered_while_a_directory_is_worked_on(
    daemon: Daemon, verb: str
) -> None:
    for number in range(NAMES):
        await daemon.files.mkdir(f"/mfs/a/{number}", parents=True)
    files = daemon.files
    if verb == "copy":
        turns = await turns_during(partial(files.copy, "/mfs/a", "/mfs/b"))
    else:
        turns = await turns_during(partial(files.remove, "/mfs/a", recursive=True))
    assert turns >= NAMES // 2


async def test_what_is_in_the_way_is_named(daemon: Daemon) -> None:
    await daemon.files.mkdir("/mfs/a/b", parents=True)
    await daemon.files.copy("/local/h/note", "/mfs/note")
    with pytest.raises(Exists, match=r"^/mfs/a exists"):
        await daemon.files.mkdir("/mfs/a", parents=False)
    with pytest.raises(Exists, match=r"^/mfs/note exists"):
        await daemon.files.copy("/local/h/note", "/mfs/note")
    with pytest.raises(InvalidArgument, match=r"^/mfs/a/b lies in /mfs/a"):
        await daemon.files.move("/mfs/a", "/mfs/a/b")


async def test_the_part_of_a_path_that_is_missing_is_named(daemon: Daemon) -> None:
    await daemon.files.copy("/local/h/note", "/mfs/note")
    with pytest.raises(NotFound, match=r"^/mfs/a does not exist"):
        await daemon.files.mkdir("/mfs/a/b/c", parents=False)
    with pytest.raises(NotFound, match=r"^/nowhere does not exist"):
        await daemon.files.copy("/mfs/note", "/nowhere/note")
    with pytest.raises(NotADirectory, match=r"^/mfs/note/a/b: /mfs/note is not a directory"):
        await daemon.files.stat("/mfs/note/a/b")


async def test_where_a_copy_and_what_moved_is_told(daemon: Daemon) -> None:
    await daemon.files.mkdir("/mfs/d", parents=False)
    assert await daemon.files.copy("/local/h/note", "/mfs/d") == "/mfs/d/note"
    assert await daemon.files.copy("/local/h/note", "/mfs/other") == "/mfs/other"
    assert await daemon.files.move("/mfs/other", "/mfs/d/") == "/mfs/d/other"
    assert await daemon.files.move("/mfs/d/other", "/mfs/new") == "/mfs/new"


async def test_a_file_of_the_host_is_told_of(daemon: Daemon) -> None:
    found = await daemon.files.stat("/local/h/note")
    assert (found.kind, found.size_bytes, found.cid, found.state) == ("file", 11, None, None)


async def test_a_file_goes_from_mfs_to_the_host_and_back(daemon: Daemon, host: Path) -> None:
    await daemon.files.copy("/local/h/note", "/mfs/note")
    await daemon.files.copy("/mfs/note", "/local/h/back")
    assert (host / "back").read_text() == "on the host"
    await daemon.files.mkdir("/local/h/a/b", parents=True)
    await daemon.files.copy("/local/h/a", "/mfs/a")
    with pytest.raises(CrossMount):
        await daemon.files.move("/mfs/note", "/local/h/new")
    with pytest.raises(NotFound, match=r"^/local/h/missing does not exist"):
        await daemon.files.stat("/local/h/missing")
