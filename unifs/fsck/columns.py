"""Columns: which values each may hold, and what takes the place of others.

Asked before everything else: every other check takes rows as they are when this has passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from unifs.fsck.look import Check, Finding
from unifs.vfs.volume import INO_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

#: What stands for "remove the row", and for "give the object another number".
REMOVED, RENUMBERED = object(), object()
WHOLE, BLOB, TEXT = ("integer",), ("blob",), ("text",)
NULL = ("null",)
#: No state directory comes this far; from the one behind it the next number would overflow.
NUMBERS_MAX, EPOCHS_MAX = 1 << 62, 1 << 40
#: Of ``inode``, what has checks of its own (``shapes``).
_UNLISTED = (("attributes", BLOB, None), ("content", BLOB, None))


@dataclass(frozen=True, slots=True)
class Column:
    """What a column may hold (SQLite's types), and what takes the place of anything else."""

    table: str
    key: str
    name: str
    types: tuple[str, ...]
    instead: Any

    def range(self) -> tuple[int, int]:
        """The whole numbers that it may hold, both included."""
        if self.name in ("ino", "parent"):
            return 2 * int(self.table == "inode" and self.name == "ino"), (1 << INO_SHIFT) - 1
        if self.name in ("epoch", "until", "gone"):
            return 0, EPOCHS_MAX
        if self.name.endswith("_ns") or self.name == "size":
            return -(1 << 63), (1 << 63) - 1
        return 0, NUMBERS_MAX

    def is_wrong(self) -> str:
        """The SQL that is true for a value that cannot be here."""
        types = ",".join(f"'{each}'" for each in self.types)
        low, high = self.range()
        is_out = f"{self.name} not between {low} and {high}"
        if low == -(1 << 63):
            return f"typeof({self.name}) not in ({types})"
        return f"typeof({self.name}) not in ({types}) or typeof({self.name})='integer' and {is_out}"


def _columns(
    table: str, key: str, *columns: tuple[str, tuple[str, ...], Any]
) -> tuple[Column, ...]:
    return tuple(Column(table, key, *column) for column in columns)


COLUMNS = (
    *_columns(
        "inode",
        "ino",
        ("ino", WHOLE, RENUMBERED),
        ("mount", WHOLE, 0),
        ("parent", WHOLE, 0),
        ("epoch", WHOLE, 1),
        ("gone", WHOLE + NULL, None),
        ("cid", BLOB + NULL, None),
    ),
    *_columns(
        "dentry",
        "parent,id",
        ("parent", WHOLE, REMOVED),
        ("id", WHOLE, REMOVED),
        ("name", BLOB, REMOVED),
        ("ino", WHOLE, REMOVED),
        ("epoch", WHOLE, 1),
    ),
    *_columns(
        "link",
        "ino,parent,name",
        ("ino", WHOLE, REMOVED),
        ("parent", WHOLE, REMOVED),
        ("name", BLOB, REMOVED),
    ),
    *_columns(
        "xattr",
        "ino,name",
        ("ino", WHOLE, REMOVED),
        ("name", BLOB, REMOVED),
        ("value", BLOB, b""),
        ("epoch", WHOLE, 0),
    ),
    *_columns(
        "remote",
        "ino",
        ("mount", WHOLE, 0),
        ("path", BLOB + NULL, None),
        ("version", TEXT + NULL, ""),
        ("checked_ns", WHOLE, 0),
        ("listing", WHOLE, 0),
        ("cursor", TEXT + NULL, None),
        ("listed_ns", WHOLE, 0),
        ("synced", BLOB + NULL, None),
        ("told", BLOB + NULL, None),
        ("local", WHOLE, 1),
        ("attempt", TEXT + NULL, None),
        ("content", BLOB + NULL, None),
    ),
    *_columns(
        "content",
        "id",
        ("id", WHOLE, REMOVED),
        ("refs", WHOLE, 1),
        ("state", WHOLE, 1),
        ("boot", BLOB + NULL, None),
        ("size", WHOLE, 0),
        # None that can be read: ``laying`` looks for the bytes in the files.
        ("extents", BLOB, b"?"),
        ("proof", BLOB + NULL, None),
        ("durable_size", WHOLE + NULL, None),
        ("durable_extents", BLOB + NULL, None),
        ("cid", BLOB + NULL, None),
        ("leaves", BLOB + NULL, None),
    ),
    *_columns(
        "holding", "content,container", ("content", WHOLE, REMOVED), ("container", WHOLE, REMOVED)
    ),
    *_columns(
        "redo",
        "id",
        ("id", WHOLE, REMOVED),
        ("container", WHOLE, REMOVED),
        ("offset", WHOLE, REMOVED),
        ("bytes", BLOB, REMOVED),
    ),
    *_columns(
        "journal",
        "seq",
        ("seq", WHOLE, REMOVED),
        ("time_ns", WHOLE, 0),
        ("op", WHOLE, 0),
        ("ino", WHOLE, 0),
        ("parent", WHOLE, 0),
        ("data", BLOB, b""),
        ("state", WHOLE + NULL, 0),
    ),
    *_columns(
        "inode_past",
        "ino,until",
        ("ino", WHOLE, REMOVED),
        ("until", WHOLE, REMOVED),
        ("epoch", WHOLE, REMOVED),
        ("attributes", BLOB, REMOVED),
        ("content", BLOB, REMOVED),
    ),
    *_columns(
        "dentry_past",
        "parent,id,until",
        ("parent", WHOLE, REMOVED),
        ("until", WHOLE, REMOVED),
        ("id", WHOLE, REMOVED),
        ("name", BLOB, REMOVED),
        ("ino", WHOLE, REMOVED),
        ("epoch", WHOLE, REMOVED),
    ),
    *_columns(
        "xattr_past",
        "ino,until,name",
        ("ino", WHOLE, REMOVED),
        ("until", WHOLE, REMOVED),
        ("epoch", WHOLE, REMOVED),
        ("name", BLOB, REMOVED),
        ("value", BLOB, REMOVED),
    ),
    *_columns("checkpoint", "name", ("epoch", WHOLE, REMOVED), ("time_ns", WHOLE, 0)),
    *_columns("thinned", "epoch", ("epoch", WHOLE, REMOVED), ("is_swept", WHOLE, 0)),
    *_columns("untracked", "ino", ("ino", WHOLE, REMOVED), ("until", WHOLE + NULL, None)),
    *_columns(
        "epoch",
        "epoch",
        ("epoch", WHOLE, REMOVED),
        ("seq", WHOLE, 0),
        ("time_ns", WHOLE, 0),
        ("root", BLOB + NULL, None),
    ),
)

#: Texts of small tables, which are looked at whole: what cannot be read may be a key.
TEXTS = (
    ("meta", "key"),
    ("meta", "value"),
    ("mount", "name"),
    ("mount", "kind"),
    ("checkpoint", "name"),
)


def texts(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Texts with bytes that are no text: whoever reads such a row fails."""
    for table, name in TEXTS:
        query = f"select cast({name} as blob) from {table} where {_is_odd(name)}"
        for raw in sorted({row[0] for row in look.all(query)}):
            # Facts say themselves what takes the place of a blob.
            yield from _no_text(table, name, raw, (table, name) != ("meta", "value"))
    by_table: dict[tuple[str, str], list[Column]] = {}
    for column in (*COLUMNS, *_columns("inode", "ino", *_UNLISTED)):
        # Keys have to be read to find a row; those of most tables are numbers.
        if column.name not in column.key.split(","):
            by_table.setdefault((column.table, column.key), []).append(column)
    for (table, key), known in by_table.items():
        odd = " or ".join(_is_odd(column.name) for column in known)
        values = (
            f"case when {_is_odd(each.name)} then cast({each.name} as blob) end" for each in known
        )
        query = f"select {','.join(values)} from {table} where ({odd}) and {{page}}"
        for row in chain.from_iterable(look.pages(query, table, key)):
            for column, raw in zip(known, row, strict=True):
                if raw is not None:
                    yield from _no_text(table, column.name, raw, "text" in column.types)


def _is_odd(name: str) -> str:
    """The SQL that is true for a text that may be none."""
    odd = f"({name} glob '*[^ -~]*' or instr(cast({name} as blob),x'00'))"
    return f"(typeof({name})='text' and {odd})"


def _no_text(table: str, name: str, raw: bytes, is_text: bool) -> Iterator[Finding]:
    if not is_text_of(raw):
        sentence = f"{name} of a row of {table} is no text: {raw[:300]!r}"
        yield Finding("ROW_TEXT", sentence, mend=partial(_set_text, table, name, raw, is_text))


def is_text_of(raw: bytes) -> bool:
    """Whether these bytes are a text."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _set_text(table: str, name: str, raw: bytes, is_text: bool, mending: Mending) -> None:
    """A text with marks where bytes were none, or these bytes where none should be a text."""
    value = raw.decode(errors="replace") if is_text else raw
    new = value.encode() if isinstance(value, str) else value
    where = f"cast({name} as blob)=x'{new.hex()}'"
    mending.rows.append(f"update {table} set {name}=cast(x'{raw.hex()}' as text) where {where};")
    statement = f"update or replace {table} set {name}=? where cast({name} as blob)=?"
    mending.execute(statement, (value, raw))


def columns(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Values that nobody writes there: of another type, or numbers out of all reason."""
    by_table: dict[tuple[str, str], list[Column]] = {}
    for column in COLUMNS:
        by_table.setdefault((column.table, column.key), []).append(column)
    for (table, key), known in by_table.items():
        wrong = " or ".join(f"({column.is_wrong()})" for column in known)
        marks = ",".join(column.is_wrong() for column in known)
        count = len(key.split(","))
        query = f"select {key},{marks} from {table} where ({wrong}) and {{page}}"
        for row in chain.from_iterable(look.pages(query, table, key)):
            for column, is_wrong in zip(known, row[count:], strict=True):
                if is_wrong:
                    yield _wrong(look, column, row[:count])


def _wrong(look: Look, column: Column, key: tuple[Any, ...]) -> Finding:
    where = " and ".join(f"{name} is ?" for name in column.key.split(","))
    query = f"select typeof({column.name}),{column.name} from {column.table} where {where}"
    found = look.one(query, key)
    kind, value = found if found is not None else ("gone", None)
    shown = "/".join(repr(part) for part in key)
    what = str(value) if kind == "integer" else kind
    sentence = f"{column.name} of row {shown} of {column.table} is {what}"
    return Finding("ROW_TYPE", sentence, mend=partial(_set_column, column, key))


def _set_column(column: Column, key: tuple[Any, ...], mending: Mending) -> None:
    where = " and ".join(f"{name} is ?" for name in column.key.split(","))
    if column.instead is REMOVED:
        mending.delete(column.table, where, *key)
    elif column.instead is RENUMBERED:
        mending.update(column.table, f"{column.name}=?", where, mending.new_ino(), *key)
    else:
        mending.update(column.table, f"{column.name}=?", where, column.instead, *key)


TEXT_CHECKS = (Check(texts, is_exact=True),)
CHECKS = (Check(columns, is_exact=True),)
