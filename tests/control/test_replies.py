"""Lines of an answer: each one arrives, whatever is being sent when the last one is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from msgspec import Struct

from unifs.control.replies import BUFFER_S, send_events
from unifs.errors import NotFound

if TYPE_CHECKING:
    from unifs.control.connection import Exchange


class Line(Struct):
    """What an operation tells."""

    number: int


class Slow:
    """An exchange whose caller takes its time: what is cancelled on the way is not sent."""

    def __init__(self) -> None:
        self.answering = ""
        self.sent = b""
        self.is_sending = trio.Event()

    async def start(self, status: int, content_type: str) -> None:
        """The head of the answer."""
        assert status == 200
        self.answering = content_type
        self.is_sending.set()
        await trio.sleep(1)
        self.sent += b"head\n"

    async def write(self, data: bytes) -> None:
        """A part of the body."""
        await trio.sleep(1)
        self.sent += data

    async def finish(self) -> None:
        """The end of the body."""
        self.sent += b"end"


async def told(slow: Slow, call: Any) -> None:
    """Send what ``call`` emits."""
    await send_events(cast("Exchange", slow), call)


async def test_lines_that_are_on_their_way_when_the_last_is_made_arrive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = Slow()

    async def call(emit: Any) -> None:
        await emit(Line(1))
        await slow.is_sending.wait()
        await emit(Line(2))

    await told(slow, call)
    head, *lines, end = slow.sent.split(b"\n")
    assert (head, end) == (b"head", b"end")
    assert [json.loads(line) for line in lines] == [
        {"number": 1},
        {"number": 2},
        {"status": "success"},
    ]


async def test_lines_before_a_failure_arrive(autojump_clock: trio.testing.MockClock) -> None:
    slow = Slow()

    async def call(emit: Any) -> None:
        await emit(Line(1))
        await slow.is_sending.wait()
        raise NotFound("there is no second one")

    with pytest.RaisesGroup(NotFound):
        await told(slow, call)
    assert slow.sent == b'head\n{"number":1}\n'


async def test_a_caller_that_leaves_ends_it_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = Slow()

    async def call(emit: Any) -> None:
        await emit(Line(1))
        await trio.sleep_forever()

    with trio.move_on_after(2 * BUFFER_S) as scope:
        await told(slow, call)
    assert scope.cancelled_caught
    assert trio.current_time() < 1, "it does not wait for what is being sent"
    assert slow.sent == b""
