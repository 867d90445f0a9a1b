"""The composition root, without a kernel."""

from __future__ import annotations

import resource
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio

from unifs import config
from unifs.daemon import Daemon, run
from unifs.errors import MountFailed
from unifs.telemetry import TASK_BUGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(config.load(state=tmp_path / "state", environment={}), str(tmp_path / "mnt"))
    yield made
    made.close(is_clean=False)


async def test_a_task_with_a_bug_begins_again(
    daemon: Daemon, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The bug is logged with its traceback and counted; the task runs on."""
    attempts = 0
    third = trio.Event()

    async def task() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            third.set()
            await trio.sleep_forever()
        raise ZeroDivisionError("a bug")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._keep_running, "roots", task)
        await third.wait()
        nursery.cancel_scope.cancel()
    assert daemon.metrics.counter(TASK_BUGS, "roots").value == 2
    assert caplog.text.count("ZeroDivisionError: a bug") == 2


def test_the_root_shows_the_mounts_of_the_settings(daemon: Daemon) -> None:
    assert sorted(daemon.vfs.namespace.root.children) == [b"ipfs", b"local", b"mfs"]


def test_a_mount_that_is_switched_off_is_not_there(tmp_path: Path) -> None:
    settings = config.load(
        state=tmp_path / "state",
        overrides={"mounts": {"ipfs": {"enabled": False}, "local": {"enabled": False}}},
        environment={},
    )
    daemon = Daemon(settings, "")
    try:
        assert sorted(daemon.vfs.namespace.root.children) == [b"mfs"]
    finally:
        daemon.close(is_clean=False)


def test_a_profile_is_fixed_at_the_first_start(tmp_path: Path) -> None:
    """CIDs of everything would change with it."""
    Daemon(config.load(state=tmp_path / "state", environment={}), "").close(is_clean=False)
    settings = config.load(
        state=tmp_path / "state", overrides={"profile": "unixfs-v0-2015"}, environment={}
    )
    with pytest.raises(config.ConfigInvalid, match="unixfs-v1-2025"):
        Daemon(settings, "")
    # The refused start has let go of the state directory.
    Daemon(config.load(state=tmp_path / "state", environment={}), "").close(is_clean=False)


def test_settings_of_the_store_reach_the_node(tmp_path: Path) -> None:
    storage = {"limit_bytes": 1000, "watermark_percent": 50}
    settings = config.load(state=tmp_path / "state", overrides={"storage": storage}, environment={})
    daemon = Daemon(settings, "")
    try:
        collector = daemon.node.collector
        assert (collector.limit_bytes, collector.watermark_percent) == (1000, 50)
    finally:
        daemon.close(is_clean=False)


# The worker processes of another test that ran in this process.
@pytest.mark.filterwarnings("ignore:Previous default context leaving zombie workers")
def test_a_failure_has_its_name_however_deep_it_happens(tmp_path: Path) -> None:
    settings = config.load(state=tmp_path / "state", environment={})
    (tmp_path / "file").touch()
    # Every part is open when the mount is tried, each with a nursery around the failure.
    with pytest.raises(MountFailed, match="cannot be mounted"):
        run(settings, str(tmp_path / "file" / "mnt"), lambda: None)


def facts(state: Path) -> dict[str, object]:
    with closing(sqlite3.connect(state / "tree.db")) as database:
        return dict(database.execute("select key,value from meta"))


@pytest.mark.filterwarnings("ignore:Previous default context leaving zombie workers")
def test_a_mount_that_fails_leaves_a_clean_state_clean(tmp_path: Path) -> None:
    """A service that tries it again and again leaves no receipt each time."""
    state = tmp_path / "state"
    settings = config.load(state=state, environment={})
    for _ in range(2):
        with pytest.raises(MountFailed):
            run(settings, str(tmp_path / "absent"), lambda: None)
        assert facts(state)["is_clean"] == 1
    assert not list((state / "lost+found").iterdir())


def test_a_start_that_is_interrupted_leaves_a_clean_state_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unifs.daemon.Session", interrupted)
    state = tmp_path / "state"
    settings = config.load(state=state, environment={})
    # The first start makes what mounts need.
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(settings, str(tmp_path), lambda: None)
    assert facts(state)["is_clean"] == 1
    assert not list((state / "lost+found").iterdir())


def test_what_was_changed_or_served_is_not_clean_after_a_failure(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = config.load(state=state, environment={})
    daemon = Daemon(settings, "")
    # Nothing says it until it is closed: it may be killed.
    assert facts(state)["is_clean"] == 0
    daemon.storage.database.begin()
    daemon.storage.database.set_meta("epoch", 1)
    daemon.storage.database.commit()
    daemon.close(is_clean=False)
    assert facts(state)["is_clean"] == 0
    daemon = Daemon(settings, "")
    daemon.has_answered = True
    daemon.close(is_clean=False)
    assert facts(state)["is_clean"] == 0


@pytest.mark.filterwarnings("ignore:Previous default context leaving zombie workers")
def test_a_daemon_leaves_no_core_dump(tmp_path: Path) -> None:
    """It would hold the secrets of backends."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    settings = config.load(state=tmp_path / "state", environment={})
    try:
        with pytest.raises(MountFailed):
            run(settings, str(tmp_path / "absent"), lambda: None)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
