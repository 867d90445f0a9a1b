"""A repair that is killed anywhere leaves nothing worse: the next one comes to the same end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fsck.plants import PLANTS, Plant
from tests.fsck.repairdisk import Killed, killed_after_commit
from unifs.fsck.offline import CLEAN, REPAIRED

if TYPE_CHECKING:
    from tests.fsck.world import State


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("plant", PLANTS[::7], ids=lambda plant: plant.name)
def test_killed_after_a_transaction(state: State, plant: Plant, number: int) -> None:
    places = state.places(plant.moved)
    plant.plant(state)
    with killed_after_commit(number), pytest.raises(Killed):
        state.examine(True, plant.verify)
    # The next start counts anew what a repair has not come to count.
    assert state.one("select value from meta where key='is_clean'") == 0
    assert state.examine(True, plant.verify).exit_code in (CLEAN, REPAIRED)
    assert state.examine(verify=True).exit_code == CLEAN
    state.check_files(places, plant.lost)
