"""Inconsistencies of notes, texts and checkpoints; registered with those of ``plants``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fsck.plants import plant
from tests.vfs.harness import BOOT
from unifs.state.ahead import Ahead

if TYPE_CHECKING:
    from tests.fsck.world import State


@plant("ROW_TEXT")
def a_fact_that_is_no_text(state: State) -> None:
    state.run("update meta set value=cast(x'7b7dff' as text) where key='profile'")


@plant("ROW_TEXT")
def a_key_that_is_no_text(state: State) -> None:
    state.run("insert into meta values(cast(x'6c617465ff' as text),1)")


@plant("ROW_TEXT")
def a_mount_whose_name_is_no_text(state: State) -> None:
    state.run("update mount set name=cast(x'6d66ff73' as text) where name='mfs'")


@plant("ROW_TEXT")
def a_boot_that_is_no_text(state: State) -> None:
    state.run("update meta set value=cast(x'ff' as text) where key='boot'")


@plant("ROW_TEXT")
def attributes_whose_type_is_a_text(state: State) -> None:
    """One bit of the database's page tells a blob from a text."""
    sql = "update inode set attributes=cast(attributes as text) where ino=?"
    state.run(sql, state.ino("d/large"))


@plant("ROW_TEXT")
def a_number_whose_type_is_a_text(state: State) -> None:
    state.run("update inode set epoch=cast(x'fffe' as text) where ino=?", state.ino("solo"))


@plant("META_VALUE")
def a_number_of_held_changes_that_is_text(state: State) -> None:
    state.run("insert or replace into meta values('held','x')")


@plant("META_MISSING")
def no_profile(state: State) -> None:
    state.run("delete from meta where key='profile'")


@plant("META_NOTE")
def directories_that_cannot_be_read(state: State) -> None:
    state.run("insert into meta values('local_directories','{')")


@plant("META_NOTE")
def sources_of_rows_that_cannot_be_read(state: State) -> None:
    state.run("insert into meta values('backend_sources','[1]')")


@plant("META_NOTE")
def backends_that_are_none(state: State) -> None:
    state.run("insert into meta values('backends','{\"s3\": 7}')")


@plant("META_NOTE")
def what_may_arrive_that_cannot_be_read(state: State) -> None:
    state.run("insert into meta values('late/3/61',x'ff')")


@plant("META_NOTE")
def what_may_arrive_at_no_path(state: State) -> None:
    state.run("insert into meta values('late/3/zz','{}')")


@plant("META_NOTE")
def why_a_change_was_given_up_that_cannot_be_read(state: State) -> None:
    state.run("insert into meta values('refused/7','[1]')")


@plant("ROW_REMOTE")
def an_attempt_at_no_path(state: State) -> None:
    state.run(
        "insert into remote(ino,mount,version,checked_ns,listing,listed_ns,local,attempt)"
        ' values(?,1,\'\',0,0,0,1,\'{"verb":"put","path":5,"token":"t"}\')',
        state.ino("solo"),
    )


@plant("LINK_STALE")
def a_link_of_nothing(state: State) -> None:
    state.run("insert into link values(4242,?,x'78')", state.ino("d"))


@plant("CHECKPOINT_EPOCH")
def a_checkpoint_of_no_epoch(state: State) -> None:
    state.run("insert into checkpoint values('monday',77,0)")


@plant("CHECKPOINT_EPOCH")
def a_checkpoint_of_a_thinned_epoch(state: State) -> None:
    state.run("insert into checkpoint values('monday',1,0)")
    state.run("insert into thinned values(1,0)")


@plant("CHECKPOINT_NAME")
def a_checkpoint_with_a_slash(state: State) -> None:
    state.run("insert into checkpoint values('a/b',1,0)")


@plant("CHECKPOINT_NAME")
def a_checkpoint_whose_name_is_no_text(state: State) -> None:
    state.run("insert into checkpoint values(x'ff',1,0)")


@plant("THINNED_STALE")
def a_thinned_epoch_that_is_to_come(state: State) -> None:
    state.run("insert into thinned values(77,0)")


@plant("NOTE_REFUSED")
def a_held_change_whose_number_is_taken(state: State) -> None:
    number = (state.one("select value from meta where key='held'") or 0) + 1
    notes = Ahead(state.path / "ahead", BOOT)
    notes.begin(number)
    place = (state.ino(""), state.dentry("solo"), b"new", state.ino("solo"), 1)
    assert notes.note([("insert into dentry values(?,?,?,?,?)", place)])
    notes.close()
