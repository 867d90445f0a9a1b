"""Several requests at the same time: what becomes of the others when one fails."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from unifs.errors import PermissionDenied, RateLimited, UnifsError, Unreachable
from unifs.mounts.s3.parallel import all_of


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def test_what_is_under_way_when_one_fails_is_not_cut_off(clock: MockClock) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def call(number: int) -> None:
        begun.append(number)
        await trio.sleep(number)
        if number == 1:
            raise RateLimited("slowly")
        ended.append(number)

    with pytest.raises(RateLimited):
        await all_of(3, [partial(call, number) for number in range(1, 9)])
    assert begun == [1, 2, 3]
    assert ended == [2, 3]


@pytest.mark.parametrize("first", [RateLimited("slowly"), PermissionDenied("no")])
async def test_an_error_that_leaves_something_open_is_told(
    clock: MockClock, first: UnifsError
) -> None:
    async def call(after_s: float, error: UnifsError) -> None:
        await trio.sleep(after_s)
        raise error

    with pytest.raises(Unreachable):
        await all_of(2, [partial(call, 1, first), partial(call, 2, Unreachable("cut off"))])


async def test_whoever_gives_up_waits_for_nothing(clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await all_of(2, [trio.sleep_forever, trio.sleep_forever])
    assert scope.cancelled_caught
