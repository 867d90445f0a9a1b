"""`ctl verify`, `ctl journal verify`, `ctl journal receipts`: what they find, on a real tree."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.vfs.nodeworld import NodeSystem
from unifs.answers.checks import ChecksAnswer
from unifs.answers.verifying import FileVerifier
from unifs.control.checks_protocol import FileDamage, Verified, Verifying
from unifs.vfs.paths import Paths
from unifs.vfs.roots import pack_link, unpack_link

if TYPE_CHECKING:
    from pathlib import Path

SMALL = b"small" * 100
HUGE = bytes(range(256)) * 12_000
LEAF = 1 << 20


class NoInvalidator:
    def inode(self, ino: int, attributes_only: bool = False) -> None: ...

    def entry(self, parent: int, name: bytes) -> None: ...


class Tree:
    """A node system with what answers for it."""

    def __init__(self, fs: NodeSystem) -> None:
        self.fs = fs
        paths = Paths(fs.vfs, NoInvalidator())
        verifier = FileVerifier(fs.storage, paths, fs.loader.volumes)
        self.checks = ChecksAnswer(fs.storage, fs.roots, fs.node, verifier)
        self.told: list[Verifying] = []

    async def verify(
        self, path: str | None = None, rate: float | None = None, after: int = 0
    ) -> tuple[list[FileDamage], Verified]:
        events = [event async for event in self.checks.verify(path, rate, after)]
        self.told += [event for event in events if isinstance(event, Verifying)]
        (result,) = [event for event in events if isinstance(event, Verified)]
        return [event for event in events if isinstance(event, FileDamage)], result


async def fill(fs: NodeSystem) -> Tree:
    await fs.write("small", SMALL)
    await fs.mkdir("d")
    await fs.write("d/huge", HUGE)
    await fs.write("d/other", HUGE[::-1])
    await fs.settle()
    return Tree(fs)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes((byte ^ 1,)))
        os.fsync(file.fileno())


def content(fs: NodeSystem, path: str) -> bytes:
    ino = fs.storage.database.one("select ino from dentry where name=?", (path.encode(),))[0]
    return bytes(fs.storage.database.one("select content from inode where ino=?", (ino,))[0])


def container(fs: NodeSystem, name: str) -> Path:
    number = int.from_bytes(content(fs, name)[1:9], "little")
    row = fs.storage.database.one("select container from holding where content=?", (number,))
    return fs.path / "data" / f"{row[0]:016x}"


async def test_every_byte_of_a_sound_tree_is_read(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        damages, result = await tree.verify()
        assert damages == []
        assert (result.files, result.size_bytes) == (3, len(SMALL) + 2 * len(HUGE))
        assert (result.damaged, result.unhashed, result.absent) == (0, 0, 0)
        assert tree.told[-1].files == 3


async def test_rot_is_named_with_its_path_and_offset_though_it_was_verified_before(
    tmp_path: Path,
) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        assert await fs.read("d/huge") == HUGE
        flip(container(fs, "huge"), LEAF + 77)
        blob = content(fs, "small")
        segment = int.from_bytes(blob[1:5], "little")
        offset = int.from_bytes(blob[5:13], "little")
        flip(tmp_path / "segments" / f"{segment}.car", offset + 3)
        # Neither the bitmap of what was verified nor a reader would notice now.
        assert (await fs.read("d/huge"))[:LEAF] == HUGE[:LEAF]
        damages, result = await tree.verify()
        assert {(each.path, each.offset) for each in damages} == {
            ("/mfs/small", 0),
            ("/mfs/d/huge", LEAF),
        }
        assert all("hash" in each.reason for each in damages)
        assert (result.damaged, result.files) == (2, 3)
        flip(container(fs, "huge"), LEAF + 77)
        flip(tmp_path / "segments" / f"{segment}.car", offset + 3)


async def test_a_container_that_is_gone_is_damage(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        path = container(fs, "huge")
        os.truncate(path, LEAF)
        damages, _ = await tree.verify("/mfs/d")
        assert [(each.path, each.offset) for each in damages] == [
            ("/mfs/d/huge", LEAF),
            ("/mfs/d/huge", 2 * LEAF),
        ]


async def test_only_below_a_path_and_after_an_inode(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        _, result = await tree.verify("/mfs/d")
        assert result.files == 2
        first = tree.told[0].after
        _, result = await tree.verify("/mfs/d", after=first)
        assert result.files == 1
        _, result = await tree.verify("/mfs/small")
        assert (result.files, result.size_bytes) == (1, len(SMALL))


async def test_it_keeps_to_its_rate(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        began = time.monotonic()
        await tree.verify("/mfs/d/huge", rate=20 * LEAF)
        # 2.9 MiB at 20 MiB a second.
        assert time.monotonic() - began > 0.14


async def test_it_can_be_ended(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        before = len(os.listdir("/proc/self/fd"))
        with trio.move_on_after(0.2) as scope:
            await tree.verify(rate=1000)
        assert scope.cancelled_caught
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_linked_file_is_verified_too(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        cid = await fs.add(HUGE, wrap=None)
        await fs.link(cid, "linked")
        tree = Tree(fs)
        damages, result = await tree.verify()
        assert (damages, result.files, result.size_bytes) == ([], 1, len(HUGE))


async def test_a_linked_directory_is_read_to_its_leaves(tmp_path: Path) -> None:
    """Nobody has looked into it: what lies in it has no row yet."""
    data = random.Random(1).randbytes(3_000_000)
    async with NodeSystem(tmp_path) as fs:
        await fs.link(await fs.add(data), "linked")
        tree = Tree(fs)
        damages, result = await tree.verify()
        assert (damages, result.files, result.damaged, result.absent) == ([], 1, 0, 0)
        assert result.size_bytes > len(data)
        places = [(each, each.read_bytes().find(data[2_500_000:][:64])) for each in cars(tmp_path)]
        ((car, offset),) = [(car, offset) for car, offset in places if offset >= 0]
        flip(car, offset)
        (damage,), result = await tree.verify()
        assert (damage.path, result.damaged) == ("/mfs/linked", 1)


def cars(state: Path) -> list[Path]:
    return [*(state / "nodes").glob("*.car"), *(state / "segments").glob("*.car")]


async def test_journal_tree_contents_and_cids_agree(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        found, counted = await tree.checks.agree()
        assert found == []
        assert (counted.directories, counted.found) == (2, 0)
        assert counted.names == 4
        assert counted.contents == 2


async def test_a_directory_whose_blocks_say_something_else_does_not_agree(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        database = fs.storage.database
        ino = (await fs.stat("d")).ino
        (column,) = database.one("select cid from inode where ino=?", (ino,))
        (root,) = database.one("select cid from inode where ino=?", (fs.mfs.root,))
        link = unpack_link(column)
        wrong = pack_link(type(link)(unpack_link(root).cid, link.tsize))
        database.execute("update inode set cid=? where ino=?", (wrong, ino))
        found, _ = await tree.checks.agree()
        assert "DIRECTORY_CID" in {each.code for each in found}
        assert any("/mfs/d: its CID" in each.message for each in found)
        database.execute("update inode set cid=? where ino=?", (column, ino))


async def test_a_damaged_content_does_not_agree(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        tree = await fill(fs)
        flip(container(fs, "huge"), 5)
        ((wrong,), _) = await tree.checks.agree()
        assert wrong.code == "CONTENT_DAMAGED"
        flip(container(fs, "huge"), 5)


async def test_receipts_of_recoveries_are_shown(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        assert await Tree(fs).checks.receipts() == []
        await fs.write("lost", HUGE)
        await fs.kill(start=False)
        for path in (tmp_path / "data").iterdir():
            path.write_bytes(b"")
        await fs.start(boot="another")
        (receipt,) = await Tree(fs).checks.receipts()
        assert receipt.kind == "power cut"
        assert any("lost" in sentence for sentence in receipt.sentences)
        (tmp_path / "lost+found" / "receipt-99999999999999999999.json").write_text("{")
        assert (await Tree(fs).checks.receipts())[0].kind == "unreadable"


def lose_blocks(state: Path, is_removed: bool) -> None:
    """All DAG nodes, and the index that knows of them."""
    for path in (state / "nodes").glob("*.car"):
        if is_removed:
            path.unlink()
        else:
            path.write_bytes(os.urandom(path.stat().st_size))
    for path in state.glob("blocks.db*"):
        path.unlink()


@pytest.mark.parametrize("is_removed", [True, False])
async def test_the_root_is_built_from_rows_where_its_blocks_are_lost(
    tmp_path: Path, is_removed: bool
) -> None:
    """The mount comes up, every file is there, the CIDs are what they were."""
    async with NodeSystem(tmp_path) as fs:
        await fill(fs)
        before = fs.roots.current()
        directory = await fs.getxattr("d", b"ipfs.cid")
        assert before is not None
    await trio.to_thread.run_sync(lose_blocks, tmp_path, is_removed)
    async with NodeSystem(tmp_path) as fs:
        fs.storage.blocks.catch_up()
        tree: Any = Tree(fs)
        assert await fs.read("d/huge") == HUGE
        assert not fs.has(before)
        await fs.roots.restore()
        assert "/mfs, /mfs/d" in fs.roots.holes[0]
        (receipt,) = await tree.checks.receipts()
        assert receipt.kind == "missing blocks"
        assert any(sentence.startswith("/mfs/d: ") for sentence in receipt.sentences)
        assert fs.roots.current() == before
        # Files too: the nodes above their leaves are made again from their hashes.
        assert fs.has(before)
        assert await fs.getxattr("d", b"ipfs.cid") == directory
        assert (await tree.checks.agree())[0] == []
        # A second start finds nothing missing.
        await fs.remount()
        await fs.roots.restore()
        assert fs.roots.holes == []


async def test_a_linked_file_whose_blocks_are_lost_is_a_hole_that_is_named(
    tmp_path: Path,
) -> None:
    async with NodeSystem(tmp_path) as fs:
        cid = await fs.add(HUGE, wrap=None)
        await fs.link(cid, "linked")
        await fs.settle()
        fs.storage.blocks.delete(cid.multihash)
        await fs.roots.restore()
        assert "/mfs/linked" in fs.roots.holes[0]
        assert (await fs.stat("linked")).size == len(HUGE)
