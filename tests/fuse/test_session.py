"""Sessions on real mounts: how they begin and end, and what the kernel is told meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from tests.fuse.calls import Threads, errno_of, found, frozen_count
from tests.fuse.conftest import PATIENCE_S, REPOSITORY, Mounted, Mounts, until
from unifs.driver import fusectl
from unifs.driver.mountinfo import mounted_at


def start(mounts: Mounts, *options: str) -> Mounted:
    return mounts.start("tests.driver.faultfs", *options)


# --- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_and_ends(
    mounts: Mounts, loop: tuple[str, ...], number: signal.Signals
) -> None:
    mounted = start(mounts, *loop)
    (mounted.path / "file").write_bytes(b"data")
    assert mounted.end(number) == 0
    assert mounted_at(str(mounted.path)) is None
    assert os.listdir(mounted.path) == []
    assert "Traceback" not in mounted.logged()


def test_umount_ends_the_process(mounts: Mounts, loop: tuple[str, ...]) -> None:
    mounted = start(mounts, *loop)
    (mounted.path / "file").write_bytes(b"data")
    subprocess.run(["umount", mounted.path], check=True)
    assert mounted.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in mounted.logged()


def test_a_signal_ends_waiting_requests_with_an_answer(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    mounted = start(mounts, *loop, "--grace", "0.2")
    (mounted.path / "frozen").write_bytes(b"frozen")
    frozen = Threads()
    frozen.run((mounted.path / "frozen").read_bytes)
    until(lambda: frozen_count(mounted) == 1, "a read waits")
    assert mounted.end() == 0
    assert frozen.join() == [errno.ENOTCONN]


def test_a_second_signal_does_not_wait_for_the_programs_that_use_it(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    mounted = start(mounts, *loop, "--grace", "600")
    (mounted.path / "file").write_bytes(b"data")
    descriptor = os.open(mounted.path / "file", os.O_RDONLY)
    mounted.process.send_signal(signal.SIGTERM)
    until(lambda: mounted_at(str(mounted.path)) is None, "it is out of the namespace")
    assert os.read(descriptor, 10) == b"data"
    assert mounted.end() == 0
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)


def test_an_aborted_connection_ends_the_process_though_requests_wait(mounts: Mounts) -> None:
    mounted = start(mounts)
    (mounted.path / "frozen").write_bytes(b"frozen")
    frozen = Threads()
    frozen.run((mounted.path / "frozen").read_bytes)
    until(lambda: frozen_count(mounted) == 1, "a read waits")
    fusectl.Connection.of(found(mounted)).abort()
    assert mounted.process.wait(PATIENCE_S) == 0
    assert len(frozen.join()) == 1


def test_a_killed_daemon_leaves_a_dead_mount_that_the_next_one_covers(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    mounted = start(mounts, *loop)
    (mounted.path / "file").write_bytes(b"data")
    mounted.process.kill()
    mounted.process.wait(PATIENCE_S)
    with pytest.raises(OSError, match="not connected") as caught:
        os.listdir(mounted.path)
    assert caught.value.errno == errno.ENOTCONN
    again = mounts.start("tests.driver.faultfs", *loop, path=mounted.path)
    (again.path / "new").write_bytes(b"data")
    assert os.listdir(again.path) == ["new"]


# --- the kernel's limits ------------------------------------------------------------------------


def test_the_kernels_limits_are_raised(mounts: Mounts, loop: tuple[str, ...]) -> None:
    there = found(start(mounts, *loop))
    directory = fusectl.Connection.of(there).directory
    assert (directory / "max_background").read_text() == "1024\n"
    assert (directory / "congestion_threshold").read_text() == "1024\n"
    read_ahead = fusectl.BDI / f"{there.major}:{there.minor}" / "read_ahead_kb"
    assert read_ahead.read_text() == f"{fusectl.READ_AHEAD_KIB}\n"


def test_which_loop_serves_is_said(mounts: Mounts, loop: tuple[str, ...]) -> None:
    mounted = start(mounts, *loop)
    assert mounted.logged().count("request loop=stock") == bool(loop)


@pytest.mark.parametrize(
    ("pretence", "reason"),
    [
        ("version", "pyfuse3 3.99 is not one of"),
        ("before", "its wait for a request suspends elsewhere"),
        ("after", "its wait for a request suspends elsewhere"),
    ],
)
def test_another_pyfuse3_is_served_by_its_own_loop(
    mounts: Mounts, pretence: str, reason: str
) -> None:
    mounted = start(mounts, "--pretend", pretence)
    root = mounted.path
    threads = Threads()
    for n in range(8):
        (root / f"slow{n}").write_bytes(b"data")
    for n in range(8):
        threads.run((root / f"slow{n}").read_bytes)
    assert threads.join() == [b"data"] * 8
    subprocess.run(["cp", "-r", REPOSITORY / "unifs", root / "copy"], check=True)
    assert mounted.end() == 0
    assert mounted.logged().count("WARNING") == 1
    assert f"request loop=stock reason='{reason}" in mounted.logged()


# --- telling the kernel -------------------------------------------------------------------------


def test_what_changed_elsewhere_is_seen_once_the_kernel_is_told(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    file = start(mounts, *loop).path / "file"
    file.write_bytes(b"old")
    assert file.read_bytes() == b"old"
    os.setxattr(file, "user.change", b"new")
    assert file.read_bytes() == b"old"
    os.setxattr(file, "user.forget", b"")
    until(lambda: file.read_bytes() == b"new", "the kernel has forgotten")


def test_a_name_is_asked_for_again_once_the_kernel_is_told(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    mounted = start(mounts, *loop)
    file = mounted.path / "file"
    file.touch()
    mounted.fault("lookup value")
    assert file.exists()
    os.setxattr(mounted.path, "user.forget-name", b"1/file")
    until(lambda: errno_of(file.stat) == errno.EIO, "the kernel asks again")


def test_an_invalidation_that_blocks_holds_up_nobody(mounts: Mounts, loop: tuple[str, ...]) -> None:
    mounted = start(mounts, *loop, "--grace", "0.2")
    root = mounted.path
    directory = root / "directory"
    directory.mkdir()
    (root / "file").write_bytes(b"data")
    threads = Threads()
    threads.run((directory / "stuck").stat)
    until(lambda: frozen_count(mounted) == 1, "a look-up waits")
    # The kernel holds the directory for the look-up, so the notification waits for it.
    name = f"{directory.stat().st_ino}/stuck".encode()
    os.setxattr(root / "file", "user.forget-name", name)
    for n in range(20):
        (root / f"new{n}").write_bytes(b"data")
        assert (root / f"new{n}").read_bytes() == b"data"
    assert threads.answers == []
    assert mounted.end() == 0
    assert threads.join() == [errno.ENOTCONN]
    assert "Traceback" not in mounted.logged()


# --- how it is mounted --------------------------------------------------------------------------


def test_read_only(mounts: Mounts) -> None:
    root = start(mounts, "--read-only").path
    with pytest.raises(OSError, match="Read-only"):
        (root / "file").touch()
    assert os.statvfs(root).f_flag & os.ST_RDONLY


@pytest.mark.parametrize("is_allowed", [True, False])
def test_other_users_are_let_in_only_if_asked(mounts: Mounts, is_allowed: bool) -> None:
    mounted = start(mounts, *(["--allow-other"] if is_allowed else []))
    (mounted.path / "file").write_bytes(b"data")
    # The directories above belong to pytest; a descriptor gets around them.
    look = "import os,sys; os.setuid(65534); os.stat('file', dir_fd=int(sys.argv[1]))"
    descriptor = os.open(mounted.path, os.O_PATH)
    result = subprocess.run(
        [sys.executable, "-c", look, str(descriptor)],
        pass_fds=[descriptor],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(descriptor)
    assert (result.returncode == 0) == is_allowed
    assert ("Permission denied" in result.stderr) != is_allowed


def test_permissions_are_the_kernels(mounts: Mounts) -> None:
    mounted = start(mounts, "--allow-other")
    (mounted.path / "file").write_bytes(b"data")
    (mounted.path / "file").chmod(0o600)
    read = "import os,sys; os.setuid(65534); os.open('file', 0, dir_fd=int(sys.argv[1]))"
    descriptor = os.open(mounted.path, os.O_PATH)
    result = subprocess.run(
        [sys.executable, "-c", read, str(descriptor)],
        pass_fds=[descriptor],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(descriptor)
    assert "Permission denied" in result.stderr


def test_a_daemon_that_fails_leaves_its_mount_point_dead(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    mounted = start(mounts, *loop, "--crash")
    assert mounted.process.wait(PATIENCE_S) == 1
    assert "the daemon fails" in mounted.logged()
    # An empty directory there could be taken for a tree without files.
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mounted.path)
