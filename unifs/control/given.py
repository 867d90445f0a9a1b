"""Paths that are given on a command line.

The command line's modules use it. Nothing here looks at a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import os


class GivenPath(click.Path):
    """A path, but not an empty one: ``"$UNSET"`` would mean the directory that the user is in."""

    def __init__(self, path_type: type = Path, allow_dash: bool = False) -> None:
        # Whoever opens it says why that is refused, with the exit code of a refusal.
        super().__init__(path_type=path_type, allow_dash=allow_dash, readable=False)

    def convert(self, value: Any, param: Any, ctx: Any) -> str | bytes | os.PathLike[str]:
        """The path; UsageError where it is empty."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)
