"""The daemon as a service: what it tells a service manager, and a real one that runs its unit."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon, repository_environment
from tests.fuse.conftest import PATIENCE_S, until
from unifs.driver.mountinfo import mounted_at, mounts
from unifs.machine.program import program
from unifs.machine.units import unit_name

if TYPE_CHECKING:
    from collections.abc import Iterator


class Manager:
    """The socket of a service manager (sd_notify(3)), and the service that it starts."""

    def __init__(self, base: Path, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE_S)
        self.daemon = Daemon(base)
        self.stderr = base / "stderr"

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start the service; it is not ready yet."""
        with self.stderr.open("wb") as stderr:
            self.daemon.process = subprocess.Popen(
                [*self.daemon.command, *options],
                env=repository_environment() | {"NOTIFY_SOCKET": self.address} | environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        return self.daemon.process

    def heard(self) -> list[str]:
        """The assignments of the next message."""
        return self.socket.recv(65_536).decode().split("\n")

    def is_silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(65_536)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE_S)

    def close(self) -> None:
        self.daemon.close()
        self.socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path, str(tmp_path / "notify"))
    yield made
    made.close()


def wait_until_ready(manager: Manager) -> None:
    assert manager.heard()[0].startswith("STATUS=opening ")
    assert manager.heard() == ["READY=1", f"STATUS=serving {manager.daemon.mount}"]


# --- what is told -------------------------------------------------------------------------------


def test_it_is_ready_when_the_tree_answers_and_stops_on_a_signal(manager: Manager) -> None:
    process = manager.start()
    wait_until_ready(manager)
    # At once: ready means that a program may be started that needs the tree.
    (manager.daemon.root / "file").write_bytes(b"data")
    process.send_signal(signal.SIGTERM)
    assert manager.heard() == ["STOPPING=1", f"STATUS=unmounting {manager.daemon.mount}"]
    assert process.wait(PATIENCE_S) == 0
    assert mounted_at(str(manager.daemon.mount)) is None


def test_an_abstract_socket_is_told(tmp_path: Path) -> None:
    manager = Manager(tmp_path, f"@unifs-{os.getpid()}")
    try:
        manager.start()
        wait_until_ready(manager)
    finally:
        manager.close()


def test_somebody_elses_umount_is_told_as_stopping(manager: Manager) -> None:
    process = manager.start()
    wait_until_ready(manager)
    subprocess.run(["umount", manager.daemon.mount], check=True)
    assert manager.heard()[0] == "STOPPING=1"
    assert process.wait(PATIENCE_S) == 0


def test_a_mount_that_fails_says_why_and_is_never_ready(manager: Manager) -> None:
    manager.start()
    wait_until_ready(manager)
    second = manager.daemon.base / "second"
    second.mkdir()
    command = [*manager.daemon.command[:-1], str(second)]
    done = subprocess.run(
        command,
        env=repository_environment() | {"NOTIFY_SOCKET": manager.address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert manager.heard()[0].startswith("STATUS=opening ")
    status, number = manager.heard()
    assert "is in use by pid" in status
    assert number == "ERRNO=16"
    assert manager.is_silent()


def test_a_daemon_in_the_background_is_not_the_service(manager: Manager) -> None:
    command = [word for word in manager.daemon.command if word != "--foreground"]
    environment = repository_environment() | {"NOTIFY_SOCKET": manager.address}
    subprocess.run(command, env=environment, check=True)
    umount = [sys.executable, "-m", "unifs", "umount", str(manager.daemon.mount)]
    subprocess.run(umount, env=environment, check=True)
    # Otherwise a service whose script mounts something would be told to stop with it.
    assert manager.is_silent()


def test_a_manager_that_is_gone_costs_nothing(manager: Manager) -> None:
    manager.socket.close()
    os.unlink(manager.address)
    manager.start()
    until(lambda: os.path.ismount(manager.daemon.mount), "it is mounted")
    (manager.daemon.root / "file").write_bytes(b"data")
    assert "the service manager cannot be told" in manager.stderr.read_text()


def test_the_watchdog_hears_of_a_loop_that_turns_and_not_of_a_frozen_one(manager: Manager) -> None:
    process = manager.start(WATCHDOG_USEC="100000")
    wait_until_ready(manager)
    assert [manager.heard() for _ in range(3)] == [["WATCHDOG=1"]] * 3
    process.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T", "it stops")
    while not manager.is_silent():
        pass
    # Three times as long as its interval.
    time.sleep(0.15)
    assert manager.is_silent()
    process.send_signal(signal.SIGCONT)
    assert manager.heard() == ["WATCHDOG=1"]


def test_another_processs_watchdog_is_not_ours(manager: Manager) -> None:
    manager.start(WATCHDOG_USEC="1000", WATCHDOG_PID="1")
    wait_until_ready(manager)
    assert manager.is_silent()


# --- what is logged -----------------------------------------------------------------------------


def test_the_journal_gets_a_priority_on_each_line(manager: Manager) -> None:
    manager.stderr.touch()
    status = manager.stderr.stat()
    process = manager.start(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
    wait_until_ready(manager)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    lines = manager.stderr.read_text().splitlines()
    assert f"<6>unifs.driver.mounting mounted mount_point={manager.daemon.mount}" in lines
    assert not [line for line in lines if not re.match(r"<[2-7]>unifs[\w.]* ", line)]


def test_a_log_that_leads_elsewhere_has_times(manager: Manager) -> None:
    manager.start(JOURNAL_STREAM="1:2")
    wait_until_ready(manager)
    last = manager.stderr.read_text().splitlines()[-1]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO unifs\.", last)


# --- a real systemd -----------------------------------------------------------------------------

#: A user's manager in a mount namespace of its own, where /run says that systemd has booted, and in
#: control groups of its own: it takes all processes of the one that it starts in.
USER_MANAGER = """
set -e
for group in $2; do
    echo $$ >"$group/cgroup.procs"
done
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mkdir -m 700 /run/user0
mkdir -p "$XDG_CONFIG_HOME/systemd/user/unifs-.service.d"
printf '[Service]\\nStandardError=append:%s\\n' "$HOME/unifs.log" \\
    >"$XDG_CONFIG_HOME/systemd/user/unifs-.service.d/log.conf"
printf '[Unit]\\nDescription=what a login starts\\n' >"$XDG_CONFIG_HOME/systemd/user/default.target"
exec "$1" --user --log-target=console --log-level=warning --unit=default.target
"""
SYSTEMD = Path("/lib/systemd/systemd")


def hierarchies() -> list[Path]:
    """Where processes can be put into control groups here: version 1, 2, or both."""
    top = Path("/sys/fs/cgroup")
    return [each for each in (top, *top.glob("*")) if (each / "cgroup.procs").is_file()]


def own_groups(hierarchies: list[Path], name: str) -> list[Path]:
    """A group of that name in each hierarchy that systemd tracks services by."""
    tracking = [each for each in hierarchies if each.name in ("cgroup", "unified", "systemd")]
    made = [each / name for each in tracking]
    for group in made:
        group.mkdir()
    return made


def remove_groups(hierarchies: list[Path], name: str) -> None:
    """Remove them, and what systemd has made of them in the others."""
    for each in hierarchies:
        for directory, _, _ in os.walk(each / name, topdown=False):
            os.rmdir(directory)


class Systemd:
    """One running user manager."""

    def __init__(self, base: Path, groups: list[Path]) -> None:
        self.log = base / "systemd.log"
        (base / "home").mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(base / "home"),
            "XDG_CONFIG_HOME": str(base / "home/config"),
            "XDG_RUNTIME_DIR": "/run/user0",
            "TMPDIR": tempfile.gettempdir(),
        }
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", USER_MANAGER]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "sh", SYSTEMD, " ".join(map(str, groups))],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def try_run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command in the manager's namespace."""
        assert self.process.poll() is None, self.log.read_text()
        return subprocess.run(
            ["nsenter", "--mount", "--target", str(self.process.pid), *map(str, command)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def run(self, *command: str | Path) -> str:
        """What a command prints there."""
        done = self.try_run(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.log.read_text())
        return done.stdout

    def show(self, unit: str, field: str) -> str:
        return self.run("systemctl", "--user", "show", "--value", "--property", field, unit).strip()

    def is_up(self) -> bool:
        return self.try_run("systemctl", "--user", "is-system-running").stdout == "running\n"

    def seen(self, path: Path) -> Path:
        """A path of the namespace, from outside."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def is_mounted(self, path: Path) -> bool:
        there = Path(f"/proc/{self.process.pid}/mountinfo")
        return mounted_at(str(path), there) is not None


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    if os.geteuid() != 0 or not SYSTEMD.exists():
        pytest.skip("lane systemd: needs root and Debian's package systemd")
    where, name = hierarchies(), f"unifs-test-{os.getpid()}"
    try:
        groups = own_groups(where, name)
    except OSError as error:
        pytest.skip(f"lane systemd: no control group can be made: {error.strerror}")
    if not groups:
        pytest.skip("lane systemd: no control groups are mounted")
    before = Path("/proc/self/cgroup").read_text()
    made = Systemd(tmp_path, groups)
    try:
        until(made.is_up, "systemd --user runs")
        yield made
    finally:
        made.process.terminate()
        made.process.wait(PATIENCE_S)
        remove_groups(where, name)
    # Nobody else's process was taken along.
    assert Path("/proc/self/cgroup").read_text() == before


def test_systemd_mounts_restarts_and_unmounts(systemd: Systemd, tmp_path: Path) -> None:
    # What a unit file or a specifier could take for something else.
    place = tmp_path / "a tree, 50%h of $HOME"
    place.mkdir()
    unifs = program()
    said = systemd.run(unifs, "install-service", "--user", "--now", place)
    assert f"{place} is mounted" in said
    unit = unit_name(str(place))
    assert systemd.show(unit, "ActiveState") == "active"
    assert systemd.show(unit, "StatusText") == f"serving {place}"
    seen = systemd.seen(place) / "mfs"
    (seen / "file").write_bytes(b"data")
    pid = int(systemd.show(unit, "MainPID"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: _reads(seen / "file") == b"data", "systemd has mounted it again")
    until(lambda: systemd.show(unit, "ActiveState") == "active", "the service is ready")
    assert systemd.show(unit, "NRestarts") == "1"
    assert int(systemd.show(unit, "MainPID")) != pid
    # Unmounted by hand it stays so: that is no failure.
    systemd.run(unifs, "umount", place)
    until(lambda: systemd.show(unit, "ActiveState") == "inactive", "the service has ended")
    assert systemd.show(unit, "Result") == "success"
    systemd.run("systemctl", "--user", "start", unit)
    assert (seen / "file").read_bytes() == b"data"
    assert "removed" in systemd.run(unifs, "uninstall-service", "--user", place)
    assert not systemd.is_mounted(place)
    assert systemd.show(unit, "LoadState") == "not-found"


def _reads(path: Path) -> bytes | int | None:
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno


def test_mounting_waits_for_a_daemon_that_still_closes(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    first = daemon.process
    assert first is not None
    try:
        # Two that serve never wait for each other.
        (tmp_path / "other").mkdir()
        command = [*daemon.command[:-1], tmp_path / "other"]
        other = subprocess.run(command, capture_output=True, check=False)
        assert b"is in use by pid" in other.stderr
        assert b"waits until" not in other.stderr
        (daemon.root / "file").write_bytes(b"data")
        first.send_signal(signal.SIGSTOP)
        subprocess.run(["umount", "--lazy", daemon.mount], check=True)
        log = tmp_path / "second.log"
        with log.open("wb") as stderr:
            daemon.process = subprocess.Popen(
                daemon.command, env=repository_environment(), stderr=stderr
            )
        told = f"waits until pid={first.pid} has closed it"
        until(lambda: told in log.read_text(), "the second one waits")
        first.send_signal(signal.SIGCONT)
        assert first.wait(PATIENCE_S) == 0
        until(lambda: _reads(daemon.root / "file") == b"data", "the second one serves")
        daemon.stop()
    finally:
        first.kill()
        daemon.close()


# --- in the place of a dead one -----------------------------------------------------------------


def test_nobody_sees_an_empty_directory_between_a_crash_and_the_next_mount(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount beneath a dead tree")
    daemon = Daemon(tmp_path)
    seen: set[tuple[str, ...] | int] = set()
    listing = ("ipfs", "local", "mfs")
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            try:
                seen.add(tuple(sorted(os.listdir(daemon.mount))))
            except OSError as error:
                seen.add(error.errno or 0)

    try:
        daemon.start()
        watching = threading.Thread(target=look)
        watching.start()
        for _ in range(2):
            dead = mounted_at(str(daemon.mount))
            assert daemon.process is not None
            daemon.process.kill()
            daemon.process.wait()
            daemon.start()
            # The kernel knows some of a dead tree's attributes, so it may seem to answer.
            until(lambda dead=dead: mounted_at(str(daemon.mount)) != dead, "it is replaced")
            until(lambda: not (daemon.state / "mounting").exists(), "it is at its place")
            seen.discard(listing)
            until(lambda: listing in seen, "the tree is seen")
        is_over.set()
        watching.join(PATIENCE_S)
        assert errno.ENOTCONN in seen
        # A job that mirrors the tree would take an empty directory for a tree without files.
        assert seen <= {listing, errno.ENOTCONN, errno.ECONNABORTED}
        mounted = [each for each in mounts() if each.mount_point == str(daemon.mount)]
        assert len(mounted) == 1
        daemon.stop()
        assert os.listdir(daemon.mount) == []
    finally:
        is_over.set()
        daemon.close()
