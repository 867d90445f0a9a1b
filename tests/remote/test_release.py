"""Bytes that nothing names any more stay until a power cut cannot bring back what named them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.journal.powercut import Disk
from tests.remote.system import RemoteSystem
from tests.vfs import invariants
from unifs.errors import NotFound, Unreachable
from unifs.journal.content import large_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from tests.mounts.remote import RemoteMount

    Change = Callable[[RemoteSystem, RemoteMount], Awaitable[None]]

LARGE = bytes(range(256)) * 1_000


async def replaced(system: RemoteSystem, remote: RemoteMount) -> None:
    remote.change("d/a", b"theirs")
    await trio.sleep(31)
    assert (await system.stat("d/a")).size == len(b"theirs")


async def removed(system: RemoteSystem, remote: RemoteMount) -> None:
    remote.change("d/a", None)
    await trio.sleep(31)
    with pytest.raises(NotFound):
        await system.stat("d/a")


async def stored(system: RemoteSystem, remote: RemoteMount) -> None:
    """An attempt ends whose bytes are the file's no more."""
    remote.fail("put", Unreachable("the answer was lost"), after=True)
    await system.write("d/a", LARGE[::-1])
    await trio.sleep(2.01)
    await system.write("d/a", b"small")
    await system.storage.flusher.flush()
    await system.volume.writeback.sync()


@pytest.mark.parametrize("change", [replaced, removed, stored])
@pytest.mark.parametrize("is_hot", [False, True])
async def test_a_power_cut_leaves_no_row_without_its_bytes(
    clock: MockClock, tmp_path: Path, remote: RemoteMount, change: Change, is_hot: bool
) -> None:
    state = tmp_path / "state"
    async with RemoteSystem(state, remote) as system:
        await system.mkdir("d")
        await system.write("d/a", LARGE)
        await system.sync()
        await system.seal()
        await system.storage.flusher.flush()
        if not is_hot:
            await system.kill()
        with Disk(state) as disk:
            await change(system, remote)
            system.tick()
            for container in sorted(system.writer.dead_containers):
                # As the keeper does, which is not here.
                system.volume.contents.containers.delete(container)
            await system.kill(start=False)
            disk.cut("synced")
        await system.start(boot="another")
        assert not system.receipt.has_losses(), system.receipt
        rows = system.storage.database.all(
            "select content from inode where length(content)>0 union all"
            " select content from remote where content is not null"
        )
        for large in filter(None, (large_id(bytes(content)) for (content,) in rows)):
            held = system.storage.database.one("select 1 from content where id=?", (large,))
            assert held, f"a row names content {large}, which is gone"
        invariants.check(system)
        await system.sync()
        await trio.sleep(31)
        await system.tree()
        system.tick()
        await system.storage.flusher.flush()
        system.tick()
        left = system.storage.database.one("select count(*) from content")[0]
        assert left == 0 or change is stored
        invariants.check(system)
