"""A repair of what is known of a backend never makes writeback remove what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
import trio

from tests.fsck.world import State
from tests.vfs.harness import BOOT
from unifs.errors import Unreachable
from unifs.fsck.offline import REPAIRED, examine

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount
    from tests.remote.system import RemoteSystem


DAMAGES = (
    "delete from dentry",
    "delete from inode",
    "update dentry set name='text'",
    "update inode set content=x'ff'",
    "update inode set attributes=x''",
    "update inode set parent='x'",
    "update remote set version=7",
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_read", [False, True])
async def test_an_object_whose_rows_are_damaged_stays_at_the_backend(
    clock: MockClock, system: RemoteSystem, remote: RemoteMount, damage: str, is_read: bool
) -> None:
    if is_read:
        remote.change("a", b"bytes")
        assert await system.read("a") == b"bytes"
    else:
        await system.write("a", b"bytes")
        await system.sync()
    ino = (await system.stat("a")).ino
    remote.fail("set_attributes", *[Unreachable("gone")] * 3)
    await system.setattr("a", mode=0o600)
    await trio.sleep(2.5)
    assert system.volume.writeback.is_due(ino)
    await system.stop()
    State(system.path).run(f"{damage} where ino=?", ino)
    with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
        assert examine(system.path, repair=True).exit_code == REPAIRED
    await system.start()
    await system.sync()
    assert remote.content("a") == b"bytes"
    await trio.sleep(31)
    assert await system.read("a") == b"bytes"
