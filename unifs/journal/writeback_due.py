"""What writeback keeps of each inode that is due, its limits, and the journal's side of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from unifs.errors import UnifsError
    from unifs.journal.writeback_order import Step

BACKOFF_S = 1.0
BACKOFF_MAX_S = 300.0
#: Of what a daemon gave up that kept no reason: it stands in its log only.
GIVEN_UP = "it was given up before the last start; `unifs ctl journal retry` tries it and says why"


@dataclass(frozen=True, slots=True)
class WritebackLimits:
    """When and how much at once."""

    delay_s: float = 2.0
    age_max_s: float = 30.0
    parallel_max: int = 8
    #: So long after its end a call without an answer may still arrive: twice the 30 s after which
    #: services close connections that are silent.
    late_s: float = 60.0


@dataclass(slots=True, eq=False)
class Due:
    """An inode whose object at the backend is not what it is in the tree."""

    ino: int
    seq: int
    first_at: float
    changed_at: float
    attempts: int = 0
    #: Steps in a row that ended without a confirmation and without a failure.
    turns: int = 0
    retry_at: float = 0.0
    error: UnifsError | None = None
    is_urgent: bool = False
    is_quarantined: bool = False
    #: The step that is on its way.
    step: Step | None = None
    #: Others that wait for this one's object to move.
    waiters: set[int] = field(default_factory=set)

    def pause_s(self, error: UnifsError, chance: random.Random) -> float:
        """How long to wait before the next attempt; never less than the backend asks for.

        ``retry_after_s`` is the least, ``within_s`` the most that the error says.
        """
        pause = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(self.attempts, 16))
        pause *= chance.uniform(0.5, 1.0)
        most, asked = error.context.get("within_s"), error.context.get("retry_after_s")
        if isinstance(most, int | float):
            pause = min(pause, float(most))
        return max(pause, float(asked)) if isinstance(asked, int | float) else pause


class Journal:
    """The rows of ``journal`` that wait; implemented by the tree's side."""

    def waiting(self) -> Iterable[tuple[int, int, int]]:
        """(inode, its newest waiting record, state) for each inode of this mount."""
        raise NotImplementedError

    def settle(self, ino: int, seq: int) -> None:
        """The backend has confirmed everything up to ``seq``."""
        raise NotImplementedError

    def set_quarantined(self, ino: int, refusal: UnifsError | None) -> None:
        """It is given up because of that; None: it is tried again. Raises nothing: the next start
        knows it where that can be written down."""
        raise NotImplementedError

    def refusal(self, ino: int) -> UnifsError:
        """Why an earlier daemon gave it up; where it has not said so, ``GIVEN_UP``."""
        raise NotImplementedError

    def renew(self, ino: int) -> None:
        """A waiting record for an inode that has none."""
        raise NotImplementedError

    def is_open(self, ino: int) -> bool:
        """Whether somebody may still write to it."""
        raise NotImplementedError
