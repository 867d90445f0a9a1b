"""Several requests of one call at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from unifs.errors import RateLimited, UnifsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


async def all_of(limit: int, calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run calls, at most ``limit`` at a time; after an error no more are begun, and it is raised.

    Those under way are waited for: a request that is cut off may arrive when nobody thinks of it
    any more. Of several errors one is raised that leaves open what became of its request.
    """
    waiting = iter(calls)
    errors: list[UnifsError] = []

    async def work() -> None:
        for call in waiting:
            if errors:
                return
            try:
                await call()
            except UnifsError as error:
                errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(min(limit, len(calls))):
            nursery.start_soon(work)
    if errors:
        raise next(filter(_is_open, errors), errors[0])


def _is_open(error: UnifsError) -> bool:
    """Whether what was asked for may happen still."""
    return error.is_transient and not isinstance(error, RateLimited)
