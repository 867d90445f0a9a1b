"""What a service says in XML: pages of keys as they arrive, and small answers whole.

A page of 1,000 keys is parsed by expat while it is received, about 12 µs a key where boto3 takes
65. Keys come URL-encoded (``encoding-type=url``), for XML cannot hold every character that a key
may have. A document with a DTD, or that is cut short, is Corrupt.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Text of one element: a key of 1,024 bytes, encoded, and more for tokens.
TEXT_MAX: Final = 64 << 10


class Listed(NamedTuple):
    """An object as a listing tells it."""

    key: str
    size_bytes: int
    etag: str
    mtime_ns: int


class Document:
    """Element after element of a document: ``ended`` gets each with its text."""

    def __init__(self) -> None:
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.CharacterDataHandler = self._said
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = _refuse_dtd
        self._text: list[str] = []

    def feed(self, data: bytes) -> None:
        """More of the document."""
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError as error:
            raise Corrupt(f"the service's XML does not parse: {error}") from error

    def close(self) -> None:
        """The document is at its end."""
        try:
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise Corrupt(f"the service's XML is cut short: {error}") from error

    def _start(self, name: str, attributes: object) -> None:
        self._text = []

    def _said(self, text: str) -> None:
        if len(text) > TEXT_MAX:
            raise Corrupt("an element of the service's XML is too long")
        self._text.append(text)

    def _end(self, name: str) -> None:
        text = self._text
        self.ended(name, text[0] if len(text) == 1 else "".join(text))
        self._text = []

    def ended(self, name: str, text: str) -> None:
        """An element is complete."""
        raise NotImplementedError


class KeyPage(Document):
    """One answer to ListObjectsV2."""

    def __init__(self) -> None:
        super().__init__()
        self._fields: dict[str, str] = {}
        self._objects: list[dict[str, str]] = []
        self._prefixes: list[str] = []
        self._is_encoded = False
        self.objects: list[Listed] = []
        self.prefixes: list[str] = []
        self.token: str | None = None
        self.is_truncated = False

    def ended(self, name: str, text: str) -> None:
        if name == "Contents":
            self._objects.append(self._fields)
            self._fields = {}
        elif name == "CommonPrefixes":
            prefix = self._fields.get("Prefix")
            if prefix:
                self._prefixes.append(prefix)
            self._fields = {}
        elif name == "NextContinuationToken":
            self.token = text
        elif name == "IsTruncated":
            self.is_truncated = text.strip() == "true"
        elif name == "EncodingType":
            self._is_encoded = text.strip() == "url"
        else:
            self._fields[name] = text

    def close(self) -> None:
        super().close()
        try:
            self.objects = [self._listed(fields) for fields in self._objects]
        except (KeyError, ValueError) as error:
            raise Corrupt(f"a key in the service's listing is incomplete: {error!r}") from error
        self.prefixes = [self._key(prefix) for prefix in self._prefixes]

    def _key(self, text: str) -> str:
        return key_in(text, self._is_encoded)

    def _listed(self, fields: dict[str, str]) -> Listed:
        return Listed(
            self._key(fields["Key"]),
            int(fields["Size"]),
            plain_etag(fields["ETag"]),
            moment_ns(fields["LastModified"]),
        )


def key_in(text: str, is_encoded: bool) -> str:
    """A key as a listing writes it."""
    if is_encoded and ("%" in text or "+" in text):
        return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "surrogateescape")
    return text


class Records(Document):
    """The elements of one name in a small answer, each as its children's texts."""

    def __init__(self, element: str) -> None:
        super().__init__()
        self._element = element
        self._fields: dict[str, str] = {}
        self.found: list[dict[str, str]] = []
        #: Texts of the last element of each name.
        self.last: dict[str, str] = {}

    def ended(self, name: str, text: str) -> None:
        if name == self._element:
            self.found.append(self._fields)
            self._fields = {}
        else:
            self._fields[name] = self.last[name] = text


def records(body: bytes, element: str) -> Records:
    """Parse a small answer."""
    document = Records(element)
    document.feed(body)
    document.close()
    return document


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


def _refuse_dtd(name: str, *_: object) -> None:
    raise Corrupt(f"the service's XML has a DTD: {name}")
