"""A rename whose answer was lost, and what somebody stored at the old place since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unifs.errors import IsADirectory, NotADirectory

if TYPE_CHECKING:
    from tests.mounts.s3.conftest import World


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_file_in_the_place_of_a_moved_directory_stays(world: World, is_empty: bool) -> None:
    world.put("old/" if is_empty else "old/in", b"" if is_empty else b"ours")
    await world.mount.rename("old", "new", "t1")
    world.put("old", b"theirs")
    await world.mount.rename("old", "new", "t1")
    assert world.get("old") == b"theirs"
    assert world.listed() == ["new/", *([] if is_empty else ["new/in"]), "old"]
    with pytest.raises(IsADirectory):
        await world.mount.rename("old", "new", "t2")
    assert world.get("old") == b"theirs"


async def test_a_file_beside_a_directory_that_is_half_moved_stays(moto: World) -> None:
    """SeaweedFS has no such thing."""
    for number in range(4):
        moto.put(f"old/{number}", b"ours")
    await moto.mount.rename("old", "new", "t1")
    for number in (2, 3):
        moto.put(f"old/{number}", b"late")
    moto.put("old", b"theirs")
    await moto.mount.rename("old", "new", "t1")
    assert moto.get("old") == b"theirs"
    assert not [key for key in moto.listed() if key.startswith("old/")]


async def test_a_directory_in_the_place_of_a_moved_file_stays(world: World) -> None:
    world.put("old", b"ours")
    await world.mount.rename("old", "new", "t1")
    world.put("old/in", b"theirs")
    await world.mount.rename("old", "new", "t1")
    assert {key: world.get(key) for key in ("new", "old/in")} == {
        "new": b"ours",
        "old/in": b"theirs",
    }
    with pytest.raises(NotADirectory):
        await world.mount.rename("old", "new", "t2")
    assert world.get("old/in") == b"theirs"
