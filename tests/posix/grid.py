"""Tables of expectations as text, and how a mismatch is told.

The first line of a table names the columns of cells; each further one begins with its call.
Columns are separated by two or more spaces. A cell is the errno, or ``-`` for success.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Expectations by row and column."""

    name: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]


def grid(name: str, text: str) -> Grid:
    """Parse a table; every row has a cell for every column."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.strip().splitlines()]
    columns = tuple(lines[0])
    rows: dict[str, dict[str, str]] = {}
    for row, *cells in lines[1:]:
        assert len(cells) == len(columns), f"{name}: {row} has {len(cells)} cells"
        assert row not in rows, f"{name}: {row} stands there twice"
        rows[row] = dict(zip(columns, cells, strict=True))
    return Grid(name, columns, rows)


def told(number: int) -> str:
    """An errno as a cell."""
    name = errno.errorcode[number] if number else "-"
    # One number, two names: the man pages of the calls here say EOPNOTSUPP.
    return "EOPNOTSUPP" if name == "ENOTSUP" else name
