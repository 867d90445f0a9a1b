"""Online: fsck beside the daemon that has the state directory. It looks, and changes nothing.

Called in a thread by ``unifs.answers.checks``. It reads on a connection of its own, a bounded range
of keys in each read transaction, so what it finds may be two moments of one change. Therefore every
finding is asked for again, alone and in one read transaction: rows agree at every commit, so what
is still found is wrong. What memory knows better (reference counts, times and link counts of
directories, files that wait to be removed) is asked offline only.
"""

from __future__ import annotations

from contextlib import closing
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
    path: Path, is_thorough: bool, is_stopping: Callable[[], bool]
) -> Iterator[Finding]:
    """What is wrong with the state directory of a running daemon. Blocks; ends early where asked.

    A stage that finds something is the last: what comes after it expects rows that are sound.
    """
    with closing(Reader(path / "tree.db")) as reader, closing(Look(reader, path)) as look:
        look.is_thorough = is_thorough
        for stage in STAGES:
            count = 0
            for check in stage:
                if check.is_for_rest or check.is_long:
                    continue
                for finding in _suspects(check, look, is_stopping):
                    if _is_so(check, look, reader, finding):
                        yield finding
                        count += 1
                    if count >= FINDINGS_MAX or is_stopping():
                        return
            if count:
                return


def _suspects(check: Check, look: Look, is_stopping: Callable[[], bool]) -> list[Finding]:
    found: list[Finding] = []
    for finding in check.run(look):
        found.append(finding)
        if len(found) >= FINDINGS_MAX or is_stopping():
            break
    return found


def _is_so(check: Check, look: Look, reader: Reader, finding: Finding) -> bool:
    """Ask once more, of one moment."""
    reader.all("begin")
    try:
        # The moment is that of the first read.
        look.one("select 1 from meta limit 1")
        if check.needs_names:
            look.gather(finding.key)
        if check.table:
            again = check.find(look, finding.key - 1, finding.key)
        else:
            again = check.find(look, 0, 0)
        return any((each.code, each.key) == (finding.code, finding.key) for each in again)
    finally:
        reader.all("rollback")
