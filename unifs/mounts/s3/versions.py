"""Earlier versions of objects, where a bucket keeps them.

A reader who pinned a version that was replaced meanwhile still gets its bytes from such a bucket;
``mount`` shows and restores versions for the control plane. A service tells versions by its own
ids; unifs's are ETags, and the newest id with that ETag is meant.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unifs.errors import NotFound, PermissionDenied, Unsupported
from unifs.mounts.s3.listing import key_in, moment_ns, plain_etag, records
from unifs.mounts.s3.service import Request
from unifs.types import Version

if TYPE_CHECKING:
    from unifs.mounts.s3.service import Service

log = logging.getLogger(__name__)

#: Versions of one object that are looked at, the newest.
VERSIONS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object; ``version`` is its ETag, ``id`` the service's name for it."""

    id: str
    version: Version
    size_bytes: int
    mtime_ns: int
    is_latest: bool


async def versions_of(service: Service, place: tuple[str, str]) -> list[ObjectVersion]:
    """The versions of one object, newest first; empty where there is none, or only deleted ones."""
    bucket, key = place
    query = (
        ("versions", ""),
        ("encoding-type", "url"),
        ("max-keys", str(VERSIONS_MAX)),
        ("prefix", key),
    )
    answer = await service.call(Request("GET", bucket, query=query))
    said = records(answer.body, "Version")
    is_encoded = said.last.get("EncodingType", "") == "url"
    return [
        ObjectVersion(
            fields.get("VersionId", ""),
            Version(plain_etag(fields.get("ETag", ""))),
            int(fields.get("Size", "0")),
            moment_ns(fields["LastModified"]),
            fields.get("IsLatest", "") == "true",
        )
        for fields in said.found
        if key_in(fields.get("Key", ""), is_encoded) == key
    ]


async def id_of(service: Service, place: tuple[str, str], version: Version) -> str | None:
    """The service's id for an ETag; None where the bucket has no such version any more."""
    try:
        found = await versions_of(service, place)
    except (NotFound, PermissionDenied, Unsupported) as error:
        log.debug("no versions to be had: place=%r error=%s", place, error)
        return None
    ids = [one.id for one in found if one.version == version and one.id not in ("", "null")]
    return ids[0] if ids else None
