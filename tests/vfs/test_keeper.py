"""What the tree tells the node's collection, and how it follows what a compaction moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vfs.harness import FileSystem
from unifs.journal.content import SmallContent, small_content
from unifs.journal.log import Op, unpack_pair
from unifs.vfs.keeper import Keeper

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.ipfs.embedded.segments import Place


def places(fs: FileSystem) -> dict[str, Place]:
    """Where the contents of live rows lie, by name."""
    query = "select d.name,i.content from dentry d join inode i on i.ino=d.ino"
    return {
        name.decode(): small_content(blob).place()
        for name, blob in fs.storage.database.all(query)
        if blob[:1] == b"\1"
    }


def move_all(fs: FileSystem, keeper: Keeper) -> dict[Place, Place]:
    """As a compaction does: copy every live section, then tell where it went."""
    moves: list[tuple[Place, Place]] = []
    segments = fs.storage.segments
    for blob in set(keeper._small_blobs()):
        content = small_content(blob)
        data = segments.read(content.place())
        moves.append((content.place(), segments.append_raw(content.digest, data)))
    keeper.moved(1, moves)
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
            moved = move_all(fs, keeper)
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
        assert gone.offset in keeper.live_offsets(1, segment)
        await fs.storage.flusher.flush()
        live = keeper.live_offsets(1, segment)
        assert gone.offset not in live
        assert {place.offset for place in places(fs).values()} <= live


async def test_a_hot_inode_reads_from_the_new_place(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        await fs.write("hot", b"bytes", fsync=True)
        assert await fs.read("hot") == b"bytes"
        moved = move_all(fs, Keeper(fs.writer))
        contents = [
            inode.content.place()  # type: ignore[attr-defined]
            for inode in fs.vfs.inodes.hot.values()
            if isinstance(getattr(inode, "content", None), SmallContent)
        ]
        assert contents
        assert set(contents) <= set(moved.values())
