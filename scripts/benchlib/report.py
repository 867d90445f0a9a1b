"""Renders what was measured: a table for people, markdown for docs, JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from benchlib.gates import SPECIAL_LIMITS, ratio_limit
from benchlib.rows import BYTE_ROWS

if TYPE_CHECKING:
    from benchlib.compare import Comparison, Outcome
    from benchlib.special import Special


def _amount(row: str, seconds: float) -> str:
    return f"{1e-9 / seconds:.2f} GB/s" if row in BYTE_ROWS else f"{seconds * 1e6:.1f} µs"


def _cpu(row: str, seconds: float) -> str:
    return f"{seconds * 1e9:.2f} s/GB" if row in BYTE_ROWS else f"{seconds * 1e6:.1f} µs"


def verdict(peer: str, outcome: Outcome, files: int) -> str:
    """Return ``ok``, ``FAIL`` or nothing where the row has no limit."""
    limit = ratio_limit(peer, outcome.row, files)
    if outcome.failure:
        return "FAIL"
    if limit is None:
        return ""
    return "ok" if outcome.ratio <= limit else "FAIL"


def _cells(peer: str, outcome: Outcome, files: int) -> list[str]:
    limit = ratio_limit(peer, outcome.row, files)
    if outcome.failure:
        return [outcome.row, "failed", "", "", "", "", "", "FAIL", outcome.failure]
    best = _amount(outcome.row, outcome.ours_best_s), _amount(outcome.row, outcome.theirs_best_s)
    return [
        outcome.row,
        f"{_amount(outcome.row, outcome.ours_s)} ({best[0].split()[0]})",
        f"{_amount(outcome.row, outcome.theirs_s)} ({best[1].split()[0]})",
        f"{outcome.ratio:.2f}",
        f"≤ {limit}" if limit is not None else "",
        _cpu(outcome.row, outcome.ours_cpu_s),
        _cpu(outcome.row, outcome.theirs_cpu_s),
        verdict(peer, outcome, files),
        outcome.about,
    ]


def _special_cells(special: Special) -> list[str]:
    limit, unit = SPECIAL_LIMITS[special.name]
    if special.failure:
        return [special.name, "failed", f"≤ {limit} {unit}", "FAIL", special.failure]
    word = "ok" if special.is_within else "FAIL"
    about = f"{special.about} ({special.detail})" if special.detail else special.about
    return [special.name, f"{special.value:.2f} {unit}", f"≤ {limit} {unit}", word, about]


def comparison_rows(comparison: Comparison, peer: str, files: int) -> list[list[str]]:
    """Return the table of one comparison, heading first."""
    heading = ["row", f"{comparison.ours} (best)", f"{comparison.peer} (best)", "ratio", "limit"]
    heading += [f"CPU {comparison.ours}", f"CPU {comparison.peer}", "", "what"]
    return [heading, *(_cells(peer, outcome, files) for outcome in comparison.outcomes)]


def special_rows(specials: list[Special]) -> list[list[str]]:
    """Return the table of the special rows, heading first."""
    return [
        ["row", "measured", "limit", "", "what"],
        *(_special_cells(special) for special in specials),
    ]


def plain(rows: list[list[str]]) -> str:
    """Return a table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def markdown(rows: list[list[str]]) -> str:
    """Return a table in markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def comparison_json(comparison: Comparison, peer: str, files: int) -> dict[str, object]:
    """Return one comparison as plain data."""
    return {
        "peer": peer,
        "files": files,
        "retaken": comparison.retaken,
        "rows": [
            {
                **asdict(outcome),
                "ratio": outcome.ratio,
                "limit": ratio_limit(peer, outcome.row, files),
                "verdict": verdict(peer, outcome, files),
            }
            for outcome in comparison.outcomes
        ],
    }


def special_json(specials: list[Special]) -> list[dict[str, object]]:
    """Return the special rows as plain data."""
    return [{**asdict(special), "is_within": special.is_within} for special in specials]
