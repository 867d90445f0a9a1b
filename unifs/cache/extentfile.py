"""The file that holds one cached extent: its bytes, then a trailer that proves them.

    data          ``length`` bytes, at offset 0: a range of the extent is a range of the file
    checksums     one CRC-32 (little endian) per 256 KiB of data
    tail          magic, length, digest of the extent's key, CRC-32 of checksums and tail

``DiskTier`` writes and reads it. The magic carries the format's version; a file that does not parse
is a cache miss. Everything here is pure: no descriptors, no paths.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from zlib_ng.zlib_ng import crc32

from unifs.cache.memory import EXTENT_BYTES
from unifs.errors import Corrupt

if TYPE_CHECKING:
    from unifs.cache.memory import Extent, ExtentKey

#: What one checksum covers; it takes 9 µs. Each releases the GIL: with 64 KiB, the event loop lost
#: a fifth of its time to threads that write extents.
CHUNK_BYTES: Final = 256 << 10
DIGEST_BYTES: Final = 20
MAGIC: Final = b"unifsx2\n"

_TAIL: Final = struct.Struct(f"<8sI{DIGEST_BYTES}s")
_CRC: Final = struct.Struct("<I")
_FIXED_BYTES: Final = _TAIL.size + _CRC.size


def digest_of(key: ExtentKey) -> bytes:
    """The name of an extent on disk. NUL separates the fields and occurs in none of them."""
    fields = f"{key.mount}\0{key.object}\0{key.version}\0{key.number}"
    if key.grain_bytes != EXTENT_BYTES:
        fields += f"\0{key.grain_bytes}"
    return blake2b(fields.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest()


def chunk_count(length: int) -> int:
    """How many checksums cover ``length`` bytes."""
    return -(-length // CHUNK_BYTES)


def trailer_bytes(length: int) -> int:
    """The size of the trailer behind ``length`` bytes of data."""
    return 4 * chunk_count(length) + _FIXED_BYTES


def data_bytes(file_size_bytes: int) -> int | None:
    """How much data a file of that size holds; None if no extent file has that size."""
    rest = file_size_bytes - _FIXED_BYTES
    if rest <= 0:
        return None
    length = rest - 4 * -(-rest // (CHUNK_BYTES + 4))
    return length if length > 0 and length + trailer_bytes(length) == file_size_bytes else None


def pack_trailer(digest: bytes, data: Extent) -> bytes:
    """The trailer for these bytes under this name."""
    view = memoryview(data)
    sums = [crc32(view[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
    body = struct.pack(f"<{len(sums)}I", *sums) + _TAIL.pack(MAGIC, len(data), digest)
    return body + _CRC.pack(crc32(body))


def unpack_trailer(raw: bytes, digest: bytes, length: int) -> tuple[int, ...]:
    """The checksums in a trailer; Corrupt unless it is the trailer of exactly that extent."""
    if len(raw) != trailer_bytes(length):
        raise Corrupt("the trailer is cut short")
    body = raw[: -_CRC.size]
    if _CRC.unpack_from(raw, len(body))[0] != crc32(body):
        raise Corrupt("the trailer does not match its checksum")
    if _TAIL.unpack_from(body, len(body) - _TAIL.size) != (MAGIC, length, digest):
        raise Corrupt("the trailer belongs to another extent")
    return struct.unpack_from(f"<{chunk_count(length)}I", body)


def verify(data: memoryview, first_chunk: int, sums: tuple[int, ...]) -> None:
    """Check whole chunks, the first of which is number ``first_chunk``. Corrupt if one differs."""
    for number in range(chunk_count(len(data))):
        chunk = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        if crc32(chunk) != sums[first_chunk + number]:
            raise Corrupt(f"chunk {first_chunk + number} does not match its checksum")
