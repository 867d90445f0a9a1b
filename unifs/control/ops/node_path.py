"""What an operation on content is asked about: a CID, a path below one, or a path of the tree.

``content``, ``pins`` and ``dag`` use it. A path of the tree means the CID that it has now.
"""

from typing import Annotated

from unifs.control.daemon_protocol import Daemon
from unifs.control.registry import Param
from unifs.errors import TryAgain, Unsupported

NodePath = Annotated[
    str, Param("a CID, /ipfs/CID/names…, or a path of the tree like /mfs/a", place="node")
]


async def node_path(daemon: Daemon, path: str) -> str:
    """The path for the node: as it is, or the CID of what is at a path of the tree.

    NotFound; TryAgain while it is written to, or its CID computed; Unsupported for what has none.
    """
    if not path.startswith("/") or path.startswith(("/ipfs/", "/ipns/")):
        return path
    found = await daemon.files.stat(path)
    if found.cid is not None:
        return found.cid
    if found.state == "open":
        raise TryAgain(f"{path} is being written: it has a CID when it is closed")
    if f"{path}/".startswith("/mfs/") and found.kind in ("file", "directory", "symlink"):
        raise TryAgain(f"the CID of {path} is being computed")
    raise Unsupported(f"{path} has no CID; `unifs ctl add` gives one to files and directories")
