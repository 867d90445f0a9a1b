"""The file that holds cached extents: their bytes, then a trailer that proves them.

    data          extents one behind the other: a range of one is a range of the file
    trailer       magic, number of extents, of each the length, the CRC-32 and the key's digest, and
                  a CRC-32 of all that
    padding       behind large data: zeros up to a block, so that whole blocks can be written
                  past the page cache

``DiskTier`` writes and reads it. The magic carries the format's version; a file that does not parse
is a cache miss. Everything here is pure: no descriptors, no paths.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from zlib_ng.zlib_ng import crc32

from unifs.cache.buffers import BLOCK_BYTES
from unifs.cache.memory import EXTENT_BYTES
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unifs.cache.memory import Extent, ExtentKey

DIGEST_BYTES: Final = 20
MAGIC: Final = b"unifsx3\n"
#: Data from here on has a trailer of a whole block. Smaller data is one extent.
PADDED_BYTES: Final = 64 << 10
#: What a trailer of one block can tell of, and more than one request of a backend brings.
EXTENTS_MAX: Final = 64

_HEAD: Final = struct.Struct("<8sI")
_PART: Final = struct.Struct(f"<II{DIGEST_BYTES}s")
_CRC: Final = struct.Struct("<I")
_ONE_BYTES: Final = _HEAD.size + _PART.size + _CRC.size


class Part(NamedTuple):
    """What a trailer says of one extent."""

    length: int
    checksum: int
    digest: bytes

    @classmethod
    def of(cls, digest: bytes, data: Extent) -> Part:
        """What is to be said of these bytes under this name."""
        return cls(len(data), crc32(data), digest)

    def check(self, data: Extent) -> None:
        """Corrupt unless they are the bytes of this extent."""
        if len(data) != self.length or crc32(data) != self.checksum:
            raise Corrupt("the bytes do not match their checksum")


def digest_of(key: ExtentKey) -> bytes:
    """The name of an extent on disk. NUL separates the fields and occurs in none of them."""
    fields = f"{key.mount}\0{key.object}\0{key.version}\0{key.number}"
    if key.grain_bytes != EXTENT_BYTES:
        fields += f"\0{key.grain_bytes}"
    return blake2b(fields.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest()


def trailer_bytes(length: int) -> int:
    """The size of the trailer, with its padding, behind ``length`` bytes of data."""
    return BLOCK_BYTES if length >= PADDED_BYTES else _ONE_BYTES


def data_bytes(file_size_bytes: int) -> int | None:
    """How much data a file of that size holds; None if no file of extents has that size."""
    for length in (file_size_bytes - BLOCK_BYTES, file_size_bytes - _ONE_BYTES):
        if length > 0 and length + trailer_bytes(length) == file_size_bytes:
            return length
    return None


def pack_trailer(parts: Sequence[Part]) -> bytes:
    """The trailer behind the bytes of these extents."""
    body = _HEAD.pack(MAGIC, len(parts)) + b"".join(_PART.pack(*part) for part in parts)
    trailer = body + _CRC.pack(crc32(body))
    return trailer.ljust(trailer_bytes(sum(part.length for part in parts)), b"\0")


def unpack_trailer(raw: bytes) -> tuple[Part, ...]:
    """The extents that a trailer tells of; Corrupt if it is none."""
    if len(raw) < _ONE_BYTES:
        raise Corrupt("the trailer is cut short")
    magic, count = _HEAD.unpack_from(raw)
    end = _HEAD.size + count * _PART.size
    if magic != MAGIC or not 0 < count <= EXTENTS_MAX or end + _CRC.size > len(raw):
        raise Corrupt("the trailer is none")
    if _CRC.unpack_from(raw, end)[0] != crc32(raw[:end]):
        raise Corrupt("the trailer does not match its checksum")
    return tuple(Part(*fields) for fields in _PART.iter_unpack(raw[_HEAD.size : end]))
