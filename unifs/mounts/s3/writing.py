"""Storing single objects, so that nobody's change is overwritten.

``put`` is one PUT with ``If-None-Match: *`` or ``If-Match``. A service that refuses it is asked
what stands there: our own token means that an earlier attempt arrived, a version that unifs's own
copying made of ``base`` is tried again, anything else is a conflict. Where a bucket does not keep
conditions (``conditions``) the look comes first.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING, Final

from unifs.errors import (
    Conflict,
    Exists,
    InvalidArgument,
    IsADirectory,
    NotFound,
    TryAgain,
    Unsupported,
)
from unifs.mounts.base import attributes_of, cid_of
from unifs.mounts.s3.attributes import (
    CID,
    DIRECTORY,
    MODE,
    MTIME,
    TOKEN,
    ContentTypes,
    marker_headers,
    mtime_text,
    token_in,
    told,
    version_in,
    was,
    write_headers,
)
from unifs.mounts.s3.objects import if_match
from unifs.mounts.s3.payload import BytesPayload, checksum_headers, hashed
from unifs.mounts.s3.service import Request
from unifs.types import Node, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.mounts.base import ContentReader
    from unifs.mounts.blocking import Blocking
    from unifs.mounts.s3.conditions import Conditions
    from unifs.mounts.s3.reading import Reading

    Place = tuple[str, str]
    Send = Callable[[dict[str, str]], Awaitable[Version]]

#: Up to here an object is one PUT, above it is parts.
SINGLE_BYTES: Final = 16 << 20
#: Special files that have nothing but a mode.
SPECIAL: Final = (stat.S_IFIFO, stat.S_IFSOCK)


class Writing:
    """put and make of single objects for one mount."""

    def __init__(
        self,
        reading: Reading,
        conditions: Conditions,
        blocking: Blocking,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.reading = reading
        self.objects = reading.objects
        self.service = reading.objects.service
        self.directories = reading.directories
        self.conditions = conditions
        self.blocking = blocking
        self.now_ns = now_ns
        self.options = self.service.options
        self._types = ContentTypes()
        #: Whether this service's ETags are MD5s, as far as is known.
        self._has_md5 = not self.options.encryption

    # --- put --------------------------------------------------------------------------------------

    async def place_for(self, path: str, base: Version | None) -> Place:
        """Where the file at ``path`` is stored; an error where there can be no file."""
        if self.reading.places.is_top(path):
            raise IsADirectory(f"{path!r} is a bucket or the root; files live in buckets")
        place = self.reading.places.object_at(path)
        await self.directories.need_above(path)
        if base is None and not await self.directories.is_free(path):
            raise IsADirectory(f"{path!r} is a directory")
        return place

    async def put_single(
        self, place: Place, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        """One PUT, conditional on ``base``."""
        checksum = self.options.checksum
        payload = await hashed(content, (0, content.size_bytes), self.blocking, checksum)
        if place[1].endswith("/") and not payload.size_bytes:
            raise InvalidArgument("an empty object with that key would be a directory's marker")
        headers = self.content_headers(place[1], content, token)
        headers |= checksum_headers(checksum, payload)

        async def send(condition: dict[str, str]) -> Version:
            request = Request("PUT", *place, headers={**headers, **condition}, body=payload)
            return version_in((await self.service.call(request)).headers)

        version = await self.stored(place, base, token, send)
        if isinstance(version, Node):
            return version
        if self._has_md5 and version != await payload.md5(self.blocking):
            version = await self._confirmed(place, version, token)
        return self.new_node(payload.size_bytes, version, headers)

    async def _confirmed(self, place: Place, version: Version, token: str) -> Version:
        """An ETag that is not the body's MD5: the service's way, or an answer gone wrong."""
        headers = await self.objects.head(*place)
        if headers is None or token_in(headers) != token:
            return version
        current = version_in(headers)
        self._has_md5 = current != version
        return current

    def new_headers(self, key: str, token: str) -> dict[str, str]:
        """What a new object says of itself."""
        headers = {"content-type": self._types.of(key), TOKEN: token}
        if self.options.keeps_attributes:
            headers[MTIME] = mtime_text(self.now_ns())
        return {**headers, **write_headers(self.options), **self.objects.key_headers}

    def content_headers(self, key: str, content: ContentReader, token: str) -> dict[str, str]:
        """``new_headers``, and what is to be told of a content and known: its CID, whose it is.

        Told later, attributes cost a copy, and a version more where the bucket keeps versions.
        """
        headers = self.new_headers(key, token)
        attributes = attributes_of(content) if self.options.keeps_attributes else None
        if attributes is not None:
            headers |= told(attributes, stat.S_IFREG)
        cid = cid_of(content) if self.options.keeps_cid else ""
        return headers | {CID: cid} if cid else headers

    def new_node(self, size_bytes: int, version: Version, headers: dict[str, str]) -> Node:
        """The node of what was stored. Without attributes S3 tells no time before it is asked."""
        mtime = headers.get(MTIME)
        mtime_ns = None
        if mtime is not None:
            seconds, _, fraction = mtime.partition(".")
            mtime_ns = int(seconds) * 1_000_000_000 + int(fraction)
        return Node(stat.S_IFREG | 0o644, size_bytes, version, mtime_ns)

    async def stored(
        self, place: Place, base: Version | None, token: str, send: Send
    ) -> Version | Node:
        """Bring something to ``place`` by ``send``, which takes the headers of the condition.

        The new version; the node, where an earlier attempt turns out to have arrived.
        """
        honoured = await self.conditions.of(place[0])
        is_honoured = honoured.creating if base is None else honoured.replacing
        return await self.stored_if(is_honoured, (place, base, token), send)

    async def stored_if(
        self, is_honoured: bool, what: tuple[Place, Version | None, str], send: Send
    ) -> Version | Node:
        """``stored`` where it is known whether the service keeps the condition."""
        place, base, token = what
        if not is_honoured:
            there = await self.there(place, base, token)
            if isinstance(there, Node):
                return there
            return await send({})
        try:
            return await send(condition_of(base))
        except (Conflict, NotFound) as error:
            if error.context.get("s3_code") == "NoSuchBucket":
                raise
            there = await self.there(place, base, token)
            if isinstance(there, Node):
                return there
            if base is None and await self.directories.clear(*place):
                return await send(await self._condition_over_nothing(place))
            if there == base:
                # Somebody else's request was under way, or undone.
                raise TryAgain(f"{place[1]!r} is being written to") from error
        return await send(condition_of(there))

    async def _condition_over_nothing(self, place: Place) -> dict[str, str]:
        """The condition for a new object where a directory of nothing was, or still is.

        One that has others of its kind in it cannot be removed, and no condition holds there: two
        looks have found nothing then.
        """
        is_there = await self.objects.head(place[0], f"{place[1]}/") is not None
        return {} if is_there else condition_of(None)

    async def there(self, place: Place, base: Version | None, token: str) -> Version | Node | None:
        """What stands at ``place``: the version to replace, or the node of our own attempt."""
        headers = await self.objects.head(*place)
        if headers is None:
            if base is None:
                return None
            raise Conflict(f"{place[1]!r} was removed by somebody")
        if token_in(headers) == token:
            # No PUT's answer confirms this version; a wrong one would make all that follows one of
            # somebody else's.
            again = await self.objects.head(*place)
            if again is None or version_in(again) != version_in(headers):
                raise TryAgain(f"{place[1]!r} is being written to")
            return await self.reading.node_of(place, headers)
        version = version_in(headers)
        if base is not None and (base == version or base in was(headers)):
            return version
        raise Conflict(f"{place[1]!r} was changed by somebody")

    # --- make -------------------------------------------------------------------------------------

    async def make_directory(self, path: str, node: Node, token: str) -> Node:
        """Make a directory: a marker."""
        bucket, prefix = self.reading.places.prefix_at(path)
        if not prefix.endswith("/"):
            raise InvalidArgument(f"{path!r} stands for a part of a key")
        self.reading.places.object_at(path)
        await self.directories.need_above(path)
        if await self.objects.head(bucket, prefix[:-1]) is not None:
            raise Exists(f"{path!r} is a file")
        metadata = marker_headers(token)
        if self.options.keeps_attributes:
            metadata[MODE] = str(node.mode)
        keys = await self.objects.first_keys(bucket, prefix, 1)
        try:
            if keys:
                raise Conflict(f"{path!r} is there")
            await self.directories.mark(bucket, prefix, metadata)
        except Conflict as error:
            headers = await self.objects.head(bucket, prefix)
            if headers is not None and token_in(headers) == token:
                self.directories.seen(path, is_marked=True)
            elif not await self.objects.first_keys(bucket, prefix, 1):
                # A directory of nothing (``Directories.clear``): it becomes this one.
                await self.directories.mark(bucket, prefix, metadata, is_new=False)
                self.directories.made(path)
            else:
                raise Exists(f"{path!r} is there") from error
        else:
            self.directories.made(path)
        return await self.reading.stat(path) if self.options.keeps_attributes else DIRECTORY

    async def make_special(self, path: str, node: Node, token: str) -> Node:
        """Make a symlink, FIFO or socket as s3fs does: an object whose metadata says so."""
        kind = stat.S_IFMT(node.mode)
        if not self.options.keeps_attributes or kind not in (stat.S_IFLNK, *SPECIAL):
            raise Unsupported("S3 keeps no such file without keep_attributes")
        try:
            place = await self.place_for(path, None)
        except IsADirectory as error:
            raise Exists(f"{path!r} is a directory") from error
        target = node.target or b""
        payload = BytesPayload(target)
        headers = {**self.new_headers(place[1], token), MODE: str(node.mode)}

        async def send(condition: dict[str, str]) -> Version:
            request = Request("PUT", *place, headers={**headers, **condition}, body=payload)
            return version_in((await self.service.call(request)).headers)

        try:
            version = await self.stored(place, None, token, send)
        except Conflict as error:
            raise Exists(f"{path!r} is there") from error
        if isinstance(version, Node):
            return version
        made = self.new_node(len(target), version, headers)
        link = target if kind == stat.S_IFLNK else None
        return Node(node.mode, made.size_bytes, version, made.mtime_ns, True, link)


def condition_of(base: Version | None) -> dict[str, str]:
    """The headers with which nothing but ``base`` is replaced."""
    return {"if-none-match": "*"} if base is None else {"if-match": if_match(base)}
