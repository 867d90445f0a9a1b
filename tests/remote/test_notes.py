"""Damaged notes of a remote volume: the mount starts, and what they protected waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.fsck.world import State
from unifs.errors import TryAgain
from unifs.types import Change
from unifs.vfs import remotelate
from unifs.vfs.remotelate import Note

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.remote.system import RemoteSystem

SOUND = Note("boot", 5.0, [Change("put", "a", "token")])


@pytest.mark.parametrize(
    "value",
    ["", "{", "[]", "7", "null", '{"boot":1,"until":5.0,"calls":[]}', SOUND.pack() + "x"],
)
async def test_a_note_that_cannot_be_read_counts_for_the_whole_time(
    clock: MockClock, system: RemoteSystem, value: str
) -> None:
    await system.write("b", b"x")
    await system.sync()
    await system.stop()
    state, mount = State(system.path), system.volume.mount_id
    for key, text in (("61", value), ("zz", "{}"), ("", value)):
        state.run("insert into meta values(?,?)", f"late/{mount}/{key}", text)
    state.run(f"insert into meta values('late/{mount}/62',cast(x'ff' as text))")
    state.run(f"insert into meta values(cast('late/{mount}/'||x'ff' as text),'')")
    await system.start()
    before = trio.current_time()
    await system.write("a", b"new")
    await system.sync()
    assert trio.current_time() - before > 55
    assert await system.read("a") == b"new"
    known = state.one("select count(*) from meta where key=?", f"late/{mount}/zz")
    assert known == 0


@pytest.mark.parametrize(
    "note",
    [
        SOUND,
        Note("boot", 0.5, [Change("rename", "b", "t", "a"), Change("remove", "a", "u", base=None)]),
    ],
)
def test_a_note_is_read_as_it_was_written(note: Note) -> None:
    assert remotelate.read(note.pack().encode(), "a") == note
    assert remotelate.read(note.pack(), "another") is None


async def test_why_a_change_was_given_up_may_be_unknown(
    clock: MockClock, system: RemoteSystem
) -> None:
    await system.write("a", b"x")
    ino = (await system.stat("a")).ino
    statement = "insert or replace into meta values(?,cast(x'ff' as text))"
    system.storage.database.execute(statement, (f"refused/{ino}",))
    assert isinstance(system.volume.sync.refusal(ino), TryAgain)
