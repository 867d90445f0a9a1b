"""Requests on real mounts: the same answers with our request loop and with pyfuse3's."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.driver.faultfs import SLOW_S
from tests.fuse.calls import Threads, drop_pages, frozen_count
from tests.fuse.conftest import REPOSITORY, Mounted, Mounts, until

if TYPE_CHECKING:
    from collections.abc import Callable


#: The kernel reads files above 256 KiB ahead, in requests that its background limit counts.
LARGE = bytes(range(256)) * 1200


def start(mounts: Mounts, *options: str) -> Mounted:
    return mounts.start("tests.driver.faultfs", *options)


# --- everyday work ------------------------------------------------------------------------------


def test_files_directories_links_and_names(mounts: Mounts, loop: tuple[str, ...]) -> None:
    root = start(mounts, *loop).path
    (root / "d").mkdir(mode=0o750)
    file = root / "d" / "file"
    file.write_bytes(b"x" * 300_000)
    os.truncate(file, 250_000)
    with file.open("ab") as stream:
        stream.write(b"end")
    assert file.read_bytes() == b"x" * 250_000 + b"end"
    file.chmod(0o4711)
    os.chown(file, 7, 8)
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    status = file.stat()
    # chown takes the suid bit away: the kernel does it in the same setattr.
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o711, 7, 8)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    os.link(file, root / "hard")
    os.symlink("d/file", root / "soft")
    assert (root / "soft").read_bytes() == (root / "hard").read_bytes()
    assert file.stat().st_nlink == 2
    os.rename(root / "hard", root / "d" / "moved")
    name = os.fsencode(root / "d") + b"/\xff\nn"
    Path(os.fsdecode(name)).touch()
    assert sorted(os.listdir(os.fsencode(root / "d"))) == [b"file", b"moved", b"\xff\nn"]
    os.mkfifo(root / "fifo")
    os.setxattr(file, "user.colour", b"blue")
    assert os.listxattr(file) == ["user.colour"]
    assert os.getxattr(file, "user.colour") == b"blue"
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(file, "security.selinux")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(file, "user.other")
    os.removexattr(file, "user.colour")
    with pytest.raises(OSError, match="not empty"):
        (root / "d").rmdir()
    subprocess.run(["rm", "-r", root / "d"], check=True)
    assert sorted(os.listdir(root)) == ["fifo", "soft"]
    assert os.statvfs(root).f_namemax == 255


def test_a_large_directory_is_listed_whole(mounts: Mounts, loop: tuple[str, ...]) -> None:
    root = start(mounts, *loop).path
    names = {f"file-{n:04}" for n in range(1000)}
    for name in names:
        (root / name).touch()
    with os.scandir(root) as entries:
        assert {entry.name for entry in entries if entry.is_file()} == names


def test_a_tree_survives_copying_in_and_out(
    mounts: Mounts, loop: tuple[str, ...], tmp_path: Path
) -> None:
    root = start(mounts, *loop).path
    source = REPOSITORY / "unifs"
    subprocess.run(["cp", "-a", source, root / "copy"], check=True)
    subprocess.run(["tar", "cf", tmp_path / "t.tar", "-C", root, "copy"], check=True)
    (root / "again").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "t.tar", "-C", root / "again"], check=True)
    subprocess.run(["diff", "-r", source, root / "again" / "copy"], check=True)


def test_stores_into_mapped_memory_arrive_at_unmount(mounts: Mounts, loop: tuple[str, ...]) -> None:
    mounted = start(mounts, *loop)
    file = mounted.path / "mapped"
    file.write_bytes(bytes(8192))
    descriptor = os.open(file, os.O_RDWR)
    with mmap.mmap(descriptor, 8192) as memory:
        memory[0:5] = b"hello"
    os.close(descriptor)
    assert file.read_bytes()[:5] == b"hello"
    assert mounted.end() == 0


# --- waiting ------------------------------------------------------------------------------------


def test_slow_reads_run_side_by_side(mounts: Mounts, loop: tuple[str, ...]) -> None:
    root = start(mounts, *loop).path
    threads = Threads()
    for n in range(8):
        (root / f"slow{n}").write_bytes(b"data")
    started = time.monotonic()
    for n in range(8):
        threads.run((root / f"slow{n}").read_bytes)
    assert threads.join() == [b"data"] * 8
    # One after the other they would take 8 × SLOW_S.
    assert SLOW_S <= time.monotonic() - started < 4 * SLOW_S


@pytest.mark.parametrize("stuck", [12, 40, 200])
def test_a_frozen_mount_holds_up_nobody_else(
    mounts: Mounts, loop: tuple[str, ...], stuck: int
) -> None:
    mounted = start(mounts, *loop, "--per-mount", "1024")
    root = mounted.path
    (root / "quick").write_bytes(LARGE)
    (root / "slow").write_bytes(b"slow")
    for n in range(stuck):
        (root / f"frozen{n}").write_bytes(LARGE)
    frozen = Threads()
    for n in range(stuck):
        frozen.run((root / f"frozen{n}").read_bytes)
    # With the kernel's own limit, 12 of them would reach the driver.
    until(lambda: frozen_count(mounted) >= stuck, f"{stuck} reads wait")
    # All of this ends while the frozen reads still wait: they are released below.
    for n in range(20):
        (root / f"new{n}").write_bytes(b"x" * 100_000)
        drop_pages(root / "quick")
        assert (root / "quick").read_bytes() == LARGE
        assert len(os.listdir(root)) == stuck + 3 + n
    assert (root / "slow").read_bytes() == b"slow"
    assert frozen.answers == []
    mounted.fault("thaw")
    assert frozen.join() == [LARGE] * stuck


def test_a_frozen_mount_has_only_so_many_places(mounts: Mounts) -> None:
    mounted = start(mounts, "--per-mount", "4")
    root = mounted.path
    for n in range(6):
        (root / f"frozen{n}").write_bytes(b"frozen")
    frozen = Threads()
    for n in range(4):
        frozen.run((root / f"frozen{n}").read_bytes)
    until(lambda: frozen_count(mounted) == 4, "4 reads wait")
    for n in (4, 5):
        with pytest.raises(OSError, match="timed out") as caught:
            (root / f"frozen{n}").read_bytes()
        assert caught.value.errno == errno.ETIMEDOUT
    assert mounted.logged().count("does not answer") == 1
    mounted.fault("thaw")
    assert frozen.join() == [b"frozen"] * 4


@pytest.mark.parametrize("verb", ["lookup", "getattr", "open", "readdir", "mkdir", "fsync"])
def test_deadlines_end_system_calls(mounts: Mounts, loop: tuple[str, ...], verb: str) -> None:
    mounted = start(mounts, *loop, "--deadline", "0.2", "--timeout", "0")
    file = mounted.path / "file"
    file.write_bytes(b"data")
    calls: dict[str, Callable[[], Any]] = {
        "lookup": file.stat,
        "getattr": mounted.path.stat,
        "open": file.read_bytes,
        "readdir": lambda: os.listdir(mounted.path),
        "mkdir": (mounted.path / "d").mkdir,
        "fsync": lambda: _fsync(file),
    }
    mounted.fault(f"{verb} wait")
    with pytest.raises(OSError, match="timed out") as caught:
        calls[verb]()
    assert caught.value.errno == errno.ETIMEDOUT
    mounted.fault()
    calls[verb]()


@pytest.mark.parametrize("content", [b"small", LARGE])
def test_a_read_waits_for_one_deadline_though_the_kernel_asks_twice(
    mounts: Mounts, loop: tuple[str, ...], content: bytes
) -> None:
    mounted = start(mounts, *loop, "--deadline", "1")
    file = mounted.path / "file"
    file.write_bytes(content)
    drop_pages(file)
    mounted.fault("read wait")
    started = time.monotonic()
    with file.open("rb", buffering=0) as stream:
        for deadlines in (1, 2):
            with pytest.raises(OSError, match="timed out"):
                stream.read(10)
            # Each read of the program has a deadline of its own, and none of them two.
            assert deadlines <= time.monotonic() - started < deadlines + 0.9
        mounted.fault()
        assert stream.read() == content


def test_proven_absence_is_asked_for_once(mounts: Mounts, loop: tuple[str, ...]) -> None:
    mounted = start(mounts, *loop)
    root = mounted.path
    assert not (root / "never-there").exists()
    assert not (root / "perhaps").exists()
    mounted.fault("lookup value")
    assert not (root / "never-there").exists()
    with pytest.raises(OSError, match="Input/output"):
        (root / "perhaps").stat()
    mounted.fault()
    (root / "never-there").write_bytes(b"now it is")
    assert (root / "never-there").read_bytes() == b"now it is"


# --- failures -----------------------------------------------------------------------------------


def _provoke(root: Path) -> dict[str, Callable[[], Any]]:
    """A system call for each request; each can be made again and again."""
    file, directory = root / "file", root / "directory"
    handle = os.open(file, os.O_RDWR)
    listing = os.open(root, os.O_RDONLY)
    return {
        "lookup": (root / "other").exists,
        "getattr": root.stat,
        "setattr": lambda: file.chmod(0o600),
        "readlink": lambda: os.readlink(root / "soft"),
        "statfs": lambda: os.statvfs(root),
        "mknod": lambda: _make_and_remove(root / "fifo", os.mkfifo),
        "mkdir": lambda: _make_and_remove(root / "new", os.mkdir),
        "symlink": lambda: _make_and_remove(root / "new", lambda p: os.symlink("x", p)),
        "link": lambda: _make_and_remove(root / "new", lambda p: os.link(file, p)),
        "unlink": lambda: _make_and_remove(root / "new", os.mkfifo),
        "rmdir": lambda: _make_and_remove(root / "new", os.mkdir),
        "rename": lambda: os.rename(directory, directory),
        "open": lambda: os.close(os.open(file, os.O_RDONLY)),
        "create": lambda: _make_and_remove(root / "new", lambda p: Path(p).open("x").close()),
        "read": lambda: (drop_pages(file), os.pread(handle, 10, 0)),
        "write": lambda: os.pwrite(handle, b"data", 0),
        "flush": lambda: os.close(os.dup(handle)),
        "release": lambda: os.close(os.open(file, os.O_RDONLY)),
        "fsync": lambda: os.fsync(handle),
        "opendir": lambda: os.close(os.open(root, os.O_RDONLY)),
        "readdir": lambda: os.listdir(root),
        "releasedir": lambda: os.listdir(root),
        "fsyncdir": lambda: os.fsync(listing),
        "getxattr": lambda: os.getxattr(file, "user.a"),
        "setxattr": lambda: os.setxattr(file, "user.b", b"v"),
        "listxattr": lambda: os.listxattr(file),
        "removexattr": lambda: (os.setxattr(file, "user.c", b""), os.removexattr(file, "user.c")),
    }


def test_whatever_goes_wrong_in_a_handler_the_mount_lives_on(
    mounts: Mounts, loop: tuple[str, ...]
) -> None:
    mounted = start(mounts, *loop, "--timeout", "0")
    root = mounted.path
    (root / "file").write_bytes(b"data")
    (root / "directory").mkdir()
    (root / "soft").symlink_to("file")
    os.setxattr(root / "file", "user.a", b"v")
    provoke = _provoke(root)
    # The kernel tells nobody what releasing answered, and renames onto itself without asking.
    unseen = {"release", "releasedir", "rename"}
    for verb, call in provoke.items():
        for kind in ("value", "late value", "os", "corrupt"):
            mounted.fault(f"{verb} {kind}")
            if verb in unseen:
                call()
            else:
                with pytest.raises(OSError, match="Input/output"):
                    call()
            mounted.fault()
            for rest in ("fifo", "new"):
                subprocess.run(["rm", "-rf", root / rest], check=True)
        call()
    assert mounted.process.poll() is None
    assert "Traceback" in mounted.logged()


def test_the_kernel_gives_every_look_up_back(mounts: Mounts, loop: tuple[str, ...]) -> None:
    mounted = start(mounts, *loop)
    root = mounted.path
    for n in range(50):
        (root / f"f{n}").write_bytes(b"x")
    subprocess.run(["rm", "-r", *root.iterdir()], check=True)
    assert os.listdir(root) == []
    mounted.fault("forget value")
    (root / "one").write_bytes(b"x")
    (root / "one").unlink()
    assert os.listdir(root) == []


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_and_remove(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
