"""`unifs mount` and `unifs umount`: what they refuse and why, and what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuse.conftest import PATIENCE_S, REPOSITORY, Mounts, until
from unifs.driver import fusectl, mounting, session, unmounting
from unifs.driver.mountinfo import MNT_DETACH, mount, mounted_at, umount
from unifs.driver.unmounting import umount_command
from unifs.errors import Busy, DeadlineExceeded, MountFailed

if TYPE_CHECKING:
    from collections.abc import Iterator


class Commands:
    """Runs the two commands and cleans up after them."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.mount_point = directory / "mnt"
        self.mount_point.mkdir()

    def _command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "tests.fuse.commands", *map(str, arguments)]

    def start(self, *arguments: str | Path, cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(*arguments), cwd=cwd, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        result = subprocess.run(
            self._command(*arguments),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 2,
            check=False,
        )
        return result.returncode, result.stderr

    def mount(self, *options: str) -> tuple[int, str]:
        return self.run("mount", self.mount_point, "--state", self.state, *options)

    def umount(self, *options: str) -> tuple[int, str]:
        return self.run("umount", self.mount_point, *options)

    def daemon(self) -> int:
        found = mounted_at(str(self.mount_point))
        assert found is not None
        (pid,) = fusectl.Connection.of(found).servers()
        return pid

    def log(self) -> str:
        return (self.state / "unifs.log").read_text()

    def clean(self) -> None:
        while (found := mounted_at(str(self.mount_point))) is not None:
            connection = fusectl.Connection.of(found)
            if found.is_unifs:
                for pid in connection.servers():
                    os.kill(pid, signal.SIGKILL)
                if connection.is_alive():
                    connection.abort()
            umount(str(self.mount_point), MNT_DETACH)


@pytest.fixture
def commands(tmp_path: Path, mounts: Mounts) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    made.clean()


# --- mount --------------------------------------------------------------------------------------


def test_mount_returns_when_the_tree_answers_and_umount_when_it_has_ended(
    commands: Commands,
) -> None:
    assert commands.mount() == (0, "")
    (commands.mount_point / "file").write_text("data")
    pid = commands.daemon()
    assert commands.umount() == (0, "")
    assert _has_ended(pid)
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


def _other_mount(place: Path) -> None:
    mount("tmpfs", str(place), "tmpfs")


@pytest.mark.parametrize(
    ("prepare", "code", "sentence"),
    [
        (Path.rmdir, 4, "does not exist: make the directory first"),
        (_file, 5, "is not a directory"),
        (_other_mount, 5, "is a mount point already (tmpfs)"),
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
    until(lambda: _has_ended(pid), "the daemon is gone")
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
    until(lambda: len(_children_that_sleep(commands)) == 1, "the daemon is there")
    (daemon,) = _children_that_sleep(commands)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    until(lambda: _has_ended(daemon), "the daemon has ended")


def _children_that_sleep(commands: Commands) -> list[int]:
    """Daemons of this test: sessions of their own with the log as standard error."""
    log = str(commands.state / "unifs.log")
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            if os.readlink(path) == log:
                found.append(int(path.parts[2]))
        except OSError:
            continue
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


# --- umount -------------------------------------------------------------------------------------


def test_umount_of_nothing_and_of_something_else(commands: Commands) -> None:
    code, said = commands.umount()
    assert (code, "nothing is mounted" in said) == (4, True)
    _other_mount(commands.mount_point)
    code, said = commands.umount()
    assert (code, "is no unifs (tmpfs)" in said) == (2, True)


def test_umount_names_who_uses_it(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    with subprocess.Popen(["sleep", "60"], cwd=commands.mount_point) as user:
        code, said = commands.umount()
        user.kill()
    assert code == 5
    assert f"is in use by sleep (pid {user.pid})" in said
    assert commands.umount() == (0, "")


def test_umount_removes_a_dead_mount_even_when_it_is_used(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    with subprocess.Popen(["sleep", "60"], cwd=commands.mount_point) as user:
        os.kill(commands.daemon(), signal.SIGKILL)
        until(lambda: mounting.is_dead(str(commands.mount_point)), "it is dead")
        assert commands.umount() == (0, "")
        user.kill()
    assert mounted_at(str(commands.mount_point)) is None


def test_umount_ends_a_tree_that_another_namespace_has_a_copy_of(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    daemon = commands.daemon()
    with _copied_namespace():
        assert commands.umount() == (0, "")
        assert _has_ended(daemon)


def test_umount_aborts_when_the_daemon_does_not_listen(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "COPY_S", 0.1)
    monkeypatch.setattr(unmounting, "END_S", 0.1)
    assert commands.mount() == (0, "")
    daemon = commands.daemon()
    codes: list[int] = []
    with _copied_namespace() as holder:
        os.kill(daemon, signal.SIGSTOP)
        thread = threading.Thread(
            target=lambda: codes.append(umount_command(commands.mount_point, wait=True))
        )
        thread.start()
        # Answered by nobody until the connection is aborted.
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.stat(f"/proc/{holder}/root{commands.mount_point}/file")
        assert codes == []
        os.kill(daemon, signal.SIGCONT)
        thread.join(PATIENCE_S)
        assert codes == [0]


def _has_ended(pid: int) -> bool:
    """Gone, or waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def _copied_namespace() -> Iterator[int]:
    """A process in a mount namespace of its own, with a copy of every mount."""
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


# --- a user's way, through fusermount3 ------------------------------------------------------------


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch, mounts: Mounts) -> None:
    """Take the way that users other than root have to take."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("as_user")
def test_a_user_unmounts_through_fusermount3(mounts: Mounts) -> None:
    mounted = mounts.start("tests.driver.ramfs")
    with subprocess.Popen(["sleep", "60"], cwd=mounted.path) as user:
        with pytest.raises(Busy, match=r"is in use by sleep \(pid \d+\)"):
            umount_command(mounted.path, wait=True)
        user.kill()
    assert umount_command(mounted.path, wait=True) == 0
    assert mounted.process.wait(PATIENCE_S) == 0


@pytest.mark.usefixtures("as_user")
def test_a_user_removes_a_dead_mount(mounts: Mounts) -> None:
    mounted = mounts.start("tests.driver.ramfs")
    assert mounted.end(signal.SIGKILL) == -signal.SIGKILL
    mounting.remove_dead(str(mounted.path))
    assert mounted_at(str(mounted.path)) is None


@pytest.mark.usefixtures("as_user")
def test_a_session_of_a_user_is_taken_out_of_the_namespace(mounts: Mounts) -> None:
    mounted = mounts.start("tests.driver.ramfs")
    session.detach(str(mounted.path))
    assert mounted.process.wait(PATIENCE_S) == 0
    with pytest.raises(MountFailed, match=r"not found|not mounted|Invalid"):
        session.detach(str(mounted.path))


def test_without_fusermount3_a_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MountFailed, match="not installed"):
        session.fusermount("/nowhere", "-u")


# --- a daemon that is there and does not answer ---------------------------------------------------


def test_a_frozen_tree_is_neither_covered_nor_taken_for_dead(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "ANSWER_S", 0.2)
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
