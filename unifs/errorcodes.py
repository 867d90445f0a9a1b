"""Errors by their codes, for what was written down or sent and is an error again."""

from __future__ import annotations

from unifs import errors
from unifs.errors import UnifsError


def error_classes() -> dict[str, type[UnifsError]]:
    """Every error by its code; the base class of a code that several share."""
    found: dict[str, type[UnifsError]] = {}
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, UnifsError):
            found.setdefault(cls.code, cls)
    return found
