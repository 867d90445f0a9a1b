"""/s3: a service's buckets, one bucket, or a prefix of one, as a tree.

The mount protocol on top of the parts: ``reading`` (paths to nodes), ``writing`` (single objects),
``multipart`` (large ones), ``moving`` (copies at the service) and ``control`` (buckets). docs/s3.md
says what each call means in keys and requests. Belongs to the event loop's thread.

A version is the object's ETag, which names bytes and not moments: listings tell nothing else.
"""

from __future__ import annotations

import logging
import stat
import time
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from unifs.errors import Exists, InvalidArgument, NotFound, UnifsError, Unsupported
from unifs.mounts.base import Mount
from unifs.mounts.blocking import Blocking
from unifs.mounts.s3.attributes import DIRECTORY, version_in
from unifs.mounts.s3.bucketsettings import BucketSettings
from unifs.mounts.s3.conditions import Conditions
from unifs.mounts.s3.control import Control
from unifs.mounts.s3.moving import Moving
from unifs.mounts.s3.multipart import Copying, Multipart
from unifs.mounts.s3.names import Places
from unifs.mounts.s3.objects import Objects
from unifs.mounts.s3.objectsettings import STORAGE_CLASS, ObjectSettings, storage_class_in
from unifs.mounts.s3.reading import Reading
from unifs.mounts.s3.removing import Removing
from unifs.mounts.s3.service import Service
from unifs.mounts.s3.sigv4 import EXPIRY_MAX_S
from unifs.mounts.s3.trust import context_of
from unifs.mounts.s3.versions import headers_of, read_version, version_with, versions_of
from unifs.mounts.s3.writing import SINGLE_BYTES, Writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from unifs.mounts.base import ContentReader
    from unifs.mounts.s3.conditions import Honoured
    from unifs.mounts.s3.options import CredentialSource, S3Options
    from unifs.mounts.s3.versions import ObjectVersion
    from unifs.types import Change, Node, Page, SetAttributes, Version

log = logging.getLogger(__name__)

#: Threads for hashing and for boto3.
THREADS_MAX: Final = 8


class S3Mount(Mount):
    """One S3 service as one identity sees it."""

    kind = "s3"
    batched: ClassVar[frozenset[str] | None] = frozenset({"remove"})

    def __init__(
        self,
        name: str,
        options: S3Options,
        credentials: CredentialSource,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.options = options
        self.service = Service(options, credentials, now_s, context_of(options))
        self._now_s = now_s
        self._nursery: trio.Nursery | None = None
        #: Buckets in which orphaned uploads were looked for.
        self._swept: set[str] = set()
        self.places = Places(options)
        self._blocking = Blocking(THREADS_MAX)
        self.control = Control(options, credentials, self._blocking)
        self._objects = Objects(self.service)
        #: What is set on buckets and objects beside their bytes, for control operations.
        self.buckets = BucketSettings(self.control)
        self.objects = ObjectSettings(self.control, self._objects)
        self._reading = Reading(self._objects, self.places)
        self._conditions = Conditions(self._objects, self.places.prefix, self._found)
        self._writing = Writing(self._reading, self._conditions, self._blocking)
        self._multipart = Multipart(self._writing)
        self._removing = Removing(self._reading, self._conditions)
        self._moving = Moving(self._writing, self._removing, self._multipart)

    @property
    def is_rename_conditional(self) -> bool:  # type: ignore[override]
        return self._conditions.are_copies_honoured

    # --- reading ----------------------------------------------------------------------------------

    async def stat(self, path: str) -> Node:
        return await self._reading.stat(path)

    async def scan(self, path: str, after: str | None) -> Page:
        return await self._reading.scan(path, after)

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        return await self._reading.read(path, version, offset, size)

    async def read_into(
        self,
        path: str,
        version: Version,
        offset: int,
        buffers: Sequence[memoryview],
        filled: Callable[[], None],
    ) -> None:
        await self._reading.read_into(path, version, offset, buffers, filled)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def has_containers(self) -> bool:  # type: ignore[override]
        return self.places.has_buckets

    def check_name(self, above: str | None, name: bytes, kind: int) -> None:
        self.places.check_name(above, name, stat.S_ISDIR(kind))

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        place = await self._writing.place_for(path, base)
        if content.size_bytes <= SINGLE_BYTES:
            return await self._writing.put_single(place, content, base, token)
        self._sweep_once(place[0])
        return await self._multipart.put(place, content, base, token)

    def _sweep_once(self, bucket: str) -> None:
        """Abort what uploads of the past left in a bucket that is written to."""
        if self._nursery is not None and bucket not in self._swept:
            self._swept.add(bucket)
            sweep = partial(self._multipart.sweep, bucket, self.places.prefix, self._now_s())
            self._nursery.start_soon(self._sweep, bucket, "uploads aborted", sweep)

    async def _sweep(self, bucket: str, done: str, sweep: Callable[[], Awaitable[int]]) -> None:
        try:
            count = await sweep()
        except UnifsError as error:
            # Nobody waits for it; the next start of the daemon sweeps again.
            log.info("no sweep: mount=%s bucket=%s error=%s", self.name, bucket, error)
            return
        if count:
            log.info("%s: mount=%s bucket=%s count=%d", done, self.name, bucket, count)

    async def make(self, path: str, node: Node, token: str) -> Node:
        if stat.S_ISREG(node.mode):
            raise InvalidArgument("a file is put, not made")
        if self.places.is_top(path):
            return await self._make_bucket(path, node)
        if stat.S_ISDIR(node.mode):
            return await self._writing.make_directory(path, node, token)
        return await self._writing.make_special(path, node, token)

    async def _make_bucket(self, path: str, node: Node) -> Node:
        if not path or not self.places.has_buckets:
            raise Exists("the root is there")
        if not stat.S_ISDIR(node.mode):
            raise Unsupported("only buckets lie at the root")
        try:
            await self._reading.stat(path)
        except NotFound:
            await self.control.make_bucket(path)
            return DIRECTORY
        raise Exists(f"the bucket {path!r} is there")

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        if not self.places.is_top(path):
            await self._removing.remove(path, base, token)
            return
        if not path or not self.places.has_buckets:
            raise Unsupported("the root stays where it is")
        try:
            await self._removing.need_empty(path)
            await self.control.remove_bucket(path)
        except NotFound:
            return

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        await self._moving.rename(path, new_path, token, base)

    async def has_begun(self, new_path: str, token: str) -> bool:
        return await self._moving.has_begun(new_path, token)

    def moved(self, path: str) -> int | None:
        return self._moving.moved(path)

    def sent(self, path: str) -> int | None:
        place = self.places.maybe_object_at(path)
        return None if place is None else self._multipart.sent(place)

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        await self._moving.set_attributes(path, changes, token)

    async def commit(
        self, changes: Sequence[tuple[Change, ContentReader | None]]
    ) -> list[Node | UnifsError | None]:
        outcomes: list[Node | UnifsError | None] = []
        for is_removal, group in groupby(changes, lambda pair: pair[0].verb == "remove"):
            if is_removal:
                removals = [(change.path, change.base, change.token) for change, _ in group]
                outcomes += await self._remove_many(removals)
            else:
                outcomes += await super().commit(list(group))
        return outcomes

    async def _remove_many(
        self, removals: list[tuple[str, Version | None, str]]
    ) -> list[UnifsError | None]:
        tops = any(self.places.is_top(path) for path, _, _ in removals)
        if not tops and len(removals) > 1:
            return await self._removing.remove_many(removals)
        outcomes: list[UnifsError | None] = []
        for removal in removals:
            try:
                await self.remove(*removal)
                outcomes.append(None)
            except UnifsError as error:
                outcomes.append(error)
        return outcomes

    def _found(self, bucket: str, honoured: Honoured) -> None:
        self.is_conditional = self.is_conditional and honoured.is_all
        log.info("conditions: mount=%s bucket=%s honoured=%s", self.name, bucket, honoured)
        if self._nursery is not None:
            sweep = partial(self._conditions.sweep, bucket, self._now_s())
            self._nursery.start_soon(self._sweep, bucket, "probes removed", sweep)

    # --- for control operations -------------------------------------------------------------------

    async def honours(self, bucket: str) -> Honoured:
        """Which conditions a bucket keeps; found out with the first write, or now."""
        return await self._conditions.of(bucket)

    async def presign(self, method: str, path: str, expiry_s: int) -> str:
        """A URL with which anybody may GET or PUT the object at ``path``, for a week at most."""
        if method not in ("GET", "PUT") or not 0 < expiry_s <= EXPIRY_MAX_S:
            raise InvalidArgument("a URL is for GET or PUT and for 1 s to 7 days")
        if self.options.encryption == "c":
            raise Unsupported("a URL cannot carry the key that the objects are encrypted with")
        if await self.service.credentials.current() is None:
            raise Unsupported("an anonymous mount has no key to sign a URL with")
        bucket, key = self.places.object_at(path)
        return await self.service.presign(method, bucket, key, expiry_s)

    async def versions(self, path: str) -> list[ObjectVersion]:
        """The versions that the bucket keeps of the object at ``path``, newest first."""
        return await versions_of(self.service, self.places.object_at(path))

    async def version(self, path: str, version_id: str) -> ObjectVersion:
        """The version of that id; NotFound where it is none, or a deletion."""
        return await version_with(self.service, self.places.object_at(path), version_id)

    async def read_version(self, path: str, one: ObjectVersion, offset: int, size: int) -> bytes:
        """``size`` bytes of an earlier version, fewer at its end."""
        place = self.places.object_at(path)
        return await read_version(self.service, place, one, offset, size)

    async def restore(self, path: str, version_id: str) -> None:
        """Make an earlier version the present one, by a copy; nothing to do if it is."""
        place = self.places.object_at(path)
        one = await version_with(self.service, place, version_id)
        if not one.is_latest:
            headers = await headers_of(self.service, place, one)
            await self._moving.copies.copy(place, headers, place, Copying({}, version_id=one.id))

    async def set_storage_class(
        self, path: str, storage_class: str
    ) -> tuple[Version, Version] | None:
        """Copy an object onto itself in another storage class; TryAgain if it changes meanwhile.

        The version that was copied and the one that has its bytes now; None where nothing was
        to be done.
        """
        place = self.places.object_at(path)
        headers = await self.objects.stat(place)
        if storage_class_in(headers) == storage_class:
            return None
        said = {STORAGE_CLASS: storage_class}
        made = await self._moving.copies.onto_itself(place, headers, said)
        await self.objects.check_class(place, storage_class)
        return version_in(headers), made

    def statistics(self) -> dict[str, int]:
        """Requests, connections and threads, now and at most."""
        threads = self._blocking.statistics()
        return {
            **self.service.statistics(),
            "threads": threads.threads,
            "threads_max": threads.threads_max,
        }

    # --- life -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """What runs beside requests ends with this, and idle connections are closed."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._prepare)
                try:
                    yield
                finally:
                    self._nursery = None
                    nursery.cancel_scope.cancel()
        finally:
            # The last of those requests has given its connection back by now.
            self.service.close()

    async def _prepare(self) -> None:
        """Have the credentials before somebody waits: botocore alone takes 0.1 s to be loaded."""
        try:
            await self.service.credentials.current()
        except UnifsError as error:
            # Whoever uses the mount is told so.
            log.info("no credentials yet: mount=%s error=%s", self.name, error)

    def supports(self, capability: str) -> bool:
        if capability == "set_attributes":
            return self.options.keeps_attributes
        return super().supports(capability)
