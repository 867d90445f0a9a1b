"""What an S3 service offers beside files: URLs, versions, policies, tags, classes, uploads.

Paths are paths of the tree below a mount of S3; a bucket is its directory.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Final, Literal, cast

from unifs.control.daemon_protocol import Daemon
from unifs.control.ops.source import host_path, pieces_of
from unifs.control.registry import Download, Emit, Param, Upload, operation
from unifs.control.s3_protocol import (
    BucketInfo,
    BucketVersioning,
    ObjectCid,
    ObjectTag,
    ObjectVersionInfo,
    Presigned,
    Restored,
    StorageClassInfo,
    Tagged,
    UploadAborted,
    UploadInfo,
)
from unifs.errors import IsADirectory, TooLarge

#: What the groups of commands below the noun are about.
GROUPS: Final = {
    "s3.versions": "Earlier versions of objects, where a bucket keeps them.",
    "s3.bucket": "What is set on a bucket.",
    "s3.bucket.policy": "Who may do what with a bucket.",
    "s3.bucket.versioning": "Whether a bucket keeps what is replaced and deleted.",
    "s3.lifecycle": "What the service does with a bucket's objects by itself, as they age.",
    "s3.tags": "Tags of objects.",
    "s3.storage-class": "Storage classes of objects.",
    "s3.multipart": "Uploads in parts that were begun and not completed.",
}
#: More than any service takes: Amazon's own bounds are 20 KiB for a policy and 1,000 rules for a
#: lifecycle.
DOCUMENT_BYTES_MAX: Final = 1 << 20

ObjectPath = Annotated[str, Param("an object, like /s3/bucket/key", place="tree")]
BucketPath = Annotated[str, Param("a bucket, like /s3/bucket", place="tree")]
VersionId = Annotated[str, Param("the version, as `s3 versions ls` names it")]
Document = Annotated[
    str | None, Param("a file with the JSON; - for stdin", place="upload", argument=True)
]
Identity = Annotated[str | None, Param("device:inode of that file", hidden=True)]


@operation("s3.presign", scope="admin")
async def presign(
    daemon: Daemon,
    path: ObjectPath,
    method: Annotated[Literal["get", "put"], Param("what the URL is good for")] = "get",
    expiry_s: Annotated[int, Param("for how many seconds, a week at most")] = 3600,
) -> Presigned:
    """Make a URL with which anybody can read, or store, one object for a while.

    Whoever has the URL needs no key. It ends earlier where it is signed with a session's key and
    the session ends. It cannot be taken back but by changing the key.
    """
    return await daemon.s3.presign(path, method, expiry_s)


@operation("s3.cid")
async def cid(daemon: Daemon, path: ObjectPath) -> ObjectCid:
    """Tell the CID of a file; where nobody knows it, read all of the object and keep it.

    It is that of `unifs ctl add --only-hash` of the same bytes.
    """
    return await daemon.s3.cid(path)


# --- versions -------------------------------------------------------------------------------------


@operation("s3.versions.ls")
async def versions_ls(daemon: Daemon, emit: Emit[ObjectVersionInfo], path: ObjectPath) -> None:
    """List the versions that the bucket keeps of an object, the newest first.

    A deletion is a version without bytes. The object itself need not be there any more. A bucket
    that keeps no versions has one of each object, called null.
    """
    for each in await daemon.s3.versions(path):
        await emit(each)


@operation("s3.versions.get")
async def versions_get(daemon: Daemon, path: ObjectPath, version: VersionId) -> Download:
    """Write the bytes of one version."""
    size_bytes, chunks = await daemon.s3.version(path, version)
    return Download(chunks, size_bytes)


@operation("s3.versions.restore", mutates=True)
async def versions_restore(daemon: Daemon, path: ObjectPath, version: VersionId) -> Restored:
    """Make an earlier version the present one, by a copy at the service.

    What is there now stays as an earlier version. Refused while changes of the file have not
    reached the service.
    """
    return await daemon.s3.restore(path, version)


# --- buckets --------------------------------------------------------------------------------------


@operation("s3.bucket.policy.get")
async def policy_get(daemon: Daemon, path: BucketPath) -> Download:
    """Write a bucket's policy as JSON."""
    return _text(await daemon.s3.policy(path))


@operation("s3.bucket.policy.put", mutates=True, scope="admin")
async def policy_put(
    daemon: Daemon,
    upload: Upload,
    path: BucketPath,
    document: Document = None,
    identity: Identity = None,
) -> BucketInfo:
    """Set a bucket's policy."""
    return await daemon.s3.put_policy(path, await _read(upload, document, identity))


@operation("s3.bucket.policy.rm", mutates=True, scope="admin")
async def policy_rm(daemon: Daemon, path: BucketPath) -> BucketInfo:
    """Remove a bucket's policy."""
    return await daemon.s3.put_policy(path, None)


@operation("s3.bucket.versioning.get")
async def versioning_get(daemon: Daemon, path: BucketPath) -> BucketVersioning:
    """Tell whether a bucket keeps what is replaced and deleted."""
    return await daemon.s3.versioning(path)


@operation("s3.bucket.versioning.on", mutates=True, scope="admin")
async def versioning_on(daemon: Daemon, path: BucketPath) -> BucketVersioning:
    """Keep what is replaced and deleted from now on."""
    return await daemon.s3.set_versioning(path, is_on=True)


@operation("s3.bucket.versioning.suspend", mutates=True, scope="admin")
async def versioning_suspend(daemon: Daemon, path: BucketPath) -> BucketVersioning:
    """Make no more versions; those that are there stay."""
    return await daemon.s3.set_versioning(path, is_on=False)


@operation("s3.lifecycle.get")
async def lifecycle_get(daemon: Daemon, path: BucketPath) -> Download:
    """Write a bucket's lifecycle rules as JSON."""
    return _text(await daemon.s3.lifecycle(path))


@operation("s3.lifecycle.put", mutates=True, scope="admin")
async def lifecycle_put(
    daemon: Daemon,
    upload: Upload,
    path: BucketPath,
    document: Document = None,
    identity: Identity = None,
) -> BucketInfo:
    """Replace a bucket's lifecycle rules, given as {"Rules": [...]}.

    What the service removes by them is seen here when the directory is listed again.
    """
    return await daemon.s3.put_lifecycle(path, await _read(upload, document, identity))


@operation("s3.lifecycle.rm", mutates=True, scope="admin")
async def lifecycle_rm(daemon: Daemon, path: BucketPath) -> BucketInfo:
    """Remove a bucket's lifecycle rules."""
    return await daemon.s3.put_lifecycle(path, None)


# --- objects --------------------------------------------------------------------------------------


@operation("s3.tags.get")
async def tags_get(daemon: Daemon, emit: Emit[ObjectTag], path: ObjectPath) -> None:
    """List the tags of an object."""
    for each in await daemon.s3.tags(path):
        await emit(each)


@operation("s3.tags.put", mutates=True)
async def tags_put(
    daemon: Daemon, path: ObjectPath, tags: Annotated[list[str], Param("each as name=value")]
) -> Tagged:
    """Give an object these tags and no others.

    They go with the object when it is renamed here, and end when its bytes are replaced. Refused
    while changes of the file have not reached the service.
    """
    return await daemon.s3.put_tags(path, tags)


@operation("s3.tags.rm", mutates=True)
async def tags_rm(daemon: Daemon, path: ObjectPath) -> Tagged:
    """Take all tags off an object."""
    return await daemon.s3.put_tags(path, [])


@operation("s3.storage-class.get")
async def storage_class_get(daemon: Daemon, path: ObjectPath) -> StorageClassInfo:
    """Tell the storage class of an object."""
    return await daemon.s3.storage_class(path)


@operation("s3.storage-class.set", mutates=True)
async def storage_class_set(
    daemon: Daemon,
    path: ObjectPath,
    storage_class: Annotated[str, Param("the service's name for it, like STANDARD_IA")],
) -> StorageClassInfo:
    """Move an object to another storage class, by a copy onto itself.

    Refused while changes of the file have not reached the service. Bytes that are written later go
    to the class of the setting `storage_class`.
    """
    return await daemon.s3.set_storage_class(path, storage_class)


# --- uploads --------------------------------------------------------------------------------------


@operation("s3.multipart.ls")
async def multipart_ls(
    daemon: Daemon,
    emit: Emit[UploadInfo],
    path: Annotated[str, Param("a bucket, a directory or an object", place="tree")],
) -> None:
    """List the uploads in parts that were begun at or below a path and not completed."""
    async for each in daemon.s3.uploads(path):
        await emit(each)


@operation("s3.multipart.abort", mutates=True)
async def multipart_abort(
    daemon: Daemon,
    path: ObjectPath,
    upload_id: Annotated[str, Param("the upload, as `s3 multipart ls` names it")],
) -> UploadAborted:
    """Give up an upload in parts, and free what its parts take.

    One that unifs is just sending begins again.
    """
    return await daemon.s3.abort(path, upload_id)


def _text(document: str) -> Download:
    data = document.encode()

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return Download(chunks(), len(data))


async def _read(upload: Upload, document: str | None, identity: str | None) -> bytes:
    """A document whole: a file of this machine, or what the caller sends."""
    import trio  # only here: see ``progress``

    pieces = upload.chunks
    if document is not None:
        found = await host_path(document, identity)
        if await trio.to_thread.run_sync(found.path.is_dir):
            raise IsADirectory(f"{document} is a directory, not a document")
        pieces = pieces_of(found.path)
    data = bytearray()
    # Both are generators with something open.
    async with aclosing(cast("AsyncGenerator[bytes, None]", pieces)):
        async for piece in pieces:
            data += piece
            if len(data) > DOCUMENT_BYTES_MAX:
                raise TooLarge(f"the document is larger than {DOCUMENT_BYTES_MAX} bytes")
    return bytes(data)
