"""A power cut takes what the block index committed and nobody synced; never blocks with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from unifs.ipfs.embedded import collect
from unifs.ipfs.embedded.collect import Collector
from unifs.ipfs.embedded.marks import Root

from .stores import Kept, Store, put_raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.ipfs.cid import Cid


class Synced(apsw.VFS):
    """SQLite's view of a disk: by path, the bytes of each file as of its last sync."""

    def __init__(self) -> None:
        super().__init__("synced", base="unix", makedefault=True)
        self.files: dict[str, bytes] = {}

    def xOpen(self, name: Any, flags: list[int]) -> SyncedFile:
        return SyncedFile(self.files, name, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:
        super().xDelete(name, syncdir)
        self.files.pop(name, None)

    def cut(self, store: Store) -> None:
        """End, and leave of the index what was synced."""
        there = dict(self.files)
        store.kill()
        for path in store.directory.glob("blocks.db*"):
            path.unlink()
        for name, data in there.items():
            Path(name).write_bytes(data)
        store.open()


class SyncedFile(apsw.VFSFile):
    def __init__(self, files: dict[str, bytes], name: Any, flags: list[int]) -> None:
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._files = files
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        if self._name:
            self._files[self._name] = Path(self._name).read_bytes()


@pytest.fixture
def disk() -> Iterator[Synced]:
    vfs = Synced()
    yield vfs
    vfs.unregister()


@pytest.fixture
def cut_store(disk: Synced, tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.kill()


def fill(store: Store, label: bytes, count: int) -> list[Cid]:
    cids = [put_raw(store.blocks, b"%s %d" % (label, number) * 30) for number in range(count)]
    store.blocks.sync_all()
    store.blocks.flush()
    return cids


async def collect_all_but(store: Store, kept: list[Cid]) -> None:
    collector = Collector(store.blocks, Kept(lambda: map(Root, kept)), owner=store.owner)
    await collector.collect(grace_s=0)


async def test_blocks_in_a_segment_with_a_number_that_comes_again(
    cut_store: Store, disk: Synced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index knew of the old one is not taken for what it knows of the new one."""
    store = cut_store
    monkeypatch.setattr(collect, "_ROLL_MIN_BYTES", 1)
    fill(store, b"garbage", 40)
    store.blocks.index._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    await collect_all_but(store, [])
    kept = fill(store, b"kept", 20)
    disk.cut(store)
    assert all(store.blocks.get(cid) for cid in kept)


async def test_blocks_that_were_moved_while_others_were_put(
    cut_store: Store, disk: Synced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far the index has come in the segment that they were moved to says nothing of them."""
    store = cut_store
    kept = fill(store, b"kept", 3)
    fill(store, b"garbage", 40)
    index = store.blocks.index
    move, puts = index.move, []

    def put_then_move(moves: Any) -> None:
        if not puts:
            puts.extend(fill(store, b"put while others moved", 2))
            index._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        move(moves)

    monkeypatch.setattr(index, "move", put_then_move)
    await collect_all_but(store, kept)
    assert puts
    disk.cut(store)
    assert all(store.blocks.get(cid) for cid in kept)
