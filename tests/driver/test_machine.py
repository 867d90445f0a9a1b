"""What the driver reads of the machine: mounts, the connection's files, what doctor finds."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace

import pyfuse3
import pytest

from unifs import config
from unifs.driver import doctor, fusectl, session
from unifs.driver.fusectl import Connection
from unifs.driver.mountinfo import MountedAt, mount_above, mounted_at, mounts, resolved
from unifs.driver.mounting import PrivateLog
from unifs.driver.waits import places_per_mount

MOUNTINFO = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /home/u rw,relatime master:7 shared:9 - tmpfs tmpfs rw
31 30 0:40 / /home/u/with\040space\134\012end rw - fuse.unifs unifs rw,user_id=0
32 30 0:41 / /home/u/twice rw - fuse.sshfs host:/ rw
33 32 0:42 / /home/u/twice rw - fuse.unifs unifs rw
34 30 0:43 / /home/u/t\303\266 rw - fuse.unifs unifs rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    return path


def test_the_log_is_its_users_alone_also_behind_a_full_one(tmp_path: Path) -> None:
    path = tmp_path / "unifs.log"
    before = os.umask(0)
    try:
        log = PrivateLog(path, maxBytes=10, backupCount=1)
        for _ in range(2):
            log.emit(logging.makeLogRecord({"msg": "0123456789"}))
        log.close()
    finally:
        os.umask(before)
    found = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
    assert found == {"unifs.log": 0o600, "unifs.log.1": 0o600}


# --- what is mounted ------------------------------------------------------------------------------


def test_lines_of_mountinfo(mountinfo: Path) -> None:
    found = mounts(mountinfo)
    assert found[0] == MountedAt("/", "ext4", 8, 1, ("shared:1",), "/dev/sda1")
    assert found[0].is_shared
    assert found[1].propagation == ("master:7", "shared:9")
    assert found[2] == MountedAt("/home/u/with space\\\nend", "fuse.unifs", 0, 40, (), "unifs")
    assert found[2].is_unifs
    assert not found[2].is_shared


def test_the_topmost_mount_counts(mountinfo: Path) -> None:
    found = mounted_at("/home/u/twice", mountinfo)
    assert found is not None
    assert (found.minor, found.is_unifs) == (42, True)
    assert mounted_at("/home/u/tö", mountinfo) is not None
    assert mounted_at("/home", mountinfo) is None


@pytest.mark.parametrize(
    ("path", "above"),
    [("/home/u/x/y", "/home/u"), ("/home/us", "/"), ("/home/u", "/home/u"), ("/", "/")],
)
def test_the_mount_that_a_path_lies_in(mountinfo: Path, path: str, above: str) -> None:
    assert mount_above(path, mountinfo).mount_point == above


def test_paths_are_resolved_without_touching_a_mount_point(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    assert resolved(tmp_path / "link") == str(real)
    assert resolved(tmp_path / "link" / ".." / "link" / "missing") == str(real / "missing")
    assert resolved("/proc") == "/proc"


# --- the connection -------------------------------------------------------------------------------


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(fusectl, "FUSECTL", tmp_path)
    monkeypatch.setattr(fusectl, "BDI", tmp_path / "bdi")
    made = Connection(0, 40)
    made.directory.mkdir()
    return made


def test_limits_read_ahead_and_the_end_are_files(connection: Connection) -> None:
    assert connection.is_alive()
    assert connection.raise_limits() == 1024
    assert (connection.directory / "max_background").read_text() == "1024\n"
    assert (connection.directory / "congestion_threshold").read_text() == "1024\n"
    bdi = fusectl.BDI / "0:40"
    bdi.mkdir(parents=True)
    connection.raise_read_ahead()
    assert (bdi / "read_ahead_kb").read_text() == "1024\n"
    connection.abort()
    assert (connection.directory / "abort").read_text() == "1\n"


@pytest.mark.parametrize(("allowed", "raised"), [(1024, 1024), (668, 512), (300, 256)])
def test_users_get_what_the_kernel_allows_them(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, allowed: int, raised: int
) -> None:
    def write(path: Path, text: str) -> int:
        if int(text) > allowed:
            raise OSError(errno.EINVAL, "Invalid argument")
        return len(text)

    monkeypatch.setattr(Path, "write_text", write)
    assert connection.raise_limits() == raised


def test_limits_that_cannot_be_raised_leave_the_kernels(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, text: str) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(fusectl, "ensure_mounted", lambda: True)
    mounted = MountedAt("/mnt", "fuse.unifs", 0, 40, ())
    assert fusectl.tune(mounted) == fusectl.BACKGROUND_DEFAULT
    assert "max_background cannot be raised" in caplog.text


@pytest.mark.parametrize(
    ("background", "remote_mounts", "places"),
    [(1024, 0, 256), (1024, 3, 256), (1024, 9, 102), (12, 0, 12), (12, 1, 6), (12, 40, 1)],
)
def test_frozen_mounts_leave_room_for_one_more(
    background: int, remote_mounts: int, places: int
) -> None:
    assert places_per_mount(background, remote_mounts) == places


def test_a_connection_of_nobody_has_no_servers() -> None:
    assert Connection(0, 1 << 19).servers() == []


# --- doctor ---------------------------------------------------------------------------------------


def test_every_finding_says_what_and_how_to_mend(tmp_path: Path) -> None:
    settings = config.load(state=tmp_path / "state")
    findings = doctor.examine(settings, tmp_path / "mnt")
    assert len({finding.name for finding in findings}) == len(findings) == 10
    for finding in findings:
        assert finding.message
        assert finding.is_ok or finding.remedy, finding
    assert not (tmp_path / "state").exists()


def test_the_fuse_device_missing_closed_or_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = doctor.fuse_device(tmp_path / "fuse")
    assert (missing.is_ok, missing.is_needed) == (False, True)
    assert "is missing" in missing.message
    assert "modprobe fuse" in missing.remedy
    (tmp_path / "fuse").touch()
    for other in (tmp_path / "fuse", Path("/dev/null")):
        assert "is not the FUSE device" in doctor.fuse_device(other).message
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "cannot be opened" in doctor.fuse_device(tmp_path / "socket").message

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    refused = doctor.fuse_device(tmp_path / "fuse")
    assert "Permission denied" in refused.message
    assert "chmod" in refused.remedy


def test_root_without_the_right_to_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor, "has_capability", lambda bit: False)
    finding = doctor.mount_right()
    assert not finding.is_ok
    assert "--cap-add SYS_ADMIN" in finding.remedy


def test_users_need_a_set_uid_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "is not installed" in doctor.mount_right().message
    program = tmp_path / "fusermount3"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert "is not set-uid root" in doctor.mount_right().message


def test_fusermount3_demands_a_name_of_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "fusermount3"
    program.touch()
    program.chmod(0o4755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status = os.stat(program)
    as_root = os.stat_result((status.st_mode, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(doctor.os, "stat", lambda path: as_root)
    assert doctor.mount_right().is_ok
    monkeypatch.setattr(os, "getuid", lambda: 4_242_424)
    finding = doctor.mount_right()
    assert (finding.is_ok, finding.is_needed) == (False, True)
    assert "uid 4242424 has no entry in /etc/passwd" in finding.message


def test_what_fusermount3_says_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "fusermount3: could not determine username\n"

    def fail(*_: object) -> None:
        os.write(2, b"a log line\n" + said.encode())
        raise RuntimeError("fuse_session_mount failed")

    monkeypatch.setattr(pyfuse3, "init", fail)
    with pytest.raises(RuntimeError, match=r"^fusermount3: could not determine username$"):
        session.mount(pyfuse3.Operations(), "/nowhere", set())
    assert capfd.readouterr().err == "a log line\n" + said
    monkeypatch.setattr(pyfuse3, "init", lambda *_: os.write(2, b"fuse: a warning\n"))
    session.mount(pyfuse3.Operations(), "/nowhere", set())
    assert capfd.readouterr().err == "fuse: a warning\n"


@pytest.mark.parametrize(
    ("text", "is_permitted"),
    [
        ("user_allow_other\n", True),
        ("# x\n  user_allow_other  \n", True),
        ("#user_allow_other\n", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("is_wanted", [True, False])
def test_users_may_let_others_in_if_fuse_conf_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    is_permitted: bool,
    is_wanted: bool,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    conf = tmp_path / "fuse.conf"
    conf.write_text(text)
    finding = doctor.allow_other(is_wanted, conf)
    assert finding.is_ok == (is_permitted or not is_wanted)
    assert finding.is_needed == is_wanted
    assert doctor.allow_other(True, tmp_path / "missing").is_ok is False


@pytest.mark.parametrize(
    ("release", "is_ok"),
    [("6.18.44-x", True), ("5.4.0", True), ("5.3.18", False), ("4.19", False), ("odd", False)],
)
def test_old_kernels_are_named(release: str, is_ok: bool) -> None:
    assert doctor.kernel(release).is_ok == is_ok


def test_users_whose_kernel_allows_too_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(fusectl, "is_mounted", lambda: True)
    limit = tmp_path / "max_user_bgreq"
    limit.write_text("668\n")
    assert not doctor.connection_limits(limit).is_ok
    limit.write_text("2674\n")
    assert doctor.connection_limits(limit).is_ok
    monkeypatch.setattr(fusectl, "is_mounted", lambda: False)
    finding = doctor.connection_limits(limit)
    assert not finding.is_ok
    assert "mount -t fusectl" in finding.remedy


def test_the_state_directory_full_closed_or_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.state_disk(tmp_path / "not" / "yet").is_ok
    (tmp_path / "file").touch()
    closed = doctor.state_disk(tmp_path / "file" / "state")
    assert (closed.is_needed, "cannot be written" in closed.message) == (True, True)
    foreign = doctor.state_disk(tmp_path)
    assert (foreign.is_needed, "'file' is in it" in foreign.message) == (True, True)
    (tmp_path / "file").unlink()
    assert doctor.state_disk(tmp_path).is_ok
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    full = doctor.state_disk(tmp_path)
    assert (full.is_ok, "0.0 GiB free" in full.message) == (False, True)


@pytest.mark.parametrize(
    ("hard", "is_ok"), [(1024, False), (1 << 20, True), (resource.RLIM_INFINITY, True)]
)
def test_few_descriptors(hard: int, is_ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (1024, hard))
    assert doctor.descriptors().is_ok == is_ok


def test_an_unknown_pyfuse3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.loop, "incompatibility", lambda: "it is another one")
    assert "it is another one" in doctor.request_loop().message


def test_capabilities_are_read_bit_by_bit(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("CapPrm:\t0000000000000000\nCapEff:\t0000000000200000\n")
    assert doctor.has_capability(21, status)
    assert not doctor.has_capability(24, status)
    status.write_text("nothing\n")
    assert not doctor.has_capability(21, status)
