"""DAGs as CAR archives."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, cast

from unifs.control.daemon_protocol import Answer, Daemon
from unifs.control.ops.content import Progress
from unifs.control.ops.node_path import NodePath, node_path
from unifs.control.ops.progress import telling
from unifs.control.ops.source import host_path, pieces_of
from unifs.control.registry import Download, Emit, Param, Upload, operation
from unifs.errors import InvalidArgument


class Imported(Answer, tag="imported", tag_field="event"):
    """What a CAR brought. ``pinned`` are those of its roots that are kept now."""

    roots: list[str]
    blocks: int
    size_bytes: int
    pinned: list[str]


@operation("dag.import", mutates=True)
async def import_(
    daemon: Daemon,
    emit: Emit[Progress | Imported],
    upload: Upload,
    path: Annotated[
        str | None, Param("a CAR file; - for the bytes of stdin", place="upload", argument=True)
    ] = None,
    identity: Annotated[str | None, Param("device:inode of that file", hidden=True)] = None,
    pin_roots: Annotated[bool, Param("pin the roots that the archive names")] = True,
    pin_name: Annotated[str | None, Param("a name for the pins")] = None,
    progress: Annotated[bool, Param("tell how far it is", hidden=True)] = False,
) -> None:
    """Take in a CAR archive, version 1 or 2, each block verified.

    An archive that ends early or holds a wrong block is refused, and nothing of it is pinned.
    """
    if pin_name is not None and not pin_roots:
        raise InvalidArgument("a name for the pins is given, but nothing is to be pinned")
    total, pieces = upload.size_bytes, upload.chunks
    if path is not None:
        found = await host_path(path, identity)
        total, pieces = found.size_bytes, pieces_of(found.path)

    async def tell(done: int) -> None:
        await emit(Progress(path=path or "", bytes_done=done, bytes_total=total))

    # Both are generators with something open. Closed here, in a thread: a file of the mounted tree
    # that the event loop closes when its generator is collected waits for that loop for ever.
    async with aclosing(cast("AsyncGenerator[bytes, None]", pieces)):
        imported = await telling(
            lambda told: daemon.node.dag_import(_counted(pieces, told), pin_roots, pin_name),
            tell if progress else None,
        )
    await emit(
        Imported(
            roots=[str(each) for each in imported.roots],
            blocks=imported.blocks,
            size_bytes=imported.size_bytes,
            pinned=[str(each) for each in imported.pinned],
        )
    )


async def _counted(
    pieces: AsyncIterable[bytes], told: Callable[[int], None]
) -> AsyncIterator[bytes]:
    done = 0
    async for piece in pieces:
        done += len(piece)
        told(done)
        yield piece


@operation("dag.export")
async def export(
    daemon: Daemon,
    cid: NodePath,
) -> Download:
    """Write a CAR archive with a DAG and everything below it.

    A DAG that is not whole on this machine is refused before the first byte.
    """
    root = await daemon.node.resolve(await node_path(daemon, cid))
    chunks: AsyncIterator[bytes] = daemon.node.dag_export([root])
    return Download(chunks, content_type="application/vnd.ipld.car")
