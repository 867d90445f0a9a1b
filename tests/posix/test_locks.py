"""flock, POSIX and open-file-description locks between processes of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.posix.conftest import Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid, told

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Row: what one process holds; column: what another one tries.
BETWEEN = grid(
    "locks",
    """
               flock read  flock write  posix read  posix write  ofd read  ofd write
flock read     -           EAGAIN       -           -            -         -
flock write    EAGAIN      EAGAIN       -           -            -         -
posix read     -           -            -           EAGAIN       -         EAGAIN
posix write    -           -            EAGAIN      EAGAIN       EAGAIN    EAGAIN
ofd read       -           -            -           EAGAIN       -         EAGAIN
ofd write      -           -            EAGAIN      EAGAIN       EAGAIN    EAGAIN
""",
)


@pytest.fixture(autouse=True)
def _nothing_stays_locked(place: Place) -> Iterator[None]:
    yield
    for caller in place.users.values():
        caller.do("unlock all")


@pytest.fixture
def file(place: Place) -> str:
    name = f"{place.directory()}/x"
    make(place.path / name, "file")
    return name


@pytest.mark.parametrize("held", BETWEEN.rows)
def test_between_processes(place: Place, file: str, held: str) -> None:
    found = {}
    for tried in BETWEEN.columns:
        place.users["owner"].do("lock", file, held)
        found[tried] = told(place.users["other"].ask("lock", file, tried)[0])
        place.users["other"].do("unlock all")
        place.users["owner"].do("unlock all")
        # Closing has given it back.
        place.users["other"].do("lock", file, tried)
        place.users["other"].do("unlock all")
    assert found == expected(place.name, "locks", held, BETWEEN.rows[held])


@pytest.mark.parametrize("how", ["posix", "ofd"])
def test_ranges(place: Place, file: str, how: str) -> None:
    one, two = place.users["owner"], place.users["other"]
    one.do("lock", file, f"{how} write", 10, 10)
    assert told(two.ask("lock", file, f"{how} write", 19, 1)[0]) == "EAGAIN"
    assert told(two.ask("lock", file, f"{how} write", 0, 11)[0]) == "EAGAIN"
    two.do("lock", file, f"{how} write", 0, 10)
    two.do("lock", file, f"{how} write", 20, 0)
    assert told(one.ask("lock", file, f"{how} read", 1 << 62, 1)[0]) == "EAGAIN"
    one.do("lock", file, f"{how} none", 12, 2)
    two.do("lock", file, f"{how} read", 12, 2)
    assert told(one.ask("lock", file, f"{how} write", 10, 10)[0]) == "EAGAIN"


@pytest.mark.parametrize("how", ["flock", "posix", "ofd"])
def test_a_lock_changes_its_kind(place: Place, file: str, how: str) -> None:
    one, two = place.users["owner"], place.users["other"]
    one.do("lock", file, f"{how} read")
    two.do("lock", file, f"{how} read")
    assert told(one.ask("lock", file, f"{how} write")[0]) == "EAGAIN"
    two.do("unlock all")
    one.do("lock", file, f"{how} write")
    one.do("lock", file, f"{how} none")
    two.do("lock", file, f"{how} write")


def test_who_holds_a_posix_lock(place: Place, file: str) -> None:
    one, two = place.users["owner"], place.users["other"]
    assert two.do("locked by", file)[0] == "none"
    one.do("lock", file, "posix read", 5, 5)
    assert two.do("locked by", file) == ("read", one.do("pid"))


def test_a_posix_lock_goes_with_any_close(place: Place, file: str) -> None:
    one, two = place.users["owner"], place.users["other"]
    one.do("lock", file, "posix write")
    one.do("read it", file, 1)
    two.do("lock", file, "posix write")


def test_a_flock_stays_when_another_descriptor_closes(place: Place, file: str) -> None:
    one, two = place.users["owner"], place.users["other"]
    one.do("lock", file, "flock write")
    one.do("read it", file, 1)
    assert told(two.ask("lock", file, "flock read")[0]) == "EAGAIN"


def test_locks_follow_the_file_and_not_its_name(place: Place, file: str) -> None:
    one, two = place.users["owner"], place.users["other"]
    one.do("lock", file, "posix write")
    one.do("link", file, f"{file}.second")
    assert told(two.ask("lock", f"{file}.second", "posix write")[0]) == "EAGAIN"
    one.do("rename", file, f"{file}.moved")
    assert told(two.ask("lock", f"{file}.moved", "posix write")[0]) == "EAGAIN"
