"""Online: fsck beside the daemon that has the state directory. It looks, and changes nothing.

Called in a thread by ``unifs.answers.checks``, on a connection of its own. A read transaction keeps
the write-ahead log from being used anew from its beginning, and a daemon that has filled it waits.
So no statement looks at more than ``look.KEYS`` rows, however large a table or a directory is, and
no transaction is longer than a statement or what is asked about one row.

What is found in this way may be two moments of one change, so it is not believed at once:

- Checks that are ``is_exact`` read what they compare in one statement, or in an order in which it
  can only be wrong.
- The names of an inode are counted over many pages. A change of its names changes its row (its
  times, its links), so the count holds if the row is the same after it as before it.
- Everything else is asked for again, row by row, each in one read transaction: rows agree at every
  commit, so what is still found is wrong.

What memory knows better (reference counts, times and link counts of directories, files that wait to
be removed) is asked offline only; so is what takes a statement over all of a table (``is_long``).
"""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from unifs.fsck.checks import STAGES
from unifs.fsck.look import Check, Finding, Look
from unifs.state.queries import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Findings that are asked for again; more than these are more than somebody reads.
FINDINGS_MAX = 1_000
#: How often names are counted again for inodes that change all the time; then they are let alone.
COUNTS_MAX = 4


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
    """What a check finds and what is wrong at one moment."""
    suspects = islice(check.run(look), FINDINGS_MAX)
    if check.is_exact:
        yield from suspects
    elif check.needs_names:
        yield from _counted_again(check, look, {finding.key for finding in suspects})
    else:
        yield from _asked_again(check, look, reader, [*suspects])


def _counted_again(check: Check, look: Look, keys: set[int]) -> Iterator[Finding]:
    """What is found at these keys where nothing has happened to the row meanwhile."""
    query = "select * from inode where ino=?"
    for _ in range(COUNTS_MAX):
        before = {key: look.one(query, (key,)) for key in keys}
        if not keys:
            return
        look.gather(keys)
        found = [each for key in sorted(keys) for each in check.find(look, key - 1, key)]
        changed = {key for key in keys if look.one(query, (key,)) != before[key]}
        yield from (each for each in found if each.key not in changed)
        keys = changed & {each.key for each in found}


def _asked_again(
    check: Check, look: Look, reader: Reader, suspects: list[Finding]
) -> Iterator[Finding]:
    """What is found once more; without a table it is asked once for all."""
    again: set[tuple[str, int]] = set()
    for number, finding in enumerate(suspects):
        if check.table or number == 0:
            again = _at_one_moment(check, look, reader, finding.key)
        if (finding.code, finding.key) in again:
            yield finding


def _at_one_moment(check: Check, look: Look, reader: Reader, key: int) -> set[tuple[str, int]]:
    """Code and key of what is found at a key, or anywhere, in one read transaction."""
    look.check_cancelled()
    reader.all("begin")
    look.is_silent = True
    try:
        # The moment is that of the first read.
        look.one("select 1 from meta limit 1")
        found = check.find(look, key - 1, key) if check.table else check.find(look, 0, 0)
        return {(each.code, each.key) for each in found}
    finally:
        look.is_silent = False
        reader.all("rollback")
