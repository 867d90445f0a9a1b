"""What an fsck tells: lines for a person, one object for a program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.offline import Outcome

#: Findings that a person is shown; a program gets all of them.
SHOWN_MAX = 200


def tell(outcome: Outcome, is_json: bool) -> Iterator[str]:
    """Lines without line ends; names in them come from users."""
    if is_json:
        yield json.dumps(as_object(outcome))
        return
    for finding in outcome.found[:SHOWN_MAX]:
        yield f"{finding.code:<18}  {finding.sentence}"
    if len(outcome.found) > SHOWN_MAX:
        yield f"… and {len(outcome.found) - SHOWN_MAX} more (--json shows all)"
    for sentence in outcome.kept:
        yield f"kept: {sentence}"
    if outcome.is_partial:
        yield "more may be found once these are mended"
    if outcome.receipt:
        yield f"receipt: lost+found/{outcome.receipt} in the state directory"
    if outcome.has_recovered:
        yield "what a crash left was recovered"
    elif outcome.needs_recovery:
        yield (
            "it was not stopped cleanly: the next mount, or --repair, recovers; what that decides"
            " was not looked at"
        )
    yield _summary(outcome)


def _summary(outcome: Outcome) -> str:
    if not outcome.found:
        return "clean"
    if not outcome.left:
        return f"{len(outcome.found)} found, all mended"
    if not outcome.receipt:
        return f"{len(outcome.found)} found; `unifs fsck --repair` mends what can be mended"
    return f"{len(outcome.found)} found, {len(outcome.left)} left"


def as_object(outcome: Outcome) -> dict[str, object]:
    """What ``--json`` says."""
    status = "clean" if not outcome.found else "left" if outcome.left else "repaired"
    return {
        "status": status,
        "found": [{"code": each.code, "message": each.sentence} for each in outcome.found],
        "left": [{"code": each.code, "message": each.sentence} for each in outcome.left],
        "kept": outcome.kept,
        "receipt": outcome.receipt or None,
        "needs_recovery": outcome.needs_recovery and not outcome.has_recovered,
        "is_partial": outcome.is_partial,
        "has_recovered": outcome.has_recovered,
    }
