"""A remote volume starts whatever state the disk and the write-ahead log are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from unifs.errors import NoSpace
from unifs.vfs.remotewaiting import SETTLE_LOST
from unifs.vfs.tree import Tree
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from tests.remote.system import RemoteSystem


async def _again() -> object:
    return RETRY


@pytest.mark.parametrize("failure", [NoSpace(), WouldBlock(_again)])
async def test_it_starts_on_a_full_disk_and_above_the_limit_of_the_wal(
    system: RemoteSystem, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    await system.write("a", b"bytes")
    await system.sync()
    await system.stop()
    commit = Tree.commit
    failures = [failure]

    def refuse(tree: Tree, batch: Any, frees: bool = False, may_hold: bool = True) -> None:
        if failures and batch[0][0] == SETTLE_LOST:
            raise failures.pop()
        commit(tree, batch, frees, may_hold)

    monkeypatch.setattr(Tree, "commit", refuse)
    await system.start()
    assert not failures
    assert await system.read("a") == b"bytes"
    await system.write("b", b"more")
    await system.sync()
