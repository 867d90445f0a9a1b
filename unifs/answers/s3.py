"""``unifs ctl s3``: what a service offers beside files.

A path is found in the tree first, for what was renamed here lies elsewhere at the service; where it
is not there (a deleted object has versions), below the nearest directory that is. What changes an
object is refused while the file has changes of its own on their way, and the tree asks the service
again before the answer, so that neither is taken for somebody else's change.
"""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
from unifs.errors import (
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    ReadOnly,
    Unsupported,
    Unsynced,
)
from unifs.mounts.s3.names import names_of
from unifs.mounts.s3.objectsettings import storage_class_in
from unifs.vfs.remotecid import hash_remote, known_cid, record
from unifs.vfs.remoterows import UNLISTED, RemoteInode, join
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Literal

    from unifs.mounts.s3.mount import S3Mount
    from unifs.mounts.s3.versions import ObjectVersion
    from unifs.remotes import Remote, Remotes
    from unifs.vfs.paths import Paths

#: One request's worth of a version on its way out.
PIECE_BYTES: Final = 4 << 20
#: Where buckets stand in the tree: /s3/bucket.
BUCKET_DEPTH: Final = 2
_CLASS: Final = re.compile("[A-Z0-9][A-Z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class _Place:
    """What a path of the tree stands for: ``path`` is the mount's own, where the service has it.

    ``inode`` is what is there, or the nearest directory above; ``missing`` the names below that.
    """

    shown: str
    remote: Remote
    mount: S3Mount
    path: str
    inode: RemoteInode
    missing: tuple[bytes, ...]

    @property
    def is_there(self) -> bool:
        return not self.missing

    @property
    def object(self) -> tuple[str, str]:
        """Bucket and key."""
        return self.mount.places.object_at(self.path)


class S3Answer:
    """Services that speak S3, for control operations."""

    def __init__(self, remotes: Remotes, paths: Paths) -> None:
        self._remotes = remotes
        self._paths = paths

    # --- where a path leads -----------------------------------------------------------------------

    async def _at(self, path: str, is_new_fine: bool = False) -> _Place:
        """``is_new_fine``: what has not reached the service is meant as what it will be there."""
        # 60 ms that the start of a daemon without S3 need not take.
        from unifs.mounts.s3.mount import S3Mount

        names = self._paths.split(path)
        if not names:
            raise InvalidArgument("name a path below a mount of S3, like /s3/bucket/key")
        top = os.fsdecode(names[0])
        if all(each.name != top for each in self._remotes) and top not in self._remotes.problems:
            raise Unsupported(f"/{top} is no mount of an S3 service")
        remote = self._remotes.get(top)
        mount = remote.mount.mount
        if not isinstance(mount, S3Mount):
            raise Unsupported(f"/{top} is a mount of {remote.kind}, not of S3")
        inode, missing = await self._nearest(names, mount.places.has_buckets, is_new_fine)
        if inode.path is None:
            raise _unsynced(path)
        there = inode.path
        for name in missing:
            there = join(there, name)
        place = _Place(path, remote, mount, there, inode, missing)
        if missing and self._is_leaving(place):
            raise _unsynced(path)
        return place

    async def _nearest(
        self, names: list[bytes], has_buckets: bool, is_new_fine: bool
    ) -> tuple[RemoteInode, tuple[bytes, ...]]:
        for depth in range(len(names), 0, -1):
            part = "/" + "/".join(os.fsdecode(name) for name in names[:depth])
            try:
                inode = await self._paths.find(part)
            except (NotFound, NotADirectory):
                if depth == BUCKET_DEPTH and has_buckets:
                    raise
                continue
            assert isinstance(inode, RemoteInode)
            if inode.path is None and is_new_fine:
                continue
            if depth == len(names) or stat.S_ISDIR(inode.attributes.st_mode):
                return inode, tuple(names[depth:])
        raise NotFound(f"/{os.fsdecode(names[0])} does not exist")

    def _is_leaving(self, place: _Place) -> bool:
        """Whether what has no name here any more is still there, and will not be."""
        volume = place.remote.volume
        ino = volume.remotes.at(place.path)
        return bool(ino) and volume.writeback.is_due(ino)

    async def _object(self, path: str) -> _Place:
        place = await self._at(path)
        if place.mount.places.is_top(place.path):
            raise InvalidArgument(f"{path} is no object: name one like /s3/bucket/key")
        if place.is_there and stat.S_ISDIR(place.inode.attributes.st_mode):
            raise IsADirectory(f"{path} is a directory, not an object")
        return place

    async def _present(self, path: str) -> _Place:
        """An object that is there; Unsynced where the service has it otherwise than the tree."""
        place = await self._object(path)
        if not place.is_there:
            raise NotFound(f"{path} does not exist")
        if place.remote.volume.is_changed(place.inode):
            raise _unsynced(path)
        return place

    async def _bucket(self, path: str) -> tuple[_Place, str]:
        place = await self._at(path)
        bucket = place.mount.places.split(place.path)[0]
        if not bucket or not place.mount.places.is_top(place.path):
            raise InvalidArgument(f"{path} is no bucket: name one like /s3/bucket")
        return place, bucket

    def _check_writable(self, place: _Place) -> None:
        if place.remote.volume.refuses_changes:
            raise ReadOnly(f"/{place.remote.name} is read-only by the settings")

    async def _look_again(self, place: _Place) -> None:
        """Let the tree see what was changed at the service."""
        volume = place.remote.volume
        if place.is_there:
            await volume.merge.refresh(place.inode)
            return
        above = place.inode
        above.listing, above.cursor = UNLISTED, None
        await complete(volume.tree.commit, [volume.remotes.store(above)])
        await self._paths.find(place.shown)
        volume.tell_entry(above.ino, place.missing[0])

    # --- URLs and versions ------------------------------------------------------------------------

    async def presign(self, path: str, method: Literal["get", "put"], expiry_s: int) -> Presigned:
        """A URL for one object; to get it, it has to be there as it is here."""
        place = await (self._present(path) if method == "get" else self._object(path))
        if method == "put":
            self._check_writable(place)
        url = await place.mount.presign(method.upper(), place.path, expiry_s)
        return Presigned(path=path, method=method, expires_s=time.time() + expiry_s, url=url)

    async def versions(self, path: str) -> list[ObjectVersionInfo]:
        """The versions of one object, newest first; NotFound where there never was one."""
        place = await self._object(path)
        found = await place.mount.versions(place.path)
        if not found:
            raise NotFound(f"{path} does not exist, and the bucket keeps no version of it")
        return [_told(each) for each in found]

    async def version(self, path: str, version_id: str) -> tuple[int, AsyncIterator[bytes]]:
        """The size and the bytes of one version."""
        place = await self._object(path)
        one = await place.mount.version(place.path, version_id)

        async def pieces() -> AsyncIterator[bytes]:
            for offset in range(0, one.size_bytes, PIECE_BYTES):
                yield await place.mount.read_version(place.path, one, offset, PIECE_BYTES)

        return one.size_bytes, pieces()

    async def restore(self, path: str, version_id: str) -> Restored:
        """Make an earlier version the present one, here and there."""
        place = await self._object(path)
        self._check_writable(place)
        if place.is_there and place.remote.volume.is_changed(place.inode):
            raise _unsynced(path)
        await place.mount.restore(place.path, version_id)
        await self._look_again(place)
        inode = await self._paths.find(path)
        return Restored(path=path, version_id=version_id, size_bytes=inode.attributes.st_size)

    # --- buckets ----------------------------------------------------------------------------------

    async def policy(self, path: str) -> str:
        """A bucket's policy as JSON."""
        place, bucket = await self._bucket(path)
        return await place.mount.buckets.policy(bucket)

    async def put_policy(self, path: str, document: bytes | None) -> BucketInfo:
        """Set a bucket's policy; None removes it."""
        place, bucket = await self._bucket(path)
        self._check_writable(place)
        if document is None:
            await place.mount.buckets.remove_policy(bucket)
        else:
            await place.mount.buckets.put_policy(bucket, document)
        return BucketInfo(path=path, bucket=bucket)

    async def versioning(self, path: str) -> BucketVersioning:
        """Whether a bucket keeps versions."""
        place, bucket = await self._bucket(path)
        found = await place.mount.buckets.versioning(bucket)
        return BucketVersioning(path=path, bucket=bucket, versioning=found)

    async def set_versioning(self, path: str, is_on: bool) -> BucketVersioning:
        """Keep versions from now on, or make no more."""
        place, bucket = await self._bucket(path)
        self._check_writable(place)
        found = await place.mount.buckets.set_versioning(bucket, is_on)
        return BucketVersioning(path=path, bucket=bucket, versioning=found)

    async def lifecycle(self, path: str) -> str:
        """A bucket's lifecycle as JSON."""
        place, bucket = await self._bucket(path)
        return await place.mount.buckets.lifecycle(bucket)

    async def put_lifecycle(self, path: str, document: bytes | None) -> BucketInfo:
        """Set a bucket's lifecycle; None removes it."""
        place, bucket = await self._bucket(path)
        self._check_writable(place)
        if document is None:
            await place.mount.buckets.remove_lifecycle(bucket)
        else:
            await place.mount.buckets.put_lifecycle(bucket, document)
        return BucketInfo(path=path, bucket=bucket)

    # --- objects ----------------------------------------------------------------------------------

    async def tags(self, path: str) -> list[ObjectTag]:
        """The tags of one object."""
        place = await self._present(path)
        tags = await place.mount.objects.tags(place.object)
        return [ObjectTag(tag=tag, value=value) for tag, value in sorted(tags.items())]

    async def put_tags(self, path: str, tags: Sequence[str]) -> Tagged:
        """These tags and no others. InvalidArgument where one is not ``name=value``."""
        wanted: dict[str, str] = {}
        for each in tags:
            name, equals, value = each.partition("=")
            if not equals or not name:
                raise InvalidArgument(f"{each!r} is no tag: write name=value")
            if name in wanted:
                raise InvalidArgument(f"the tag {name!r} is given twice")
            wanted[name] = value
        place = await self._present(path)
        self._check_writable(place)
        await place.mount.objects.put_tags(place.object, wanted)
        return Tagged(path=path, tags=[f"{name}={value}" for name, value in wanted.items()])

    async def storage_class(self, path: str) -> StorageClassInfo:
        """The storage class of one object."""
        place = await self._present(path)
        headers = await place.mount.objects.stat(place.object)
        return StorageClassInfo(
            path=path,
            storage_class=storage_class_in(headers),
            restore=headers.get("x-amz-restore"),
        )

    async def set_storage_class(self, path: str, storage_class: str) -> StorageClassInfo:
        """Move one object to another storage class."""
        if not _CLASS.fullmatch(storage_class):
            raise InvalidArgument(
                f"{storage_class!r} is no storage class: services call them like STANDARD_IA"
            )
        place = await self._present(path)
        self._check_writable(place)
        inode, volume = place.inode, place.remote.volume
        version, cid = inode.version, known_cid(volume, inode)
        copied = await place.mount.set_storage_class(place.path, storage_class)
        await self._look_again(place)
        if cid is not None and copied == (version, inode.version) and copied[0] != copied[1]:
            # The same bytes under another ETag.
            await complete(volume.tree.commit, [record(inode.ino, inode.version, cid)])
        return await self.storage_class(path)

    async def cid(self, path: str) -> ObjectCid:
        """The CID of one file, known or read and hashed now."""
        inode = await self._paths.find(path)
        remote = self._remotes.of(inode.volume)
        if remote is None or not isinstance(inode, RemoteInode):
            raise Unsupported(f"{path} is below no mount with a backend")
        found = await hash_remote(remote.volume, inode)
        return ObjectCid(path=path, cid=str(found), size_bytes=inode.attributes.st_size)

    # --- uploads ----------------------------------------------------------------------------------

    async def uploads(self, path: str) -> AsyncIterator[UploadInfo]:
        """Uploads that were begun at or below a path and not completed."""
        place = await self._at(path, is_new_fine=True)
        places = place.mount.places
        if not places.split(place.path)[0]:
            raise InvalidArgument(f"{path} is no bucket: name one like /s3/bucket")
        is_directory = place.is_there and stat.S_ISDIR(place.inode.attributes.st_mode)
        bucket, prefix = places.prefix_at(place.path) if is_directory else place.object
        top = f"/{place.remote.name}" + (f"/{bucket}" if places.has_buckets else "")
        async for each in place.mount.buckets.uploads(bucket, prefix):
            if is_directory or each.key == prefix or each.key.startswith(f"{prefix}/"):
                yield UploadInfo(
                    path=_shown(top, each.key.removeprefix(places.prefix)),
                    upload_id=each.id,
                    began_s=each.began_s,
                    storage_class=each.storage_class or None,
                )

    async def abort(self, path: str, upload_id: str) -> UploadAborted:
        """Give one upload up."""
        place = await self._at(path, is_new_fine=True)
        self._check_writable(place)
        bucket, key = place.object
        await place.mount.buckets.abort(bucket, key, upload_id)
        return UploadAborted(path=path, upload_id=upload_id)


def _unsynced(path: str) -> Unsynced:
    return Unsynced(
        f"changes of {path} have not reached the service: `unifs ctl journal sync` waits for them"
    )


def _told(one: ObjectVersion) -> ObjectVersionInfo:
    return ObjectVersionInfo(
        version_id=one.id,
        size_bytes=None if one.is_deleted else one.size_bytes,
        mtime_s=one.mtime_ns / 1e9,
        is_latest=one.is_latest,
        is_deleted=one.is_deleted,
        etag=None if one.is_deleted else one.version,
    )


def _shown(top: str, key: str) -> str:
    """The path of a key; every path of a key leads to it."""
    return "/".join([top, *(name for segment in key.split("/") for name in names_of(segment))])
