"""The file that holds one cached extent: its bytes, then a trailer that proves them.

    data          ``length`` bytes, at offset 0: a range of the extent is a range of the file
    trailer       magic, length, digest of the extent's key, CRC-32 of the data, CRC-32 of these
    padding       behind large data: zeros up to a block, so that whole blocks can be written
                  past the page cache

``DiskTier`` writes and reads it. The magic carries the format's version; a file that does not parse
is a cache miss. Everything here is pure: no descriptors, no paths.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from zlib_ng.zlib_ng import crc32

from unifs.cache.buffers import BLOCK_BYTES
from unifs.cache.memory import EXTENT_BYTES
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from unifs.cache.memory import Extent, ExtentKey

DIGEST_BYTES: Final = 20
MAGIC: Final = b"unifsx3\n"

#: Data from here on has a trailer of a whole block.
PADDED_BYTES: Final = 64 << 10

_FIELDS: Final = struct.Struct(f"<8sI{DIGEST_BYTES}sI")
_CRC: Final = struct.Struct("<I")
_TRAILER_BYTES: Final = _FIELDS.size + _CRC.size


def digest_of(key: ExtentKey) -> bytes:
    """The name of an extent on disk. NUL separates the fields and occurs in none of them."""
    fields = f"{key.mount}\0{key.object}\0{key.version}\0{key.number}"
    if key.grain_bytes != EXTENT_BYTES:
        fields += f"\0{key.grain_bytes}"
    return blake2b(fields.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest()


def trailer_bytes(length: int) -> int:
    """The size of the trailer, with its padding, behind ``length`` bytes of data."""
    return BLOCK_BYTES if length >= PADDED_BYTES else _TRAILER_BYTES


def data_bytes(file_size_bytes: int) -> int | None:
    """How much data a file of that size holds; None if no extent file has that size."""
    for length in (file_size_bytes - BLOCK_BYTES, file_size_bytes - _TRAILER_BYTES):
        if length > 0 and length + trailer_bytes(length) == file_size_bytes:
            return length
    return None


def pack_trailer(digest: bytes, data: Extent) -> bytes:
    """The trailer for these bytes under this name."""
    fields = _FIELDS.pack(MAGIC, len(data), digest, crc32(data))
    return (fields + _CRC.pack(crc32(fields))).ljust(trailer_bytes(len(data)), b"\0")


def verify(data: memoryview, trailer: bytes, digest: bytes) -> None:
    """Check all of an extent's bytes; Corrupt unless the trailer says that they are this extent."""
    if len(trailer) != trailer_bytes(len(data)):
        raise Corrupt("the trailer is cut short")
    fields = trailer[: _FIELDS.size]
    if _CRC.unpack_from(trailer, _FIELDS.size)[0] != crc32(fields):
        raise Corrupt("the trailer does not match its checksum")
    *name, checksum = _FIELDS.unpack(fields)
    if name != [MAGIC, len(data), digest]:
        raise Corrupt("the trailer belongs to another extent")
    if checksum != crc32(data):
        raise Corrupt("the bytes do not match their checksum")
