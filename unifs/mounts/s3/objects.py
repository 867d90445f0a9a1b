"""Single objects: what HEAD says, ranged reads of one version, and lists of keys.

The calls that the other modules are made of. Each is one request; what a path is, they decide.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from unifs.errors import Conflict, Corrupt, InvalidArgument, NotFound, Stale, TryAgain
from unifs.mounts.s3.attributes import version_in, was
from unifs.mounts.s3.encryption import key_headers
from unifs.mounts.s3.listing import KeyPage, quoted_etag
from unifs.mounts.s3.service import Request
from unifs.mounts.s3.versions import id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.mounts.s3.service import Service
    from unifs.mounts.s3.sigv4 import Pairs
    from unifs.types import Version

#: Objects whose version unifs's own copying changed, remembered until their readers know.
ALIASES_MAX: Final = 4096

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class _Range:
    """Where to begin in an object, and where its bytes go."""

    offset: int
    buffers: Sequence[memoryview]
    filled: Callable[[], None] | None = None

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.buffers))


class Objects:
    """The objects of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.key_headers = key_headers(service.options)
        #: The service's names of versions that are not the present ones any more.
        self._ids: OrderedDict[tuple[str, str, str], str] = OrderedDict()
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
        if not size:
            return b""
        buffer = bytearray(size)
        try:
            count = await self._pinned(place, version, _Range(offset, [memoryview(buffer)]))
        except InvalidArgument as error:
            if error.context.get("s3_code") in ("InvalidRange", "416"):
                return b""
            raise
        return bytes(memoryview(buffer)[:count])

    async def read_into(
        self,
        place: tuple[str, str],
        version: Version,
        offset: int,
        buffers: Sequence[memoryview],
        filled: Callable[[], None],
    ) -> None:
        """Fill ``buffers`` with that version's bytes; Stale if it is gone, Corrupt if it ends."""
        wanted = _Range(offset, buffers, filled)
        count = await self._pinned(place, version, wanted)
        if count != wanted.size_bytes:
            raise Corrupt(f"the service sent {count} bytes of {wanted.size_bytes} of {place[1]!r}")

    async def _pinned(self, place: tuple[str, str], version: Version, wanted: _Range) -> int:
        bucket, key = place
        known = self._aliases.get((bucket, key, version), version)
        version_id = self._ids.get((bucket, key, version), "")
        try:
            return await self._ranged(place, known, wanted, version_id)
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
            return await self._ranged(place, current or version, wanted, version_id)
        except (Conflict, NotFound) as error:
            raise TryAgain(f"{key!r} is being written to") from error

    async def _ranged(
        self, place: tuple[str, str], version: Version, wanted: _Range, version_id: str
    ) -> int:
        last = wanted.offset + wanted.size_bytes - 1
        headers = {
            "range": f"bytes={wanted.offset}-{last}",
            "if-match": if_match(version),
            **self.key_headers,
        }
        query = (("versionId", version_id),) if version_id else ()
        request = Request("GET", *place, query, headers, into=wanted.buffers, filled=wanted.filled)
        request.check = partial(_check_range, str(request), version, wanted.offset)
        return (await self.service.call(request)).size_bytes

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
        parameters: Pairs = (("list-type", "2"), ("encoding-type", "url"), *query.items())
        return KeyPage((await self.service.call(Request("GET", bucket, query=parameters))).body)

    async def first_keys(self, bucket: str, prefix: str, count: int) -> list[str]:
        """The first keys below a prefix."""
        page = await self.page(bucket, {"prefix": prefix, "max-keys": str(count)})
        return [found.key for found in page.objects]


def _check_range(
    request: str, version: Version, offset: int, status: int, headers: dict[str, str]
) -> None:
    """The answer is of that version and begins there, whatever was asked for."""
    if version_in(headers) not in ("", version):
        raise Conflict(f"{request}: the answer is of another version")
    if status == 206:
        found = _RANGE.fullmatch(headers.get("content-range", ""))
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
