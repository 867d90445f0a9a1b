"""Proofs: a hash over the bytes that a commit names and no fsync has covered yet.

A closed large content may have a durable record whose bytes never reached the disk. If the bytes
that are not yet durable are few, the commit records which ranges they are and their hash; after a
power cut recovery hashes the same ranges, and a content whose proof holds is as good as a sealed
one.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_RANGE = struct.Struct("<QQ")


def prove(ranges: list[tuple[int, int]], read: Callable[[int, int], bytes | memoryview]) -> bytes:
    """32 bytes of sha2-256 and the ranges it covers; ``read(start, end)`` gives their bytes."""
    digest = hashlib.sha256()
    for start, end in ranges:
        digest.update(read(start, end))
    return digest.digest() + b"".join(_RANGE.pack(start, end) for start, end in ranges)


def holds(proof: bytes, read: Callable[[int, int], bytes | memoryview]) -> bool:
    """Whether the ranges' bytes are those that were proven."""
    ranges = list(_RANGE.iter_unpack(proof[32:]))
    return prove(ranges, read) == proof
