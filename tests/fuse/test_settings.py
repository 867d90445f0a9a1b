"""Settings of single mounts, each on a real mount: what it refuses, what it leaves alone."""

from __future__ import annotations

import os
import stat
from errno import EROFS
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import mounted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.crash.daemon import Daemon


def changes(below: Path) -> dict[str, Callable[[], object]]:
    """Every system call that changes something in a directory with ``file``, ``dir``, ``link``."""
    file, new = below / "file", below / "new"
    return {
        "create": new.touch,
        "open to write": lambda: os.close(os.open(file, os.O_WRONLY)),
        "open and cut": lambda: os.close(os.open(file, os.O_RDONLY | os.O_TRUNC)),
        "truncate": lambda: os.truncate(file, 1),
        "mkdir": new.mkdir,
        "mknod": lambda: os.mknod(new, stat.S_IFIFO | 0o600),
        "symlink": lambda: new.symlink_to("file"),
        "link": lambda: os.link(file, new),
        "unlink": file.unlink,
        "rmdir": (below / "dir").rmdir,
        "rename": lambda: file.rename(new),
        "chmod": lambda: file.chmod(0o600),
        "chown": lambda: os.chown(file, 1, 1),
        "utime": lambda: os.utime(file, (1, 1)),
        "setxattr": lambda: os.setxattr(file, "user.new", b"x"),
        "removexattr": lambda: os.removexattr(file, "user.old"),
    }


def fill(below: Path) -> None:
    (below / "file").write_bytes(b"bytes")
    (below / "dir").mkdir()
    (below / "link").symlink_to("file")
    os.setxattr(below / "file", "user.old", b"x")


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno == EROFS
    return False


def read_only_names(daemon: Daemon) -> set[str]:
    listed = {each["name"]: each["is_read_only"] for each in daemon.program("status")["mounts"]}
    return {name for name, is_read_only in listed.items() if is_read_only}


@pytest.mark.parametrize("name", ["mfs", "local"])
def test_a_read_only_mount_refuses_every_change(tmp_path: Path, name: str) -> None:
    """By system calls and by control operations; its neighbours and its bytes are untouched."""
    host = tmp_path / "host"
    host.mkdir()
    local = f'[mounts.local]\ndirectories = {{ h = "{host}" }}\n'
    with mounted(tmp_path / "unifs", local) as daemon:
        places = {"mfs": daemon.mount / "mfs", "local": daemon.mount / "local" / "h"}
        for place in places.values():
            fill(place)
    refuse = "read_only = true\n" if name == "local" else "[mounts.mfs]\nread_only = true\n"
    with mounted(tmp_path / "unifs", local + refuse) as daemon:
        place, other = places[name], places["local" if name == "mfs" else "mfs"]
        accepted = [what for what, call in changes(place).items() if not is_refused(call)]
        assert accepted == []
        assert sorted(os.listdir(place)) == ["dir", "file", "link"]
        assert (place / "link").read_bytes() == b"bytes"
        assert os.getxattr(place / "file", "user.old") == b"x"
        (other / "new").write_bytes(b"here one may")
        assert read_only_names(daemon) == {"ipfs", {"mfs": "mfs", "local": "local/h"}[name]}
        assert "read-only" in daemon.program("explain", str(place / "file"))["notes"][-1]
        if name == "mfs":
            refused_through_control(daemon)


def refused_through_control(daemon: Daemon) -> None:
    """Control operations on files are refused like a user's calls; an existing path may be made."""
    cid = os.getxattr(daemon.root / "file", "ipfs.cid").decode()
    for operation in (
        ("mkdir", "/mfs/new"),
        ("mv", "/mfs/file", "/mfs/new"),
        ("rm", "/mfs/file"),
        ("cp", "/mfs/file", "/mfs/new"),
        ("cp", f"/ipfs/{cid}", "/mfs/new"),
    ):
        answer = daemon.ctl("files", *operation)
        assert (operation, answer.get("error_code")) == (operation, "READ_ONLY")
    for words in (
        ("checkpoint", "new"),
        ("checkpoints", "rm", "none"),
        ("journal", "untrack", "/mfs/dir"),
        ("undelete", "/mfs/gone"),
        ("rollback", "/mfs/file", "--to", "now"),
    ):
        assert (words, daemon.ctl(*words).get("error_code")) == (words, "READ_ONLY")
    assert daemon.ctl("files", "mkdir", "-p", "/mfs/dir")["status"] == "success"
    assert sorted(os.listdir(daemon.root)) == ["dir", "file", "link"]


def test_read_only_for_all_is_so_for_control_operations_too(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        fill(daemon.root)
    with mounted(tmp_path, "read_only = true\n") as daemon:
        refused_through_control(daemon)
        assert [what for what, call in changes(daemon.root).items() if not is_refused(call)] == []


def test_directories_are_made_with_those_above_them(daemon: Daemon) -> None:
    assert daemon.ctl("files", "mkdir", "-p", "/mfs/a/b/c")["status"] == "success"
    assert (daemon.root / "a" / "b" / "c").is_dir()
    assert daemon.ctl("files", "mkdir", "/mfs/a")["error_code"] == "EXISTS"


def test_a_volume_that_is_switched_off_comes_back_with_its_files(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        fill(daemon.root)
    with mounted(tmp_path, "[mounts.mfs]\nenabled = false\n", below="") as daemon:
        assert sorted(os.listdir(daemon.mount)) == ["ipfs", "local"]
        assert "mfs" not in [each["name"] for each in daemon.program("status")["mounts"]]
    with mounted(tmp_path) as daemon:
        assert (daemon.root / "file").read_bytes() == b"bytes"


def test_writers_wait_until_their_bytes_are_stored(tmp_path: Path) -> None:
    """Four times the limit passes, slowed down; what is not stored never exceeds the limit."""
    limit = 8 << 20
    most = 0
    with mounted(tmp_path, f"[journal]\ndirty_bytes_max = {limit}\n") as daemon:
        piece = os.urandom(1 << 20)
        with (daemon.root / "large").open("wb", buffering=0) as file:
            for number in range(32):
                file.write(piece)
                if number % 8 == 7:
                    most = max(most, daemon.program("status")["unsynced_bytes"])
        for number in range(200):
            (daemon.root / f"small-{number}").write_bytes(piece[:60_000])
        status = daemon.program("status")
        assert 0 < max(most, status["unsynced_bytes"]) <= limit
        sizes = {each["name"]: each["unsynced_bytes"] for each in status["mounts"]}
        assert sizes["mfs"] == status["unsynced_bytes"]
        assert daemon.ctl("journal", "sync")["unsynced_bytes"] == 0
        assert (daemon.root / "large").read_bytes() == piece * 32
