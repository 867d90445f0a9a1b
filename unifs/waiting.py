"""Synchronous first, waiting only where there is something to wait for.

The vfs's operations are plain functions. One that cannot answer from memory, the database or the
page cache raises ``WouldBlock``, *before it has changed anything*, and hands over the one thing
that has to happen first. ``complete`` waits for that and calls the function again (or takes the
answer that the waiting brought along; so does an fsync that has committed and lacks its flush
round). So there is one implementation of each operation, the hot
path contains no await, no lock and no cancel scope, and a mutation has no checkpoint between its
commit and its reply.

The deadline is the caller's cancel scope around ``complete``. Cancelling it is safe at any point:
whoever waits may go away, the work that several wait for (a single-flight read, a flush round)
goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Retry:
    """The type of ``RETRY``: what is waited for has happened, call the operation again."""


RETRY: Final = Retry()


class WouldBlock(Exception):
    """The answer has to be waited for. Not an error, and never seen by a user.

    ``wait`` is called once by whoever is ready to wait; its result is the operation's answer, or
    ``RETRY``. ``mount`` names the mount whose backend or disk is waited for, so that the driver can
    bound how many requests wait for each.
    """

    __slots__ = ("mount", "wait")

    def __init__(self, wait: Callable[[], Awaitable[object]], mount: str = "") -> None:
        super().__init__()
        self.wait = wait
        self.mount = mount


async def complete(operation: Callable[..., T], *args: Any) -> T:
    """Call ``operation`` until it answers, waiting for what it asks for in between."""
    while True:
        try:
            return operation(*args)
        except WouldBlock as block:
            blocked = block
        answer = await blocked.wait()
        if answer is not RETRY:
            return answer  # type: ignore[return-value]
