"""A DAG as a tar archive, written as it is read: what ``get`` sends.

Bounded memory: headers and one piece of content at a time. Files get mode 0644 or what their nodes
say; the format is PAX, which carries any name and any size.
"""

import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from unifs.ipfs.node import Node, WalkItem

_KINDS = {"directory": tarfile.DIRTYPE, "hamt": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}


async def tar_of(node: "Node", path: str, name: str) -> AsyncIterator[bytes]:
    """The archive's bytes; every member lies at or below ``name``."""
    async for item in node.walk(path):
        header = _header(item, name)
        yield header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if header.size:
            written = 0
            chunks = cast("AsyncGenerator[bytes, None]", node.cat(f"/ipfs/{item.cid}"))
            async with aclosing(chunks):
                async for chunk in chunks:
                    written += len(chunk)
                    yield bytes(chunk)
            if written != header.size:
                raise Corrupt(f"{item.cid} has {written} bytes and says {header.size}")
            yield bytes(-written % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(item: "WalkItem", name: str) -> tarfile.TarInfo:
    below = item.path.decode("utf-8", "surrogateescape")
    header = tarfile.TarInfo(f"{name}/{below}" if below else name)
    stat = item.node
    header.type = _KINDS.get(stat.kind, tarfile.REGTYPE)
    header.mode = 0o755 if header.isdir() else 0o644
    if stat.mode is not None:
        header.mode = stat.mode
    if stat.mtime_ns is not None:
        header.mtime = stat.mtime_ns / 1e9
    if stat.target is not None:
        header.linkname = stat.target.decode("utf-8", "surrogateescape")
    elif not header.isdir():
        header.size = stat.size_bytes
    return header
