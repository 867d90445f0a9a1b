"""What the FUSE library does not pass on, and what happens instead. docs/posix.md tells it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuse.calls import frozen_count
from tests.fuse.conftest import Mounts, mounts, until
from tests.posix.calls import checked, rename2
from tests.posix.conftest import Place, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.daemon import Daemon

__all__ = ["mounts"]

LIBC = ctypes.CDLL(None, use_errno=True)
#: From asm/unistd.h, linux/fs.h, linux/fiemap.h and linux/mount.h.
SYS_OPEN_TREE, SYS_MOUNT_SETATTR = 428, 442
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FICLONE, FIEMAP = (
    0x8008_6601,
    0x4008_6602,
    0x4004_9409,
    0xC020660B,
)
OPEN_TREE_CLONE, MOUNT_ATTR_IDMAP, AT_EMPTY_PATH, CLONE_NEWUSER = 1, 0x10_0000, 0x1000, 0x1000_0000
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16
RENAME_WHITEOUT, IN_CREATE = 4, 0x100


#: The local disk has all these calls.
on_mounts = pytest.mark.parametrize("place", ["mfs", "local"], indirect=True, scope="package")
on_local = pytest.mark.parametrize("place", ["local"], indirect=True, scope="package")


@pytest.fixture
def path(place: Place) -> Path:
    """A file with a hole."""
    name = place.path / place.directory() / "x"
    with name.open("wb") as file:
        file.write(b"data" * 1024)
        file.seek(1 << 20)
        file.write(b"end")
    return name


def errno_of(call: Callable[[], object]) -> str:
    """How a call fails, "-" if it does not."""
    try:
        call()
    except OSError as error:
        name = errno.errorcode[error.errno or 0]
        return "EOPNOTSUPP" if name == "ENOTSUP" else name
    return "-"


@on_mounts
def test_copy_file_range_copies_through_the_page_cache(path: Path) -> None:
    copy = path.with_name("copy")
    with path.open("rb") as source, copy.open("wb") as target:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 20):
            pass
    assert copy.read_bytes() == path.read_bytes()


@on_mounts
def test_holes_cannot_be_found(path: Path) -> None:
    """The whole file counts as data, which lseek(2) allows."""
    size = path.stat().st_size
    with path.open("rb") as file:
        descriptor = file.fileno()
        assert os.lseek(descriptor, 100_000, os.SEEK_DATA) == 100_000
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == size
        assert errno_of(lambda: os.lseek(descriptor, size, os.SEEK_DATA)) == "ENXIO"


@on_mounts
def test_fallocate_is_refused_and_posix_fallocate_writes(path: Path) -> None:
    with path.open("r+b") as file:
        descriptor = file.fileno()
        for mode in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE):
            call = LIBC.fallocate
            call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
            assert errno_of(lambda: checked(call(descriptor, mode, 0, 4096))) == "EOPNOTSUPP"  # noqa: B023
        before = path.read_bytes()
        os.posix_fallocate(descriptor, 0, 2 << 20)
    assert path.stat().st_size == 2 << 20
    assert path.read_bytes() == before + bytes((2 << 20) - len(before))


@on_mounts
def test_ioctls_are_refused(path: Path) -> None:
    with path.open("r+b") as file, path.with_name("copy").open("w+b") as copy:
        descriptor = file.fileno()
        for request in (FS_IOC_GETFLAGS, FS_IOC_SETFLAGS):
            value = struct.pack("l", 0)
            assert errno_of(lambda: fcntl.ioctl(descriptor, request, value)) == "ENOTTY"  # noqa: B023
        assert errno_of(lambda: fcntl.ioctl(copy.fileno(), FICLONE, descriptor)) == "EOPNOTSUPP"
        assert errno_of(lambda: fcntl.ioctl(descriptor, FIEMAP, bytes(32))) == "EOPNOTSUPP"


@on_mounts
def test_whiteouts_are_refused(path: Path) -> None:
    """So a mount cannot be the upper layer of an overlay."""
    new = path.with_name("new")
    assert errno_of(lambda: rename2(str(path), str(new), RENAME_WHITEOUT)) == "EINVAL"


@on_mounts
def test_there_is_no_birth_time(path: Path) -> None:
    assert subprocess.check_output(["stat", "-c", "%w", path], text=True) == "-\n"


@on_mounts
def test_access_control_lists_are_refused(path: Path) -> None:
    acl = struct.pack("<IHHIHHIHHI", 2, 1, 6, 2**32 - 1, 4, 4, 2**32 - 1, 32, 4, 2**32 - 1)
    call = errno_of(lambda: os.setxattr(path, "system.posix_acl_access", acl))
    assert call == "EOPNOTSUPP"


@on_mounts
def test_copies_of_files_with_acls_say_what_is_lost(path: Path, tmp_path: Path) -> None:
    for program in ("setfacl", "rsync"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    subprocess.run(["setfacl", "-m", "u:1:rw", source], check=True)
    codes = {}
    for name, command in {"cp": ["cp", "-a"], "rsync": ["rsync", "-aAX"]}.items():
        copy = path.with_name(name)
        done = subprocess.run([*command, source, copy], capture_output=True, check=False)
        codes[name] = done.returncode, b"not supported" in done.stderr
    assert codes == {"cp": (1, True), "rsync": (23, True)}
    assert path.with_name("cp").read_bytes() == b"bytes"
    subprocess.run(["rsync", "-aX", source, path.with_name("rsync")], check=True)
    assert path.with_name("rsync").read_bytes() == b"bytes"


@on_mounts
def test_set_id_programs_run_as_their_caller(place: Place, path: Path) -> None:
    """The mount is nosuid; the bits are kept all the same."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = next(line for line in lines if " fuse.unifs " in line)
    assert {"nosuid", "nodev"} <= set(found.split()[5].split(","))
    path.chmod(0o6755)
    assert path.stat().st_mode & 0o7777 == 0o6755


@on_mounts
def test_mounts_cannot_be_idmapped(path: Path) -> None:
    code = "import ctypes,sys;ctypes.CDLL(None).unshare(%d);print(1,flush=True);sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code % CLONE_NEWUSER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        for kind in ("uid", "gid"):
            with open(f"/proc/{child.pid}/{kind}_map", "w") as mapping:
                mapping.write("0 100000 1000\n")
        namespace = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY)
        tree = LIBC.syscall(SYS_OPEN_TREE, -100, os.fsencode(path.parent), OPEN_TREE_CLONE)
        checked(tree)
        attributes = struct.pack("QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace)
        arguments = (tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
        found = errno_of(lambda: checked(LIBC.syscall(SYS_MOUNT_SETATTR, *arguments)))
        os.close(tree)
        os.close(namespace)
    finally:
        child.communicate(timeout=10)
    assert found == "EINVAL"


@on_local
def test_what_the_host_does_behind_it_is_seen_and_not_told(
    place: Place, path: Path, daemon: Daemon
) -> None:
    """inotify watches the mount; FIFOs and sockets join those who use the same path."""
    behind = daemon.base / "host" / path.relative_to(place.path)
    watcher = LIBC.inotify_init1(os.O_NONBLOCK)
    assert LIBC.inotify_add_watch(watcher, os.fsencode(path.parent), IN_CREATE) > 0
    behind.with_name("made").write_bytes(b"by the host")
    assert path.with_name("made").read_bytes() == b"by the host"
    assert errno_of(lambda: os.read(watcher, 1000)) == "EAGAIN"
    os.close(watcher)
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = behind.with_name("fifo")
    assert errno_of(lambda: os.open(writing, os.O_WRONLY | os.O_NONBLOCK)) == "ENXIO"
    os.close(reading)


def test_a_signal_ends_a_waiting_read_and_no_waiting_look_up(mounts: Mounts) -> None:
    """The kernel lets a reader go; who waits for a name dies at its answer or its deadline."""
    mounted = mounts.start()
    (mounted.path / "frozen").write_bytes(b"frozen")
    reader = subprocess.Popen(["cat", mounted.path / "frozen"], stdout=subprocess.PIPE)
    until(lambda: frozen_count(mounted) == 1, "the read waits")
    reader.kill()
    assert reader.wait(20) == -signal.SIGKILL
    reader.communicate()
    seeker = subprocess.Popen(["stat", mounted.path / "stuck"], stderr=subprocess.PIPE)
    until(lambda: frozen_count(mounted) == 2, "the look-up waits")
    seeker.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        seeker.wait(0.3)
    mounted.fault("thaw")
    assert seeker.wait(20) == -signal.SIGKILL
    seeker.communicate()


@on_mounts
def test_no_name_leads_to_another_mount(place: Place, path: Path) -> None:
    """EXDEV, so that mv copies."""
    root = path
    while not os.path.ismount(root):
        root = root.parent
    other = root / ("local/h" if place.name == "mfs" else "mfs") / "moved"
    assert errno_of(lambda: os.rename(path, other)) == "EXDEV"
    assert errno_of(lambda: os.link(path, other)) == "EXDEV"
    other.touch()
    assert errno_of(lambda: rename2(str(path), str(other), 2)) == "EXDEV"
    content = path.read_bytes()
    subprocess.run(["mv", path, other], check=True)
    assert not path.exists()
    assert other.read_bytes() == content
    other.unlink()


@on_mounts
def test_the_directories_of_the_mount_table_stay(place: Place, path: Path) -> None:
    root = path
    while not os.path.ismount(root):
        root = root.parent
    for name in ("mfs", "ipfs", "local", "local/h"):
        assert errno_of(lambda: (root / name).rmdir()) in ("EBUSY", "EROFS", "ENOTEMPTY"), name  # noqa: B023
        assert errno_of(lambda: os.rename(root / name, root / "new")) != "-", name  # noqa: B023
    assert errno_of(lambda: (root / "new").mkdir()) == "EROFS"
    assert errno_of(lambda: (root / "new").touch()) == "EROFS"
    make(path.with_name("still"), "file")
