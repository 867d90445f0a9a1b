"""The mount table of the running daemon."""

from typing import Annotated

from unifs.control.daemon_protocol import Answer, Daemon, MountInfo
from unifs.control.registry import Emit, Param, operation


class Removed(Answer):
    """The mount is no longer in the tree; its backend is as it was."""

    name: str


@operation("mounts.list")
async def list_(daemon: Daemon, emit: Emit[MountInfo]) -> None:
    """List the mounts: what each shows and what it has not synced."""
    for mount in await daemon.mounts.list():
        await emit(mount)


@operation("mounts.add", mutates=True)
async def add(
    daemon: Daemon,
    name: Annotated[str, Param("where it appears: local/NAME")],
    directory: Annotated[str, Param("the host directory to show", place="host")],
) -> MountInfo:
    """Show a host directory in the tree, now and after every restart.

    `unifs ctl mounts remove` takes it out. By hand, the settings file has
    `[mounts.local.directories]`.
    """
    return await daemon.mounts.add(name, directory)


@operation("mounts.remove", mutates=True)
async def remove(
    daemon: Daemon,
    name: Annotated[str, Param("the mount: local/NAME, or a backend")],
    force: Annotated[bool, Param("give up changes that have not reached the backend")] = False,
) -> Removed:
    """Take a mount out of the tree.

    Refused while changes have not reached its backend. Programs that stand in a local/NAME, or have
    files of it open, go on there.
    """
    await daemon.mounts.remove(name, force)
    return Removed(name=name)
