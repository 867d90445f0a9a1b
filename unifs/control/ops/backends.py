"""Mounts with a backend: services that hold the objects."""

from typing import Annotated, Literal

from unifs.control.daemon_protocol import Answer, BackendInfo, BackendTest, Daemon, Refreshed
from unifs.control.registry import Emit, Param, operation

Name = Annotated[str, Param("the directory at the root")]


class Removed(Answer):
    """The backend is no longer in the tree; its objects are as they were."""

    name: str


@operation("backends.ls")
async def ls(daemon: Daemon, emit: Emit[BackendInfo]) -> None:
    """List the backends: what each shows, what it does not have yet, and what is wrong."""
    for each in await daemon.backends.list():
        await emit(each)


@operation("backends.add", mutates=True)
async def add(
    daemon: Daemon,
    name: Name,
    kind: Annotated[Literal["s3"], Param("what the service speaks")] = "s3",
    endpoint: Annotated[str | None, Param("http(s)://host[:port]; else Amazon's own")] = None,
    region: Annotated[str | None, Param("region of the service")] = None,
    profile: Annotated[str | None, Param("profile of the AWS configuration files")] = None,
    credentials: Annotated[str | None, Param("entry of `unifs ctl credentials`")] = None,
    anonymous: Annotated[bool | None, Param("sign nothing: public buckets")] = None,
    ca_file: Annotated[
        str | None, Param("PEM file of the authorities to trust", place="host")
    ] = None,
    bucket: Annotated[str | None, Param("only this bucket, as the mount's root")] = None,
    prefix: Annotated[str | None, Param("only keys below this: a/b/")] = None,
    addressing: Annotated[
        Literal["auto", "path", "virtual"] | None,
        Param("where the bucket's name stands; default: auto"),
    ] = None,
    requester_pays: Annotated[bool | None, Param("pay for requests to others' buckets")] = None,
    storage_class: Annotated[str | None, Param("storage class of what is written")] = None,
    encryption: Annotated[Literal["s3", "kms", "c"] | None, Param("at the service")] = None,
    encryption_key: Annotated[
        str | None, Param("kms: name of the key; c: its entry in `unifs ctl credentials`")
    ] = None,
    checksum: Annotated[
        Literal["none", "crc32c", "sha256"] | None,
        Param("checksum sent with uploads; default: none"),
    ] = None,
    keep_attributes: Annotated[
        bool | None, Param("modes, owners, times, symlinks in metadata")
    ] = None,
    keep_cid: Annotated[bool | None, Param("CIDs of what is written in metadata")] = None,
    parallel_max: Annotated[int | None, Param("requests at the same time; default: 64")] = None,
    fresh_s: Annotated[
        float | None, Param("how many seconds names and attributes are believed; default: 30")
    ] = None,
    conflicts: Annotated[
        Literal["keep-both", "ours", "theirs"] | None,
        Param("who wins where both changed; default: keep-both"),
    ] = None,
    durability: Annotated[
        Literal["local", "backend"] | None, Param("what fsync waits for; default: local")
    ] = None,
    read_only: Annotated[bool | None, Param("refuse every change below it")] = None,
) -> BackendInfo:
    """Show a service at the root of the tree, now and after every restart.

    The options are the keys of `[mounts.NAME]` in the settings file, where the same can be written
    by hand. Nothing is asked of the service yet: `unifs ctl backends test NAME` does that.
    """
    given = {key: value for key, value in locals().items() if key not in ("daemon", "name")}
    settings = {key: value for key, value in given.items() if value is not None}
    return await daemon.backends.add(name, settings)


@operation("backends.rm", mutates=True)
async def rm(
    daemon: Daemon,
    name: Name,
    force: Annotated[bool, Param("give up changes that have not reached it")] = False,
) -> Removed:
    """Take a backend that was added at run time out of the tree.

    Refused while changes have not reached it, and while files of it are open.
    """
    await daemon.backends.remove(name, force)
    return Removed(name=name)


@operation("backends.test")
async def check(daemon: Daemon, name: Name) -> BackendTest:
    """Ask a backend for its first names, and say what is wrong if it does not answer.

    Changes nothing.
    """
    return await daemon.backends.test(name)


@operation("refresh")
async def refresh(
    daemon: Daemon,
    path: Annotated[str, Param("a path below a mount with a backend", place="tree")],
    recursive: Annotated[
        bool, Param("believe nothing below it either; asked when it is used", short="-r")
    ] = False,
) -> Refreshed:
    """Ask the backend again now, whatever is believed.

    Of a directory, its names are listed anew.
    """
    return await daemon.backends.refresh(path, recursive)
