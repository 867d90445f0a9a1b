"""Several requests of one call at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from unifs.errors import UnifsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


async def all_of(limit: int, calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run calls, at most ``limit`` at a time; the first error ends the others and is raised."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(min(limit, len(calls))):
                nursery.start_soon(work)
    except* UnifsError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        failed = error
    else:
        return
    raise failed
