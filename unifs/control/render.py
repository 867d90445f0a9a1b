"""Answers for people: tables, key-value lines, sizes and times in words; JSON for programs.

The commands call it, and answers with a time in a sentence. It knows the shape of an answer from
its struct and adds nothing to it. On a terminal tables are drawn by rich; elsewhere columns are
aligned with spaces.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec

from unifs.control import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Rows that are aligned together; longer tables come in parts, so that memory stays bounded.
ROWS_MAX: Final = 1000
_WIDTH_MAX: Final = 10_000
_MOMENTS: Final = {
    "time_s",
    "mtime_s",
    "created_s",
    "added_s",
    "began_s",
    "expires_s",
    "next_try_s",
    "oldest_unsynced_s",
}
_HEADINGS: Final = {"mtime_s": "modified", "unsynced": "unsynced changes"}
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def json_line(table: dict[str, Any], out: TextIO) -> None:
    """One JSON object in one line, names encoded as on the wire."""
    encoded = wire.encode_request(table)
    out.write(msgspec.json.encode(encoded).decode() + "\n")


def field(name: str, tables: Iterable[dict[str, Any]], out: TextIO) -> None:
    """One field of each answer, a line each, as it is: for scripts that want a CID."""
    for table in tables:
        given = table.get(name)
        if given is None:
            continue
        text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
        out.write(printable(text) + "\n")


def size(size_bytes: float) -> str:
    """Bytes in words: 1.5 MiB."""
    amount = float(size_bytes)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def moment(time_s: float) -> str:
    """A time as arguments take it, whoever reads it wherever: 2026-11-21T18:02:08Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def duration(seconds: float) -> str:
    """Seconds in words: 350 ms, 12 s, 3 h 5 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def heading(field: str) -> str:
    """A field's name for people: without its unit, which its value shows."""
    if field in _HEADINGS:
        return _HEADINGS[field]
    for unit in ("_bytes", "_s"):
        if field.endswith(unit):
            field = field.removesuffix(unit)
    return field.removeprefix("is_").replace("_", " ")


def value(field: str, given: Any) -> str:
    """One value for people."""
    if given is None:
        return "-"
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, list):
        return ", ".join(value("", each) for each in given) or "-"
    if field.endswith("_bytes"):
        return size(given)
    if field in _MOMENTS:
        return moment(given)
    if field.endswith("_s"):
        return duration(given)
    if isinstance(given, float):
        return f"{given:.1f}"
    return printable(str(given))


def printable(text: str) -> str:
    """Text without what would move the cursor or is no character: shown as ``\\n``, ``\\xe9``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def fields(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of an answer in their order."""
    return struct.__struct_fields__


def answer(struct: type[msgspec.Struct], table: dict[str, Any], out: TextIO) -> None:
    """One answer: a line per field; lists of objects as tables below."""
    shown = [name for name in fields(struct) if name in table]
    simple = [name for name in shown if not _is_rows(table[name])]
    width = max((len(heading(name)) for name in simple), default=0)
    for name in simple:
        given = table[name]
        lines = [value("", each) for each in given] if isinstance(given, list) else None
        text = f"\n{' ' * (width + 2)}".join(lines or [value(name, given) or "-"])
        out.write(f"{heading(name):<{width}}  {text}\n")
    for name in shown:
        if _is_rows(table[name]):
            out.write("\n")
            rows(tuple(table[name][0]), table[name], out)


def _is_rows(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], dict)


def rows(names: Sequence[str], tables: Iterable[dict[str, Any]], out: TextIO) -> int:
    """A table with one row per event; returns how many there were."""
    count = 0
    part: list[list[str]] = []
    for each in tables:
        part.append([_cell(name, each) for name in names])
        count += 1
        if len(part) == ROWS_MAX:
            _part(names, part, out, is_first=count <= ROWS_MAX)
            part = []
    if part:
        _part(names, part, out, is_first=count <= ROWS_MAX)
    return count


def _cell(name: str, table: dict[str, Any]) -> str:
    """A value in a row; an empty one too has its place, by which people and awk count columns."""
    return value(name, table.get(name)) or "-"


def follow(names: Sequence[str], tables: Iterable[dict[str, Any]], out: TextIO) -> None:
    """A table whose rows are shown as they come."""
    widths = [len(heading(name)) for name in names]
    out.write(_aligned([heading(name).upper() for name in names], widths))
    for each in tables:
        cells = [_cell(name, each) for name in names]
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
        out.write(_aligned(cells, widths))
        out.flush()


def _part(names: Sequence[str], part: list[list[str]], out: TextIO, is_first: bool) -> None:
    if out.isatty():
        _drawn(names, part, out, is_first)
        return
    headings = [heading(name).upper() for name in names]
    widths = [max(map(len, column)) for column in zip(headings, *part, strict=True)]
    if is_first:
        out.write(_aligned(headings, widths))
    for cells in part:
        out.write(_aligned(cells, widths))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    text = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return text.rstrip() + "\n"


def _drawn(names: Sequence[str], part: list[list[str]], out: TextIO, is_first: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Columns keep their natural width and the terminal wraps: a CID or a name that is folded
    # inside its column cannot be copied.
    table = Table(box=None, show_header=is_first, header_style="bold", pad_edge=False)
    for name in names:
        is_number = name.endswith("_bytes") or name in ("size", "offset", "sequence", "blocks")
        table.add_column(
            heading(name).upper(),
            justify="right" if is_number else "left",
            no_wrap=True,
        )
    for cells in part:
        table.add_row(*(Text(cell) for cell in cells))
    Console(file=out, width=_WIDTH_MAX).print(table)
