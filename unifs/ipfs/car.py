"""CAR archives: blocks in a row, in and out, as a stream.

``dag export`` and the blockstore's segments write with ``header`` and ``section``; ``dag import``
and the rescan of a segment read with ``CarReader``, which is fed bytes as they come (a request's
body). Version 1 is written; versions 1 and 2 are read (a version 2's index is passed over). No I/O
beyond the source handed in, no index, no opinion on which blocks belong.

An archive that ends early, lies about a length or carries other bytes than a CID names raises
``Corrupt`` with the byte offset of the section at fault, after all sections before it were handed
out. Order, repeated blocks, missing roots and an empty list of roots are all allowed.

Source: the CARv1 and CARv2 specifications of ipld.io.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unifs.errors import ArchiveCorrupt, Corrupt, InvalidCid
from unifs.ipfs.cid import Cid, encode_varint, verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unifs.ipfs.cid import Bytes

SECTION_MAX_BYTES: Final = 8 << 20
HEADER_MAX_BYTES: Final = 1 << 20

#: A version 2's fixed header: 16 bytes of characteristics, then three 64-bit numbers.
_V2_HEADER_BYTES: Final = 40


@dataclass(frozen=True, slots=True)
class Section:
    """One block of an archive. ``offset`` is where its section begins in the stream."""

    cid: Cid
    data: bytes
    offset: int

    @property
    def data_offset(self) -> int:
        """Where the block's bytes begin in the stream."""
        return self.offset + len(section_head(self.cid, len(self.data)))


# --- writing --------------------------------------------------------------------------------------


def header(roots: Iterable[Cid]) -> bytes:
    """The beginning of a version 1 archive with these roots."""
    links = [b"\x00" + root.binary for root in roots]
    parts = [b"\xa2\x65roots", _cbor_head(0x80, len(links))]
    for link in links:
        parts += (b"\xd8\x2a", _cbor_head(0x40, len(link)), link)
    parts.append(b"\x67version\x01")
    body = b"".join(parts)
    return encode_varint(len(body)) + body


def section_head(cid: Cid, size_bytes: int) -> bytes:
    """What stands before the bytes of a block: the section's length and the CID."""
    binary = cid.binary
    return encode_varint(len(binary) + size_bytes) + binary


def section(cid: Cid, data: Bytes) -> bytes:
    """One block as a section. For large blocks write ``section_head`` and the data in turn."""
    return b"".join((section_head(cid, len(data)), data))


def _cbor_head(major: int, count: int) -> bytes:
    if count < 24:
        return bytes((major | count,))
    for code, width in ((24, 1), (25, 2), (26, 4)):
        if count >> (8 * width) == 0:
            return bytes((major | code,)) + count.to_bytes(width, "big")
    raise AssertionError("a CAR header does not count that far")


# --- reading --------------------------------------------------------------------------------------


class CarReader:
    """Reads an archive that arrives in pieces: ``feed`` each, then ``close``.

    ``roots`` is None until the header has been fed; ``version`` is that of the archive. At most one
    section (8 MiB) and one piece are held. After an error the reader is of no further use.
    """

    def __init__(self, is_verified: bool = True) -> None:
        self.version = 0
        self.roots: tuple[Cid, ...] | None = None
        self._is_verified = is_verified
        self._data = bytearray()
        self._at = 0
        #: Offset in the stream of the first byte of ``_data``.
        self._base = 0
        #: A version 2's payload, in offsets of the stream; where its index begins, 0 without one.
        self._payload_start = 0
        self._payload_end: int | None = None
        self._index_start = 0

    def feed(self, piece: Bytes) -> Iterator[Section]:
        """Take a piece; the iterator gives the sections that are complete by then."""
        del self._data[: self._at]
        self._base += self._at
        self._at = 0
        self._data += piece
        return self._sections()

    def _sections(self) -> Iterator[Section]:
        while self.roots is None:
            if not self._read_header():
                return
        while (found := self._next_section()) is not None:
            yield found

    def close(self) -> None:
        """Raise ``Corrupt`` unless the archive was complete.

        A version 1 that ends between two sections cannot be told from a complete one: whether all
        blocks of a DAG were there is for the caller to see.
        """
        end = self._base + len(self._data)
        if self.roots is None:
            raise _corrupt("it ends within its header", self._offset)
        if self._payload_end is None:
            if self._at < len(self._data):
                raise _corrupt("it ends within a section", self._offset)
        elif end < self._payload_end:
            raise _corrupt("it ends within its payload", self._offset)
        elif self._index_start and end <= self._index_start:
            raise _corrupt("it ends before its index", end)

    @property
    def _offset(self) -> int:
        return self._base + self._at

    def _read_header(self) -> bool:
        """Read the next header; False if there is not enough of it yet."""
        if self._payload_end is not None and not self._skip_to(self._payload_start):
            return False
        offset = self._offset
        frame = self._frame(HEADER_MAX_BYTES)
        if frame is None:
            return False
        start, end = frame
        version, roots = _parse_header(bytes(self._data[start:end]), offset)
        is_outer = self._payload_end is None
        if version == 1 and roots is not None:
            self.version = 1 if is_outer else 2
            self.roots = roots
        elif version == 2 and roots is None and is_outer:
            if len(self._data) < end + _V2_HEADER_BYTES:
                return False
            self._read_v2(end)
            end += _V2_HEADER_BYTES
        else:
            raise _corrupt(f"its header has version {version}, or its roots are missing", offset)
        self._at = end
        return True

    def _read_v2(self, at: int) -> None:
        numbers = [
            int.from_bytes(self._data[start : start + 8], "little")
            for start in range(at + 16, at + _V2_HEADER_BYTES, 8)
        ]
        start, size, index = numbers
        behind = self._base + at + _V2_HEADER_BYTES
        if start < behind or not size or (index and index < start + size):
            raise _corrupt("its version 2 header has no valid payload", self._base + at)
        self._payload_start, self._payload_end = start, start + size
        self._index_start = index

    def _skip_to(self, offset: int) -> bool:
        """Pass over bytes up to an offset of the stream; False if they are still to come."""
        self._at = max(self._at, min(offset - self._base, len(self._data)))
        return self._offset >= offset

    def _next_section(self) -> Section | None:
        if self._payload_end is not None and self._offset >= self._payload_end:
            self._at = len(self._data)
            return None
        offset = self._offset
        frame = self._frame(SECTION_MAX_BYTES)
        if frame is None:
            return None
        start, end = frame
        with memoryview(self._data)[start:end] as body:
            try:
                cid, cid_end = Cid.read(body, 0)
            except InvalidCid as error:
                raise _corrupt(f"its section has no CID ({error})", offset) from error
            data = bytes(body[cid_end:])
        if self._is_verified:
            try:
                verify(cid, data)
            except Corrupt as error:
                raise _corrupt(str(error), offset) from error
        self._at = end
        return Section(cid, data, offset)

    def _frame(self, length_max: int) -> tuple[int, int] | None:
        """Where the next length-prefixed part lies in ``_data``; None if it is not all there."""
        length = shift = 0
        at = self._at
        while True:
            if at >= len(self._data):
                return None
            byte = self._data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if length > length_max:
                raise _corrupt(f"a part longer than {length_max} bytes", self._offset)
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise _corrupt("a length that does not end", self._offset)
        if not byte:
            raise _corrupt("a length that is 0 or not in its shortest form", self._offset)
        end = at + length
        if self._payload_end is not None and self._base + end > self._payload_end:
            raise _corrupt("a section runs past the payload", self._offset)
        return (at, end) if end <= len(self._data) else None


# --- the header: a map of "version" and "roots" in dag-cbor ---------------------------------------


def _parse_header(body: bytes, offset: int) -> tuple[int, tuple[Cid, ...] | None]:
    """The version and the roots (None if absent). Only what a header may contain is read."""
    version = 0
    roots: tuple[Cid, ...] | None = None
    seen: set[bytes] = set()
    try:
        count, at = _cbor_take(body, 0, 5)
        for _ in range(count):
            length, at = _cbor_take(body, at, 3)
            key = body[at : at + length]
            at += length
            if key == b"version" and key not in seen:
                version, at = _cbor_take(body, at, 0)
            elif key == b"roots" and key not in seen:
                roots, at = _parse_roots(body, at)
            else:
                raise ValueError("an unknown or repeated key")
            seen.add(key)
        if at != len(body):
            raise ValueError("more than one value")
    except (ValueError, IndexError, InvalidCid) as error:
        raise _corrupt(f"its header does not parse ({error})", offset) from error
    return version, roots


def _parse_roots(body: bytes, at: int) -> tuple[tuple[Cid, ...], int]:
    count, at = _cbor_take(body, at, 4)
    roots = []
    for _ in range(count):
        tag, at = _cbor_take(body, at, 6)
        length, at = _cbor_take(body, at, 2)
        link = body[at : at + length]
        if tag != 42 or len(link) != length or link[:1] != b"\0":
            raise ValueError("a root that is no link")
        roots.append(Cid.decode(link[1:]))
        at += length
    return tuple(roots), at


def _cbor_take(body: bytes, at: int, major: int) -> tuple[int, int]:
    """The number in a CBOR head of the given major type, and the offset behind it."""
    first = body[at]
    at += 1
    if first >> 5 != major:
        raise ValueError("a value of another type")
    small = first & 0x1F
    if small < 24:
        return small, at
    if small > 27:
        raise ValueError("a value of no fixed length")
    end = at + (1 << (small - 24))
    if end > len(body):
        raise ValueError("it ends early")
    return int.from_bytes(body[at:end], "big"), end


def _corrupt(what: str, offset: int) -> ArchiveCorrupt:
    return ArchiveCorrupt(f"the CAR is damaged at byte {offset}: {what}", offset=offset)
