"""What the operations of ``unifs ctl s3`` ask of the daemon, and what they are answered with.

A part of ``daemon_protocol``, whose words on names, paths and times hold here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from unifs.control.daemon_protocol import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Presigned(Answer):
    """A URL for one object. ``expires_s`` is the moment at which it ends."""

    path: str
    method: Literal["get", "put"]
    expires_s: float
    url: str


class ObjectVersionInfo(Answer):
    """One version of an object; a deletion has neither size nor ETag."""

    version_id: str
    size_bytes: int | None
    mtime_s: float
    is_latest: bool
    is_deleted: bool
    etag: str | None


class Restored(Answer):
    """An earlier version is the present one, at the service and in the tree."""

    path: str
    version_id: str
    size_bytes: int


class BucketInfo(Answer):
    """A bucket whose settings were changed."""

    path: str
    bucket: str


class BucketVersioning(Answer):
    """Whether a bucket keeps what is replaced and deleted."""

    path: str
    bucket: str
    versioning: Literal["off", "on", "suspended"]


class ObjectTag(Answer):
    """One tag of an object."""

    tag: str
    value: str


class Tagged(Answer):
    """The tags that an object has now, each as ``name=value``."""

    path: str
    tags: list[str]


class StorageClassInfo(Answer):
    """The storage class of an object; ``restore`` is what the service says of one that is archived
    and was asked back.
    """

    path: str
    storage_class: str
    restore: str | None = None


class UploadInfo(Answer):
    """An upload in parts that was begun and not completed."""

    upload_id: str
    began_s: float
    storage_class: str | None
    path: str


class UploadAborted(Answer):
    """The upload is given up, its parts are freed."""

    path: str
    upload_id: str


class ObjectCid(Answer):
    """The CID of an object's bytes."""

    path: str
    cid: str
    size_bytes: int


class S3(Protocol):
    """Services that speak S3. Unsupported for paths elsewhere, and by name for what a service
    lacks; Unsynced where changes of the file have not reached it.
    """

    async def presign(self, path: str, method: Literal["get", "put"], expiry_s: int) -> Presigned:
        """A URL that needs no key."""
        ...

    async def versions(self, path: str) -> Sequence[ObjectVersionInfo]:
        """The newest first."""
        ...

    async def version(self, path: str, version_id: str) -> tuple[int, AsyncIterator[bytes]]:
        """The size and the bytes of one version."""
        ...

    async def restore(self, path: str, version_id: str) -> Restored:
        """Make an earlier version the present one, here and there."""
        ...

    async def policy(self, path: str) -> str:
        """JSON; NotFound where there is none."""
        ...

    async def put_policy(self, path: str, document: bytes | None) -> BucketInfo:
        """None removes it."""
        ...

    async def versioning(self, path: str) -> BucketVersioning: ...

    async def set_versioning(self, path: str, is_on: bool) -> BucketVersioning: ...

    async def lifecycle(self, path: str) -> str:
        """JSON; NotFound where there is none."""
        ...

    async def put_lifecycle(self, path: str, document: bytes | None) -> BucketInfo:
        """None removes it."""
        ...

    async def tags(self, path: str) -> Sequence[ObjectTag]: ...

    async def put_tags(self, path: str, tags: Sequence[str]) -> Tagged:
        """These, each as ``name=value``, and no others."""
        ...

    async def storage_class(self, path: str) -> StorageClassInfo: ...

    async def set_storage_class(self, path: str, storage_class: str) -> StorageClassInfo: ...

    async def cid(self, path: str) -> ObjectCid:
        """Of a file that only the service has, all bytes are read for it."""
        ...

    def uploads(self, path: str) -> AsyncIterator[UploadInfo]:
        """Those at and below a path."""
        ...

    async def abort(self, path: str, upload_id: str) -> UploadAborted: ...
