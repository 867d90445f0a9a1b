"""Durable: a small file of the state directory that is there, whole, when the call returns.

Used by whoever tells something in ``lost+found`` that must outlive what it tells of.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def receipt_text(table: Mapping[str, Any]) -> str:
    """A receipt as it stands in its file: JSON in ASCII, as names need not be UTF-8."""
    return json.dumps(table, indent=1, ensure_ascii=True) + "\n"


def write_durably(path: Path, data: bytes) -> None:
    """The file and its name; with the name, those of all files made in that directory before.

    A file that is there is whole at every moment, as it was or as it is to be.
    """
    part = path.with_name(f".{path.name}")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
