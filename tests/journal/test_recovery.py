"""Recovery: each crash window of ``unifs.journal.recovery`` by its number.

A "cut" here is a kill, bytes taken from the files, and a start that believes in another boot.

Longer than most because the windows are one list, and share what cuts the power.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.journal.powercut import Disk, is_container, refused_syncs
from tests.vfs.harness import FileSystem
from tests.vfs.invariants import check
from unifs.journal.log import Op
from unifs.vfs.retention import Limits, Retention
from unifs.vfs.treerename import RENAME_EXCHANGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.journal.recovery import Receipt

CREATE = os.O_CREAT | os.O_RDWR
LARGE = bytes(range(256)) * 800
NEWER = bytes(reversed(LARGE))


class Cut:
    """A file system whose power can be cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fs = FileSystem(path, upkeep=False)
        self.disk = Disk(path)

    async def flush(self) -> None:
        """Somebody else's fsync: every record durable, and every small content."""
        await self.fs.storage.flusher.flush()

    async def cut(self, how: str = "wal") -> Receipt:
        """All of the WAL is there; of data only what was synced (or as ``how`` says)."""
        await self.fs.kill(start=False)
        self.disk.cut(how)
        await self.fs.start(boot="another")
        check(self.fs)
        receipt = self.fs.receipt
        assert receipt is not None
        return receipt

    def saved(self) -> list[bytes]:
        """What lies in lost+found, but for receipts."""
        found = sorted((self.path / "lost+found").iterdir())
        return [path.read_bytes() for path in found if path.suffix != ".json"]


@pytest.fixture
async def power(tmp_path: Path) -> AsyncIterator[Cut]:
    cut = Cut(tmp_path)
    async with cut.fs:
        with cut.disk:
            yield cut
        check(cut.fs)
        before = await cut.fs.tree()
        await cut.fs.kill(boot="a third")
        assert await cut.fs.tree() == before
        assert cut.fs.receipt is not None
        assert not cut.fs.receipt.has_losses()
        check(cut.fs)


async def test_1_a_section_without_a_row(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"kept")
    fs.storage.segments.append_raw(bytes(32), b"garbage")
    await fs.kill()
    await fs.write("b", b"more")
    assert (await fs.read("a"), await fs.read("b")) == (b"kept", b"more")
    await power.cut("synced")


async def test_2_a_container_without_a_row(power: Cut) -> None:
    fs = power.fs
    file = await fs.open_file("a", CREATE)
    await file.write(0, LARGE)
    assert len(list(fs.storage.state.data.iterdir())) == 1
    await fs.kill()
    assert fs.receipt is not None
    assert fs.receipt.removed_files == 1
    assert list(fs.storage.state.data.iterdir()) == []


async def test_3_a_committed_transaction(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"small")
    await fs.write("b", LARGE)
    await fs.kill()
    assert fs.receipt is not None
    assert (fs.receipt.is_other_boot, fs.receipt.has_losses()) == (False, False)
    assert (await fs.read("a"), await fs.read("b")) == (b"small", LARGE)


@pytest.mark.parametrize("damage", ["cut", "zeros"])
async def test_4_small_bytes_lost(power: Cut, damage: str) -> None:
    fs = power.fs
    await fs.write("a", b"old")
    await power.flush()
    for version in (b"newer", b"newest"):
        await fs.write("a", version)
    await fs.write("fresh", b"never synced")
    end = dict(fs.storage.segments.segments())[1]
    await fs.kill(start=False)
    segment = power.path / "segments" / "1.car"
    whole = segment.read_bytes()
    kept = whole.index(b"newer") if damage == "cut" else whole.index(b"newest")
    segment.write_bytes(whole[:kept].ljust(end if damage == "zeros" else 0, b"\0"))
    await fs.start(boot="another")
    assert await fs.read("a") == (b"old" if damage == "cut" else b"newer")
    assert await fs.read("fresh") == b""
    receipt = fs.receipt
    assert receipt is not None
    assert len(receipt.reverted) == 2
    assert any("/a)" in sentence for sentence in receipt.reverted)
    # What comes now may lie where the lost bytes lay, and is not taken for them.
    await fs.write("b", b"newest")
    await fs.kill()
    assert await fs.read("a") == (b"old" if damage == "cut" else b"newer")


async def test_4_created_and_written_again(power: Cut) -> None:
    """The first content stands in the CREATE record's row only; it was fsynced."""
    fs = power.fs
    await fs.write("a", b"first", fsync=True)
    await fs.write("a", b"second")
    await power.cut()
    assert await fs.read("a") == b"first"


async def test_4_small_file_replaced_several_times(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"0", fsync=True)
    for index in range(1, 5):
        await fs.write("tmp", b"%d" % index)
        await fs.rename("tmp", "a")
        fs.tick()
    receipt = await power.cut()
    assert await fs.read("a") == b"0"
    assert len(receipt.returned) == 4
    assert await fs.listdir() == [b"a"]


@pytest.mark.parametrize("is_flushed", [True, False])
async def test_5_large_bytes_lost(power: Cut, is_flushed: bool) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    await fs.write("a", NEWER)
    await fs.write("fresh", LARGE)
    if is_flushed:
        # The records lie before sealed_seq; the bytes of large files do not care.
        await power.flush()
        fs.tick()
    receipt = await power.cut()
    assert await fs.read("a") == LARGE
    assert await fs.read("fresh") == b""
    assert len(receipt.reverted) == 2


async def test_5_what_is_left_is_saved(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE)
    await fs.kill(start=False)
    container = next((power.path / "data").iterdir())
    container.write_bytes(LARGE[: len(LARGE) // 2])
    await fs.start(boot="another")
    assert power.saved() == [LARGE[: len(LARGE) // 2].ljust(len(LARGE), b"\0")]
    receipts = list((power.path / "lost+found").glob("*.json"))
    assert len(receipts) == 1
    assert json.loads(receipts[0].read_text())["saved"]
    assert list((power.path / "data").iterdir()) == []


async def test_5_proven_bytes_are_trusted(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    async with fs.open("a", os.O_RDWR) as file:
        await file.fsync()
        await file.write(10, b"one")
        await file.fsync()
        await file.write(20, b"two")
    wanted = LARGE[:10] + b"one" + LARGE[13:20] + b"two" + LARGE[23:]
    await fs.kill(boot="another")
    assert fs.receipt is not None
    assert not fs.receipt.has_losses()
    assert await fs.read("a") == wanted


@pytest.mark.parametrize("lines", [3, 40])
async def test_5_an_appended_log(power: Cut, lines: int) -> None:
    """Every fsynced line is there, whatever became of the tail."""
    fs = power.fs
    file = await fs.open_file("log", CREATE)
    written = b""
    for index in range(lines):
        line = b"line %d\n" % index
        await file.write(len(written), line)
        written += line
        await file.fsync()
    await file.write(len(written), b"not synced\n")
    await file.flush()
    await power.cut()
    assert await fs.read("log") == written


async def test_5_fsynced_bytes_overwritten_in_place(power: Cut) -> None:
    """A proof in the row must not be broken by the next write."""
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    file = await fs.open_file("a", os.O_RDWR)
    await file.write(len(LARGE), b"x" * 4096)
    await file.fsync()
    await file.write(len(LARGE), b"y" * 4096)
    assert fs.vfs.handle(file.fh).inode.overlay.proven == []  # type: ignore[attr-defined]
    await fs.kill(start=False)
    await fs.start(boot="another")
    found = await fs.read("a")
    assert found[: len(LARGE)] == LARGE
    assert found[len(LARGE) :] in (b"x" * 4096, b"y" * 4096)


async def test_5_large_overwritten_between_two_fsyncs(power: Cut) -> None:
    fs = power.fs
    file = await fs.open_file("a", CREATE)
    await file.write(0, LARGE)
    await file.fsync()
    await file.write(1 << 20, NEWER)
    await file.fsync()
    await file.write(3 << 20, LARGE)
    await file.flush()
    await power.cut()
    assert await fs.read("a") == LARGE.ljust(1 << 20, b"\0") + NEWER
    assert (await fs.stat("a")).size == (1 << 20) + len(NEWER)


async def test_5_a_base_wholly_overwritten_is_kept_for_the_durable_form(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    file = await fs.open_file("a", os.O_RDWR)
    await file.write(0, b"x")
    await file.fsync()
    await file.write(1, NEWER)
    await file.flush()
    await power.flush()
    fs.tick()
    await power.cut()
    found = await fs.read("a")
    assert len(found) == len(LARGE)
    assert found[0:1] == b"x"


async def test_5_ranges_too_long_together_for_a_proof(power: Cut) -> None:
    fs = power.fs
    file = await fs.open_file("a", CREATE)
    await file.write(0, LARGE[:65_536])
    await file.truncate(100_000)
    await file.write(0, b"x" * 5000)
    await file.fsync()
    assert fs.vfs.handle(file.fh).inode.overlay.container  # type: ignore[attr-defined]
    await power.cut()
    assert await fs.read("a") == (b"x" * 5000 + LARGE[5000:65_536]).ljust(100_000, b"\0")


async def test_5_truncation_of_durable_bytes(power: Cut) -> None:
    fs = power.fs
    file = await fs.open_file("a", CREATE)
    await file.write(0, LARGE)
    await file.fsync()
    await file.truncate(0)
    await file.write(0, NEWER)
    await fs.kill(start=False)
    power.disk.cut("synced")
    # The container's present bytes are the durable ones; the row of the truncation is not there.
    await fs.start(boot="another")
    assert await fs.read("a") == LARGE


@pytest.mark.parametrize("data", [b"small", LARGE])
async def test_6_rename_over_of_lost_bytes(power: Cut, data: bytes) -> None:
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    await fs.setattr("a", mode=0o640)
    await fs.write("tmp", data)
    await fs.rename("tmp", "a")
    fs.tick()
    receipt = await power.cut()
    assert await fs.read("a") == b"the old one"
    assert (await fs.stat("a")).mode & 0o777 == 0o640
    assert len(receipt.returned) == 1
    assert await fs.listdir() == [b"a"]


async def test_6_rename_over_of_synced_bytes(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    await fs.write("tmp", NEWER, fsync=True)
    await fs.rename("tmp", "a")
    await fs.fsyncdir()
    receipt = await power.cut()
    assert await fs.read("a") == NEWER
    assert not receipt.has_losses()


async def test_6_a_partial_successor_does_not_stand_in_for_the_old_one(power: Cut) -> None:
    """Part of the new file was sealed on the way; the whole of it was not."""
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    file = await fs.open_file("tmp", CREATE)
    await file.write(0, b"half")
    await file.flush()
    await power.flush()
    await file.write(4, b" and half")
    await file.close()
    await fs.rename("tmp", "a")
    receipt = await power.cut()
    assert await fs.read("a") == b"the old one"
    assert await fs.listdir() == [b"a"]
    assert len(receipt.returned) == 1
    assert b"half" in power.saved()


@pytest.mark.parametrize("synced", [b"", b"small", LARGE])
async def test_6_a_synced_successor_goes_back_to_what_was_synced(power: Cut, synced: bytes) -> None:
    """The rename was made durable: it is not undone for bytes that came after the fsync."""
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    await fs.write("tmp", synced, fsync=True)
    file = await fs.open_file("tmp", os.O_RDWR)
    await file.write(len(synced), NEWER)
    await file.close()
    await fs.rename("tmp", "a")
    await fs.fsyncdir()
    receipt = await power.cut()
    assert await fs.read("a") == synced
    assert await fs.listdir() == [b"a"]
    assert not receipt.returned


async def test_6_each_name_goes_back_to_what_it_was_taken_from(power: Cut) -> None:
    fs = power.fs
    for name in ("a", "b"):
        await fs.write(name, name.encode(), fsync=True)
    await fs.write("tmp", LARGE)
    await fs.link("tmp", "other")
    await fs.link("tmp", "third")
    await fs.rename("tmp", "a")
    await fs.rename("other", "b")
    await fs.rename("a", "moved")
    receipt = await power.cut()
    assert await fs.read("moved") == b"a"
    assert await fs.read("b") == b"b"
    assert await fs.read("third") == b""
    assert sorted(await fs.listdir()) == [b"b", b"moved", b"third"]
    assert len(receipt.returned) == 2


async def test_6_a_name_taken_before_the_last_one_is_given_back(power: Cut) -> None:
    """Of two names, the first went to an unsynced file, the second to a synced one."""
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    await fs.link("a", "b")
    await fs.write("tmp", LARGE)
    await fs.rename("tmp", "a")
    await fs.write("tmp", b"synced", fsync=True)
    await fs.rename("tmp", "b")
    await power.flush()
    fs.tick()
    await power.cut()
    assert await fs.read("a") == b"the old one"
    assert await fs.read("b") == b"synced"


@pytest.mark.parametrize("names", [1, 2])
async def test_6_nothing_is_pruned_that_a_return_needs(power: Cut, names: int) -> None:
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    if names == 2:
        await fs.link("a", "b")
    await fs.write("tmp", LARGE)
    await fs.rename("tmp", "a")
    await power.flush()
    storage = fs.storage
    storage.database.begin()
    row = (storage.tree.epoch, storage.log.seq, 0, b"")
    storage.database.execute("insert into epoch values(?,?,?,?)", row)
    storage.database.commit()
    retention = Retention(fs.writer, Limits(0, 0, 0))
    while retention.prune():
        fs.tick()
    await power.cut()
    assert await fs.read("a") == b"the old one"
    assert (await fs.stat("a")).nlink == names


async def test_5_an_unsynced_cut_is_not_better_than_what_was_synced(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"synced", fsync=True)
    await fs.setattr("a", size_bytes=0)
    await fs.write("a", LARGE)
    await power.cut()
    assert await fs.read("a") == b"synced"


async def test_5_a_synced_cut_does_not_bring_old_bytes_back(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"synced", fsync=True)
    file = await fs.open_file("a", os.O_RDWR)
    await file.truncate(0)
    await file.fsync()
    await file.write(0, LARGE)
    await file.close()
    await power.cut()
    assert await fs.read("a") == b""


async def test_6_the_successor_moved_on(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    await fs.write("tmp", LARGE)
    await fs.rename("tmp", "a")
    await fs.rename("a", "b")
    await power.cut()
    assert await fs.listdir() == [b"b"]
    assert await fs.read("b") == b"the old one"


@pytest.mark.parametrize("which", ["old", "new", "both"])
async def test_6_hard_links(power: Cut, which: str) -> None:
    fs = power.fs
    await fs.write("a", b"the old one", fsync=True)
    await fs.write("tmp", b"lost")
    if which != "new":
        await fs.link("a", "old-link")
    if which != "old":
        await fs.link("tmp", "new-link")
    await fs.rename("tmp", "a")
    await power.cut()
    assert await fs.read("a") == b"the old one"
    assert (await fs.stat("a")).nlink == (1 if which == "new" else 2)
    if which != "new":
        assert (await fs.stat("a")).ino == (await fs.stat("old-link")).ino
    if which != "old":
        assert await fs.read("new-link") == b""
        assert (await fs.stat("new-link")).nlink == 1


async def test_6_an_exchange_keeps_both(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", b"one", fsync=True)
    await fs.write("b", b"two", fsync=True)
    await fs.rename("a", "b", RENAME_EXCHANGE)
    await power.cut()
    assert {await fs.read("a"), await fs.read("b")} == {b"one", b"two"}


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize("then", ["nothing", "unlink", "move", "write", "write and fsync"])
async def test_6_an_exchange_with_lost_bytes(
    power: Cut, data: bytes, is_second: bool, then: str
) -> None:
    """Whoever looks under the name finds what stood there or what was put there."""
    fs = power.fs
    await fs.write("a", NEWER, fsync=True)
    await fs.write("tmp", data)
    await fs.rename(*(("a", "tmp") if is_second else ("tmp", "a")), RENAME_EXCHANGE)
    if then == "unlink":
        await fs.unlink("tmp")
    elif then == "move":
        await fs.rename("tmp", "a~")
    elif then != "nothing":
        await fs.write("tmp", b"third", fsync="fsync" in then)
    # Whatever time passes: nothing that "a" may have to go back to is released.
    fs.tick()
    fs.tick()
    await power.cut()
    assert await fs.read("a") == (data if then == "write and fsync" and data != LARGE else NEWER)
    others = {name: await fs.read(name) for name in await fs.listdir() if name != b"a"}
    expected = {"nothing": NEWER, "write": NEWER, "write and fsync": b"third"}
    if then == "move":
        assert others == {b"a~": NEWER}
    else:
        assert others == ({} if then == "unlink" else {b"tmp": expected[then]})


async def test_7_rows_without_a_name(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE)
    await fs.setxattr("a", b"user.x", b"1")
    held = await fs.open_file("a")
    await fs.unlink("a")
    assert held.stat().nlink == 0
    await fs.kill()
    database = fs.storage.database
    assert fs.receipt is not None
    assert fs.receipt.removed_rows == 1
    for table in ("content", "holding", "xattr"):
        assert database.one(f"select count(*) from {table}")[0] == 0
    assert list(fs.storage.state.data.iterdir()) == []


async def test_8_directory_times_and_link_counts(power: Cut) -> None:
    fs = power.fs
    await fs.mkdir("d")
    fs.tick()
    for name in ("d/x", "d/y", "d/z"):
        await fs.mkdir(name)
    await fs.rmdir("d/y")
    await fs.rename("d/z", "z")
    before = {path: await fs.stat(path) for path in ("", "d", "z")}
    await fs.kill()
    after = {path: await fs.stat(path) for path in ("", "d", "z")}
    assert {p: s.nlink for p, s in after.items()} == {"": 4, "d": 3, "z": 2}
    assert {p: s.nlink for p, s in before.items()} == {"": 4, "d": 3, "z": 2}
    for path in ("", "d"):
        assert after[path].mtime_ns == before[path].mtime_ns


async def test_9_and_10_references_and_files(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE)
    await fs.write("b", NEWER)
    database = fs.storage.database
    database.begin()
    database.execute("update content set refs=7 where id=1")
    database.execute("delete from content where id=2")
    database.execute("delete from holding where content=2")
    database.execute("update inode set content=x'' where content=x'020200000000000000'")
    database.commit()
    (power.path / "data" / "somebody else's").write_bytes(b"kept")
    await fs.kill()
    assert fs.receipt is not None
    assert fs.receipt.removed_files == 1
    assert fs.storage.database.one("select id,refs from content") == (1, 1)
    assert await fs.read("a") == LARGE
    (power.path / "data" / "somebody else's").unlink()
    await fs.unlink("b")


@pytest.mark.parametrize("kind", ["replaced", "displaced"])
async def test_11_killed_then_cut(power: Cut, kind: str) -> None:
    """The first recovery removes what was replaced; so what replaced it must be on the disk."""
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    if kind == "replaced":
        await fs.write("a", NEWER)
    else:
        await fs.write("tmp", NEWER)
        await fs.rename("tmp", "a")
    await fs.write("small", b"closed before the kill")
    await fs.kill()
    receipt = await power.cut()
    assert await fs.read("a") == NEWER
    assert await fs.read("small") == b"closed before the kill"
    assert not receipt.has_losses()


async def test_11_nothing_goes_where_the_disk_refuses(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    await fs.write("a", NEWER)
    await fs.kill(start=False)
    with refused_syncs(is_container):
        await fs.start()
    assert fs.receipt is not None
    assert "could not be synced" in fs.receipt.kept
    assert len(list(fs.storage.state.data.iterdir())) == 2
    await fs.kill(start=False)
    power.disk.cut("wal")
    await fs.start(boot="another")
    assert await fs.read("a") == LARGE


async def test_12_stopped_then_cut(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    await fs.write("a", NEWER)
    await fs.stop()
    power.disk.cut("synced")
    await fs.start(boot="another")
    assert await fs.read("a") == LARGE
    assert fs.receipt is not None
    assert len(fs.receipt.reverted) == 1


async def test_a_clean_stop_and_a_reboot_need_no_recovery(power: Cut) -> None:
    fs = power.fs
    await fs.write("a", LARGE, fsync=True)
    await fs.write("b", b"small")
    await fs.stop()
    await fs.start(boot="another")
    assert (await fs.read("a"), await fs.read("b")) == (LARGE, b"small")


async def test_record_numbers_never_repeat(power: Cut) -> None:
    """Numbers that a rolled back transaction used may be called sealed already."""
    fs = power.fs
    await fs.write("a", b"1")
    for _ in range(5):
        fs.storage.log.row(Op.XATTR, 1, 1, b"")
    await power.flush()
    fs.upkeep.write_times()
    await fs.kill()
    await fs.write("a", b"lost")
    await power.cut()
    assert await fs.read("a") == b"1"
