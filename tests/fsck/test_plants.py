"""One test per inconsistency: named with its code, mended, clean, and every file still there."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import unifs.fsck
from tests.fsck import noteplants as _noteplants  # noqa: F401
from tests.fsck.plants import PLANTS, Plant
from tests.fsck.world import FILES
from unifs.fsck.columns import COLUMNS
from unifs.fsck.offline import CLEAN

if TYPE_CHECKING:
    from tests.fsck.world import State


def test_nothing_is_wrong_with_what_was_stopped_cleanly(state: State) -> None:
    before = sorted(path.name for path in state.path.rglob("*"))
    outcome = state.examine(verify=True)
    assert outcome.exit_code == CLEAN, outcome.found
    assert not outcome.needs_recovery
    after = sorted(path.name for path in state.path.rglob("*") if path.name != "reserve")
    assert [name for name in before if name != "reserve"] == after
    assert state.files() == FILES


def test_a_repair_of_what_is_sound_changes_nothing(state: State) -> None:
    outcome = state.examine(repair=True)
    assert (outcome.exit_code, outcome.receipt) == (CLEAN, "")
    assert not list((state.path / "lost+found").iterdir())
    assert state.files() == FILES


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_each_is_found_and_mended(state: State, plant: Plant) -> None:
    places = state.places(plant.moved)
    plant.plant(state)
    outcome = state.mend(plant.code, plant.verify)
    receipt = json.loads((state.path / "lost+found" / outcome.receipt).read_text())
    assert receipt["kind"] == "fsck"
    assert plant.code in {each["code"] for each in receipt["found"]}
    state.check_files(places, plant.lost)


def test_every_code_has_its_test() -> None:
    package = Path(unifs.fsck.__file__).parent
    text = "".join(path.read_text() for path in package.glob("*.py"))
    codes = set(re.findall(r"\"([A-Z]+_[A-Z_]+|DATABASE)\"", text))
    assert codes == {plant.code for plant in PLANTS}


def test_every_column_has_its_types(state: State) -> None:
    """But those whose values have a check of their own, and keys that SQLite keeps."""
    with closing(sqlite3.connect(state.path / "tree.db")) as connection:
        query = "select m.name,c.name from sqlite_master m join pragma_table_info(m.name) c"
        there = set(connection.execute(f"{query} where m.type='table'"))
    elsewhere = {(table, name) for table, name in there if table in ("meta", "mount")}
    elsewhere |= {("inode", "attributes"), ("inode", "content")}
    elsewhere |= {("remote", "ino"), ("checkpoint", "name")}
    assert {(each.table, each.name) for each in COLUMNS} == there - elsewhere
