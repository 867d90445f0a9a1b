"""Earlier versions of objects, where a bucket keeps them: told and read.

A reader who pinned a version that was replaced meanwhile still gets its bytes from such a bucket
(``id_of``); the control plane lists, reads and (by ``copies``) restores them, and
``/.unifs/versions`` shows them. A service tells versions by its own ids, "null" being the one of a
bucket that keeps none; unifs's own versions are ETags, and the newest id with that ETag is meant.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unifs.errors import Corrupt, NotFound, PermissionDenied, Unsupported
from unifs.mounts.s3.attributes import size_in, version_in
from unifs.mounts.s3.encryption import key_headers
from unifs.mounts.s3.listing import key_in, moment_ns, parsed, plain_etag, quoted_etag
from unifs.mounts.s3.service import Request
from unifs.types import Version

if TYPE_CHECKING:
    from unifs.mounts.s3.service import Service

log = logging.getLogger(__name__)

#: Versions in one answer, the most that services give.
PAGE_VERSIONS: Final = 1000
#: Versions of one object that are told, the newest.
VERSIONS_MAX: Final = 10_000

_KINDS: Final = ("Version", "DeleteMarker")


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object; ``version`` is its ETag, ``id`` the service's name for it.

    ``is_deleted``: it marks that the object was deleted, and has no bytes.
    """

    id: str
    version: Version
    size_bytes: int
    mtime_ns: int
    is_latest: bool
    is_deleted: bool = False
    key: str = ""


class VersionPage:
    """One answer to ListObjectVersions, in the service's order: by key, the newest first."""

    def __init__(self, body: bytes) -> None:
        root, space = parsed(body)
        said = {each.tag.removeprefix(space): each.text or "" for each in root if not len(each)}
        is_encoded = said.get("EncodingType", "").strip() == "url"
        try:
            self.versions = [
                _version(
                    each.tag.removeprefix(space),
                    {field.tag.removeprefix(space): field.text or "" for field in each},
                    is_encoded,
                )
                for each in root
                if each.tag.removeprefix(space) in _KINDS
            ]
        except (KeyError, ValueError) as error:
            raise Corrupt(f"a version in the service's listing is incomplete: {error!r}") from error
        prefixes = (each.findtext(f"{space}Prefix") for each in root.iter(f"{space}CommonPrefixes"))
        self.prefixes = [key_in(prefix, is_encoded) for prefix in prefixes if prefix]
        #: Where the next page begins: a key and an id; None at the end.
        self.after: tuple[str, str] | None = None
        if said.get("IsTruncated", "").strip() == "true":
            key = key_in(said.get("NextKeyMarker", ""), is_encoded)
            self.after = (key, said.get("NextVersionIdMarker", ""))


def _version(kind: str, told: dict[str, str], is_encoded: bool) -> ObjectVersion:
    return ObjectVersion(
        id=told.get("VersionId", ""),
        version=Version(plain_etag(told.get("ETag", ""))),
        size_bytes=int(told.get("Size", "0")),
        mtime_ns=moment_ns(told["LastModified"]),
        is_latest=told.get("IsLatest", "") == "true",
        is_deleted=kind == "DeleteMarker",
        key=key_in(told["Key"], is_encoded),
    )


async def version_page(
    service: Service,
    place: tuple[str, str],
    delimiter: str = "",
    after: tuple[str, str] | None = None,
    limit: int = PAGE_VERSIONS,
) -> VersionPage:
    """The versions of all keys that begin so; with a delimiter only up to it."""
    bucket, prefix = place
    query = {
        "versions": "",
        "encoding-type": "url",
        "max-keys": str(limit),
        "prefix": prefix,
    }
    if delimiter:
        query["delimiter"] = delimiter
    if after is not None:
        query["key-marker"], query["version-id-marker"] = after
    given = tuple((name, value) for name, value in query.items() if value or name == "versions")
    answer = await service.call(Request("GET", bucket, query=given))
    return VersionPage(answer.body)


async def versions_of(
    service: Service, place: tuple[str, str], limit: int = VERSIONS_MAX
) -> list[ObjectVersion]:
    """The versions of one object, newest first, deletions among them; empty where there is none."""
    key = place[1]
    found: list[ObjectVersion] = []
    after: tuple[str, str] | None = None
    while True:
        # A key comes before all that begin with it.
        page = await version_page(service, place, after=after)
        found += [one for one in page.versions if one.key == key]
        is_over = not page.versions or page.versions[-1].key != key
        if page.after is None or is_over or len(found) >= limit:
            # moto tells deletions last; where times are the same, the service's order is kept.
            return sorted(found[:limit], key=lambda one: (not one.is_latest, -one.mtime_ns))
        after = page.after


async def id_of(service: Service, place: tuple[str, str], version: Version) -> str | None:
    """The service's id for an ETag; None where the bucket has no such version any more."""
    try:
        found = await versions_of(service, place, PAGE_VERSIONS)
    except (NotFound, PermissionDenied, Unsupported) as error:
        log.debug("no versions to be had: place=%r error=%s", place, error)
        return None
    ids = [
        one.id
        for one in found
        if one.version == version and one.id not in ("", "null") and not one.is_deleted
    ]
    return ids[0] if ids else None


async def version_with(service: Service, place: tuple[str, str], version_id: str) -> ObjectVersion:
    """The version of that id; NotFound where there is none, or where it is a deletion."""
    found = [one for one in await versions_of(service, place) if one.id == version_id]
    if not found:
        raise NotFound(f"{place[1]!r} has no version {version_id!r}")
    if found[0].is_deleted:
        raise NotFound(f"the version {version_id!r} of {place[1]!r} is its deletion: no bytes")
    return found[0]


async def read_version(
    service: Service, place: tuple[str, str], one: ObjectVersion, offset: int, size: int
) -> bytes:
    """``size`` bytes of a version, fewer at its end."""
    size = min(size, one.size_bytes - offset)
    if size <= 0:
        return b""
    headers = {
        "range": f"bytes={offset}-{offset + size - 1}",
        "if-match": quoted_etag(one.version),
        **key_headers(service.options),
    }
    buffer = bytearray(size)
    query = (("versionId", one.id),)
    request = Request("GET", *place, query, headers, into=[memoryview(buffer)])
    answer = await service.call(request)
    is_range = answer.status == 206 or not offset
    if not is_range or answer.size_bytes != size or version_in(answer.headers) != one.version:
        raise Corrupt(f"{request}: the answer is not the version that was asked for")
    return bytes(buffer)


async def headers_of(
    service: Service, place: tuple[str, str], one: ObjectVersion
) -> dict[str, str]:
    """What HEAD says of a version."""
    query = (("versionId", one.id),)
    head = await service.call(Request("HEAD", *place, query, key_headers(service.options)))
    if size_in(head.headers) != one.size_bytes:
        raise Corrupt(f"the version {one.id!r} has not the size that the listing tells")
    return head.headers
