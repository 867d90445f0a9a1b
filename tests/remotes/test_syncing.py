"""Waiting for backends at the command line: what is said meanwhile, to whom, and what is not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.control.conftest import Shell
from tests.remotes.system import S3, DaemonSystem
from unifs import cli
from unifs.control import syncing
from unifs.control.locate import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LINE = "\r\x1b[2K1 change waits for the backend, 2.0 KiB"


@pytest.fixture
async def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DaemonSystem]:
    """A file of 2 KiB waits for a backend that does not answer."""
    async with DaemonSystem(tmp_path, s3=S3) as made:
        monkeypatch.setenv("UNIFS_HOME", str(made.path))
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        monkeypatch.setattr(syncing, "LOOK_S", 0.02)
        monkeypatch.setattr(syncing, "FIRST_S", 0.2)
        await made.freeze()
        await made.write("new", bytes(2048))
        yield made


@pytest.fixture
def shell(system: DaemonSystem, capfdbinary: pytest.CaptureFixture[bytes]) -> Shell:
    return Shell(system, capfdbinary)  # type: ignore[arg-type]


@pytest.fixture
def terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    # After what captures it: that is another stream.
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


async def thaw(system: DaemonSystem) -> None:
    await trio.sleep(0.3)
    system.remote().thaw()


async def told(system: DaemonSystem, shell: Shell, *arguments: str) -> tuple[int, bytes, str]:
    """What a command says while the backend is silent for a while."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thaw, system)
        return await shell.run(*arguments)


@pytest.mark.parametrize("words", [("sync",), ("journal", "sync"), ("sync", "/s3")])
async def test_people_see_what_is_left(
    system: DaemonSystem, shell: Shell, terminal: None, words: tuple[str, ...]
) -> None:
    code, out, err = await told(system, shell, "ctl", *words)
    assert (code, LINE in err, err.endswith("\r\x1b[2K")) == (0, True, True), err
    assert b"synced" in out
    assert system.remote().content("new") == bytes(2048)


@pytest.mark.parametrize("more", [("--json",), ("--field", "closed")])
async def test_programs_see_nothing_of_it(
    system: DaemonSystem, shell: Shell, terminal: None, more: tuple[str, ...]
) -> None:
    code, out, err = await told(system, shell, "ctl", "sync", *more)
    assert (code, err) == (0, "")
    assert out


async def test_nor_does_what_reads_stderr(system: DaemonSystem, shell: Shell) -> None:
    code, _, err = await told(system, shell, "ctl", "sync")
    assert (code, err) == (0, "")


async def test_the_line_is_gone_before_a_refusal(
    system: DaemonSystem, shell: Shell, terminal: None
) -> None:
    code, _, err = await shell.run("ctl", "sync", "--timeout", "0.3")
    line, _, refusal = err.rpartition("\r\x1b[2K")
    assert code == 3
    assert LINE in line
    assert refusal.startswith("unifs: not everything was synced after 0.3 seconds: /s3/new")
    system.remote().thaw()


async def test_an_unmount_that_waits_says_for_what(
    system: DaemonSystem, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    unmounted: list[bytes] = []

    def umount(directory: Path, wait: bool) -> int:
        unmounted.append(system.remote().content("new"))
        return 0

    target = Target(system.path, None)
    monkeypatch.setattr("unifs.control.locate.Target", lambda state, mount: target)
    monkeypatch.setattr("unifs.driver.unmounting.umount_command", umount)
    with trio.fail_after(60):
        while not system.volume.statistics()["running"]:  # noqa: ASYNC110 (writeback has no event)
            await trio.sleep(0.01)
    code, _, err = await told(system, shell, "umount", "--wait", "/somewhere")
    assert (code, unmounted) == (0, [bytes(2048)])
    first, second = err.splitlines()
    assert first.startswith("unifs: not everything was synced after 0.2 seconds: /s3/new is ")
    assert first.endswith("; s3 has not answered yet")
    assert second == (
        "  1 change waits for the backend, 2.0 KiB;"
        " Ctrl-C ends the wait, and the tree stays mounted"
    )


async def test_whoever_does_not_wait_any_longer_has_it_mounted_still(
    system: DaemonSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(target: Target, name: str, parameters: dict[str, object]) -> None:
        raise KeyboardInterrupt

    def umount(directory: Path, wait: bool) -> int:
        raise AssertionError("it was unmounted")

    target = Target(system.path, None)
    monkeypatch.setattr("unifs.control.locate.Target", lambda state, mount: target)
    monkeypatch.setattr("unifs.control.syncing.call", interrupted)
    monkeypatch.setattr("unifs.driver.unmounting.umount_command", umount)
    code = await trio.to_thread.run_sync(cli.run, ["umount", "--wait", "/somewhere"])
    assert code == 130
    system.remote().thaw()


async def test_an_unmount_of_what_is_stored_says_nothing(
    system: DaemonSystem, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    system.remote().thaw()
    await system.sync()
    await trio.to_thread.run_sync(syncing.before_unmounting, Target(system.path, None))
    assert capfdbinary.readouterr() == (b"", b"")
