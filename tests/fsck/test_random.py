"""Any value in any column of any row: never an exception, never a file lost that was not hit."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.fsck.world import FILES
from unifs.fsck.offline import CLEAN, REPAIRED

if TYPE_CHECKING:
    from tests.fsck.world import State

SEEDS = range(40)


def _value(rng: random.Random, old: Any) -> Any:
    """Something else: a neighbour, an extreme, another type, a flipped bit."""
    if isinstance(old, bytes) and old and rng.random() < 0.5:
        flipped = bytearray(old)
        flipped[rng.randrange(len(old))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if isinstance(old, int) and rng.random() < 0.4:
        return old + rng.choice([-1, 1, 2, 1000])
    return rng.choice(
        [
            None,
            0,
            -1,
            1,
            2,
            1 << 40,
            (1 << 63) - 1,
            -(1 << 63),
            1.5,
            "text",
            "",
            b"",
            b"\x00",
            b"\xff" * 9,
            rng.randbytes(49),
            rng.randbytes(56),
            "/",
            b"/",
            b"..",
        ]
    )


def _corrupt(state: State, rng: random.Random) -> tuple[str, str, int]:
    """Change one value; table, column, and the inode whose bytes it speaks of, else 0."""
    with closing(sqlite3.connect(state.path / "tree.db")) as connection:
        query = "select name from sqlite_master where type='table' order by name"
        tables = [row[0] for row in connection.execute(query)]
        while True:
            table = rng.choice(tables)
            columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
            rows = connection.execute(f"select * from {table}").fetchall()
            if not rows:
                continue
            row = rng.choice(sorted(rows, key=repr))
            if row[0] == "boot":
                # Another boot: what was not synced is not trusted, and that is right.
                continue
            column = rng.choice(columns)
            where = " and ".join(f"{name} is ?" for name in columns)
            value = _value(rng, row[columns.index(column)])
            try:
                connection.execute(f"update {table} set {column}=? where {where}", (value, *row))
            except sqlite3.Error:
                connection.rollback()
                continue
            connection.commit()
            return table, column, row[0] if table in ("inode", "content") else 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_corrupted_row_is_survived(state: State, seed: int) -> None:
    rng = random.Random(seed)
    numbers = {name: (state.ino(name), state.content_id(name)) for name in FILES}
    what: list[tuple[str, str, int]] = [_corrupt(state, rng) for _ in range(rng.choice([1, 1, 3]))]
    state.examine()
    outcome = state.examine(repair=True)
    assert outcome.exit_code in (CLEAN, REPAIRED), (what, outcome.left)
    assert state.examine().exit_code == CLEAN, what
    files = state.files()
    hit = {(table, key) for table, _, key in what if key}
    there = list(files.values())
    for name, (ino, content) in numbers.items():
        if ("inode", ino) in hit or ("content", content) in hit:
            continue
        assert FILES[name] in there, (what, name, files.keys())
    assert sum(isinstance(each, Exception) for each in there) <= len(hit), what


def test_a_content_and_the_mount_table_at_once(state: State) -> None:
    """Lost and found is in a mount that has to be found again first."""
    state.run("update inode set content=x'ff' where ino=?", state.ino("d/link"))
    state.run("update mount set kind=null where name='mfs'")
    assert state.examine(repair=True).exit_code == REPAIRED
    assert state.examine().exit_code == CLEAN
    assert state.files() == FILES
