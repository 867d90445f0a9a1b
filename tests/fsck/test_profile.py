"""How files become CIDs is a fact of the state; what is stored tells it where it is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
import trio

from tests.fsck.world import LARGE, State
from tests.vfs.harness import BOOT
from tests.vfs.nodeworld import NodeSystem
from unifs.errors import ConfigInvalid
from unifs.ipfs.unixfs.profiles import PROFILES
from unifs.vfs.storage import DEFAULT_PROFILE, Storage

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = LARGE * 4


def opened(path: Path, profile: str) -> Storage:
    with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
        return Storage(path, profile=profile)


async def fill(path: Path, profile: str, files: dict[str, bytes]) -> None:
    """A state directory of that profile, with a root."""
    opened(path, profile).close()
    with mock.patch("unifs.vfs.storage.Storage.__init__.__defaults__", ("", profile)):
        async with NodeSystem(path) as fs:
            for name, data in files.items():
                await fs.write(name, data)
            await fs.settle()


def forget(state: State) -> None:
    state.run("delete from meta where key='profile'")


def known(state: State) -> str:
    return str(state.one("select value from meta where key='profile'"))


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_stored_tells_it(tmp_path: Path, profile: str) -> None:
    """To a repair, and to a start whose settings want another one."""
    state = State(tmp_path / "state")
    trio.run(fill, state.path, profile, {"large": CHUNKS})
    forget(state)
    other = next(name for name in PROFILES if name != profile)
    with pytest.raises(ConfigInvalid, match=f"the profile {profile}; it cannot become {other}"):
        opened(state.path, other)
    state.mend("META_MISSING")
    assert known(state) == profile
    forget(state)
    opened(state.path, profile).close()
    assert known(state) == profile


def test_a_root_of_version_0_tells_it(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    trio.run(fill, state.path, "unixfs-v0-2015", {"small": b"x"})
    forget(state)
    assert state.examine().found[0].code == "META_MISSING"
    with pytest.raises(ConfigInvalid, match="unixfs-v0-2015"):
        opened(state.path, DEFAULT_PROFILE)


def test_where_nothing_depends_on_it_the_settings_decide(tmp_path: Path) -> None:
    """Small files have the same CIDs by both profiles that are left."""
    state = State(tmp_path / "state")
    trio.run(fill, state.path, "kubo-v1", {"small": b"x"})
    forget(state)
    assert not state.examine().found
    with pytest.raises(ConfigInvalid):
        opened(state.path, "unixfs-v0-2015")
    opened(state.path, "kubo-v1").close()
    assert known(state) == "kubo-v1"
