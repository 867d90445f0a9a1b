"""A service that is frozen (SIGSTOP) under a real mount: it takes connections and answers nobody.

What is asserted is order, never a time: everything else answers *while* a call below the frozen
service waits. The deadlines are short enough for a test and far longer than what happens meanwhile.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import repository_environment
from tests.fuse.calls import Threads, errno_of
from tests.s3.story import Story, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.s3 import S3Server

pytestmark = pytest.mark.fuse

LOOKUP_S, READ_S = 3, 3
#: Rounds of operations on other mounts while a call waits: each takes about 2 ms.
ROUNDS = 50
END_S = 30.0


class Frozen(Story):
    """A bucket with objects that the daemon has not read, and a directory of the host."""

    def __init__(self, base: Path, server: S3Server) -> None:
        self.host = base / "host"
        super().__init__(base, server)
        self.host.mkdir()
        self.bucket = server.bucket()
        for key in ("top", "known/cold", "known/warm", "unknown/below", "unlisted/below"):
            server.client().put_object(Bucket=self.bucket, Key=key, Body=key.encode())

    def write_settings(self, *more: str) -> None:
        super().write_settings(
            *more,
            "[mounts.local]",
            f'directories = {{h = "{self.host}"}}',
            "[deadlines]",
            f"lookup_s = {LOOKUP_S}",
            f"read_s = {READ_S}",
        )

    @property
    def top(self) -> Path:
        return self.root / self.bucket

    def freeze(self) -> None:
        """From now on nothing is answered; two directories are listed, and one file is read."""
        assert sorted(os.listdir(self.top)) == ["known", "top", "unknown", "unlisted"]
        assert sorted(os.listdir(self.top / "known")) == ["cold", "warm"]
        assert (self.top / "known/warm").read_bytes() == b"known/warm"
        self.server.freeze()

    def work_elsewhere(self) -> None:
        """What makes, reads, lists, renames and removes files of the other mounts."""
        for directory in (self.daemon.mount / "mfs", self.daemon.mount / "local/h"):
            for number in range(ROUNDS):
                made, moved = directory / f"made{number}", directory / f"moved{number}"
                made.write_bytes(b"elsewhere")
                made.rename(moved)
                assert os.listdir(directory) == [moved.name]
                assert moved.read_bytes() == b"elsewhere"
                moved.unlink()

    def umount(self) -> tuple[int, str]:
        """The exit code of ``unifs umount``, and what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "unifs", "umount", self.daemon.mount],
            env=repository_environment(),
            capture_output=True,
            text=True,
            timeout=END_S,
            check=False,
        )
        return done.returncode, done.stderr

    def ended(self) -> int:
        """How the daemon ended; nothing but this test's limit makes it."""
        process, self.daemon.process = self.daemon.process, None
        assert process is not None
        try:
            return process.wait(END_S)
        finally:
            process.kill()


@pytest.fixture
def frozen(tmp_path: Path, s3_server: S3Server) -> Iterator[Frozen]:
    with started(Frozen(tmp_path, s3_server)) as made:
        yield made
        s3_server.thaw()


def test_calls_below_it_end_by_their_deadline_and_no_other_mount_waits(frozen: Frozen) -> None:
    frozen.freeze()
    waiting = Threads()
    waiting.run(os.stat, frozen.top / "unknown/below")
    waiting.run(os.listdir, frozen.top / "unlisted")
    waiting.run((frozen.top / "known/cold").read_bytes)
    frozen.work_elsewhere()
    (status,) = frozen.ctl("status")
    assert waiting.answers == []
    assert status["mount_point"] == str(frozen.daemon.mount)
    assert waiting.join() == [errno.ETIMEDOUT] * 3
    # What is on this machine is there all the same.
    assert (frozen.top / "known/warm").read_bytes() == b"known/warm"
    frozen.server.thaw()
    assert (frozen.top / "known/cold").read_bytes() == b"known/cold"
    assert os.listdir(frozen.top / "unlisted") == ["below"]


def test_what_is_closed_under_it_arrives_when_it_goes_on(frozen: Frozen) -> None:
    frozen.freeze()
    contents = {f"known/new{number}": os.urandom(100 << number) for number in range(15)}
    for name, content in contents.items():
        (frozen.top / name).write_bytes(content)
    os.unlink(frozen.top / "known/warm")
    failed = frozen.run("sync", str(frozen.top), "--timeout", "0.5")
    assert failed.returncode == 3, failed.stderr
    assert "not everything was synced after 0.5 seconds: /s3/" in failed.stderr
    assert os.getxattr(frozen.top / "known/new3", "user.unifs.state") in (b"closed", b"sealed")
    frozen.server.thaw()
    frozen.ctl("sync", str(frozen.top), "--timeout", "60")
    for name, content in contents.items():
        assert frozen.object(frozen.bucket, name) == content
    listed = frozen.server.client().list_objects_v2(Bucket=frozen.bucket, Prefix="known/")
    keys = {each["Key"] for each in listed["Contents"]}
    assert keys - {"known/"} == {*contents, "known/cold"}


def test_umount_ends_and_the_next_mount_comes_up_and_sends_what_was_closed(
    frozen: Frozen,
) -> None:
    frozen.freeze()
    (frozen.top / "known/new").write_bytes(b"closed, and never sent")
    waiting = Threads()
    waiting.run((frozen.top / "known/cold").read_bytes)
    frozen.work_elsewhere()
    code, said = frozen.umount()
    assert (code, "is in use by" in said) == (5, True)
    assert waiting.join() == [errno.ETIMEDOUT]
    assert frozen.umount() == (0, "")
    assert frozen.ended() == 0
    assert not os.path.ismount(frozen.daemon.mount)
    # Nothing of the service is asked for to come up.
    frozen.start()
    assert (frozen.top / "known/new").read_bytes() == b"closed, and never sent"
    assert errno_of(lambda: os.stat(frozen.top / "unknown/below")) == errno.ETIMEDOUT
    frozen.server.thaw()
    frozen.ctl("sync", str(frozen.top), "--timeout", "60")
    assert frozen.object(frozen.bucket, "known/new") == b"closed, and never sent"


def test_a_signal_ends_it_while_calls_wait(frozen: Frozen) -> None:
    frozen.freeze()
    (frozen.top / "known/new").write_bytes(b"closed")
    waiting = Threads()
    waiting.run(os.stat, frozen.top / "unknown/below")
    frozen.work_elsewhere()
    assert waiting.answers == []
    assert frozen.daemon.process is not None
    frozen.daemon.process.send_signal(signal.SIGTERM)
    assert frozen.ended() == 0
    assert not os.path.ismount(frozen.daemon.mount)
    assert waiting.join()[0] in (errno.ETIMEDOUT, errno.ENOTCONN, errno.ENOENT)
    frozen.server.thaw()
    frozen.start()
    frozen.ctl("sync", "--timeout", "60")
    assert frozen.object(frozen.bucket, "known/new") == b"closed"
