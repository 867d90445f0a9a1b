"""Files of the mounted tree, changed as a user's calls change them."""

from typing import Annotated

from unifs.control.daemon_protocol import Answer, Daemon, FileEntry, FileStat
from unifs.control.registry import Emit, Param, operation

TreePath = Annotated[str, Param("a path of the tree, like /mfs/a", place="tree")]
Destination = Annotated[str, Param("the new path, like /mfs/b", place="tree")]


class Done(Answer):
    """It is done and survives a kill of the daemon."""

    path: str


@operation("files.ls")
async def ls(
    daemon: Daemon,
    emit: Emit[FileEntry],
    path: Annotated[str, Param("a directory of the tree", place="tree", argument=True)] = "/mfs",
) -> None:
    """List a directory of the tree, or one file."""
    async for entry in daemon.files.ls(path):
        await emit(entry)


@operation("files.stat")
async def stat(daemon: Daemon, path: TreePath) -> FileStat:
    """Tell kind, size, owner, times, CID and state of one path."""
    return await daemon.files.stat(path)


@operation("files.mkdir", mutates=True)
async def mkdir(
    daemon: Daemon,
    path: TreePath,
    parents: Annotated[
        bool, Param("make its parents too; being there already is success", short="-p")
    ] = False,
) -> Done:
    """Make a directory."""
    await daemon.files.mkdir(path, parents)
    return Done(path=path)


@operation("files.cp", mutates=True)
async def copy(daemon: Daemon, source: TreePath, destination: Destination) -> Done:
    """Copy a file, or a directory with all below it.

    Into the destination where that is a directory; nothing that is there is replaced. From /ipfs
    to /mfs it links: it takes the same time whatever the size, where `cp` would move every byte.
    """
    return Done(path=await daemon.files.copy(source, destination))


@operation("files.mv", mutates=True)
async def move(daemon: Daemon, source: TreePath, destination: Destination) -> Done:
    """Move a file or a directory within its mount.

    Into the destination where that is a directory; a file there is replaced.
    """
    return Done(path=await daemon.files.move(source, destination))


@operation("files.rm", mutates=True)
async def remove(
    daemon: Daemon,
    path: TreePath,
    recursive: Annotated[bool, Param("a directory with all below it", short="-r")] = False,
) -> Done:
    """Remove a file or a directory."""
    await daemon.files.remove(path, recursive)
    return Done(path=path)
