"""A disk that is full, under a real mount: what was closed stays, deletes work, and it goes on."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon
from tests.fuse.conftest import until
from unifs.fsck.offline import examine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Room for the reserve of 8 MiB, the database's log and a few dozen files.
DISK_MIB = 64
SIZES = (300, 60_000, 1 << 20)
#: More than the disk has.
FILES_MAX = 1_000


class FullDisk:
    """A daemon whose state lies on a small disk, and what it has acknowledged."""

    def __init__(self, base: Path) -> None:
        self.server = Daemon(base)
        self.disk = self.server.state
        self.disk.mkdir()
        self.kept: dict[str, bytes] = {}
        self._random = random.Random(5)

    @property
    def root(self) -> Path:
        return self.server.root

    def write(self, name: str, size: int) -> int:
        """Write a file; what it was refused with, 0 where its close was acknowledged."""
        data = self._random.randbytes(size)
        try:
            (self.root / name).write_bytes(data)
        except OSError as error:
            return error.errno or -1
        self.kept[name] = data
        return 0

    def fill(self) -> None:
        """Files of all sizes until none fits."""
        refused: set[int] = set()
        for number in range(FILES_MAX):
            size = min(set(SIZES) - refused, default=0, key=lambda each: (number + each) % 3)
            if not size:
                break
            name = f"f{number}"
            if (code := self.write(name, size)) != 0:
                assert code == errno.ENOSPC, os.strerror(code)
                refused.add(size)
        assert refused == set(SIZES)

    def check(self) -> None:
        """Every acknowledged file is there, whole."""
        for name, data in self.kept.items():
            assert (self.root / name).read_bytes() == data, name

    def remove(self, count: int) -> None:
        for name in [*self.kept][:count]:
            (self.root / name).unlink()
            del self.kept[name]

    def is_writable(self) -> bool:
        return self.write("again", 1 << 20) == 0


def small_disk(base: Path, kind: str) -> list[str]:
    """What mount(8) is told for it."""
    if kind == "tmpfs":
        return ["-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "tmpfs"]
    image = base / "image"
    with image.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    return ["-o", "loop", str(image)]


@pytest.fixture(params=["tmpfs"])
def full(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FullDisk]:
    """Nothing is wrong with what is left of it after the test."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    made = FullDisk(tmp_path)
    options = small_disk(tmp_path, request.param)
    if subprocess.run(["mount", *options, made.disk], check=False, capture_output=True).returncode:
        pytest.skip(f"a small {request.param} cannot be mounted here")
    try:
        made.server.start()
        yield made
        made.server.stop()
        assert examine(made.disk, is_thorough=True).found == []
    finally:
        made.server.close()
        subprocess.run(["umount", made.disk], check=True)


def refused(call: Callable[[], object]) -> str:
    """The name of the errno that a call fails with, or nothing."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_what_was_closed_stays_and_deletes_make_room(full: FullDisk) -> None:
    full.fill()
    full.check()
    full.remove(len(full.kept) // 2)
    until(full.is_writable, "there is room again")
    full.check()


def test_every_call_on_it_succeeds_or_says_so(full: FullDisk) -> None:
    full.fill()
    root, first = full.root, next(iter(full.kept))
    new = root / "new"
    (warning,) = full.server.program("status")["warnings"]
    assert warning.startswith("the disk is full")
    outcomes = {
        "mkdir": refused((root / "d").mkdir),
        "rename": refused(lambda: (root / first).rename(root / "renamed")),
        "chmod": refused(lambda: (root / "f1").chmod(0o600)),
        "link": refused(lambda: os.link(root / "f2", root / "linked")),
        "symlink": refused(lambda: os.symlink("f2", root / "soft")),
        "xattr": refused(lambda: os.setxattr(root / "f2", "user.a", b"a")),
        "save": refused(lambda: (new.write_bytes(bytes(1 << 20)), new.rename(root / "f1"))),
        "sync": full.server.ctl("sync", "/mfs", "--timeout", "20").get("error_code", ""),
        "history": full.server.ctl("checkpoint", "full").get("error_code", ""),
    }
    assert set(outcomes.values()) <= {"", "ENOSPC", "NO_SPACE"}, outcomes
    assert outcomes["save"] == "ENOSPC"
    if not outcomes["rename"]:
        full.kept["renamed"] = full.kept.pop(first)
    # It ends well, though there is no room for what it commits at its end.
    full.server.stop()
    full.server.start()
    full.check()


def test_all_space_comes_back(full: FullDisk) -> None:
    full.fill()
    for name in os.listdir(full.root):
        (full.root / name).unlink()

    def is_free() -> bool:
        found = os.statvfs(full.disk)
        return found.f_bavail * found.f_frsize > (DISK_MIB - 24) << 20

    until(is_free, "what the files took is free")


def test_it_is_killed_on_a_full_disk_and_comes_up_on_it(full: FullDisk) -> None:
    full.fill()
    full.server.kill()
    full.server.start()
    full.check()
    full.remove(len(full.kept) // 2)
    full.server.kill()
    full.server.start()
    full.check()
    until(full.is_writable, "there is room again")


@pytest.mark.parametrize("full", ["tmpfs", "ext4"], indirect=True)
def test_the_past_on_it(full: FullDisk) -> None:
    """Each command succeeds or says so, nothing is half made, and later it succeeds."""
    server = full.server
    (full.root / "d").mkdir()
    assert not full.write("d/old", 100_000)
    assert server.ctl("checkpoint", "then")["name"] == "then"
    (full.root / "d" / "old").unlink()
    old = {"d/back": full.kept.pop("d/old")}
    full.fill()
    commands = {
        "full": ("checkpoint", "full"),
        "back": ("undelete", "/mfs/d/old", "--epoch", "then", "--to", "back"),
        "roll": ("rollback", "/mfs/d", "--to", "then"),
    }
    outcomes = {what: server.ctl(*words).get("error_code", "") for what, words in commands.items()}
    assert set(outcomes.values()) <= {"", "NO_SPACE"}, outcomes
    full.check()
    names = {each.name for each in (full.root / "d").iterdir()}
    assert names <= {"old", "back"}
    server.stop()
    assert examine(full.disk, repair=True).left == []
    server.start()
    full.check()
    full.remove(len(full.kept) // 2)
    until(full.is_writable, "there is room again")
    for what, words in commands.items():
        told = server.ctl(*words).get("error_code", "")
        assert told in (["EXISTS"] if not outcomes[what] else [""]) or what == "roll", told
    assert (full.root / "d" / "old").read_bytes() == old["d/back"]
    full.check()
