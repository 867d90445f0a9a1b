"""Rounds that may go wrong one by one: what the campaigns share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def violations(rounds: int, first: int, play: Callable[[int], None]) -> list[str]:
    """``play`` with each of ``rounds`` seeds from ``first`` on; what went wrong, a line each."""
    wrong = []
    for seed in range(first, first + rounds):
        try:
            play(seed)
        except Exception as error:  # told, and the next seed tried
            wrong.append(f"seed {seed}: {innermost(error)!r}"[:600])
    return wrong


def innermost(error: BaseException) -> BaseException:
    """The first of those that nurseries have wrapped up."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
