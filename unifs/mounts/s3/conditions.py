"""Which conditions a service keeps: found out once per bucket, without touching anybody's object.

The look is a PUT with an ``If-Match`` that cannot match, to a key of a random name that does not
exist. A service that honours it refuses and stores nothing. One that does not stores an empty
object, on which the other conditions are tried before it is removed. Where a condition is not
kept, ``writing`` looks before it writes; between the two somebody else may write.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import Conflict, InvalidArgument, NotFound, UnifsError, Unsupported
from unifs.mounts.s3.encryption import key_headers
from unifs.mounts.s3.service import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.mounts.s3.service import Service

log = logging.getLogger(__name__)

BUCKETS_MAX: Final = 1024
PROBE: Final = ".unifs-probe-"
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
        self, service: Service, prefix: str, found: Callable[[str, Honoured], None]
    ) -> None:
        """``found`` hears of each bucket once."""
        self._service = service
        self._prefix = prefix
        self._found = found
        self._known: dict[str, Honoured] = {}
        self._looking = trio.Lock()

    def known(self) -> dict[str, Honoured]:
        """Bucket -> what it honours, where that is known."""
        return dict(self._known)

    async def of(self, bucket: str) -> Honoured:
        """What a bucket honours; two requests, the first time."""
        found = self._known.get(bucket)
        if found is not None:
            return found
        async with self._looking:
            found = self._known.get(bucket)
            if found is None:
                found = await self._look(bucket)
                if len(self._known) >= BUCKETS_MAX:
                    self._known.clear()
                self._known[bucket] = found
                self._found(bucket, found)
        return found

    async def _look(self, bucket: str) -> Honoured:
        key = f"{self._prefix}{PROBE}{secrets.token_hex(8)}"
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
        extra = key_headers(self._service.options) if method == "PUT" else {}
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
