"""Structure: what SQLite says of its own pages and indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.fsck.look import Check, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending


def structure(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """What SQLite says of its own pages and indexes (a second per 100 MiB)."""
    for (row,) in look.all("pragma integrity_check(20)"):
        if row != "ok":
            yield Finding("DATABASE", f"tree.db: {row}", mend=_reindex)


def _reindex(mending: Mending) -> None:
    mending.execute("reindex")


CHECKS = (Check(structure, is_long=True),)
