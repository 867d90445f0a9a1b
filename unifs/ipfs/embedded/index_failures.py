"""What failures of SQLite are called where the block index meets them; ``block_index`` uses it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from unifs.errors import Corrupt, DiskFailed, NoSpace, UnifsError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def mapped() -> Iterator[None]:
    """SQLite's failures under their names."""
    try:
        yield
    except apsw.Error as error:
        first = error.__context__
        # SQLite itself rolls back then, and what is raised in the end is that apsw could not.
        has_ended = isinstance(first, apsw.FullError | apsw.IOError)
        raise _named(first if has_ended else error) from error


def _named(error: BaseException | None) -> UnifsError:
    if isinstance(error, apsw.FullError):
        return NoSpace("no space for the block index")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return Corrupt("the block index is damaged; `unifs ctl repo verify` rebuilds it")
    if isinstance(error, apsw.IOError | apsw.CantOpenError | apsw.ReadOnlyError):
        return DiskFailed(f"the block index: {error}")
    return UnifsError(f"the block index: {error}")
