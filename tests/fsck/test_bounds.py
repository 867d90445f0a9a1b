"""Fsck beside a daemon holds no read transaction long: each looks at so many rows, never at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from unifs.fsck import look as looks
from unifs.fsck import online, records
from unifs.fsck.offline import CLEAN, REPAIRED
from unifs.fsck.online import examine_beside
from unifs.ipfs.embedded.blocks import Blocks
from unifs.journal.log import Op, pack_pair
from unifs.state.queries import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.fsck.world import State

#: Rows of a page in these tests; steps of SQLite's machine between two calls of a handler.
ROWS, STEPS = 100, 20
#: What a page may cost: 100 rows, each a look-up in another table and some columns.
STEPS_MAX = 300 * ROWS


class Counting(Reader):
    """Counts the steps of each read transaction."""

    most: dict[str, int]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._connection.set_progress_handler(self._step, STEPS)
        self._steps = 0
        self._is_in_transaction = False

    def _step(self) -> bool:
        self._steps += STEPS
        return False

    def one(self, sql: str, bindings: Sequence[Any] = ()) -> Any:
        try:
            return super().one(sql, bindings)
        finally:
            self._note(sql)

    def all(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        try:
            return super().all(sql, bindings)
        finally:
            self._note(sql)

    def _note(self, sql: str) -> None:
        self._is_in_transaction = sql == "begin" or (self._is_in_transaction and sql != "rollback")
        self.most[sql] = max(self.most.get(sql, 0), self._steps)
        if not self._is_in_transaction:
            self._steps = 0


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Statement → steps of the longest transaction that it was in."""
    found: dict[str, int] = {}
    monkeypatch.setattr(Counting, "most", found, raising=False)
    monkeypatch.setattr(online, "Reader", Counting)
    monkeypatch.setattr(looks, "KEYS", ROWS)
    monkeypatch.setattr(records, "KEYS", ROWS)
    return found


def enlarge(state: State, count: int) -> list[int]:
    """So many more rows in each table that grows; all of them are as they should be."""
    directory, model = state.ino("d"), state.ino("solo")
    with closing(sqlite3.connect(state.path / "tree.db")) as connection:
        (last,) = connection.execute("select max(ino)+1000 from inode").fetchone()
        (seq,) = connection.execute("select max(seq) from journal").fetchone()
        mount, attributes, content = connection.execute(
            "select mount,attributes,content from inode where ino=?", (model,)
        ).fetchone()
        data = pack_pair(b"", content)
        inos = range(last, last + count)
        for table, rows in {
            "inode": [(ino, mount, directory, 1, None, attributes, content, None) for ino in inos],
            "dentry": [(directory, ino, b"n%d" % ino, ino, 1) for ino in inos],
            "xattr": [(ino, b"user.a", b"a", 1) for ino in inos],
            "inode_past": [(ino, 1, 0, attributes, b"") for ino in inos],
            "dentry_past": [(directory, 1, ino, b"p%d" % ino, ino, 0) for ino in inos],
            "xattr_past": [(ino, 1, 0, b"user.a", b"a") for ino in inos],
            "holding": [(ino, 99) for ino in inos],
            "journal": [
                (seq + 1 + ino - last, 0, Op.CONTENT.value, ino, directory, data, None)
                for ino in inos
            ],
        }.items():
            marks = ",".join("?" * len(rows[0]))
            connection.executemany(f"insert into {table} values({marks})", rows)
        connection.commit()
    return [*inos]


def codes(state: State) -> list[str]:
    return [each.code for each in examine_beside(state.path, True, lambda: None)]


def test_no_read_transaction_grows_with_a_table_or_a_directory(
    state: State, most: dict[str, int]
) -> None:
    enlarge(state, 20 * ROWS)
    assert codes(state) == []
    assert len(most) > 30
    assert max(most.values()) < STEPS_MAX
    small = dict(most)
    enlarge(state, 60 * ROWS)
    assert codes(state) == []
    grown = {sql: n for sql, n in most.items() if n > 1.2 * small.get(sql, 0) + 5 * STEPS}
    assert grown == {}


#: One byte of the attributes.
_REPLACED = (
    "update inode set attributes="
    "cast(substr(attributes,1,{})||x'{}'||substr(attributes,{}) as blob)"
)
WRONG = {
    "LINK_COUNT": _REPLACED.format(12, "09", 14),
    "ROW_CONTENT": "update inode set content=x'ff'",
    "FILE_SIZE": _REPLACED.format(16, "0f", 18),
    "MOUNT_MISSING": "update inode set mount=77",
    "NAME_NO_INODE": "delete from inode",
    "INODE_NO_NAME": "delete from dentry",
    "NAME_ILLEGAL": "update dentry set name=x'2e2e'",
    "ROW_TYPE": "update inode set parent='text'",
    "XATTR_NO_INODE": "update xattr set ino=999999999",
    "PAST_EPOCHS": "update inode_past set epoch=7",
    "EPOCH_BEHIND": "update inode set epoch=1000000",
    "RECORD_CONTENT": "update inode set content=x''",
}


@pytest.mark.parametrize("code", WRONG)
def test_nor_where_something_is_wrong_in_a_large_directory(
    state: State, most: dict[str, int], code: str
) -> None:
    inos = enlarge(state, 40 * ROWS)
    state.run(f"{WRONG[code]} where ino=?", inos[-7])
    assert code in codes(state)
    assert {sql: steps for sql, steps in most.items() if steps > STEPS_MAX} == {}


def test_a_path_in_a_large_directory_is_told(state: State, most: dict[str, int]) -> None:
    inos = enlarge(state, 5 * ROWS)
    state.run(f"{WRONG['LINK_COUNT']} where ino=?", inos[-7])
    (finding,) = examine_beside(state.path, False, lambda: None)
    assert finding.sentence == f"/mfs/d/n{inos[-7]} has 1 names and says 9"
    assert most


def test_a_block_index_with_many_wrong_places_is_made_anew_once(state: State) -> None:
    with closing(sqlite3.connect(state.path / "blocks.db")) as connection:
        for number in range(50):
            connection.execute("insert into blocks values(?,0,77,5,5)", (bytes((18, number)),))
        connection.commit()
    state.run("update meta set value=0 where key='is_clean'")
    with mock.patch.object(Blocks, "rebuild", autospec=True, side_effect=Blocks.rebuild) as rebuild:
        assert state.examine(repair=True).exit_code == REPAIRED
    assert rebuild.call_count == 1
    assert state.examine(verify=True).exit_code == CLEAN
