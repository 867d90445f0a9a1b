"""The past through a real mount, with everyday programs: ls, cp, cat, find, diff -r, rsync."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash import daemon as daemons
from tests.fuse.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemons.Daemon]:
    with daemons.mounted(tmp_path_factory.mktemp("history")) as made:
        yield made


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def past(server: daemons.Daemon, epoch: object) -> Path:
    return server.mount / ".unifs" / "history" / "mfs" / str(epoch)


def fill(top: Path, size: int = 300_000) -> None:
    """Files, links, a long directory."""
    for name in ("a", "a/b", "many"):
        (top / name).mkdir(parents=True)
    (top / "a" / "large").write_bytes(bytes(range(256)) * (size // 256))
    (top / "a" / "small").write_text("small\n")
    (top / "a" / "small").chmod(0o640)
    os.chown(top / "a" / "small", 12, 13)
    os.link(top / "a" / "small", top / "a" / "b" / "same")
    (top / "a" / "link").symlink_to("small")
    os.mkfifo(top / "a" / "fifo")
    os.setxattr(top / "a" / "small", "user.note", b"kept")
    for number in range(600):
        (top / "many" / f"{number}").write_text(f"{number}")


def change(top: Path) -> None:
    shutil.rmtree(top / "a" / "b")
    (top / "a" / "large").write_bytes(b"short")
    (top / "a" / "small").chmod(0o600)
    os.setxattr(top / "a" / "small", "user.note", b"changed")
    (top / "a" / "link").unlink()
    for number in range(0, 600, 2):
        (top / "many" / f"{number}").unlink()
        (top / "many" / f"new-{number}").write_text("new")
    (top / "many" / "1").rename(top / "moved")


def attributes(top: Path) -> list[str]:
    """What rsync would compare, and the links."""
    form = "%P %y %m %U %G %s %n %T@ %l\n"
    found = run("find", top, "-printf", form).splitlines()
    # The size of a directory is the file system's own.
    return sorted(line for line in found if line.split(" ")[1:2] != ["d"])


def test_a_checkpoint_is_what_was_copied_then(server: daemons.Daemon, tmp_path: Path) -> None:
    """Over changes, a kill -9, a collection and a clean restart."""
    top, copy = server.root / "one", tmp_path / "copy"
    fill(top)
    run("cp", "-a", top, copy)
    assert server.ctl("checkpoint", "first")["name"] == "first"
    shown = past(server, "first") / "one"
    before = attributes(top)
    change(top)
    server.ctl("sync", "/mfs")
    server.kill()
    server.start()
    server.ctl("repo", "gc")
    run("diff", "-r", "--no-dereference", "--exclude=fifo", copy, shown)
    assert attributes(shown) == before
    assert os.getxattr(shown / "a" / "small", "user.note") == b"kept"
    assert os.stat(shown / "a" / "b" / "same").st_ino == os.stat(shown / "a" / "small").st_ino
    assert os.stat(shown / "a" / "small").st_ino != os.stat(top / "a" / "small").st_ino
    server.stop()
    server.start()
    again = tmp_path / "again"
    run("cp", "-a", shown, again)
    run("diff", "-r", "--no-dereference", "--exclude=fifo", copy, again)
    assert run("rsync", "-naHAXi", "--delete", f"{shown}/", f"{copy}/") == ""
    assert (shown / "a" / "link").readlink() == Path("small")
    assert run("cat", shown / "many" / "1") == "1"


def test_a_rollback_through_the_mount(server: daemons.Daemon, tmp_path: Path) -> None:
    """What the kernel has cached of the old is gone with it, and the way back is open."""
    top, copy, other = server.root / "two", tmp_path / "copy", tmp_path / "other"
    fill(top)
    run("cp", "-a", top, copy)
    server.ctl("checkpoint", "second")
    before = attributes(top)
    change(top)
    run("cp", "-a", top, other)
    changed = attributes(top)
    answer = server.ctl("rollback", "/mfs/two", "--to", "second")
    assert answer["status"] == "success", answer
    until(lambda: attributes(top) == before, "the kernel sees what was")
    run("diff", "-r", "--no-dereference", "--exclude=fifo", copy, top)
    assert os.getxattr(top / "a" / "small", "user.note") == b"kept"
    server.kill()
    server.start()
    assert attributes(top) == before
    server.ctl("rollback", "/mfs/two", "--to", str(answer["before"]))
    until(lambda: attributes(top) == changed, "the kernel sees what is")
    run("diff", "-r", "--no-dereference", "--exclude=fifo", other, top)
    differences = server.ctl("diff", "second", "now", "/mfs/two/a/small")
    assert differences["what"] == ["mode", "links", "attributes"]


def test_undelete_and_the_versions_of_a_path(server: daemons.Daemon) -> None:
    top = server.root / "three"
    fill(top)
    server.ctl("checkpoint", "third")
    shutil.rmtree(top)
    assert not top.exists()
    answer = server.ctl("undelete", "/mfs/three")
    assert answer["made"] == 600 + 9
    assert (top / "a" / "large").stat().st_size == 299_776
    assert (top / "a" / "b" / "same").stat().st_nlink == 2
    answer = server.ctl("undelete", "/mfs/three")
    assert answer["error_code"] == "EXISTS"
    answer = server.ctl("undelete", "/mfs/three/a/large", "--to", "copy")
    assert (top / "a" / "copy").read_bytes() == (top / "a" / "large").read_bytes()
    # Names of the mount point are as good as those of the tree.
    version = server.ctl("history", str(top / "a" / "large"))
    assert version["changed"] == ["made"]
    assert version["cid"] == os.getxattr(top / "a" / "large", "ipfs.cid").decode()


def test_the_view_refuses_changes_and_is_not_listed(server: daemons.Daemon) -> None:
    assert ".unifs" not in os.listdir(server.mount)
    server.ctl("checkpoint", "fourth")
    place = past(server, "fourth")
    for change_ in (
        lambda: (place / "new").write_text("x"),
        lambda: (place / "new").mkdir(),
        lambda: os.rename(place, place.with_name("other")),
        lambda: os.rmdir(server.mount / ".unifs"),
        lambda: (server.mount / ".unifs" / "mine").write_text("x"),
    ):
        with pytest.raises(OSError, match=r"Read-only|busy") as caught:
            change_()
        assert caught.value.errno in (errno.EROFS, errno.EBUSY)
    with pytest.raises(FileNotFoundError):
        os.listdir(past(server, "fifth"))
    answer = server.ctl("rollback", "/mfs", "--to", "fifth")
    assert answer["error_code"] == "NOT_FOUND"
    assert "journal history" in answer["error"]
    explained = server.program("explain", str(place))
    assert explained["kind"] == "history"


def test_thinned_epochs_go_and_checkpoints_stay(tmp_path: Path) -> None:
    """By the limits of the settings file; what the kernel had of them goes too."""
    limits = "[history]\neverything_s = 0\nhours = 0\ndays = 0\n"
    with daemons.mounted(tmp_path, limits) as server:
        (server.root / "file").write_text("one")
        kept = server.ctl("checkpoint", "kept")["epoch"]
        (server.root / "file").write_text("two")
        number = server.ctl("checkpoint", "other")["epoch"]
        assert (past(server, number) / "file").read_text() == "two"
        with open(past(server, number) / "file") as held:
            server.ctl("checkpoints", "rm", "other")
            (server.root / "file").write_text("three")
            looked = server.ctl("checkpoint", "looked")["epoch"]
            server.ctl("checkpoints", "rm", "looked")
            until(lambda: not past(server, looked).exists(), "the others are thinned")
            assert held.read() == "two"
            assert past(server, number).exists()
        until(lambda: not past(server, number).exists(), "the epoch is thinned")
        assert (past(server, kept) / "file").read_text() == "one"
        assert server.ctl("journal", "history")["names"] == ["kept"]
