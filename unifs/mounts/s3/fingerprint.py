"""What is known of a large object's parts: so that an edit sends the parts that it changed.

A large object stored by unifs carries in its metadata (``unifs-parts``) the size of its parts and a
hash for each group of them: 128 bits of the sha256 of their sha256s, at most 80 groups, for user
metadata ends at 2 KiB. When the object is replaced, the groups whose hash is the same need not be
sent: the service copies them from the version that is replaced, and only from that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PARTS: Final = "x-amz-meta-unifs-parts"
GROUPS_MAX: Final = 80
HASH_BYTES: Final = 16

_TEXT = re.compile(r"([1-9][0-9]{0,12}):([1-9][0-9]{0,4}):([A-Za-z0-9+/=]{4,2000})")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """``hashes`` of groups of ``group`` parts of ``part_bytes``."""

    part_bytes: int
    group: int
    hashes: tuple[bytes, ...]

    @classmethod
    def of(cls, part_bytes: int, digests: Sequence[str]) -> Fingerprint:
        """From the sha256 of each part, in hexadecimal."""
        group = -(-len(digests) // GROUPS_MAX)
        return cls(part_bytes, group, _hashes(digests, group))

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> Fingerprint | None:
        """From an object's metadata; None where it has none that can be read."""
        found = _TEXT.fullmatch(headers.get(PARTS, ""))
        if found is None:
            return None
        try:
            data = base64.b64decode(found[3], validate=True)
        except binascii.Error:
            return None
        hashes = tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
        return cls(int(found[1]), int(found[2]), hashes)

    def text(self) -> str:
        """As the metadata holds it."""
        return f"{self.part_bytes}:{self.group}:{base64.b64encode(b''.join(self.hashes)).decode()}"

    def unchanged(self, part_bytes: int, digests: Sequence[str]) -> set[int]:
        """The numbers (from 1) of the parts that a content has in common with this object."""
        if part_bytes != self.part_bytes:
            return set()
        same: set[int] = set()
        for number, (ours, theirs) in enumerate(
            zip(_hashes(digests, self.group), self.hashes, strict=False)
        ):
            if ours == theirs:
                first = number * self.group
                same.update(range(first + 1, min(first + self.group, len(digests)) + 1))
        return same


def _hashes(digests: Sequence[str], group: int) -> tuple[bytes, ...]:
    return tuple(
        hashlib.sha256(bytes.fromhex("".join(digests[at : at + group]))).digest()[:HASH_BYTES]
        for at in range(0, len(digests), group)
    )
