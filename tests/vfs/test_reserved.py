"""The reserved name at the root: found, never listed, never changed, and its inode numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unifs.errors import Exists, NotFound, ReadOnly, Stale, TooManyHandles
from unifs.types import PlainCaller
from unifs.vfs import reserved as reserved_module
from unifs.vfs.namespace import ROOT_INO
from unifs.vfs.reserved import Reserved
from unifs.vfs.vfs import Vfs
from unifs.vfs.volume import INO_SHIFT, Volume

if TYPE_CHECKING:
    from pathlib import Path

CALLER = PlainCaller()


@pytest.fixture
def vfs(tmp_path: Path) -> Vfs:
    return Vfs(tmp_path)


@pytest.fixture
def reserved(vfs: Vfs) -> Reserved:
    return Reserved(vfs.namespace, vfs.inodes)


def names(vfs: Vfs, ino: int) -> list[bytes]:
    fh = vfs.opendir(ino, CALLER)
    found: list[bytes] = []
    vfs.readdir(fh, 0, lambda name, attributes, offset: not found.append(name))
    offset = (1 << 62) + 2
    vfs.readdir(fh, offset, lambda name, attributes, offset: not found.append(name))
    vfs.releasedir(fh)
    return [name for name in found if name not in (b".", b"..")]


def test_it_is_found_but_not_listed(vfs: Vfs, reserved: Reserved) -> None:
    found = vfs.lookup(ROOT_INO, b".unifs", CALLER)
    assert found.st_ino == reserved.ino
    assert found.st_mode == 0o040555
    assert names(vfs, ROOT_INO) == []
    with pytest.raises(NotFound):
        vfs.lookup(ROOT_INO, b".unifs2", CALLER)


def test_views_are_registered_by_name_and_listed_in_it(vfs: Vfs, reserved: Reserved) -> None:
    view = vfs.namespace.add_directory(b"anything")
    reserved.add(b"history", view.ino)
    assert names(vfs, reserved.ino) == [b"history"]
    assert vfs.lookup(reserved.ino, b"history", CALLER).st_ino == view.ino
    with pytest.raises(Exists):
        reserved.add(b"history", view.ino)


def test_nobody_changes_it_and_no_mount_takes_its_name(vfs: Vfs, reserved: Reserved) -> None:
    with pytest.raises(ReadOnly):
        vfs.mkdir(reserved.ino, b"mine", 0o755, CALLER)
    with pytest.raises(ReadOnly):
        vfs.rename(ROOT_INO, b".unifs", ROOT_INO, b"other", 0, CALLER)
    with pytest.raises(ReadOnly):
        vfs.create(reserved.ino, b"mine", 0o644, 0, CALLER)
    with pytest.raises(Exists, match="reserved"):
        vfs.namespace.add(vfs.namespace.root, b".unifs", 99)


def test_prefixes_are_given_once_and_again_when_nobody_remembers_them(
    vfs: Vfs, reserved: Reserved, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Volume("first"), Volume("second")
    one, two = reserved.take_prefix(first), reserved.take_prefix(second)
    assert one != two
    assert vfs.inodes.volumes[one] is first
    ino = one << INO_SHIFT | 7
    vfs.inodes.remember(ino)
    assert not reserved.give_back(one)
    vfs.inodes.volumes[one].forgotten = lambda ino: None  # type: ignore[method-assign]
    vfs.forget([(ino, 1)])
    assert reserved.give_back(one)
    with pytest.raises(Stale):
        vfs.inodes.get(ino)
    monkeypatch.setattr(reserved_module, "RESERVED_LAST", two + 1)
    # One that was given back is taken again last: the kernel may have its numbers in a queue.
    assert [reserved.take_prefix(first), reserved.take_prefix(first)] == [two + 1, one]
    with pytest.raises(TooManyHandles):
        reserved.take_prefix(first)
