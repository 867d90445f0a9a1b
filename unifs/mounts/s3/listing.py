"""What a service says in XML: pages of keys, and small answers.

Parsed in C and read as a tree: about 5 µs a key where boto3 takes 65. Keys come URL-encoded
(``encoding-type=url``), for XML cannot hold every character that a key may have. A document with a
DTD, or that is cut short, is Corrupt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A key of 1,024 bytes, encoded, and more for what services invent.
TEXT_MAX: Final = 64 << 10


class Listed(NamedTuple):
    """An object as a listing tells it."""

    key: str
    size_bytes: int
    etag: str
    mtime_ns: int


class KeyPage:
    """One answer to ListObjectsV2."""

    def __init__(self, body: bytes) -> None:
        root, space = parsed(body)
        is_encoded = (root.findtext(f"{space}EncodingType") or "").strip() == "url"
        moments: dict[str, int] = {}
        try:
            self.objects = [
                _listed(
                    {field.tag: field.text or "" for field in found}, space, moments, is_encoded
                )
                for found in root.iter(f"{space}Contents")
            ]
        except (KeyError, ValueError) as error:
            raise Corrupt(f"a key in the service's listing is incomplete: {error!r}") from error
        prefixes = [
            found.findtext(f"{space}Prefix") for found in root.iter(f"{space}CommonPrefixes")
        ]
        self.prefixes = [key_in(prefix, is_encoded) for prefix in prefixes if prefix]
        self.token = root.findtext(f"{space}NextContinuationToken")
        self.is_truncated = (root.findtext(f"{space}IsTruncated") or "").strip() == "true"


def _listed(
    fields: dict[str, str], space: str, moments: dict[str, int], is_encoded: bool
) -> Listed:
    said = fields[f"{space}LastModified"]
    moment = moments.get(said)
    if moment is None:
        moment = moments[said] = moment_ns(said)
    key = key_in(fields[f"{space}Key"], is_encoded)
    if len(key) > TEXT_MAX:
        raise Corrupt("a key in the service's listing is too long")
    return Listed(key, int(fields[f"{space}Size"]), plain_etag(fields[f"{space}ETag"]), moment)


def key_in(text: str, is_encoded: bool) -> str:
    """A key as a listing writes it."""
    if is_encoded and ("%" in text or "+" in text):
        return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "surrogateescape")
    return text


@dataclass(frozen=True, slots=True)
class Records:
    """The elements of one name in a small answer, each as its children's texts."""

    found: list[dict[str, str]]
    #: Texts of the last element of each name.
    last: dict[str, str]


def records(body: bytes, element: str) -> Records:
    """Parse a small answer."""
    root, space = parsed(body)
    found = [
        {field.tag.removeprefix(space): field.text or "" for field in each.iter() if not len(field)}
        for each in root.iter(f"{space}{element}")
    ]
    last = {each.tag.removeprefix(space): each.text or "" for each in root.iter() if not len(each)}
    return Records(found, last)


def parsed(body: bytes) -> tuple[ElementTree.Element, str]:
    """The root of a document, and the name space that all its tags begin with."""
    if b"<!DOCTYPE" in body or b"\0" in body:
        raise Corrupt("the service's XML has a DTD, or is no UTF-8")
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise Corrupt(f"the service's XML does not parse: {error}") from error
    space, brace, _ = root.tag.rpartition("}")
    return root, space + brace


def plain_etag(text: str) -> str:
    """An ETag without its quotes: the version that the tree keeps."""
    return text[1:-1] if text.startswith('"') and text.endswith('"') and len(text) > 1 else text


def quoted_etag(version: str) -> str:
    """An ETag as requests carry it."""
    return version if version.startswith('W/"') else f'"{version}"'


def escaped(text: str) -> str:
    """Text as XML holds it; control characters as references."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(_references(text)) if not text.isprintable() else text


def _references(text: str) -> Iterable[str]:
    for character in text:
        yield character if character.isprintable() else f"&#{ord(character)};"


def moment_ns(text: str) -> int:
    """A moment as XML writes it, in nanoseconds; ValueError if it is none.

    HEAD tells whole seconds; so that both tell the same, fractions are left out.
    """
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1_000_000_000
