"""Online: fsck beside the daemon that has the state directory. It looks, and changes nothing.

Called in a thread by ``unifs.answers.checks``. It reads on a connection of its own, a bounded range
of keys in each read transaction, so what it finds may be two moments of one change. Therefore every
finding is asked for again, in one read transaction: rows agree at every commit, so what is still
found is wrong. What memory knows better (reference counts, times and link counts of
directories, files that wait to be removed) is asked offline only.
"""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from unifs.fsck.checks import STAGES
from unifs.fsck.look import Check, Finding, Look
from unifs.state.database import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Findings that are asked for again; more than these are more than somebody reads.
FINDINGS_MAX = 1_000


def examine_beside(
    path: Path, is_thorough: bool, check_cancelled: Callable[[], None]
) -> Iterator[Finding]:
    """What is wrong with the state directory of a running daemon. Blocks; ends where
    ``check_cancelled`` raises.

    A stage that finds something is the last: what comes after it expects rows that are sound.
    """
    with (
        closing(Reader(path / "tree.db")) as reader,
        closing(Look(reader, path, check_cancelled)) as look,
    ):
        look.is_thorough = is_thorough
        for stage in STAGES:
            count = 0
            for check in stage:
                if check.is_for_rest or check.is_long:
                    continue
                for finding in _confirmed(check, look, reader):
                    yield finding
                    count += 1
                    if count >= FINDINGS_MAX:
                        return
            if count:
                return


def _confirmed(check: Check, look: Look, reader: Reader) -> Iterator[Finding]:
    """What a check finds, and finds once more; without a table it is asked once for all."""
    suspects = [*islice(check.run(look), FINDINGS_MAX)]
    again: set[tuple[str, int]] = set()
    for number, finding in enumerate(suspects):
        if check.table or number == 0:
            again = _ask_again(check, look, reader, finding.key)
        if (finding.code, finding.key) in again:
            yield finding


def _ask_again(check: Check, look: Look, reader: Reader, key: int) -> set[tuple[str, int]]:
    """Code and key of what is found at a key, or anywhere, at one moment."""
    look.check_cancelled()
    reader.all("begin")
    try:
        # The moment is that of the first read.
        look.one("select 1 from meta limit 1")
        if check.needs_names:
            look.gather(key)
        found = check.find(look, key - 1, key) if check.table else check.find(look, 0, 0)
        return {(each.code, each.key) for each in found}
    finally:
        reader.all("rollback")
