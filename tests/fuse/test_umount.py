"""`unifs umount`: what it refuses and why, and that nothing is left."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fuse.calling import Commands, has_ended, other_mount
from tests.fuse.conftest import PATIENCE_S, Mounts, until
from unifs.driver import replacing, unmounting
from unifs.driver.mountinfo import mounted_at, umount
from unifs.driver.unmounting import umount_command
from unifs.errors import Busy, MountFailed

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- umount -------------------------------------------------------------------------------------


def test_umount_of_nothing_and_of_something_else(commands: Commands) -> None:
    code, said = commands.umount()
    assert (code, "nothing is mounted" in said) == (4, True)
    other_mount(commands.mount_point)
    code, said = commands.umount()
    assert (code, "is no unifs (tmpfs)" in said) == (2, True)


def test_umount_names_who_uses_it(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    with subprocess.Popen(["sleep", "60"], cwd=commands.mount_point) as user:
        code, said = commands.umount()
        user.kill()
    assert code == 5
    assert f"is in use by sleep (pid {user.pid})" in said
    with subprocess.Popen(["sleep", "60"], cwd=commands.mount_point) as user:
        code, said = commands.umount(cwd=commands.mount_point)
        user.kill()
    assert (code, said.count("pid"), "python" in said) == (5, 1, False), said
    code, said = commands.umount(cwd=commands.mount_point)
    assert (code, "is in use by this command" in said) == (5, True), said
    assert commands.umount() == (0, "")


def test_umount_names_programs_that_run_from_it_and_what_is_mounted_below(
    commands: Commands,
) -> None:
    assert commands.mount() == (0, "")
    program = commands.mount_point / "sleep"
    shutil.copy("/usr/bin/sleep", program)
    with subprocess.Popen([program, "60"], cwd="/") as user:
        code, said = commands.umount()
        user.kill()
    assert (code, f"is in use by sleep (pid {user.pid})" in said) == (5, True), said
    with (commands.mount_point / "data").open("w+b") as file:
        file.write(bytes(4096))
        file.flush()
        memory = mmap.mmap(file.fileno(), 4096)
    code, said = commands.umount()
    assert (code, f"(pid {os.getpid()})" in said) == (5, True), said
    memory.close()
    below = commands.mount_point / "below"
    below.mkdir()
    other_mount(below)
    code, said = commands.umount()
    assert (code, f"is in use by what is mounted at {below}" in said) == (5, True), said
    umount(str(below))
    assert commands.umount() == (0, "")


def test_umount_removes_a_dead_mount_even_when_it_is_used(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    with subprocess.Popen(["sleep", "60"], cwd=commands.mount_point) as user:
        os.kill(commands.daemon(), signal.SIGKILL)
        until(lambda: replacing.is_dead(str(commands.mount_point)), "it is dead")
        assert commands.umount() == (0, "")
        user.kill()
    assert mounted_at(str(commands.mount_point)) is None


def test_umount_ends_a_tree_that_another_namespace_has_a_copy_of(commands: Commands) -> None:
    assert commands.mount() == (0, "")
    daemon = commands.daemon()
    with _copied_namespace():
        assert commands.umount() == (0, "")
        assert has_ended(daemon)


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
    replacing.remove_dead(str(mounted.path))
    assert mounted_at(str(mounted.path)) is None


@pytest.mark.usefixtures("as_user")
def test_a_session_of_a_user_is_taken_out_of_the_namespace(mounts: Mounts) -> None:
    mounted = mounts.start("tests.driver.ramfs")
    replacing.detach(str(mounted.path))
    assert mounted.process.wait(PATIENCE_S) == 0
    with pytest.raises(MountFailed, match=r"not found|not mounted|Invalid"):
        replacing.detach(str(mounted.path))


def test_without_fusermount3_a_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MountFailed, match="not installed"):
        replacing.fusermount("/nowhere", "-u")
