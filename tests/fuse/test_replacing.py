"""Mounting in the place of a dead tree, step by step, with the RAM file system."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.fuse.conftest import Mounted, Mounts, until
from unifs.driver import mountinfo, replacing
from unifs.driver.replacing import is_dead, place_for
from unifs.errors import MountFailed

if TYPE_CHECKING:
    from pathlib import Path


def dead(mounts: Mounts, path: Path | None = None) -> Mounted:
    """A mount whose daemon was killed."""
    mounted = mounts.start("tests.driver.ramfs", path=path)
    mounted.process.kill()
    mounted.process.wait()
    until(lambda: is_dead(str(mounted.path)), "it is dead")
    return mounted


def count(path: Path) -> int:
    return sum(each.mount_point == str(path) for each in mountinfo.mounts())


@pytest.mark.parametrize("is_new_kernel", [True, False])
@pytest.mark.parametrize("has_leftover", [True, False])
def test_a_new_tree_takes_the_place_of_a_dead_one(
    mounts: Mounts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_new_kernel: bool,
    has_leftover: bool,
) -> None:
    if not is_new_kernel:
        # A flag that no kernel knows, as Linux before 6.5 does not know this one.
        monkeypatch.setattr(mountinfo, "MOVE_MOUNT_BENEATH", 1 << 30)
    place, staging = dead(mounts).path, tmp_path / "staging"
    if has_leftover:
        dead(mounts, staging)
    with place_for(str(place), staging) as where:
        assert where == str(staging)
        assert count(staging) == 0
        new = mounts.start("tests.driver.ramfs", path=staging)
        (staging / "file").write_bytes(b"data")
        with pytest.raises(OSError, match="not connected") as caught:
            os.listdir(place)
        assert caught.value.errno == errno.ENOTCONN
    assert os.listdir(place) == ["file"]
    assert (count(place), count(staging), staging.exists()) == (1, 0, False)
    mountinfo.umount(str(place))
    assert new.process.wait(30) == 0
    assert os.listdir(place) == []


def test_where_nothing_is_dead_the_place_itself_is_mounted_at(tmp_path: Path) -> None:
    with place_for(str(tmp_path), tmp_path / "staging") as where:
        assert where == str(tmp_path)
    assert not (tmp_path / "staging").exists()


def test_dead_ones_that_lie_over_each_other_are_taken_away(mounts: Mounts, tmp_path: Path) -> None:
    place = dead(mounts).path
    dead(mounts, tmp_path / "other")
    copy = mountinfo.open_copy(str(tmp_path / "other"))
    mountinfo.attach(copy, str(place))
    os.close(copy)
    assert count(place) == 2
    replacing.remove_dead(str(place), leave=1)
    assert count(place) == 1
    replacing.remove_dead(str(place))
    assert count(place) == 0


def test_what_cannot_be_made_is_named(mounts: Mounts, tmp_path: Path) -> None:
    place = dead(mounts).path
    staging = tmp_path / "absent" / "staging"
    said = rf"the dead mount at {place} stays: No such file"
    with pytest.raises(MountFailed, match=said), place_for(str(place), staging):
        raise AssertionError
    assert is_dead(str(place))
