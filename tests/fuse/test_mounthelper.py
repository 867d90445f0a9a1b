"""mount(8), umount(8) and lines of fstab on a real mount, in a mount namespace with the helper."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.fuse.conftest import PATIENCE_S
from unifs.machine import mounthelper
from unifs.machine.program import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: mount(8) looks for helpers in /sbin alone: here it finds ours beside the others'. The namespace
#: has an /etc/fstab of its own, too.
NAMESPACE = """
set -e
mount -t tmpfs tmpfs "$1/sbin"
mkdir "$1/sbin/real"
mount --bind /sbin "$1/sbin/real"
for each in "$1/sbin/real"/*; do ln -s "/sbin/real/${each##*/}" "$1/sbin/"; done
cp "$1/mount.fuse.unifs" "$1/sbin/"
mount --rbind "$1/sbin" /sbin
mount --bind "$1/fstab" /etc/fstab
echo ready
read -r _
"""


class Namespace:
    """A mount namespace in which the helper is installed."""

    def __init__(self, base: Path) -> None:
        self.base, self.mnt, self.state = base, base / "mnt", base / "state"
        self.fstab = base / "fstab"
        for each in (self.mnt, base / "sbin"):
            each.mkdir()
        mounthelper.install(program(), base / "mount.fuse.unifs")
        self.fstab.touch()
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", NAMESPACE, "sh", base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def try_run(self, command: str) -> tuple[int, str]:
        """A shell's command in it: the exit code, and what it says."""
        # Without a home, as at boot.
        done = subprocess.run(
            ["nsenter", "--mount", "--target", str(self.process.pid), "sh", "-c", command],
            env={"PATH": os.environ["PATH"]},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout

    def run(self, command: str) -> str:
        code, said = self.try_run(command)
        assert code == 0, (command, said)
        return said

    def close(self) -> None:
        self.try_run(f"umount {self.mnt}")
        self.process.communicate(b"\n")


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount by mount(8)")
    made = Namespace(tmp_path)
    yield made
    made.close()


def test_mount_and_umount(namespace: Namespace) -> None:
    mnt, state = namespace.mnt, namespace.state
    assert namespace.run(f"mount -t fuse.unifs {state} {mnt} -o noexec,allow_other") == ""
    namespace.run(f"echo data > {mnt}/mfs/file")
    said = namespace.run(f"grep {mnt} /proc/self/mountinfo")
    assert "noexec" in said
    assert "allow_other" in said
    assert f"fuse.unifs unifs:{state}" in said
    # umount(8) does not wait for the daemon to close its state; mounting does.
    for _ in range(3):
        namespace.run(f"umount {mnt} && mount -t fuse.unifs unifs:{state} {mnt} -o ro")
    assert namespace.run(f"cat {mnt}/mfs/file") == "data\n"
    code, said = namespace.try_run(f"echo more > {mnt}/mfs/file")
    assert (code != 0, "Read-only" in said) == (True, True)
    namespace.run(f"umount {mnt}")
    assert namespace.run(f"ls -A {mnt}") == ""


def test_fstab(namespace: Namespace) -> None:
    mnt, state = namespace.mnt, namespace.state
    options = "x-systemd.automount,_netdev,nofail,allow_other"
    namespace.fstab.write_text(f"unifs:{state} {mnt} fuse.unifs {options} 0 0\n")
    namespace.run("mount -a -t fuse.unifs")
    namespace.run(f"echo data > {mnt}/mfs/file")
    # It is seen to be mounted already.
    assert namespace.run("mount -a -t fuse.unifs") == ""
    assert namespace.run(f"grep -c {mnt} /proc/self/mountinfo") == "1\n"
    namespace.run(f"umount {mnt}")
    namespace.run(f"mount {mnt}")
    assert namespace.run(f"cat {mnt}/mfs/file") == "data\n"


def test_what_mount_cannot_do_is_one_sentence(namespace: Namespace) -> None:
    mnt, state = namespace.mnt, namespace.state
    mount = f"mount -t fuse.unifs {state} {mnt}"
    code, said = namespace.try_run(f"{mount} -o allow_others")
    assert code == 1
    assert said == (
        "mount.fuse.unifs: unknown mount option 'allow_others'; did you mean allow_other?\n"
    )
    code, said = namespace.try_run(f"{mount} -o sync")
    assert (code, "the option sync is not offered" in said) == (32, True)
    namespace.run(mount)
    code, said = namespace.try_run(mount)
    assert (code, f"a unifs is mounted at {mnt} already" in said) == (32, True)
