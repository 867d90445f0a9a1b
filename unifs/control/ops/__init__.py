"""The operations, one noun a file, and where each noun's file is.

Modules are imported when they are asked for: the command line needs one of them and its start is
measured in milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from unifs.control.registry import Registry

#: First word of an operation's name -> the module here that declares it.
MODULES: Final = {
    "version": "daemon",
    "status": "daemon",
    "explain": "daemon",
    "log": "daemon",
    "id": "content",
    "add": "content",
    "cat": "content",
    "get": "content",
    "ls": "content",
    "stat": "content",
    "files": "files",
    "mounts": "mounts",
    "journal": "journal",
    "sync": "journal",
    "pins": "pins",
    "block": "block",
    "dag": "dag",
    "repo": "repo",
    "backends": "backends",
    "refresh": "backends",
    "credentials": "credentials",
    "s3": "s3",
    "conflicts": "conflicts",
    "fsck": "checks",
    "verify": "checks",
    "history": "history",
    "diff": "history",
    "undelete": "history",
    "rollback": "history",
    "checkpoint": "history",
    "checkpoints": "history",
}


def operations() -> Registry:
    """Every operation there is."""
    registry = Registry()
    for name in dict.fromkeys(MODULES.values()):
        registry.collect(import_module(f"{__name__}.{name}"))
    return registry


def operations_of(word: str) -> Registry:
    """The operations of one module: that of the noun or verb ``word``; empty if there is none."""
    registry = Registry()
    name = MODULES.get(word)
    if name is not None:
        registry.collect(import_module(f"{__name__}.{name}"))
    return registry
