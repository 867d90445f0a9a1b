"""Keys of objects and paths of the tree: which stands for which.

A key is text (UTF-8; here a ``str`` with surrogateescape, for services that allow other bytes) cut
at "/" into segments. A path is cut into names, and a name is bytes, not empty, not "." or "..",
without NUL, at most 255 long. Ordinary segments are names as they are. For the others there is one
escape, ``%%`` and what follows it:

    segment                            name
    ------------------------------     ------------------------------------------------------------
    empty ("a//b", "/b")               ``%%``
    "." and ".."                       ``%%2E`` and ``%%2E.``
    NUL                                ``%%00``
    a byte that is not UTF-8 (FF)      ``%%FF``; and the *name* with the byte FF is the key ``%%FF``
    text that looks like an escape     its first ``%`` is ``%%25``: ``50%%2F`` is ``50%%25%2F``
    over 255 bytes                     several names, one in the other, all but the last ending in
                                       ``%%+``: such a directory stands for a part of a segment
    both an object and a prefix        the object is ``k``, the directory ``k%%``; where that has
                                       over 255 bytes, in parts as any long name

A key that ends in "/" and has no bytes is the marker of a directory and has no name of its own. One
with bytes is the object ``%%`` in that directory. So every key has one path and no two have the
same; ``test_names`` proves it by generated keys. A name that no key would be shown as (``a%%2Fb``),
and one that is shown only beside something else (``a%%``, ``a%%+``), is refused when somebody makes
it.

Pure functions; ``mount`` and ``listing`` call them.
"""

from __future__ import annotations

import os
import re
import secrets
from typing import TYPE_CHECKING, Final

from unifs.errors import InvalidArgument, NameTooLong, NotFound, NotPermitted
from unifs.types import NAME_MAX_BYTES

if TYPE_CHECKING:
    from unifs.mounts.s3.options import S3Options

KEY_MAX_BYTES: Final = 1024
#: A name that is a part of a segment has so many bytes at most, and the mark.
PART_BYTES: Final = 252
PART: Final = "%%+"
ESCAPE: Final = "%%"

_ESCAPED = re.compile("%%([0-9A-F]{2})|([\udc80-\udcff])")
_SPECIAL = re.compile("%%([0-9A-F]{2})|([\udc80-\udcff])|\0")
#: What services old and new have allowed in the name of a bucket.
_BUCKET = re.compile("[A-Za-z0-9._-]{1,255}")
#: What a new one may be called: 3 to 63 of these, a letter or digit first and last.
_NEW_BUCKET = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_TOKEN = re.compile("%%[0-9A-F]{2}|.", re.DOTALL)


def names_of(segment: str) -> tuple[str, ...]:
    """The names that one segment of a key is shown as; one, unless it is too long for a name."""
    if segment.isascii() and len(segment) <= NAME_MAX_BYTES and _is_plain(segment):
        return (segment,)
    name = _name_of(segment)
    if len(_bytes(name)) <= NAME_MAX_BYTES:
        return (name,)
    return _parts(name)


def names_beside(segment: str) -> tuple[str, ...]:
    """The names of the directory of a segment that is an object's too; one, if there is room."""
    name = _name_of(segment) + ESCAPE
    return (name,) if len(_bytes(name)) <= NAME_MAX_BYTES else _parts(name)


def _is_plain(segment: str) -> bool:
    if "%%" in segment or "\0" in segment:
        return False
    return segment not in ("", ".", "..")


def _name_of(segment: str) -> str:
    if segment in ("", ".", ".."):
        return {"": ESCAPE, ".": "%%2E", "..": "%%2E."}[segment]
    shown = _shown(segment)
    if shown.endswith(PART):
        return f"{shown[:-3]}%%25%+"
    return f"{shown[:-2]}%%25%" if shown.endswith(ESCAPE) else shown


def _shown(segment: str) -> str:
    """The segment with its escapes; what stands before a place never depends on what follows."""
    pieces: list[str] = []
    at, run = 0, b""
    for found in _SPECIAL.finditer(segment):
        if found.start() > at:
            pieces.append(segment[at : found.start()])
            run = b""
        at = found.end()
        value = int(found[1], 16) if found[1] else 0
        longer = run + bytes((value,))
        if value >= 0x80 and len(_text(longer)) == len(longer):
            pieces.append(chr(0xDC00 + value))
            run = longer
            continue
        # Below 0x80, or the last byte of what would be a character: the text means itself.
        run = b""
        pieces.append(f"%%25%{found[1]}" if found[1] else f"%%{ord(found[0]) & 0xFF:02X}")
    pieces.append(segment[at:])
    return "".join(pieces)


def _segment_of(name: str) -> str:
    """What the escapes in a name stand for; no check that this is the name it is shown as."""
    return _ESCAPED.sub(_meant, name)


def _meant(found: re.Match[str]) -> str:
    if found[1] is None:
        return f"%%{ord(found[0]) & 0xFF:02X}"
    value = int(found[1], 16)
    return chr(value) if value < 0x80 else chr(0xDC00 + value)


def _parts(name: str) -> tuple[str, ...]:
    parts: list[str] = []
    tokens = _TOKEN.findall(name)
    left = len(_bytes(name))
    taken, size = "", 0
    for token in tokens:
        length = len(_bytes(token))
        if left > NAME_MAX_BYTES and size + length > PART_BYTES:
            parts.append(taken + PART)
            left -= size
            taken, size = "", 0
        taken, size = taken + token, size + length
    return (*parts, taken)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# --- paths to keys --------------------------------------------------------------------------------


def key_of(path: str) -> str:
    """The key of the object at ``path``; InvalidArgument where no object is shown there."""
    if _is_ordinary(path):
        return _bounded(path)
    names = path.split("/")
    prefix, parts = _walked(names[:-1])
    parts.append(names[-1])
    segment = _joined(parts, names[-1])
    return _bounded(prefix + segment)


def prefix_of(path: str) -> str:
    """What all keys in the directory at ``path`` begin with; "" for the root."""
    if not path:
        return ""
    if _is_ordinary(path):
        return _bounded(f"{path}/")
    prefix, parts = _walked(path.split("/"))
    if not parts:
        return _bounded(prefix)
    start = "".join(_segment_of(part.removesuffix(PART)) for part in parts)
    return _bounded(prefix + start)


def is_part(path: str) -> bool:
    """Whether the directory at ``path`` stands for a part of a segment."""
    return path.endswith(PART) and not _is_ordinary(path)


def parts_of(path: str) -> int:
    """How many names at the end of ``path`` are parts of the segment that goes on below."""
    count = 0
    for name in reversed(path.split("/")):
        if not name.endswith(PART):
            break
        count += 1
    return count


def is_beside_object(path: str) -> bool:
    """Whether the directory at ``path`` is shown so because an object has its plain name."""
    name = path.rpartition("/")[2]
    return name.endswith(ESCAPE) and name != ESCAPE


def _is_ordinary(path: str) -> bool:
    return ESCAPE not in path and (path.isascii() or not _ESCAPED.search(path))


def _walked(names: list[str]) -> tuple[str, list[str]]:
    """The prefix of a directory, and the parts of a segment at its end that goes on below."""
    prefix, parts = "", list[str]()
    for name in names:
        parts.append(name)
        if name.endswith(PART):
            continue
        is_beside = name.endswith(ESCAPE) and name != ESCAPE
        prefix += (_beside if is_beside else _joined)(parts, name) + "/"
        parts = []
    return prefix, parts


def _joined(parts: list[str], shown: str) -> str:
    if parts[-1] == ESCAPE and len(parts) == 1:
        return ""
    segment = "".join(_segment_of(part.removesuffix(PART)) for part in parts)
    if names_of(segment) != tuple(parts) or _text(_bytes(segment)) != segment:
        raise InvalidArgument(f"{shown!r} is unifs's way of writing keys, and no key is shown so")
    return segment


def _beside(parts: list[str], shown: str) -> str:
    """``_joined`` for the directory beside an object."""
    plain = [*parts[:-1], parts[-1][: -len(ESCAPE)]]
    if plain == [ESCAPE]:
        return ""
    segment = "".join(_segment_of(part.removesuffix(PART)) for part in plain)
    if names_beside(segment) != tuple(parts) or _text(_bytes(segment)) != segment:
        raise InvalidArgument(f"{shown!r} is unifs's way of writing keys, and no key is shown so")
    return segment


def _bounded(key: str) -> str:
    if len(key) > KEY_MAX_BYTES // 4 and len(_bytes(key)) > KEY_MAX_BYTES:
        raise NameTooLong(f"a key has at most {KEY_MAX_BYTES} bytes")
    return key


def _check_escaped(name: str, is_directory: bool) -> None:
    """InvalidArgument where no key is shown as that name, or only where there is something else:
    the parts of a long name, and a directory beside a file.
    """
    if not (is_directory and name == ESCAPE):
        key_of(name)


def _check_bucket(name: str, is_directory: bool) -> None:
    if not is_directory:
        raise NotPermitted("only buckets lie here: mkdir makes one, and files lie in it")
    if not _NEW_BUCKET.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot be a bucket: 3 to 63 of a-z, 0-9, '-' and '.', a letter or digit"
            " first and last"
        )


# --- keys of our own ------------------------------------------------------------------------------

#: Objects on which it is tried what a service heeds, beside the first keys of a mount.
PROBE: Final = ".unifs-probe-"
_PROBE = re.compile(re.escape(PROBE) + "[0-9a-f]{16}")


def new_probe() -> str:
    """A name that nobody else has."""
    return PROBE + secrets.token_hex(8)


def is_probe(name: str) -> bool:
    """Whether a name at the top of a mount is such an object's: it is never shown."""
    return _PROBE.fullmatch(name) is not None


# --- the mount's root -----------------------------------------------------------------------------


class Places:
    """Where paths of one mount lie: all buckets, one bucket, or a prefix of one."""

    def __init__(self, options: S3Options) -> None:
        self._bucket = options.bucket
        self.prefix = options.prefix.strip("/") + "/" if options.prefix.strip("/") else ""

    @property
    def has_buckets(self) -> bool:
        """Whether the names at the root are buckets."""
        return not self._bucket

    def split(self, path: str) -> tuple[str, str]:
        """Bucket, and the path below what is shown of it; ("", "") is the root of all buckets."""
        if self._bucket:
            return self._bucket, path
        bucket, _, rest = path.partition("/")
        if path and not _BUCKET.fullmatch(bucket):
            raise NotFound(f"{bucket!r} is not the name of a bucket")
        return bucket, rest

    def object_at(self, path: str) -> tuple[str, str]:
        """Bucket and key of the object at ``path``."""
        bucket, rest = self.split(path)
        if is_probe(rest):
            raise InvalidArgument(f"{rest!r} is a name that unifs tries services with")
        key = _bounded(self.prefix + key_of(rest))
        if not key:
            raise InvalidArgument(f"{path!r} would be an object without a key")
        return bucket, key

    def maybe_object_at(self, path: str) -> tuple[str, str] | None:
        """As ``object_at``; None where only a directory can be shown as ``path``."""
        try:
            return self.object_at(path)
        except InvalidArgument:
            return None

    def prefix_at(self, path: str) -> tuple[str, str]:
        """Bucket and prefix of the directory at ``path``."""
        bucket, rest = self.split(path)
        return bucket, _bounded(self.prefix + prefix_of(rest))

    def check_name(self, above: str | None, name: bytes, is_directory: bool) -> None:
        """``Mount.check_name``: what no key could ever be shown as is not made."""
        text = os.fsdecode(name)
        if above == "" and self.has_buckets:
            _check_bucket(text, is_directory)
            return
        if above is not None and self._has_first_keys(above):
            if is_probe(text):
                raise InvalidArgument(f"{text!r} is a name that unifs tries services with")
            if text == ESCAPE and not is_directory and not self.prefix:
                raise InvalidArgument(f"{text!r} would be an object without a key")
        if ESCAPE in text and not (above and is_part(above)):
            _check_escaped(text, is_directory)

    def _has_first_keys(self, path: str) -> bool:
        """Whether that directory is a bucket, or the root of what is shown of one."""
        return path.count("/") + bool(path) == self.has_buckets

    def is_top(self, path: str) -> bool:
        """Whether the directory at ``path`` is a bucket or the mount's root, which needs no key."""
        return not self.split(path)[1]
