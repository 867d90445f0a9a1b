"""Single objects: what HEAD says, ranged reads of one version, and lists of keys.

The calls that the other modules are made of. Each is one request; what a path is, they decide.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from unifs.errors import Conflict, Corrupt, InvalidArgument, NotFound, Stale, TryAgain
from unifs.mounts.s3.attributes import version_in, was
from unifs.mounts.s3.encryption import key_headers
from unifs.mounts.s3.listing import KeyPage, quoted_etag
from unifs.mounts.s3.service import Request
from unifs.mounts.s3.versions import id_of

if TYPE_CHECKING:
    from unifs.mounts.s3.service import Answer, Service
    from unifs.mounts.s3.sigv4 import Pairs
    from unifs.types import Version

#: Ranges up to this size are received into buffers that are used again: a fresh one costs its page
#: faults, about 100 µs per MiB.
SCRATCH_BYTES: Final = 1 << 20
SCRATCH_MAX: Final = 16
#: Objects whose version unifs's own copying changed, remembered until their readers know.
ALIASES_MAX: Final = 4096

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Objects:
    """The objects of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.key_headers = key_headers(service.options)
        #: The service's names of versions that are not the present ones any more.
        self._ids: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._scratch: list[bytearray] = []
        self._aliases: OrderedDict[tuple[str, str, str], Version] = OrderedDict()

    async def head(self, bucket: str, key: str) -> dict[str, str] | None:
        """The headers of an object, None where there is none."""
        try:
            request = Request("HEAD", bucket, key, headers=dict(self.key_headers))
            return (await self.service.call(request)).headers
        except NotFound:
            return None

    async def read(self, place: tuple[str, str], version: Version, offset: int, size: int) -> bytes:
        """``size`` bytes of that version, fewer at its end; Stale where it is gone."""
        bucket, key = place
        if not size:
            return b""
        known = self._aliases.get((bucket, key, version), version)
        version_id = self._ids.get((bucket, key, version), "")
        try:
            return await self._ranged(place, known, (offset, size), version_id)
        except (Conflict, NotFound) as error:
            current = await self._current(place, version)
            version_id = ""
            if current is None:
                version_id = await id_of(self.service, place, version) or ""
                if not version_id:
                    raise Stale(f"{key!r} is not what it was at {version}") from error
                self._ids[bucket, key, version] = version_id
                _trim(self._ids)
        try:
            return await self._ranged(place, current or version, (offset, size), version_id)
        except (Conflict, NotFound) as error:
            raise TryAgain(f"{key!r} is being written to") from error

    async def _ranged(
        self, place: tuple[str, str], version: Version, span: tuple[int, int], version_id: str
    ) -> bytes:
        offset, size = span
        headers = {
            "range": f"bytes={offset}-{offset + size - 1}",
            "if-match": if_match(version),
            **self.key_headers,
        }
        buffer = self._buffer(size)
        query = (("versionId", version_id),) if version_id else ()
        request = Request("GET", *place, query, headers, into=memoryview(buffer)[:size])
        try:
            answer = await self.service.call(request)
            _check_range(request, answer, version, offset)
            assert request.into is not None
            return bytes(request.into[: answer.size_bytes])
        except InvalidArgument as error:
            if error.context.get("s3_code") in ("InvalidRange", "416"):
                return b""
            raise
        finally:
            if len(buffer) == SCRATCH_BYTES and len(self._scratch) < SCRATCH_MAX:
                self._scratch.append(buffer)

    def _buffer(self, size: int) -> bytearray:
        if size > SCRATCH_BYTES:
            return bytearray(size)
        return self._scratch.pop() if self._scratch else bytearray(SCRATCH_BYTES)

    async def _current(self, place: tuple[str, str], version: Version) -> Version | None:
        """The version under which the bytes of ``version`` are there now; None: they are gone."""
        headers = await self.head(*place)
        if headers is None:
            return None
        current = version_in(headers)
        if version == current:
            return current
        if version not in was(headers):
            return None
        self.remember(place, version, current)
        return current

    def remember(self, place: tuple[str, str], version: Version, current: Version) -> None:
        """Reads of ``version`` are reads of ``current`` from now on."""
        self._aliases[*place, version] = current
        _trim(self._aliases)

    async def page(self, bucket: str, query: dict[str, str]) -> KeyPage:
        """One page of ListObjectsV2 with these parameters."""
        page = KeyPage()
        parameters: Pairs = (("list-type", "2"), ("encoding-type", "url"), *query.items())
        await self.service.call(Request("GET", bucket, query=parameters, sink=page.feed))
        page.close()
        return page

    async def first_keys(self, bucket: str, prefix: str, count: int) -> list[str]:
        """The first keys below a prefix."""
        page = await self.page(bucket, {"prefix": prefix, "max-keys": str(count)})
        return [found.key for found in page.objects]


def _check_range(request: Request, answer: Answer, version: Version, offset: int) -> None:
    """The answer is of that version and begins there, whatever was asked for."""
    if version_in(answer.headers) not in ("", version):
        raise Conflict(f"{request}: the answer is of another version")
    if answer.status == 206:
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != offset:
            raise Corrupt(f"{request}: the answer is of another range")
    elif offset:
        raise Corrupt(f"{request}: the service ignores ranges")


def _trim(known: OrderedDict[tuple[str, str, str], Any]) -> None:
    if len(known) > ALIASES_MAX:
        known.popitem(last=False)


def if_match(version: Version) -> str:
    """An If-Match header; what is no ETag matches nothing and is not sent."""
    if (
        not version.isascii()
        or not version.isprintable()
        or '"' in version.removeprefix('W/"')[:-1]
    ):
        raise Conflict(f"{version!r} is no version of an object")
    return quoted_etag(version)
