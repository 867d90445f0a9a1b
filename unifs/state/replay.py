"""Replay: what a killed daemon had noted is executed, as far as the rows allow it.

Each note was executed before it was written, so all of it succeeds on the rows that it was made
for. Where something has damaged or changed them since, SQLite may refuse a statement: a number or a
name is taken, a table is not there. That must neither keep the tree from being mounted nor go
unheard: every other statement is executed, so that an inode keeps its bytes though its name is
refused, and what was refused is told in a receipt in lost+found that has the whole note as SQL. The
receipt is durable before anything is committed. Bytes that no row names then, recovery keeps
(``journal.recovery``); what half a change leaves, fsck finds and mends.

``Held`` calls it at each start, fsck in a transaction that it takes back. It never commits.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import apsw

from unifs.errors import from_os_error
from unifs.state.durable import receipt_text, write_durably
from unifs.state.queries import literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from unifs.state.ahead import Batch

#: What says that a statement does not fit the rows, and nothing of the disk.
REFUSALS: Final = (
    apsw.ConstraintError,
    apsw.SQLError,
    apsw.MismatchError,
    apsw.TooBigError,
    apsw.BindingsError,
    TypeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A noted change that could not be made as a whole."""

    sentence: str
    #: The whole note.
    batch: Batch


def replay(execute: Callable[..., object], batches: Sequence[Batch]) -> list[Refused]:
    """Execute the batches inside the caller's transaction; what could not be."""
    found: list[Refused] = []
    for number, batch in enumerate(batches, 1):
        reasons = []
        for sql, bindings in batch:
            try:
                execute(sql, bindings)
            except REFUSALS as error:
                reasons.append(f"{_spelled(sql, bindings)}: {error}")
        if reasons:
            sentence = (
                f"{_subject(batch)}: a change that was acknowledged (number {number} of"
                f" {len(batches)}) could not be made as a whole: {'; '.join(reasons)}"
            )
            found.append(Refused(sentence, batch))
    return found


def write_receipt(lost_found: Path, refused: Sequence[Refused]) -> str:
    """Name what was refused; the file's name, which is durable. NoSpace, DiskFailed."""
    now = time.time_ns()
    table = {
        "kind": "notes",
        "time_ns": now,
        "sentences": [one.sentence for one in refused],
        "notes": [[f"{_spelled(*each)};" for each in one.batch] for one in refused],
    }
    path = lost_found / f"receipt-{now}.json"
    try:
        lost_found.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, receipt_text(table).encode("ascii"))
    except OSError as error:
        raise from_os_error(error) from error
    return path.name


def _subject(batch: Batch) -> str:
    """The inodes and names that a change is about, as its own statements tell."""
    inodes: set[int] = set()
    names: list[str] = []
    for sql, bindings in batch:
        words = sql.split(maxsplit=3)
        if words[:3] == ["insert", "into", "journal"]:
            inodes.add(bindings[3])
        if "dentry" in words[:3]:
            names += [repr(os.fsdecode(each)) for each in bindings if isinstance(each, bytes)]
    named = f" ({', '.join(dict.fromkeys(names))})" if names else ""
    return f"inode {', '.join(map(str, sorted(inodes))) or 'of no record'}{named}"


def _spelled(sql: str, bindings: tuple[Any, ...]) -> str:
    """The statement with its values in it."""
    head, *rest = sql.split("?")
    if len(rest) != len(bindings):
        return f"{sql} with {bindings!r}"
    values = map(literal, bindings)
    return head + "".join(value + part for value, part in zip(values, rest, strict=True))
