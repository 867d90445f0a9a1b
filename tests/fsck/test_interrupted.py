"""A repair that ends anywhere, by a kill or a power cut: the next one comes to the same end."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from unittest import mock

import pytest

from tests.fsck.plants import PLANTS, Plant
from tests.fsck.repairdisk import Killed, Killer, RepairDisk, killed_after_commit
from tests.fsck.world import FILES, State, copy
from tests.journal.seam import Seam
from unifs.fsck.offline import CLEAN, REPAIRED, examine


def _killed_after_commit(state: State, number: int) -> bool:
    """Whether there were so many."""
    try:
        with killed_after_commit(number):
            state.examine(True)
    except Killed:
        return True
    return False


def _lost_and_found(state: State) -> list[bytes]:
    return [path.read_bytes() for path in (state.path / "lost+found").iterdir()]


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_bytes_that_a_repair_lets_go_are_kept_wherever_it_is_killed(
    state: State, number: int
) -> None:
    """The start after it removes files that no row names."""
    ino = state.ino("d/e/open")
    state.run("delete from dentry where ino=?", ino)
    state.run("delete from inode where ino=?", ino)
    assert _killed_after_commit(state, number) == (number < 9)
    assert state.examine(True).exit_code in (CLEAN, REPAIRED)
    assert state.examine(verify=True).exit_code == CLEAN
    assert _lost_and_found(state).count(FILES["d/e/open"]) == 1


def test_a_receipt_is_whole_wherever_the_repair_is_killed(state: State) -> None:
    """Rows that the first transaction removed stand nowhere else while the second is noted."""
    state.run("insert into xattr values(4242,x'757365722e61',x'6162',1)")
    state.run("update meta set value='x' where key='boot'")
    state.run("update meta set value=7 where key='boot'")
    (state.path / "data" / f"{99:016x}").write_bytes(b"whose are these?")
    removed = "insert into xattr values(4242,x'757365722e61',x'6162',1);"
    killer = Killer("write", "receipt-")
    for number in range(1, 99):
        killer.restart(number)
        with Seam(state.path, killer), suppress(Killed):
            state.examine(True)
        receipts = list((state.path / "lost+found").glob("receipt-*"))
        told = [row for path in receipts for row in json.loads(path.read_text()).get("rows", ())]
        is_there = state.one("select 1 from xattr where ino=4242") is not None
        assert is_there or removed in told, number
        if not killer.has_fired:
            break
    assert number > 3


@pytest.mark.parametrize("seed", range(16))
def test_a_repair_is_cut_off(state: State, seed: int) -> None:
    """At any call that changes a file; what nobody synced may be gone."""
    chance = random.Random(seed)
    plant: Plant = chance.choice(PLANTS)
    # Else a cut may take it, whatever is repaired.
    synced = "update content set durable_size=size,durable_extents=extents where id=?"
    state.run(synced, state.content_id("d/e/open"))
    places = state.places(plant.moved)
    plant.plant(state)
    killer = Killer()
    disk = RepairDisk(state.path)
    with disk:
        with Seam(state.path, killer.told_to(disk)):
            killer.restart(chance.randrange(1, 20))
            with suppress(Killed):
                state.examine(True, plant.verify)
        disk.cut(chance.choice(["synced", "wal", chance]))
    # The process that ended has the lock of the old one, and its connections, still.
    left = State(state.path.with_name("left"))
    copy(state.path, left.path)
    with mock.patch("unifs.state.directory.boot_id", return_value="another"):
        assert examine(left.path, True, plant.verify).exit_code in (CLEAN, REPAIRED), plant
        again = examine(left.path, False, True)
    assert again.exit_code == CLEAN, (plant.name, again.found)
    left.check_files(places, plant.lost)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_that_only_its_extents_name_survives_a_cut(state: State, number: int) -> None:
    """Recovery removes files that nobody holds: who holds them is mended before it."""
    state.attributes("solo", 12, 9)
    # What pins may need is not removed.
    state.small("pins.db", "delete from pins")
    number_of = state.content_id("d/e/open")
    synced = "update content set durable_size=size,durable_extents=extents where id=?"
    state.run(synced, number_of)
    state.run("delete from holding where content=?", number_of)
    _killed_after_commit(state, number)
    with mock.patch("unifs.state.directory.boot_id", return_value="another"):
        assert examine(state.path, True).exit_code in (CLEAN, REPAIRED)
    assert state.examine(verify=True).exit_code == CLEAN
    state.check_files({}, ())
