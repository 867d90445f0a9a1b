"""Objects' headers and metadata as nodes of the tree, and back.

What unifs itself leaves in an object's metadata, always:

    unifs-token    the daemon's start and the journal record that stored the object: how a repeated
                   put knows itself. Of a directory's marker also a parameter of its content type,
                   which is the only thing that SeaweedFS keeps of a marker
    unifs-was      versions it had before unifs copied it (a copy may have another ETag), last first

With ``keeps_cid`` ``unifs-cid``, the CID of the bytes, where it is known when they are sent.

With ``keeps_attributes`` also the convention of s3fs, whose ``mtime`` rclone reads too: ``mode``
(decimal, with the file type), ``uid``, ``gid``, ``mtime`` (seconds, with a fraction). A symlink is
an object with the mode of one whose body is its target. A directory's stand in its marker's.
"""

from __future__ import annotations

import re
import stat
from decimal import Decimal
from mimetypes import MimeTypes
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from unifs.errors import Corrupt
from unifs.mounts.s3.errors import date_s
from unifs.mounts.s3.listing import plain_etag
from unifs.types import SYMLINK_MAX_BYTES, Node, Version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unifs.mounts.s3.options import S3Options
    from unifs.types import SetAttributes

META: Final = "x-amz-meta-"
TOKEN: Final = "x-amz-meta-unifs-token"
WAS: Final = "x-amz-meta-unifs-was"
#: The CID of the object's bytes, as whoever wrote it says; unifs itself believes none.
CID: Final = "x-amz-meta-unifs-cid"
MODE: Final = "x-amz-meta-mode"
MTIME: Final = "x-amz-meta-mtime"
OWNER: Final = {"uid": "x-amz-meta-uid", "gid": "x-amz-meta-gid"}

#: Headers that belong to an object and that a copy with new metadata would lose.
KEPT_HEADERS: Final = (
    "content-type",
    "content-encoding",
    "content-language",
    "content-disposition",
    "cache-control",
    "expires",
)
#: Copies in a row that somebody who knows the first version still understands.
WAS_MAX: Final = 8
DIRECTORY: Final = Node(stat.S_IFDIR | 0o755)
#: What the marker of a directory says it is; s3fs knows it, with parameters too.
DIRECTORY_TYPE: Final = "application/x-directory"
_MARKED = re.compile(r'application/x-directory; *unifs-token="([^"]*)"')
_MODE = re.compile(r"[0-9]{1,9}")
#: As rclone writes that of a regular file: in octal. In decimal no mode is so large.
_OCTAL_MODE = re.compile(r"10[0-7]{4}")
_MTIME = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?")
_TYPES: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK)


def token_in(headers: Mapping[str, str]) -> str:
    """The token of the change that stored an object or a marker; "" where it was not unifs."""
    found = _MARKED.fullmatch(headers.get("content-type", ""))
    return headers.get(TOKEN, "") or (unquote(found[1]) if found else "")


def marker_headers(token: str) -> dict[str, str]:
    """What a directory's marker says of itself; without a token it is nobody's change."""
    if not token:
        return {"content-type": DIRECTORY_TYPE}
    kind = f'{DIRECTORY_TYPE}; unifs-token="{quote(token, safe="")}"'
    return {"content-type": kind, TOKEN: token}


def version_in(headers: Mapping[str, str]) -> Version:
    """The version that an answer's ETag names."""
    return Version(plain_etag(headers.get("etag", "")))


def size_in(headers: Mapping[str, str]) -> int:
    """The object's size as HEAD tells it."""
    text = headers.get("content-length", "")
    if not (text.isascii() and text.isdecimal()):
        raise Corrupt("the service tells no size of an object")
    return int(text)


def node_in(headers: Mapping[str, str], is_keeping: bool) -> Node:
    """The node of an object from the answer to its HEAD; ``target`` is not in it."""
    mtime_ns = modified_ns(headers)
    mode, has_permissions = stat.S_IFREG | 0o644, False
    if is_keeping:
        kept = _mtime_ns(headers.get(MTIME, ""))
        mtime_ns = mtime_ns if kept is None else kept
        told = _mode(headers.get(MODE, ""))
        if told is not None and not stat.S_ISDIR(told):
            mode, has_permissions = told, True
    version = version_in(headers)
    return Node(mode, size_in(headers), version, mtime_ns, has_permissions)


def directory_in(headers: Mapping[str, str]) -> Node:
    """The node of a directory whose marker answers so."""
    told = _mode(headers.get(MODE, ""))
    if told is None or not stat.S_ISDIR(told):
        return DIRECTORY
    return Node(told, has_permissions=True)


def modified_ns(headers: Mapping[str, str]) -> int | None:
    """Last-Modified in nanoseconds."""
    moment = date_s(headers.get("last-modified", ""))
    return None if moment is None else int(moment) * 1_000_000_000


def was(headers: Mapping[str, str]) -> list[str]:
    """Versions of the same bytes under other ETags, which readers and writers may still know."""
    return headers.get(WAS, "").split()


def copied(headers: Mapping[str, str]) -> dict[str, str]:
    """What a copy that replaces the metadata must say again, from the answer to HEAD."""
    kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
    kept |= {name: value for name, value in headers.items() if name.startswith(META)}
    version = version_in(headers)
    if "-" in version or "x-amz-server-side-encryption" in headers:
        # The ETag of parts, or of encrypted bytes, is not the copy's.
        kept[WAS] = " ".join([version, *was(headers)][:WAS_MAX])
    return kept


def _mode(text: str) -> int | None:
    if not _MODE.fullmatch(text):
        return None
    mode = int(text, 8 if _OCTAL_MODE.fullmatch(text) else 10)
    if not stat.S_IFMT(mode):
        # rclone and older tools leave the type out.
        mode |= stat.S_IFREG
    return mode if stat.S_IFMT(mode) in _TYPES and mode < 1 << 16 else None


def _mtime_ns(text: str) -> int | None:
    return int(Decimal(text) * 1_000_000_000) if _MTIME.fullmatch(text) else None


def mtime_text(mtime_ns: int) -> str:
    """Seconds with a fraction, as rclone writes them."""
    return f"{mtime_ns // 1_000_000_000}.{mtime_ns % 1_000_000_000:09d}"


def told(changes: SetAttributes, file_type: int) -> dict[str, str]:
    """The metadata headers for changed attributes."""
    headers: dict[str, str] = {}
    if changes.mode is not None:
        headers[MODE] = str(file_type | stat.S_IMODE(changes.mode))
    if changes.uid is not None:
        headers[OWNER["uid"]] = str(changes.uid)
    if changes.gid is not None:
        headers[OWNER["gid"]] = str(changes.gid)
    if changes.mtime_ns is not None and changes.mtime_ns >= 0:
        headers[MTIME] = mtime_text(changes.mtime_ns)
    return headers


def target_in(body: bytes) -> bytes:
    """The target of a symlink from its object's body."""
    if not body or len(body) > SYMLINK_MAX_BYTES or b"\0" in body:
        raise Corrupt("an object that says it is a symlink has no target")
    return body


class ContentTypes:
    """What a new object says it is, by the ending of its key."""

    def __init__(self) -> None:
        self._types = MimeTypes(filenames=())

    def of(self, key: str) -> str:
        """A media type, application/octet-stream where nothing better is known."""
        kind, encoding = self._types.guess_type(f"x/{key.rpartition('/')[2]}", strict=True)
        return kind if kind and not encoding else "application/octet-stream"


def write_headers(options: S3Options) -> dict[str, str]:
    """What every request that stores an object says, by the mount's options."""
    headers: dict[str, str] = {}
    if options.storage_class:
        headers["x-amz-storage-class"] = options.storage_class
    if options.encryption == "s3":
        headers["x-amz-server-side-encryption"] = "AES256"
    elif options.encryption == "kms":
        headers["x-amz-server-side-encryption"] = "aws:kms"
        if options.encryption_key:
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = options.encryption_key
    return headers
