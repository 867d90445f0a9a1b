"""What the tree tells the node's collection, and how it follows what a compaction moved."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.journal.powercut import Disk
from tests.vfs.harness import FileSystem
from tests.vfs.nodeworld import NodeSystem
from unifs.errors import NoSpace
from unifs.journal.content import SmallContent, small_content
from unifs.journal.log import Op, unpack_pair
from unifs.vfs import keeper as keeper_module
from unifs.vfs.keeper import MOVED_ROWS, Keeper
from unifs.vfs.tree import INSERT_INODE
from unifs.vfs.treeinode import TreeInode

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.ipfs.embedded.segments import Place
    from unifs.vfs.keeper import Moves
    from unifs.vfs.smallrows import Named, Table


def places(fs: FileSystem) -> dict[str, Place]:
    """Where the contents of live rows lie, by name."""
    query = "select d.name,i.content from dentry d join inode i on i.ino=d.ino"
    return {
        name.decode(): small_content(blob).place()
        for name, blob in fs.storage.database.all(query)
        if blob[:1] == b"\1"
    }


async def move_all(fs: FileSystem, keeper: Keeper) -> dict[Place, Place]:
    """As a compaction does: copy every live section, tell where it went, remove the segment."""
    segments = fs.storage.segments
    segments.roll()
    await fs.storage.flusher.flush()
    moves: list[tuple[Place, Place]] = []
    old = [number for number in segments.segments() if number != segments.open_segment()]
    for number in old:
        live = await keeper.live_offsets(1, number)
        for binary, place in list(segments.iterate(number)):
            if place.offset in live:
                moves.append((place, segments.append(binary, segments.read(place))))
    target = segments.sync_target()
    if target is not None:
        target.run()
    await keeper.moved(1, moves)
    for number in old:
        segments.remove(number)
    return dict(moves)


async def test_rows_handles_and_records_follow_a_move(tmp_path: Path) -> None:
    """Also what recovery may still go back to: the pair of a record that no flush has covered."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"old bytes", fsync=True)
        await fs.write("b", b"other", fsync=True)
        await fs.write("a", b"new bytes, closed and not synced")
        keeper = Keeper(fs.writer)
        before = places(fs)
        async with fs.open("b") as file:
            moved = await move_all(fs, keeper)
            assert places(fs) == {name: moved[place] for name, place in before.items()}
            assert await file.read() == b"other"
        for record in fs.storage.log.records(fs.writer.needed_since()):
            if record.op is Op.CONTENT:
                for blob in unpack_pair(record.data):
                    assert not blob or small_content(blob).place() in moved.values()
        assert await fs.read("a") == b"new bytes, closed and not synced"
        await fs.remount()
        assert await fs.read("a") == b"new bytes, closed and not synced"
        assert await fs.read("b") == b"other"


async def test_what_is_live_is_what_rows_and_recovery_need(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("kept", b"kept", fsync=True)
        await fs.write("changed", b"before", fsync=True)
        gone = places(fs)["changed"]
        await fs.write("changed", b"after")
        keeper = Keeper(fs.writer)
        segment = gone.segment
        # No flush has covered the change: a power cut may bring "before" back.
        assert gone.offset in await keeper.live_offsets(1, segment)
        await fs.storage.flusher.flush()
        live = await keeper.live_offsets(1, segment)
        assert gone.offset not in live
        assert {place.offset for place in places(fs).values()} <= live


async def test_a_hot_inode_reads_from_the_new_place(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("hot", b"bytes", fsync=True)
        assert await fs.read("hot") == b"bytes"
        moved = await move_all(fs, Keeper(fs.writer))
        contents = [
            inode.content.place()  # type: ignore[attr-defined]
            for inode in fs.vfs.inodes.hot.values()
            if isinstance(getattr(inode, "content", None), SmallContent)
        ]
        assert contents
        assert set(contents) <= set(moved.values())


async def test_an_inode_that_is_not_hot_follows_too(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        for number in range(3 * MOVED_ROWS):
            await fs.write(f"{number}", b"%d" % number)
        await fs.remount()
        before = places(fs)
        moved = await move_all(fs, Keeper(fs.writer))
        assert places(fs) == {name: moved[place] for name, place in before.items()}
        for number in range(0, 3 * MOVED_ROWS, 50):
            assert await fs.read(f"{number}") == b"%d" % number


async def test_what_is_written_while_rows_follow_stays_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that changed between being found and being changed names newer bytes."""
    monkeypatch.setattr(keeper_module, "MOVED_ROWS", 1)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        for name in ("a", "b", "c", "d"):
            await fs.write(name, b"old " + name.encode(), fsync=True)
        keeper = Keeper(fs.writer)
        move = keeper._move
        looks: list[str] = []

        def write_first(table: Table, rows: list[Named], to: Moves) -> int:
            looks.append(table.name)
            if len(looks) == 2:
                new = fs.storage.segments.append_raw(sha256(b"new d").digest(), b"new d")
                blob = SmallContent(new.segment, new.offset, 5, sha256(b"new d").digest()).blob
                inode = fs.vfs.inodes.get(ino)
                statement = "update inode set content=? where ino=?"
                fs.writer.tree.commit([(statement, (blob, ino))])
                inode.stored, inode.content = blob, None  # type: ignore[attr-defined]
            return move(table, rows, to)

        ino = (await fs.stat("d")).ino
        monkeypatch.setattr(keeper, "_move", write_first)
        await move_all(fs, keeper)
        await fs.remount()
        assert [await fs.read(name) for name in "abcd"] == [
            b"old a",
            b"old b",
            b"old c",
            b"new d",
        ]


async def test_what_a_half_done_truncation_goes_back_to_follows_a_move(tmp_path: Path) -> None:
    """The first of its two commits came, the disk had no room for the second."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("a", b"acknowledged", fsync=True)
        async with fs.open("a", os.O_RDWR) as file:
            await file.write(0, b"ACK")
            commit = fs.writer.commit

            def full(inode: TreeInode, is_interim: bool = False) -> None:
                if not is_interim:
                    raise NoSpace("full")
                commit(inode, is_interim)

            with mock.patch.object(fs.writer, "commit", full), pytest.raises(NoSpace):
                await fs.setattr("a", size_bytes=5)
            await fs.storage.flusher.flush()
            inode = fs.volume.inodes.get(file.ino)
            assert isinstance(inode, TreeInode)
            assert inode.acknowledged is not None
            await move_all(fs, Keeper(fs.writer))
            before = small_content(inode.before())
            assert fs.storage.segments.read(before.place()) == b"acknowledged"


async def test_a_power_cut_after_a_compaction_finds_the_new_places(tmp_path: Path) -> None:
    """The old segment is gone for good, so the rows have to be on the disk before it goes."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        with Disk(tmp_path) as disk:
            await fs.write("a", b"bytes", fsync=True)
            await move_all(fs, Keeper(fs.writer))
            await fs.kill(start=False)
            disk.cut("synced")
        await fs.start(boot="another")
        assert await fs.read("a") == b"bytes"


async def test_recovery_finds_what_an_fsync_covered_at_its_new_place(tmp_path: Path) -> None:
    """The record of the fsync may be all that says so: a rename took a name since."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        with Disk(tmp_path) as disk:
            await fs.write("target", b"target", fsync=True)
            await fs.write("a", b"synced", fsync=True)
            # Keeps the records above: a large content that is closed only.
            fs.writer.unsealed_since[1] = 0
            await move_all(fs, Keeper(fs.writer))
            async with fs.open("a", os.O_RDWR) as file:
                await file.write(0, b"NEWER!")
            await fs.rename("a", "target")
            await fs.kill(start=False)
            disk.cut("wal")
        await fs.start(boot="another")
        assert await fs.read("target") == b"synced"


async def test_looking_and_following_keep_the_loop_free(tmp_path: Path) -> None:
    """Thousands of rows are moved in steps that nobody notices."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        many = [b"%d" % number for number in range(3000)]
        rows = []
        for number, data in enumerate(many):
            digest = sha256(data).digest()
            place = fs.storage.segments.append_raw(digest, data)
            blob = SmallContent(place.segment, place.offset, len(data), digest).blob
            rows.append((INSERT_INODE, (100 + number, 1, 1, 1, bytes(56), blob)))
        fs.writer.tree.commit(rows)
        steps: list[int] = []
        keeper = Keeper(fs.writer)
        move = keeper._move

        def counted(table: Table, rows: list[Named], to: Moves) -> int:
            steps.append(len(rows))
            return move(table, rows, to)

        keeper._move = counted  # type: ignore[method-assign]
        moved = await move_all(fs, keeper)
        assert len(moved) == sum(steps) == len(many)
        assert max(steps) <= MOVED_ROWS


@pytest.mark.parametrize("is_pinned", [False, True])
async def test_a_full_disk_does_not_keep_what_nobody_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_pinned: bool
) -> None:
    """The index needs a little space to forget where the blocks lay that are in the way."""
    async with NodeSystem(tmp_path) as fs:
        if is_pinned:
            await fs.node.pins_add(await fs.node.block_put(b"pinned"))
        await fs.write("large", os.urandom(300_000))
        await fs.seal()
        await fs.unlink("large")
        for _ in range(3):
            fs.tick()
            await fs.storage.flusher.flush()
        assert len(fs.keeper.dead) == 1
        state, index = fs.storage.state, fs.storage.blocks.index
        forget = index.forget_container

        def on_a_full_disk(container: int) -> None:
            if state.has_reserve:
                raise NoSpace
            forget(container)

        monkeypatch.setattr(index, "forget_container", on_a_full_disk)
        await fs.keeper._let_go_even_if_full(fs.node)
        assert not fs.keeper.dead
        assert not state.has_reserve
        assert list(state.data.iterdir()) == []
