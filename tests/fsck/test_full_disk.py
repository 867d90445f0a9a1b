"""A repair that finds no space, at each of its calls: it says so, and loses nothing."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.fsck.plants import PLANTS, Plant
from tests.fsck.world import State, copy
from tests.journal.faultwork import Nth
from tests.journal.powercut import Disk
from tests.journal.seam import SYNCS, Fault, Seam
from unifs.errors import DiskFailed, NoSpace, StateUnusable
from unifs.fsck.offline import CLEAN, REPAIRED, _Repair

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

CALLS_MAX = 1_000
#: Every so many calls, a different start for one that fails once and all that follow.
STRIDE = 10
#: A change of rows, a new object, an earlier content, a file that is written anew.
NAMES = (
    "a_file_without_a_row",
    "a_file_without_a_name",
    "a_large_file_without_a_content",
    "a_footer_that_is_wrong",
)
CHOSEN = [each for each in PLANTS if each.name in NAMES]


class Full(Nth):
    """No call finds space, once or from the n-th on until the reserve is given up."""

    def __init__(self, number: int, disk: Disk, is_lasting: bool) -> None:
        super().__init__("ENOSPC", number, disk, is_lasting=is_lasting)
        self.is_armed = True

    def applies(self, call: str, path: str, flags: int) -> bool:
        if call in SYNCS or (call == "mkdir" and os.path.exists(path)):
            return False
        return super().applies(call, path, flags)

    def before(self, call: str, path: str, flags: int = 0) -> Fault | None:
        if self.fired and call == "truncate" and path.endswith("/reserve"):
            self.is_armed = False
        return super().before(call, path, flags)


def repaired_at(state: State, plant: Plant, number: int, is_lasting: bool) -> bool:
    """A repair with one fault, then one without; whether the fault came."""
    places = state.places(plant.moved)
    plant.plant(state)
    disk = Full(number, Disk(state.path), is_lasting)
    with Seam(state.path, disk):
        try:
            state.examine(True, plant.verify)
        except NoSpace:
            assert disk.fired
        except (StateUnusable, DiskFailed):
            # SQLite does not say why it cannot make its log.
            assert disk.fired
            assert disk.fired[0] == "open"
    assert state.examine(True, plant.verify).exit_code in (CLEAN, REPAIRED)
    assert state.examine(verify=True).exit_code == CLEAN
    state.check_files(places, plant.lost)
    return disk.fired is not None


@pytest.mark.parametrize("is_lasting", [False, True])
@pytest.mark.parametrize("plant", CHOSEN, ids=lambda plant: plant.name)
def test_no_space_at_each_call(
    filled: Path, tmp_path: Path, plant: Plant, is_lasting: bool
) -> None:
    number = 1 + is_lasting
    while number < CALLS_MAX:
        state = State(tmp_path / f"{number}")
        copy(filled, state.path)
        if not repaired_at(state, plant, number, is_lasting):
            break
        shutil.rmtree(state.path)
        number += STRIDE
    assert 40 < number < CALLS_MAX


def test_a_repair_that_fails_leaves_no_clean_state(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start counts references anew: what is half mended may have other ones."""
    ino = state.ino("d/e/open")
    state.run("delete from dentry where ino=?", ino)
    state.run("delete from inode where ino=?", ino)
    real = _Repair._mend

    def failing(self: _Repair, stages: Any, look: Look, mending: Mending) -> None:
        if mending.storage is not None:
            raise NoSpace
        real(self, stages, look, mending)

    with monkeypatch.context() as patch:
        patch.setattr(_Repair, "_mend", failing)
        with pytest.raises(NoSpace):
            state.examine(True)
    assert state.one("select value from meta where key='is_clean'") == 0
    assert state.examine(True).exit_code in (CLEAN, REPAIRED)
