"""Content by CID: add, cat, ls, get, stat, id."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from unifs.control.daemon_protocol import Answer, Daemon
from unifs.control.ops.archive import tar_of
from unifs.control.ops.node_path import NodePath, node_path
from unifs.control.ops.progress import telling
from unifs.control.ops.source import host_path
from unifs.control.registry import Download, Emit, Param, Upload, operation
from unifs.errors import InvalidArgument, IsADirectory, Unsupported

if TYPE_CHECKING:
    from unifs.ipfs.unixfs.reader import UnixfsStat

ProfileName = Literal["unixfs-v1-2025", "unixfs-v0-2015", "kubo-v1"]


class Id(Answer):
    """Who the node is. ``peer_id`` is null where it takes part in no network."""

    kind: str
    agent: str
    profile: str
    peer_id: str | None
    addresses: list[str]


class Progress(Answer, tag="progress", tag_field="event"):
    """How far it is. ``bytes_total`` is null where nobody knows yet."""

    path: str
    bytes_done: int
    bytes_total: int | None


class Added(Answer, tag="added", tag_field="event"):
    """What was added. ``skipped`` are sockets, devices and FIFOs: UnixFS has no node for them."""

    cid: str
    size_bytes: int
    files: int
    directories: int
    name: str
    skipped: list[str]


class Link(Answer):
    """One name in a directory. ``kind`` is "unknown" where its block is not on this machine."""

    cid: str
    kind: str
    size_bytes: int | None
    name: str


class ObjectStat(Answer):
    """One object. ``layout`` is its root block: file, raw, directory, hamt or symlink. ``as_cid``
    is the CID that its bytes have in the profile that was asked for.
    """

    cid: str
    kind: str
    layout: str
    size_bytes: int
    block_bytes: int
    links: int
    target: str | None
    mode: str | None
    mtime_s: float | None
    as_cid: str | None


@operation("id")
async def identify(daemon: Daemon) -> Id:
    """Who the IPFS node behind this mount is."""
    found = await daemon.node.id()
    return Id(
        kind=found.kind,
        agent=found.agent,
        profile=found.profile,
        peer_id=found.peer_id,
        addresses=list(found.addresses),
    )


@operation("add", mutates=True)
async def add(
    daemon: Daemon,
    emit: Emit[Progress | Added],
    upload: Upload,
    path: Annotated[
        str | None,
        Param("a file or directory; - for the bytes of stdin", place="upload", argument=True),
    ] = None,
    identity: Annotated[str | None, Param("device:inode of that file", hidden=True)] = None,
    only_hash: Annotated[bool, Param("compute the CID, store nothing", short="-n")] = False,
    profile: Annotated[
        ProfileName | None, Param("how bytes become CIDs; default: the state directory's")
    ] = None,
    pin: Annotated[bool, Param("keep it: collections leave it alone")] = True,
    pin_name: Annotated[str | None, Param("a name for the pin")] = None,
    wrap: Annotated[bool, Param("put it into a directory under its name", short="-w")] = False,
    name: Annotated[str | None, Param("its name, instead of the file's")] = None,
    hidden: Annotated[bool, Param("take files whose names begin with a dot too")] = True,
    progress: Annotated[bool, Param("tell how far it is", hidden=True)] = False,
) -> None:
    """Add a file or a directory and say its CID.

    Durable when it returns. A path is read by the daemon itself; without one the bytes that the
    caller sends are one file. A directory is added with all below it. The CID depends on the
    profile: the default of unifs is not that of `ipfs add`, whose CID `--profile unixfs-v0-2015`
    gives. With `--field cid` the CID is all that is printed.
    """
    if pin_name is not None and (only_hash or not pin):
        raise InvalidArgument("a name for the pin is given, but nothing is to be pinned")
    from unifs.ipfs.node import AddOptions, AddProgress, HostSource, StreamSource
    from unifs.ipfs.unixfs.profiles import PROFILES

    source: HostSource | StreamSource = StreamSource(upload.chunks)
    if path is not None:
        found = (await host_path(path, identity)).path
        source = HostSource(found, has_hidden=hidden)
        name = name or found.name
    options = AddOptions(
        profile=PROFILES[profile] if profile else None,
        only_hash=only_hash,
        pin=pin,
        pin_name=pin_name,
        wrap=(name or "stdin") if wrap else None,
    )

    async def tell(state: AddProgress) -> None:
        where = _text(state.path)
        total = state.bytes_total or (None if path else upload.size_bytes)
        await emit(Progress(path=where, bytes_done=state.bytes_done, bytes_total=total))

    added = await telling(
        lambda told: daemon.node.add(source, options, told), tell if progress else None
    )
    await emit(
        Added(
            cid=str(added.cid),
            size_bytes=added.size_bytes,
            files=added.files,
            directories=added.directories,
            name=name or "",
            skipped=[_text(each) for each in added.skipped],
        )
    )


@operation("cat")
async def cat(
    daemon: Daemon,
    path: NodePath,
    offset: Annotated[int, Meta(ge=0), Param("first byte", short="-o")] = 0,
    length: Annotated[
        Annotated[int, Meta(ge=0)] | None, Param("at most so many bytes", short="-l")
    ] = None,
) -> Download:
    """Write a file's bytes, verified.

    Nothing unverified is written: where a block is missing or wrong the bytes end before it, with
    the error's exit code.
    """
    content = await node_path(daemon, path)
    found = await daemon.node.stat(content)
    if _kind(found.node) == "directory":
        raise IsADirectory(f"{path} is a directory; `unifs ctl get` writes one out")
    rest = max(0, found.node.size_bytes - offset)
    size = rest if length is None else min(rest, length)
    return Download(daemon.node.cat(content, offset, length), size_bytes=size)


@operation("get")
async def get(daemon: Daemon, path: NodePath) -> Download:
    """Write a file or a directory out, as a tar archive.

    The command unpacks it: into `--output`, else under its own name here, which must not exist.
    """
    content = await node_path(daemon, path)
    found = await daemon.node.stat(content)
    name = path.rstrip("/").rpartition("/")[2]
    chunks = tar_of(daemon.node, content, name or str(found.cid))
    return Download(chunks, content_type="application/x-tar")


@operation("ls")
async def ls(daemon: Daemon, emit: Emit[Link], path: NodePath) -> None:
    """List a directory by CID.

    Names, CIDs and sizes as the directory's block has them. With their times, and as they are
    this moment, names of the mounted tree are listed by `unifs ctl files ls`.
    """
    async for page in daemon.node.ls(await node_path(daemon, path)):
        for entry in page:
            node = entry.node
            await emit(
                Link(
                    cid=str(entry.cid),
                    kind=_kind(node) if node else "unknown",
                    size_bytes=node.size_bytes if node else None,
                    name=_text(entry.name),
                )
            )


@operation("stat")
async def stat(
    daemon: Daemon,
    path: NodePath,
    as_profile: Annotated[
        ProfileName | None, Param("what CID a file's bytes have in this profile", short="--as")
    ] = None,
) -> ObjectStat:
    """Tell the CID, kind and size of what is at a path.

    `--as unixfs-v0-2015` reads the file and computes the CID that `ipfs add` would give it;
    `--as kubo-v1` that of `ipfs add --cid-version=1`.
    """
    content = await node_path(daemon, path)
    found = await daemon.node.stat(content)
    node = found.node
    return ObjectStat(
        cid=str(found.cid),
        kind=_kind(node),
        layout=node.kind,
        size_bytes=node.size_bytes,
        block_bytes=found.block_bytes,
        links=node.blocks,
        target=None if node.target is None else _text(node.target),
        mode=None if node.mode is None else f"{node.mode:04o}",
        mtime_s=None if node.mtime_ns is None else node.mtime_ns / 1e9,
        as_cid=None if as_profile is None else await _as(daemon, content, node, as_profile),
    )


async def _as(daemon: Daemon, path: str, node: "UnixfsStat", profile: ProfileName) -> str:
    """The CID that a file's bytes have in another profile; nothing is stored."""
    from unifs.ipfs.node import AddOptions, StreamSource
    from unifs.ipfs.unixfs.profiles import PROFILES

    if _kind(node) != "file":
        raise Unsupported(
            f"{path} is a {_kind(node)}, and only files have CIDs of other profiles here;"
            f" `unifs ctl add --only-hash --profile {profile} DIRECTORY` reads a directory"
        )
    options = AddOptions(profile=PROFILES[profile], only_hash=True)
    return str((await daemon.node.add(StreamSource(daemon.node.cat(path)), options)).cid)


def _kind(node: "UnixfsStat") -> str:
    """What it is for a person, however it is laid out."""
    return {"hamt": "directory", "raw": "file"}.get(node.kind, node.kind)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
