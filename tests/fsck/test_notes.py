"""What a repair makes of damaged notes and checkpoints, beyond that nothing is wrong any more."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.vfs.harness import BOOT
from unifs.errors import Corrupt
from unifs.vfs import remotelate
from unifs.vfs.storage import Storage

if TYPE_CHECKING:
    from tests.fsck.world import State


def test_of_a_damaged_note_the_path_is_kept(state: State) -> None:
    state.run("insert into meta values('late/3/61',x'ff')")
    state.mend("META_NOTE")
    note = remotelate.read(state.one("select value from meta where key='late/3/61'"), "a")
    assert note == remotelate.anything("a")


def test_a_checkpoint_finds_the_epoch_that_ended_for_it(state: State) -> None:
    time_ns = state.one("select time_ns from epoch where epoch=1")
    state.run("insert into checkpoint values('monday',77,?)", time_ns - 1000)
    state.mend("CHECKPOINT_EPOCH")
    assert state.one("select epoch from checkpoint where name='monday'") == 1


def test_a_checkpoint_of_nothing_is_gone_and_named(state: State) -> None:
    state.run("insert into checkpoint values('monday',77,5)")
    outcome = state.mend("CHECKPOINT_EPOCH")
    assert state.one("select count(*) from checkpoint") == 0
    assert any("'monday'" in sentence for sentence in outcome.kept)


def test_a_blob_that_became_a_text_is_what_it_was(state: State) -> None:
    query = "select attributes from inode where ino=?"
    before = state.one(query, state.ino("solo"))
    sql = "update inode set attributes=cast(attributes as text) where ino=?"
    state.run(sql, state.ino("solo"))
    state.mend("ROW_TEXT")
    assert state.one(query, state.ino("solo")) == before


def test_a_mount_of_a_damaged_text_says_what_to_do(state: State) -> None:
    state.run("update meta set value=cast(x'ff' as text) where key='profile'")
    with (
        mock.patch("unifs.state.directory.boot_id", return_value=BOOT),
        pytest.raises(Corrupt, match="unifs fsck --repair"),
    ):
        Storage(state.path)
    state.mend("ROW_TEXT")


@pytest.mark.parametrize("value", ["{", "[1]", "", "7"])
def test_a_damaged_table_of_mounts_says_what_to_do(state: State, value: str) -> None:
    state.run("insert into meta values('local_directories',?)", value)
    with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
        storage = Storage(state.path)
    try:
        with pytest.raises(Corrupt, match="unifs fsck --repair"):
            storage.database.get_table("local_directories")
        assert storage.database.get_table("backends") == {}
    finally:
        storage.close()
