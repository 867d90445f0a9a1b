"""What a tree is survives the daemon: its end, its death, and a file that nobody has closed."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon
from tests.posix.portrait import everything, hard_tree, portrait
from tests.posix.test_directories import stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "unifs")
    daemon.start()
    yield daemon
    daemon.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_every_kind_of_object_survives(server: Daemon, end: str) -> None:
    tree = server.root / "tree"
    hard_tree(tree)
    os.mknod(tree / "null", stat.S_IFCHR | 0o604, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(tree, os.O_PATH)
        one.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.chown(tree / "file", 70_001, 70_002)
    os.chown(tree / "soft", 70_003, 70_004, follow_symlinks=False)
    (tree / "holes").chmod(0o7604)
    (tree / "long").symlink_to("t" * 4095)
    os.rename(tree / "empty", tree / "dir" / "moved")
    (tree / "dir" / "two").write_bytes(b"two")
    exchanged = tree / "dir" / "moved", tree / "dir" / "two"
    os.link(exchanged[0], tree / "third")
    os.replace(*exchanged)
    before, numbers = portrait(tree), {path: path.lstat().st_ino for path in everything(tree)}
    moments = {path: path.stat().st_mtime_ns for path in (tree, tree / "dir")}
    if end == "stop":
        server.stop()
    else:
        server.kill()
    server.start()
    if end == "kill":
        # A directory's times come back from the journal's records, written a moment later.
        for path, moment_ns in moments.items():
            assert 0 <= path.stat().st_mtime_ns - moment_ns < 100_000_000
            os.utime(path, ns=(moment_ns, moment_ns))
    assert portrait(tree) == before
    assert {path: path.lstat().st_ino for path in everything(tree)} == numbers
    assert (tree / "file").stat().st_nlink == 3
    assert (tree / "null").stat().st_rdev == os.makedev(1, 3)


def test_the_times_of_truncating_an_empty_file_survive_an_fsync(server: Daemon) -> None:
    path = server.root / "empty"
    path.touch()
    os.utime(path, ns=(1, 1))
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.fsync(descriptor)
    moved_ns = path.stat().st_mtime_ns
    os.close(descriptor)
    server.kill()
    server.start()
    assert path.stat().st_mtime_ns == moved_ns != 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_place_in_a_directory_stream_is_the_same_after_a_restart(
    server: Daemon, end: str
) -> None:
    """As telldir told it: a server of NFS hands such places to clients that outlive it."""
    directory = server.root / "d"
    directory.mkdir()
    names = [b"name-%04d" % number for number in range(600)]
    for name in names:
        os.close(os.open(os.fsencode(directory) + b"/" + name, os.O_CREAT))
    with stream(directory) as listing:
        before = [name for name in (listing.read() for _ in range(300)) if name is not None]
        place = listing.tell()
    server.stop() if end == "stop" else server.kill()
    server.start()
    gone, made = before[10], b"made after"
    os.unlink(os.fsencode(directory) + b"/" + gone)
    os.close(os.open(os.fsencode(directory) + b"/" + made, os.O_CREAT))
    with stream(directory) as listing:
        listing.seek(place)
        after = listing.rest()
    assert sorted([*before, *after]) == sorted([b".", b"..", *names, made])


def test_links_are_counted_though_one_was_unlinked_while_it_was_open(server: Daemon) -> None:
    one, two, alone = (server.root / name for name in ("one", "two", "alone"))
    one.write_bytes(b"both" * 50_000)
    os.link(one, two)
    alone.write_bytes(b"alone" * 50_000)
    files = [os.open(path, os.O_RDWR) for path in (one, alone)]
    one.unlink()
    alone.unlink()
    for file in files:
        os.pwrite(file, b"written after", 100_000)
        os.fsync(file)
    server.kill()
    for file in files:
        with suppress(OSError):
            os.close(file)
    server.start()
    assert [path.name for path in server.root.iterdir()] == ["two"]
    assert two.stat().st_nlink == 1
    before = b"both" * 50_000
    assert two.read_bytes() == before[:100_000] + b"written after" + before[100_013:]
    os.link(two, one)
    assert one.stat().st_nlink == 2
