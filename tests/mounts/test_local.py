"""The local mount beside programs that change the same files at the worst moment."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import Bytes
from unifs.errors import Conflict, DiskFailed, InvalidArgument, NoSpace, NotFound, UnifsError
from unifs.mounts import hostobject
from unifs.mounts.local import LocalMount
from unifs.types import Node, SetAttributes, Version

if TYPE_CHECKING:
    from pathlib import Path

LINK = Node(stat.S_IFLNK | 0o777, target=b"target")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    directory = tmp_path / "host"
    directory.mkdir()
    return directory


async def stored(mount: LocalMount, path: str, data: bytes) -> Version:
    node = await mount.put(path, Bytes(data), None, f"first {path}")
    assert node.version is not None
    return node.version


def meddle(monkeypatch: pytest.MonkeyPatch, place: Path, data: bytes | None) -> None:
    """Somebody replaces (or removes) ``place`` right before the next renameat2."""
    real = hostobject.renameat2

    def late(*args: object) -> None:
        monkeypatch.setattr(hostobject, "renameat2", real)
        if data is None:
            place.unlink()
        else:
            other = place.parent.parent / "other"
            other.write_bytes(data)
            other.replace(place)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(hostobject, "renameat2", late)


async def test_a_file_replaced_between_check_and_exchange_is_kept(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = LocalMount(host)
    version = await stored(mount, "f", b"old")
    meddle(monkeypatch, host / "f", b"theirs")
    with pytest.raises(Conflict):
        await mount.put("f", Bytes(b"ours"), version, "t2")
    assert (host / "f").read_bytes() == b"theirs"
    assert os.listdir(host) == ["f"]


async def test_a_file_removed_between_check_and_exchange_is_a_conflict(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = LocalMount(host)
    version = await stored(mount, "f", b"old")
    meddle(monkeypatch, host / "f", None)
    with pytest.raises(Conflict):
        await mount.put("f", Bytes(b"ours"), version, "t2")
    assert os.listdir(host) == []


async def test_a_file_replaced_while_we_remove_it_is_kept(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = LocalMount(host)
    version = await stored(mount, "f", b"old")
    meddle(monkeypatch, host / "f", b"theirs")
    with pytest.raises(Conflict):
        await mount.remove("f", version, "t2")
    assert (host / "f").read_bytes() == b"theirs"
    assert os.listdir(host) == ["f"]


async def test_what_a_crash_left_is_hidden_and_settled_by_the_retry(host: Path) -> None:
    mount = LocalMount(host)
    version = await stored(mount, "f", b"old")
    half = os.fsdecode(hostobject.temporary_name("t2"))
    (host / half).write_bytes(b"half an upload")
    assert [entry.name for entry in (await mount.scan("", None)).entries] == [b"f"]
    version = (await mount.put("f", Bytes(b"new"), version, "t2")).version or version
    assert os.listdir(host) == ["f"]
    aside = os.fsdecode(hostobject.temporary_name("t3"))
    (host / "f").rename(host / aside)
    await mount.remove("f", version, "t3")
    assert os.listdir(host) == []


async def test_a_removal_that_crashed_over_somebody_elses_file_gives_it_back(host: Path) -> None:
    mount = LocalMount(host)
    version = await stored(mount, "f", b"old")
    (host / "f").unlink()
    (host / os.fsdecode(hostobject.temporary_name("t3"))).write_bytes(b"theirs")
    (host / "keeps the old inode number busy").touch()
    with pytest.raises(Conflict):
        await mount.remove("f", Version("1:1:1:1"), "t3")
    assert (host / "f").read_bytes() == b"theirs"
    assert version


async def test_replacing_keeps_mode_and_owner(host: Path) -> None:
    mount = LocalMount(host)
    await stored(mount, "f", b"old")
    os.chmod(host / "f", 0o751)
    if os.geteuid() == 0:
        os.chown(host / "f", 1001, 1002)
    version = (await mount.stat("f")).version
    await mount.put("f", Bytes(b"new"), version, "t2")
    status = os.stat(host / "f")
    assert stat.S_IMODE(status.st_mode) == 0o751
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == (1001, 1002)


async def test_without_xattrs_puts_are_still_conditional(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    mount = LocalMount(host)
    version = await stored(mount, "f", b"old")
    await mount.put("f", Bytes(b"new"), version, "t2")
    with pytest.raises(Conflict):
        await mount.put("f", Bytes(b"new"), version, "t2")
    assert (host / "f").read_bytes() == b"new"


async def test_no_symlink_leads_out_of_the_directory(host: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not ours")
    (host / "out").symlink_to(tmp_path)
    (host / "file").symlink_to(tmp_path / "secret")
    mount = LocalMount(host)
    node = await mount.stat("file")
    assert stat.S_ISLNK(node.mode)
    assert node.version is not None
    attempts = (
        lambda: mount.stat("out/secret"),
        lambda: mount.scan("out", None),
        lambda: mount.read("file", node.version or Version(""), 0, 10),
        lambda: mount.put("out/new", Bytes(b"x"), None, "t1"),
        lambda: mount.remove("out/secret", None, "t2"),
        lambda: mount.rename("out/secret", "mine", "t3"),
        lambda: mount.make("out/link", LINK, "t4"),
    )
    for attempt in attempts:
        with pytest.raises(UnifsError):
            await attempt()
    await mount.set_attributes("file", SetAttributes(mtime_ns=5), "t5")
    assert (tmp_path / "secret").read_text() == "not ours"
    assert os.stat(tmp_path / "secret").st_mtime_ns != 5
    assert sorted(os.listdir(tmp_path)) == ["host", "secret"]


@pytest.mark.parametrize("path", ["..", "a/../b", "./a", "/etc", "a//b", "a/", "nul\0"])
async def test_what_is_no_path_is_refused(host: Path, path: str) -> None:
    with pytest.raises(InvalidArgument):
        await LocalMount(host).stat(path)


async def test_a_made_up_cursor_is_refused(host: Path) -> None:
    with pytest.raises(InvalidArgument):
        await LocalMount(host).scan("", "-1; drop")


async def test_errors_of_the_host_have_names(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = LocalMount(host)
    for code, named in (
        (errno.ENOSPC, NoSpace),
        (errno.EIO, DiskFailed),
        (errno.ELOOP, DiskFailed),
    ):

        def fail(*args: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            with pytest.raises(named):
                await mount.put("f", Bytes(b"x"), None, "t1")
        assert os.listdir(host) == []


async def test_descriptors_do_not_leak(host: Path) -> None:
    mount = LocalMount(host)
    await mount.stat("")
    before = len(os.listdir("/proc/self/fd"))
    version = await stored(mount, "f", b"x")
    await mount.make("link", LINK, "t1")
    await mount.scan("", None)
    await mount.read("f", version, 0, 1)
    for attempt in (
        lambda: mount.put("f", Bytes(b"x"), None, "t2"),
        lambda: mount.put("no/such", Bytes(b"x"), None, "t2"),
        lambda: mount.rename("no", "f", "t3"),
        lambda: mount.rename("no/such", "f", "t3"),
        lambda: mount.remove("f", None, "t4"),
        lambda: mount.stat("no"),
    ):
        with pytest.raises((Conflict, NotFound)):
            await attempt()
    await mount.rename("f", "g", "t5")
    assert len(os.listdir("/proc/self/fd")) == before
