"""Checking a real mount, online and offline, and repairing what a damaged state directory lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.fuse.conftest import PATIENCE_S, REPOSITORY, until
from unifs.driver.mountinfo import mounted_at

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuse.conftest import Mounts

DATA = os.urandom(3 << 20)


def unifs(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and JSON lines of one command."""
    command = [sys.executable, "-m", "unifs", *map(str, arguments), "--json"]
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]


def mount(place: Path, state: Path) -> None:
    command = [sys.executable, "-m", "unifs", "mount", str(place), "--state", str(state)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=PATIENCE_S)


def umount(place: Path) -> None:
    command = [sys.executable, "-m", "unifs", "umount", str(place)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=PATIENCE_S)


def test_a_mounted_tree_is_checked_and_its_state_repaired(tmp_path: Path, mounts: Mounts) -> None:
    place, state = tmp_path / "mnt", tmp_path / "state"
    place.mkdir()
    mount(place, state)
    try:
        (place / "mfs" / "d").mkdir()
        (place / "mfs" / "d" / "large").write_bytes(DATA)
        (place / "mfs" / "small").write_bytes(b"small")
        on = ("--state", state)
        code, (status,) = unifs("ctl", "sync", place / "mfs", "--until", "verified", *on)
        assert (code, status["verified"]) == (0, 2)
        assert unifs("ctl", "fsck", "--verify", *on)[0] == 0
        code, (checked,) = unifs("ctl", "journal", "verify", *on)
        assert (code, checked["found"], checked["directories"]) == (0, 0, 2)
        code, (verified,) = unifs("ctl", "verify", *on)
        assert (code, verified["files"], verified["size_bytes"]) == (0, 2, len(DATA) + 5)
        assert unifs("ctl", "conflicts", "list", *on) == (0, [])
        # Offline, it refuses what a daemon has.
        code, (refused,) = unifs("fsck", "--repair", "--state", state)
        assert (code, refused["error_code"]) == (8, "STATE_IN_USE")
        # Rot is named while it is mounted, though the file was verified before.
        (container,) = (state / "data").iterdir()
        with container.open("r+b") as file:
            file.seek((1 << 20) + 5)
            file.write(bytes((DATA[(1 << 20) + 5] ^ 1,)))
            file.flush()
            os.fsync(file.fileno())
        code, events = unifs("ctl", "verify", place / "mfs" / "d", *on)
        assert code == 6
        assert (events[0]["path"], events[0]["offset"]) == ("/mfs/d/large", 1 << 20)
    finally:
        umount(place)
    code, (outcome,) = unifs("fsck", "--state", state, "--verify")
    assert (code, outcome["found"][0]["code"]) == (4, "CONTENT_DAMAGED")
    code, (outcome,) = unifs("fsck", "--state", state, "--verify", "--repair")
    assert (code, outcome["status"]) == (1, "repaired")
    assert unifs("fsck", "--state", state, "--verify")[0] == 0
    mount(place, state)
    try:
        # What is left is where it was, what is lost is an error and no zeros.
        with (place / "mfs" / "d" / "large").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 1000, 0) == DATA[:1000]
            assert os.pread(file.fileno(), 1000, 2 << 20) == DATA[2 << 20 : (2 << 20) + 1000]
            with pytest.raises(OSError, match="Errno"):
                os.pread(file.fileno(), 1000, 1 << 20)
        code, receipts = unifs("ctl", "journal", "receipts", "--state", state)
        assert code == 0
        assert "fsck" in {each["kind"] for each in receipts}
    finally:
        umount(place)


def test_after_a_kill_fsck_says_that_recovery_comes_first(tmp_path: Path, mounts: Mounts) -> None:
    place, state = tmp_path / "mnt", tmp_path / "state"
    place.mkdir()
    mount(place, state)
    (place / "mfs" / "a").write_bytes(DATA)
    pid = json.loads((state / "lock").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
    until(lambda: mounted_at(str(place)) is None, "it is unmounted")
    until(lambda: unifs("fsck", "--state", state)[0] != 8, "its lock is released")
    code, (outcome,) = unifs("fsck", "--state", state)
    assert (code, outcome["needs_recovery"]) == (0, True)
    code, (outcome,) = unifs("fsck", "--state", state, "--repair")
    assert (code, outcome["has_recovered"]) == (0, True)
    mount(place, state)
    try:
        assert (place / "mfs" / "a").read_bytes() == DATA
    finally:
        umount(place)
