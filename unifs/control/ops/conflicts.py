"""Conflicts: somebody else changed at the backend what was changed here."""

from typing import Annotated

from unifs.control.conflicts_protocol import Conflict, Resolved, Side
from unifs.control.daemon_protocol import Daemon
from unifs.control.registry import Emit, Param, operation


@operation("conflicts.list")
async def list_(
    daemon: Daemon,
    emit: Emit[Conflict],
    path: Annotated[
        str | None, Param("only at and below this path of the tree", place="tree", argument=True)
    ] = None,
) -> None:
    """List conflicts that nobody has resolved."""
    for conflict in await daemon.conflicts.list(path):
        await emit(conflict)


@operation("conflicts.resolve", mutates=True)
async def resolve(
    daemon: Daemon,
    path: Annotated[str, Param("either of the two files", place="tree")],
    keep: Annotated[
        Side,
        Param("ours: it takes the place; theirs: ours goes; both: they stay as they are"),
    ] = "both",
) -> Resolved:
    """Decide a conflict: keep our version, the backend's, or both under their names."""
    return await daemon.conflicts.resolve(path, keep)
