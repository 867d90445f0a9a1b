"""Three places for one matrix: the local disk (ext4), /mfs and /local; and four users.

The disk proves the matrix. The daemon is a process of its own; so is each user, see ``caller``.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon, mounted_with_host
from tests.posix.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Numbers that no machine's user database knows.
OWNER, MEMBER, OTHER = 70_001, 70_002, 70_003
GROUP, SECOND_GROUP = 70_101, 70_102
USERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "root": (0, (0,)),
    "owner": (OWNER, (GROUP, SECOND_GROUP)),
    "member": (MEMBER, (70_202, GROUP)),
    "other": (OTHER, (70_203,)),
}
EXT4_MAGIC = 0xEF53


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_fuse = os.access("/dev/fuse", os.R_OK | os.W_OK)
    for item in items:
        if "tests/posix" not in item.nodeid:
            continue
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="only root can call as other users"))
        if "[disk" not in item.nodeid:
            item.add_marker("fuse")
            if not has_fuse:
                item.add_marker(pytest.mark.skip(reason="/dev/fuse cannot be opened"))


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with mounted_with_host(tmp_path_factory.mktemp("unifs")) as server:
        yield server


@dataclass(repr=False)
class Place:
    """A directory to test in, and who calls there."""

    name: str
    path: Path
    users: dict[str, Caller]
    _numbers: Iterator[int]

    def directory(self, mode: int = 0o777, uid: int = OWNER, gid: int = GROUP) -> str:
        """A new directory, relative to ``path``."""
        name = f"d{next(self._numbers)}"
        made = self.path / name
        made.mkdir()
        os.chown(made, uid, gid)
        made.chmod(mode)
        return name


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Names that no test had before, in whatever order they run."""
    return count(1)


@pytest.fixture(scope="package", params=["disk", "mfs", "local"])
def place(request: pytest.FixtureRequest, numbers: Iterator[int]) -> Iterator[Place]:
    """A directory of each kind, and the users who work there."""
    name = request.param
    if name == "disk":
        path = request.getfixturevalue("tmp_path_factory").mktemp("disk")
        if not _is_ext4(path):
            pytest.skip(f"{path} is not on ext4, which the expectations are proven on")
    else:
        mount = request.getfixturevalue("daemon").mount
        path = mount / "mfs" if name == "mfs" else mount / "local" / "h"
    path.chmod(0o755)
    users = {user: Caller(user, path, uid, groups) for user, (uid, groups) in USERS.items()}
    yield Place(name, path, users, numbers)
    for caller in users.values():
        caller.close()


def _is_ext4(path: Path) -> bool:
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] == "ext4"
    return False


def make(path: Path, kind: str, uid: int = OWNER, gid: int = GROUP) -> None:
    """An object of a kind, open to everybody, owned by the ordinary user; nothing for "absent"."""
    if kind == "absent":
        return
    if kind == "file":
        path.write_bytes(b"#!/bin/true\n")
        os.setxattr(path, "user.there", b"value")
    elif kind in ("dir", "full"):
        path.mkdir()
        os.setxattr(path, "user.there", b"value")
        if kind == "full":
            (path / "inside").touch()
    elif kind in ("link", "dirlink"):
        make(path.with_name("target"), {"link": "file", "dirlink": "dir"}[kind])
        path.symlink_to("target")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        types = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "null": stat.S_IFCHR}
        os.mknod(path, types[kind] | 0o600, os.makedev(1, 3) if kind == "null" else 0)
    os.chown(path, uid, gid, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(0o777)
