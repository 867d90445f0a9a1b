"""Cancel a call at its n-th suspension, and count how many it has."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator


@types.coroutine
def _driven(
    call: Coroutine[Any, Any, Any], at: int, scope: trio.CancelScope
) -> Generator[Any, Any, bool]:
    """Run ``call``; when it suspends for the ``at``-th time, its scope is cancelled already."""
    suspensions = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            message = call.send(value) if error is None else call.throw(error)
        except StopIteration:
            return suspensions >= at
        suspensions += 1
        if suspensions == at:
            scope.cancel()
        value, error = None, None
        try:
            value = yield message
        except BaseException as raised:
            error = raised


async def is_reached(call: Coroutine[Any, Any, Any], at: int) -> bool:
    """Run a call and cancel it at its ``at``-th suspension (from 1); False if it has fewer.

    A call that waits for a thread may end well although it was cancelled.
    """
    with trio.CancelScope() as scope:
        return await _driven(call, at, scope)
    assert scope.cancelled_caught
    return True
