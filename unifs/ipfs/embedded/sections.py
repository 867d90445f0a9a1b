"""The bytes of a segment file: sections, footer, and finding sound sections among damage.

    header | section section … | 00 | index | trailer

- ``header`` is a CARv1 header with no roots; a *section* is ``varint(len(cid + data)) cid data``.
  So the bytes before the ``00`` are a CAR file, which is how a segment is exported.
- ``00`` is a section of length zero. It ends the log, as do the zeros that ext4 shows in an
  unsynced tail after a power cut.
- ``index`` is the sections' heads one after the other (``varint cid``, without the data): offsets
  are running sums. A *gap*, bytes between sections that are none, is ``varint(length) 00``.
- ``trailer`` is 64 bytes: magic, end of the sections, length of the index, number of entries, and
  the blake2b-256 of these and the index. It makes the footer trustworthy, so that one rotten
  length in the middle hides nothing behind it.

Called by ``segment_file`` and ``segments``. Pure functions and preads; nothing here writes, locks
or keeps state.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: dag-cbor of {"roots": [], "version": 1}, with its length in front.
HEADER: Final = b"\x11\xa2eroots\x80gversion\x01"
#: CIDv1, raw, sha2-256: the digest follows.
RAW_PREFIX: Final = b"\x01\x55\x12\x20"
END_MARK: Final = b"\x00"

_MAGIC: Final = b"UNIFSSG1"
_TRAILER: Final = struct.Struct("<8sQQQ32s")
TRAILER_BYTES: Final = _TRAILER.size

#: A varint of at most 5 bytes (35 bits) is more than any section; longer ones are damage.
_VARINT_MAX_BYTES: Final = 5
#: The longest CID accepted: version, codec, hash and length in 2–9 bytes each and a digest of 128.
_CID_MAX_BYTES: Final = 160
_HEAD_MAX_BYTES: Final = _VARINT_MAX_BYTES + _CID_MAX_BYTES
#: Read ahead of a scan: one pread per MiB of small sections, one per section of large ones.
_WINDOW_BYTES: Final = 1 << 20
#: What a sha2-256 CID looks like: CIDv1 with a one-byte codec, or the bare multihash of CIDv0.
_CID_START: Final = re.compile(rb"(?:\x01[\x55\x70\x71])?\x12\x20")


class NotAHead(ValueError):
    """The bytes at this position are not the head of a section."""


@dataclass(frozen=True, slots=True)
class Head:
    """A section as its head describes it; ``end`` is the offset after its data."""

    cid_binary: bytes
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of a segment that are no section."""

    offset: int
    length: int


def varint(value: int) -> bytes:
    """``value`` as an unsigned LEB128 number, shortest form (multiformats/unsigned-varint)."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at ``position`` and the position after it; NotAHead if there is none."""
    value = shift = 0
    for index in range(position, min(position + _VARINT_MAX_BYTES, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise NotAHead("varint not in its shortest form")
            return value, index + 1
        shift += 7
    raise NotAHead("varint cut or too long")


def cid_length(data: bytes, position: int) -> int:
    """The number of bytes of the CID at ``position``; NotAHead if there is none."""
    start = data[position : position + 4]
    if start in (RAW_PREFIX, b"\x01\x70\x12\x20"):
        length = 36
    elif start[:2] == b"\x12\x20":
        length = 34
    elif start[:1] == b"\x01":
        _, at = read_varint(data, position + 1)
        _, at = read_varint(data, at)
        digest_bytes, at = read_varint(data, at)
        length = at - position + digest_bytes
        if length > _CID_MAX_BYTES:
            raise NotAHead("CID too long")
    else:
        raise NotAHead("no CID")
    if position + length > len(data):
        raise NotAHead("CID cut")
    return length


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """Up to ``length`` bytes at ``offset``; fewer only where the file ends."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    have = len(data)
    while have < length and (more := os.pread(fd, length - have, offset + have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


# --- index and footer -----------------------------------------------------------------------------


def gap_entry(length: int) -> bytes:
    """The index entry of a gap."""
    return varint(length) + b"\x00"


def walk_index(index: bytes, offset: int) -> Iterator[Head | Gap]:
    """Entries of ``index`` in file order, the first one lying at ``offset`` of the file.

    NotAHead if the index does not parse, which its checksum rules out for footers.
    """
    position, end = 0, len(index)
    while position < end:
        length, at = read_varint(index, position)
        if index[at] == 0:
            yield Gap(offset, length)
            offset += length
            position = at + 1
            continue
        size = cid_length(index, at)
        offset += at - position + size
        yield Head(index[at : at + size], offset, length - size)
        offset += length - size
        position = at + size


def footer(index: bytes | bytearray, data_end: int, entries: int) -> bytes:
    """What closes a segment, from the ``00`` to the end of the file."""
    return b"".join((END_MARK, index, _seal(index, data_end, entries)))


def _seal(index: bytes | bytearray, data_end: int, entries: int) -> bytes:
    fields = _TRAILER.pack(_MAGIC, data_end, len(index), entries, bytes(32))[:-32]
    digest = hashlib.blake2b(index, digest_size=32, key=fields).digest()
    return fields + digest


def read_data_end(fd: int) -> int | None:
    """Where the sections of a closed segment end, by its trailer alone; None if it has none.

    64 bytes instead of up to 16 MiB: whether the index is sound is seen when it is used.
    """
    size = os.fstat(fd).st_size
    if size < len(HEADER) + 1 + TRAILER_BYTES:
        return None
    trailer = os.pread(fd, TRAILER_BYTES, size - TRAILER_BYTES)
    magic, data_end, index_bytes, _, _ = _TRAILER.unpack(trailer)
    if magic != _MAGIC or data_end + 1 + index_bytes + TRAILER_BYTES != size:
        return None
    return int(data_end)


def read_footer(fd: int) -> tuple[bytes, int, int] | None:
    """(index, end of the sections, entries) of a closed segment; None without a sound footer."""
    data_end = read_data_end(fd)
    if data_end is None:
        return None
    rest = read_exactly(fd, os.fstat(fd).st_size - data_end - 1, data_end + 1)
    index, trailer = rest[:-TRAILER_BYTES], rest[-TRAILER_BYTES:]
    entries = int(_TRAILER.unpack(trailer)[3])
    if _seal(index, data_end, entries) != trailer:
        return None
    return index, data_end, entries


# --- scanning what no footer covers ---------------------------------------------------------------


def scan(fd: int, offset: int, size: int) -> Iterator[Head | Gap]:
    """Sections of ``fd`` from ``offset`` up to ``size`` bytes, by their framing.

    Where the framing breaks, the section before it is hashed (its length may be what is wrong), and
    the next section *whose bytes hash to its CID* is looked for: if there is one, what lies between
    is a Gap and the scan goes on; if there is none, the scan ends (the end, or a torn tail). Apart
    from that only framing is checked: data are verified when they are used.
    """
    window, start = b"", offset
    last: Head | None = None
    last_begin = offset
    while offset < size:
        at = offset - start
        is_near_end = at + _HEAD_MAX_BYTES > len(window) and start + len(window) < size
        if at < 0 or is_near_end:
            window = read_exactly(fd, min(_WINDOW_BYTES, size - offset), offset)
            start, at = offset, 0
        head = _head_at(window, at, start, size)
        if head is None:
            if last is not None and not _hashes(fd, last):
                offset, last = last_begin, None
            found = _resync(fd, offset, size)
            if found is None:
                break
            if last is not None:
                yield last
                last = None
            yield Gap(offset, found - offset)
            offset = found
            continue
        if last is not None:
            yield last
        last, last_begin, offset = head, offset, head.end
    if last is not None:
        yield last


def _head_at(window: bytes, at: int, start: int, size: int) -> Head | None:
    try:
        length, position = read_varint(window, at)
        if length == 0:
            return None
        cid_bytes = cid_length(window, position)
    except NotAHead:
        return None
    data_offset = start + position + cid_bytes
    if length < cid_bytes or data_offset + length - cid_bytes > size:
        return None
    return Head(window[position : position + cid_bytes], data_offset, length - cid_bytes)


def _resync(fd: int, offset: int, size: int) -> int | None:
    """The offset of the first section after ``offset`` whose data hash to its CID."""
    start = offset + 1
    while start < size:
        window = read_exactly(fd, min(_WINDOW_BYTES + _HEAD_MAX_BYTES, size - start), start)
        for match in _CID_START.finditer(window):
            for back in range(1, _VARINT_MAX_BYTES + 1):
                at = match.start() - back
                if at >= 0 and _is_section(fd, window, at, start, size):
                    return start + at
        start += _WINDOW_BYTES
    return None


def _is_section(fd: int, window: bytes, at: int, start: int, size: int) -> bool:
    head = _head_at(window, at, start, size)
    return head is not None and _is_sha256(head) and _hashes(fd, head)


def _is_sha256(head: Head) -> bool:
    return head.cid_binary[-34:-32] == b"\x12\x20"


def _hashes(fd: int, head: Head) -> bool:
    """Whether the data are what the CID says; True for hashes that are not computed here."""
    if not _is_sha256(head):
        return True
    data = read_exactly(fd, head.length, head.offset)
    return hashlib.sha256(data).digest() == head.cid_binary[-32:]
