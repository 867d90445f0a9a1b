"""A repair that is killed anywhere leaves nothing worse: the next one comes to the same end."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.fsck.plants import PLANTS, Plant
from unifs.fsck.offline import CLEAN, REPAIRED
from unifs.state.database import Database

if TYPE_CHECKING:
    from tests.fsck.world import State


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("plant", PLANTS[::7], ids=lambda plant: plant.name)
def test_killed_after_a_transaction(state: State, plant: Plant, number: int) -> None:
    places = state.places(plant.moved)
    plant.plant(state)
    commit, commits = Database.commit, 0

    def killed(self: Database) -> None:
        nonlocal commits
        commits += 1
        commit(self)
        if commits == number:
            raise Killed

    with mock.patch.object(Database, "commit", killed), pytest.raises(Killed):
        state.examine(True, plant.verify)
    # The next start counts anew what a repair has not come to count.
    assert state.one("select value from meta where key='is_clean'") == 0
    assert state.examine(True, plant.verify).exit_code in (CLEAN, REPAIRED)
    assert state.examine(verify=True).exit_code == CLEAN
    state.check_files(places, plant.lost)
