"""Which conditions a service keeps: found out once per bucket, without touching anybody's object.

The look is a PUT with an ``If-Match`` that cannot match, to a key of a random name that does not
exist. A service that honours it refuses and stores nothing. One that does not stores an empty
object, on which the other conditions are tried before it is removed. Where a condition is not
kept, ``writing`` looks before it writes; between the two somebody else may write.

An object that a killed daemon left behind is shown to nobody (``names.is_probe``) and swept by a
later one.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    UnifsError,
    Unsupported,
)
from unifs.mounts.s3.attributes import write_headers
from unifs.mounts.s3.encryption import key_headers, source_key_headers
from unifs.mounts.s3.names import PROBE, is_probe, new_probe
from unifs.mounts.s3.objects import if_match
from unifs.mounts.s3.service import Request
from unifs.mounts.s3.sigv4 import encoded
from unifs.types import Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from unifs.mounts.s3.objects import Objects

log = logging.getLogger(__name__)

BUCKETS_MAX: Final = 1024
#: A probe so old is nobody's any more; it lives for three requests.
LEFT_S: Final = 3600.0
NEVER: Final = '"unifs-never"'


@dataclass(frozen=True, slots=True)
class Honoured:
    """Which conditions hold in one bucket."""

    #: ``If-Match`` on PUT: what is replaced is what was read.
    replacing: bool
    #: ``If-None-Match: *`` on PUT: what is new replaces nothing.
    creating: bool
    #: ``If-Match`` on DELETE.
    removing: bool

    @property
    def is_all(self) -> bool:
        """Whether no change of somebody else can be overwritten."""
        return self.replacing and self.creating and self.removing


class Conditions:
    """What was found out so far. Belongs to the event loop's thread."""

    def __init__(
        self, objects: Objects, prefix: str, found: Callable[[str, Honoured], None]
    ) -> None:
        """``found`` hears of each bucket once."""
        self._objects = objects
        self._service = objects.service
        self._prefix = prefix
        self._found = found
        self._known: dict[str, Honoured] = {}
        #: Bucket -> whether CopyObject keeps conditions on what it replaces.
        self._copying: dict[str, bool] = {}
        #: Buckets in which it does not, as far as was found out last.
        self._unguarded: set[str] = set()
        self._locks: dict[str, trio.Lock] = {}

    @property
    def are_copies_honoured(self) -> bool:
        """Whether copies keep conditions, in all buckets in which that was asked."""
        return not self._unguarded

    async def of(self, bucket: str) -> Honoured:
        """What a bucket honours; two requests, the first time."""
        found = self._known.get(bucket)
        if found is not None:
            return found
        async with self._lock(bucket):
            found = self._known.get(bucket)
            if found is None:
                found = await self._looked(bucket)
                if len(self._known) >= BUCKETS_MAX:
                    self._known.clear()
                self._known[bucket] = found
                self._found(bucket, found)
        return found

    async def copying(self, bucket: str) -> bool:
        """Whether CopyObject refuses to replace what ``If-None-Match: *`` or ``If-Match`` forbids.

        Four requests with an object of our own, the first time. False where this identity may not
        try it, or while it is not known; then it is tried again with the next copy.
        """
        try:
            is_honoured = await self.tried(self._copying, bucket, self._copies_by_conditions)
        except UnifsError as error:
            if error.is_transient:
                raise
            log.debug("copies are not tried: bucket=%s error=%s", bucket, error)
            is_honoured = False
        if is_honoured:
            self._unguarded.discard(bucket)
        elif len(self._unguarded) < BUCKETS_MAX:
            self._unguarded.add(bucket)
        return is_honoured

    async def _copies_by_conditions(self, bucket: str, key: str) -> bool:
        copy = {
            "x-amz-copy-source": f"/{bucket}/{encoded(key, '/')}",
            "x-amz-metadata-directive": "REPLACE",
            **source_key_headers(self._service.options),
        }
        for condition in ({"if-none-match": "*"}, {"if-match": NEVER}):
            if not await self._is_refused("PUT", bucket, key, {**copy, **condition}):
                return False
        return True

    async def tried(
        self, known: dict[str, bool], bucket: str, look: Callable[[str, str], Awaitable[bool]]
    ) -> bool:
        """What ``look`` finds with an empty object of our own (bucket and key); once a bucket."""
        if bucket in known:
            return known[bucket]
        async with self._lock(bucket):
            # Of two who ask at once, the second finds it said.
            if bucket in known:
                return known[bucket]
            async with self._probe(bucket) as key:
                found = await look(bucket, key)
            if len(known) >= BUCKETS_MAX:
                known.clear()
            known[bucket] = found
        return found

    def _lock(self, bucket: str) -> trio.Lock:
        """One object at a time is tried on in a bucket."""
        if bucket not in self._locks and len(self._locks) >= BUCKETS_MAX:
            self._locks = {held: lock for held, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(bucket, trio.Lock())

    @asynccontextmanager
    async def _probe(self, bucket: str) -> AsyncIterator[str]:
        """The key of an empty object to try something on; it is removed in the end."""
        options, key = self._service.options, self._prefix + new_probe()
        said = {**write_headers(options), **key_headers(options)}
        is_denied = False
        try:
            try:
                await self._service.call(Request("PUT", bucket, key, headers=said))
            except PermissionDenied:
                is_denied = True
                raise
            yield key
        finally:
            if not is_denied:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await self._remove(bucket, key)

    async def sweep(self, bucket: str, now_s: float) -> int:
        """Remove the probes that earlier daemons left; how many there were."""
        page = await self._objects.page(bucket, {"prefix": self._prefix + PROBE})
        count = 0
        for found in page.objects:
            is_old = now_s - found.mtime_ns / 1e9 >= LEFT_S
            if is_old and not found.size_bytes and is_probe(found.key[len(self._prefix) :]):
                headers = {}
                if (await self.of(bucket)).removing:
                    headers = {"if-match": if_match(Version(found.etag))}
                await self._service.call(Request("DELETE", bucket, found.key, headers=headers))
                count += 1
        return count

    async def _looked(self, bucket: str) -> Honoured:
        """``_look``; PermissionDenied says what was tried, which nobody has asked for."""
        try:
            return await self._look(bucket)
        except PermissionDenied as error:
            where = f"below {self._prefix!r} in" if self._prefix else "at the top of"
            raise PermissionDenied(
                f"this identity may not store objects {where} the bucket {bucket!r}, where it is"
                f" tried what the service heeds ({error}); where it may write below a prefix only,"
                " name that in the settings",
                **error.context,
            ) from error

    async def _look(self, bucket: str) -> Honoured:
        key = self._prefix + new_probe()
        is_there = False
        try:
            replacing = await self._is_refused("PUT", bucket, key, {"if-match": NEVER})
            is_there = replacing is False
            creating = bool(replacing)
            if not replacing:
                if not is_there:
                    is_there = await self._is_refused("PUT", bucket, key, {}) is False
                refused = await self._is_refused("PUT", bucket, key, {"if-none-match": "*"})
                creating = bool(refused) and is_there
            removing = await self._is_refused("DELETE", bucket, key, {"if-match": NEVER})
            is_there = is_there and removing is not False
            return Honoured(bool(replacing), creating, bool(removing))
        finally:
            if is_there:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await self._remove(bucket, key)

    async def _remove(self, bucket: str, key: str) -> None:
        try:
            await self._service.call(Request("DELETE", bucket, key))
        except UnifsError as error:
            log.warning("the probe stays: bucket=%s key=%r error=%s", bucket, key, error)

    async def _is_refused(
        self, method: str, bucket: str, key: str, headers: dict[str, str]
    ) -> bool | None:
        """True: the condition was kept; False: it was not; None: the service knows none."""
        extra: dict[str, str] = {}
        if method == "PUT":
            # Some buckets deny what is not encrypted, or not in the right class.
            options = self._service.options
            extra = {**write_headers(options), **key_headers(options)}
        try:
            await self._service.call(Request(method, bucket, key, headers={**headers, **extra}))
        except Conflict:
            return True
        except NotFound as error:
            if error.context.get("s3_code") == "NoSuchBucket":
                raise
            return True
        except (Unsupported, InvalidArgument):
            return None
        return False
