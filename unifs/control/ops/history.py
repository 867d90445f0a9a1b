"""The past of /mfs: look at it, compare it, bring it back."""

from typing import Annotated

from unifs.control.daemon_protocol import Daemon
from unifs.control.history_protocol import CheckpointInfo, Difference, PathVersion, Restored
from unifs.control.registry import Emit, Param, operation
from unifs.errors import InvalidArgument

TreePath = Annotated[str, Param("a path of the tree, like /mfs/a", place="tree")]
EPOCH = (
    "an epoch's number, a checkpoint's name, a time as tables show it (UTC) like"
    " 2026-11-21T18:02:08Z, or now"
)


@operation("history")
async def history(daemon: Daemon, path: TreePath, emit: Emit[PathVersion]) -> None:
    """List what a path was in the epochs that are kept, the oldest first."""
    async for version in daemon.history.versions(path):
        await emit(version)


@operation("diff")
async def diff(
    daemon: Daemon,
    first: Annotated[str, Param(EPOCH)],
    second: Annotated[str, Param("the same")],
    emit: Emit[Difference],
    path: Annotated[
        str, Param("only at and below this path of the tree", place="tree", argument=True)
    ] = "/mfs",
) -> None:
    """List what differs between two epochs.

    Of a directory that came or went, only the directory.
    """
    async for difference in daemon.history.diff(first, second, path):
        await emit(difference)


@operation("undelete", mutates=True)
async def undelete(
    daemon: Daemon,
    path: TreePath,
    epoch: Annotated[str | None, Param(f"as it was in: {EPOCH}")] = None,
    to: Annotated[
        str | None, Param("bring it back under this name, or as this path of the tree")
    ] = None,
) -> Restored:
    """Bring a removed file or directory back, as it was when it was there last.

    Nothing is copied, whatever its size. What is there under the name now is not touched: the
    operation fails.
    """
    return await daemon.history.undelete(path, epoch, to)


@operation("rollback", mutates=True)
async def rollback(
    daemon: Daemon, path: TreePath, to: Annotated[str | None, Param(f"the epoch: {EPOCH}")] = None
) -> Restored:
    """Make a path, and all below it, what it was: bytes, modes, owners, times, links, attributes.

    What is there now is in the epoch that the answer calls `before`: a rollback to that one undoes
    this.
    """
    if to is None:
        raise InvalidArgument("say which epoch to go back to: --to EPOCH")
    return await daemon.history.rollback(path, to)


@operation("checkpoint", mutates=True)
async def checkpoint(
    daemon: Daemon, name: Annotated[str, Param("letters, digits and . _ + -")]
) -> CheckpointInfo:
    """Name the present: it is kept until the name is removed."""
    return await daemon.history.checkpoint(name)


@operation("checkpoints.list")
async def checkpoints(daemon: Daemon, emit: Emit[CheckpointInfo]) -> None:
    """List checkpoints, by name."""
    for each in await daemon.history.checkpoints():
        await emit(each)


@operation("checkpoints.rm", mutates=True)
async def remove_checkpoint(
    daemon: Daemon, name: Annotated[str, Param("a checkpoint's name")]
) -> CheckpointInfo:
    """Remove a checkpoint's name; its epoch is kept no longer than others."""
    return await daemon.history.remove_checkpoint(name)
