"""`unifs mount` and `unifs umount`: what they refuse and why, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuse.calling import Commands, has_ended, other_mount
from tests.fuse.conftest import PATIENCE_S, REPOSITORY, until
from unifs.driver import mounting, replacing
from unifs.driver.mountinfo import mounted_at
from unifs.errors import DeadlineExceeded

# --- mount --------------------------------------------------------------------------------------


def test_mount_returns_when_the_tree_answers_and_umount_when_ithas_ended(
    commands: Commands,
) -> None:
    assert commands.mount() == (0, "")
    (commands.mount_point / "file").write_text("data")
    pid = commands.daemon()
    assert commands.umount() == (0, "")
    assert has_ended(pid)
    assert list(commands.mount_point.iterdir()) == []


def test_the_daemon_holds_nothing_of_its_caller(commands: Commands) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    process = subprocess.Popen(
        commands._command("mount", commands.mount_point, "--state", commands.state),
        cwd=REPOSITORY,
        stdout=writing,
        stderr=writing,
        pass_fds=[writing],
    )
    os.close(writing)
    assert process.wait(PATIENCE_S) == 0
    # The end of file comes although the daemon runs on: it has not kept the pipe.
    assert os.read(reading, 1) == b""
    os.close(reading)
    pid = commands.daemon()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != pid


def test_the_foreground_serves_until_a_signal(commands: Commands) -> None:
    process = commands.start(
        "mount", commands.mount_point, "--foreground", "--state", commands.state
    )
    until(lambda: mounted_at(str(commands.mount_point)) is not None, "it is mounted")
    (commands.mount_point / "file").write_text("data")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert f"mounted mount_point={commands.mount_point}" in said


def _file(place: Path) -> None:
    place.rmdir()
    place.write_text("")


@pytest.mark.parametrize(
    ("prepare", "code", "sentence"),
    [
        (Path.rmdir, 4, "does not exist: make the directory first"),
        (_file, 5, "is not a directory"),
        (other_mount, 5, "is a mount point already (tmpfs)"),
    ],
)
def test_mount_points_that_cannot_be(
    commands: Commands, prepare: object, code: int, sentence: str
) -> None:
    assert callable(prepare)
    prepare(commands.mount_point)
    returned, said = commands.mount()
    assert (returned, said.count("\n")) == (code, 1)
    assert sentence in said
    assert str(commands.mount_point) in said


def test_a_mounted_unifs_is_not_covered(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    code, said = commands.mount()
    assert code == 5
    assert "a unifs is mounted at" in said


def test_a_directory_with_files_in_it_is_covered(commands: Commands) -> None:
    (commands.mount_point / "below").touch()
    assert commands.mount() == (0, "")
    assert os.listdir(commands.mount_point) == []
    assert commands.umount() == (0, "")
    assert os.listdir(commands.mount_point) == ["below"]


def test_the_state_directory_cannot_lie_below_the_mount_point(commands: Commands) -> None:
    commands.state = commands.mount_point / "state"
    code, said = commands.mount()
    assert code == 2
    assert "lies below the mount point" in said


def test_a_state_directory_that_cannot_be_made(commands: Commands) -> None:
    commands.state.write_text("a file")
    code, said = commands.mount()
    assert code == 5
    assert "cannot be made" in said


def test_a_directory_with_files_of_others_is_no_state_directory(commands: Commands) -> None:
    commands.state.mkdir(mode=0o755)
    (commands.state / "data").mkdir()
    (commands.state / "notes").write_text("mine")
    before = commands.state.stat()
    code, said = commands.mount()
    assert code == 2
    assert "is no state directory of unifs and not empty ('data' is in it)" in said
    assert sorted(os.listdir(commands.state)) == ["data", "notes"]
    assert commands.state.stat() == before
    # The state is opened there also where no log is begun.
    code, said = commands.run(
        "mount", "--foreground", commands.mount_point, "--state", commands.state
    )
    assert (code, "is no state directory" in said) == (2, True)
    assert commands.state.stat() == before


def test_a_symlink_to_a_directory_is_followed(commands: Commands, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(commands.mount_point)
    assert commands.run("mount", link, "--state", commands.state) == (0, "")
    assert mounted_at(str(commands.mount_point)) is not None
    assert commands.run("umount", link) == (0, "")


@pytest.mark.parametrize("name", ["with space", "new\nline", "öäü", "back\\slash", "com,ma"])
def test_mount_points_with_unusual_names(commands: Commands, tmp_path: Path, name: str) -> None:
    commands.mount_point = tmp_path / name
    commands.mount_point.mkdir()
    assert commands.mount() == (0, "")
    (commands.mount_point / "file").touch()
    assert commands.umount() == (0, "")


def test_a_mount_left_by_a_dead_daemon_is_replaced(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    pid = commands.daemon()
    os.kill(pid, signal.SIGKILL)
    until(lambda: has_ended(pid), "the daemon is gone")
    with pytest.raises(OSError, match="not connected"):
        os.listdir(commands.mount_point)
    code, said = commands.mount()
    assert code == 0
    assert "left over from a unifs that died" in said
    assert os.listdir(commands.mount_point) == []
    assert commands.umount() == (0, "")
    assert mounted_at(str(commands.mount_point)) is None


# --- a daemon that fails ------------------------------------------------------------------------


def test_why_the_daemon_does_not_come_up_is_said_by_the_parent(commands: Commands) -> None:
    assert commands.mount("--fail", "named") == (5, "STATE_IN_USE: it is in use by pid 1\n")
    assert mounted_at(str(commands.mount_point)) is None


@pytest.mark.parametrize("what", ["bug", "abort"])
def test_a_daemon_that_ends_too_early_points_to_the_log(commands: Commands, what: str) -> None:
    code, said = commands.mount("--fail", what)
    assert code == 5
    assert f"see {commands.state / 'unifs.log'}" in said
    assert ("ValueError: a bug" in commands.log()) == (what == "bug")


def test_an_interrupt_ends_a_daemon_that_is_not_ready(commands: Commands) -> None:
    process = commands.start(
        "mount", commands.mount_point, "--state", commands.state, "--fail", "slow"
    )
    found: list[int] = []

    def is_there() -> bool:
        found[:] = _daemons(commands)
        return len(found) == 1

    until(is_there, "the daemon is there")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    until(lambda: has_ended(found[0]), "the daemon has ended")


def _daemons(commands: Commands) -> list[int]:
    """Daemons of this test: sessions of their own with the log as standard error."""
    log = str(commands.state / "unifs.log")
    found = []
    for name in os.listdir("/proc"):
        # Others begin and end meanwhile, and some are not ours to look into.
        with suppress(OSError):
            if name.isdecimal() and os.readlink(f"/proc/{name}/fd/2") == log:
                found.append(int(name))
    return found


# --- the machine --------------------------------------------------------------------------------


def test_what_is_missing_on_the_machine_is_said_before_anything_starts(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = mounting.doctor.Finding("x", False, "something is missing", "get it", is_needed=True)
    monkeypatch.setattr(mounting.doctor, "needed", lambda is_wanted: [finding])
    settings = mounting.config.load(state=commands.state)
    with pytest.raises(mounting.MountFailed, match=r"something is missing \(get it\)"):
        mounting.mount_command(settings, commands.mount_point, False, lambda *_: 0)
    assert not commands.state.exists()


# --- a daemon that is there and does not answer ---------------------------------------------------


def test_a_frozen_tree_is_neither_covered_nor_taken_for_dead(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "ANSWER_S", 0.2)
    assert commands.mount() == (0, "")
    daemon = commands.daemon()
    os.kill(daemon, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded, match="does not answer"):
            mounting.check_mount_point(
                commands.mount_point, mounting.config.load(state=commands.state)
            )
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert commands.umount() == (0, "")
