"""CIDs on a real mount: what the xattr says, what /ipfs shows, and what links cost.

The oracle is the importer, which ``tests/ipfs`` holds against the published vectors.
"""

from __future__ import annotations

import errno
import io
import os
import random
from typing import TYPE_CHECKING

import pytest

from unifs.ipfs.unixfs.builder import import_file
from unifs.ipfs.unixfs.profiles import PROFILES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.daemon import Daemon

pytestmark = pytest.mark.fuse

PROFILE = PROFILES["unixfs-v1-2025"]
MIB = 1 << 20
#: A CID of nothing that is here.
ABSENT = "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm"


@pytest.fixture
def mfs(daemon: Daemon, request: pytest.FixtureRequest) -> Path:
    directory = daemon.root / request.node.name
    directory.mkdir()
    return directory


def cid_of(path: Path) -> str:
    return os.getxattr(path, "ipfs.cid").decode()


def imported(data: bytes) -> str:
    """The CID that the importer gives these bytes."""
    return str(import_file(io.BytesIO(data), PROFILE, None).cid)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MIB, MIB + 1, 3 * MIB])
def test_a_file_has_the_cid_of_its_bytes(mfs: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (mfs / "file").write_bytes(data)
    assert cid_of(mfs / "file") == imported(data)


def test_whatever_the_editing_history(mfs: Path) -> None:
    """Patches, appends, cuts and holes, sealed in between: the CID is always that of the bytes."""
    noise = random.Random(11)
    data = bytearray(noise.randbytes(2 * MIB))
    path = mfs / "file"
    path.write_bytes(data)
    for step in range(12):
        with path.open("r+b") as file:
            for _ in range(noise.randrange(1, 4)):
                start = noise.randrange(len(data) + 3 * MIB // 2)
                patch = noise.randbytes(noise.randrange(1, 200_000))
                file.seek(start)
                file.write(patch)
                data.extend(bytes(max(0, start - len(data))))
                data[start : start + len(patch)] = patch
            if step % 3 == 2:
                size = noise.randrange(len(data))
                file.truncate(size)
                del data[size:]
        assert cid_of(path) == imported(bytes(data)), step
    assert path.read_bytes() == data


def test_ipfs_shows_what_mfs_holds(daemon: Daemon, mfs: Path) -> None:
    """A directory's CID leads to the same names, bytes and links."""
    (mfs / "deep" / "er").mkdir(parents=True)
    (mfs / "deep" / "er" / "small").write_bytes(b"small")
    (mfs / "deep" / "large").write_bytes(random.Random(3).randbytes(2_500_000))
    (mfs / "link").symlink_to("deep/large")
    (mfs / os.fsdecode(b"bad\xff\nname")).write_bytes(b"odd")
    shown = daemon.root.parent / "ipfs" / cid_of(mfs)
    assert sorted(os.listdir(shown)) == sorted(os.listdir(mfs))
    assert (shown / "deep" / "er" / "small").read_bytes() == b"small"
    assert (shown / "link").read_bytes() == (mfs / "deep" / "large").read_bytes()
    assert (shown / os.fsdecode(b"bad\xff\nname")).read_bytes() == b"odd"
    assert cid_of(shown / "deep") == cid_of(mfs / "deep")
    modes = {name: (shown / name).lstat().st_mode & 0o777 for name in ("deep", "link")}
    assert modes == {"deep": 0o555, "link": 0o777}
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (shown / "new").write_bytes(b"")


def test_a_large_directory_is_a_hamt_and_reads_back(daemon: Daemon, mfs: Path) -> None:
    names = [f"a file with a long enough name {number:05}" for number in range(4_000)]
    for name in names:
        (mfs / name).write_bytes(name.encode())
    shown = daemon.root.parent / "ipfs" / cid_of(mfs)
    assert sorted(os.listdir(shown)) == names
    assert (shown / names[1234]).read_text() == names[1234]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("no cid at all", errno.ENOENT),
        ("Qm" + "1" * 44 + "!", errno.ENOENT),
        (ABSENT, errno.EHOSTUNREACH),
        (ABSENT + "/below", errno.EHOSTUNREACH),
    ],
)
def test_absent_and_not_here_are_different(daemon: Daemon, name: str, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        os.stat(daemon.root.parent / "ipfs" / name)


def test_files_cp_links_and_the_copy_is_a_file_of_its_own(daemon: Daemon, mfs: Path) -> None:
    """Linked without copying; the first write makes it ours and leaves the original alone."""
    (mfs / "tree").mkdir()
    data = random.Random(5).randbytes(1_500_000)
    (mfs / "tree" / "large").write_bytes(data)
    (mfs / "tree" / "small").write_bytes(b"small")
    cid = cid_of(mfs / "tree")
    answer = daemon.ctl("files", "cp", f"/ipfs/{cid}", f"/mfs/{mfs.name}/copy")
    assert answer["status"] == "success", answer
    assert cid_of(mfs / "copy") == cid
    assert sorted(os.listdir(mfs / "copy")) == ["large", "small"]
    with (mfs / "copy" / "large").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    changed = data[:1_000_000] + b"changed" + data[1_000_007:]
    assert (mfs / "copy" / "large").read_bytes() == changed
    assert cid_of(mfs / "copy" / "large") == imported(changed)
    assert (mfs / "tree" / "large").read_bytes() == data
    assert cid_of(mfs / "tree") == cid
    os.unlink(mfs / "copy" / "small")
    assert os.listdir(mfs / "copy") == ["large"]
    again = daemon.ctl("files", "cp", f"/ipfs/{cid}", f"/mfs/{mfs.name}/copy/large")
    assert again["error_code"] == "EXISTS"


def test_bytes_that_nobody_has_closed_have_no_cid(mfs: Path) -> None:
    with (mfs / "open").open("wb", buffering=0) as file:
        file.write(b"more to come")
        with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
            cid_of(mfs / "open")
    assert cid_of(mfs / "open") == imported(b"more to come")


def test_virtual_attributes_are_not_listed_and_cannot_be_set(mfs: Path) -> None:
    (mfs / "file").write_bytes(b"x")
    os.setxattr(mfs / "file", "user.mine", b"yes")
    assert os.listxattr(mfs / "file") == ["user.mine"]
    for name in ("ipfs.cid", "user.unifs.state"):
        assert os.getxattr(mfs / "file", name)
        with pytest.raises(PermissionError):
            os.setxattr(mfs / "file", name, b"no")


def test_what_is_collected_is_only_what_nobody_needs(daemon: Daemon, mfs: Path) -> None:
    """After a collection every file is there, and a pinned CID survives its file."""
    data = random.Random(9).randbytes(2_000_000)
    (mfs / "kept").write_bytes(data)
    (mfs / "pinned").write_bytes(data[::-1])
    cid = cid_of(mfs / "pinned")
    assert daemon.ctl("pins", "add", cid)["status"] == "success"
    os.unlink(mfs / "pinned")
    assert daemon.ctl("repo", "gc")["status"] == "success"
    assert (mfs / "kept").read_bytes() == data
    assert (daemon.root.parent / "ipfs" / cid).read_bytes() == data[::-1]
