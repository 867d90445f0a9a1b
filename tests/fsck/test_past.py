"""What was removed and is history is no less worth than what has a name."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

from unifs.ipfs.cid import Cid
from unifs.journal.content import LINKED, small_content

if TYPE_CHECKING:
    from tests.fsck.world import State


def removed(state: State) -> tuple[int, bytearray]:
    """The one removed file, and its content column."""
    ino = state.one("select ino from inode where gone is not null")
    return ino, bytearray(state.one("select content from inode where ino=?", ino))


def test_bytes_of_the_past_are_found_elsewhere(state: State) -> None:
    ino, blob = removed(state)
    digest = small_content(bytes(blob)).digest
    blob[5:13] = (1 << 20).to_bytes(8, "little")
    state.run("update inode set content=? where ino=?", bytes(blob), ino)
    state.mend("SMALL_LOST")
    assert small_content(bytes(removed(state)[1])).digest == digest


def test_lost_bytes_of_the_past_are_never_shown_as_an_empty_file(state: State) -> None:
    ino, blob = removed(state)
    blob[-1] ^= 1
    state.run("update inode set content=? where ino=?", bytes(blob), ino)
    state.mend("SMALL_LOST")
    found = bytes(removed(state)[1])
    assert found[0] == LINKED
    assert Cid.decode(found[9:]).digest == bytes(blob[-32:])


def test_where_it_has_no_cid_it_is_missing_and_what_is_left_is_kept(state: State) -> None:
    ino, blob = removed(state)
    blob[-1] ^= 1
    state.run("update inode set content=? where ino=?", bytes(blob), ino)
    with mock.patch("unifs.fsck.saving._link", return_value=None):
        state.mend("SMALL_LOST")
    assert state.one("select 1 from inode where ino=?", ino) is None
    (kept,) = (state.path / "lost+found").glob(f"*-{ino}")
    assert kept.read_bytes() == b"gone"
