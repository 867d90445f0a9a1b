"""What the tests of codecs and DAGs share: blocks in memory, content that is easily made again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import settings

from unifs.errors import NotAvailableOffline
from unifs.ipfs.cid import verify

if TYPE_CHECKING:
    from unifs.ipfs.cid import Cid


settings.register_profile("unifs", derandomize=True, deadline=None, database=None)
settings.load_profile("unifs")


class Blocks:
    """Blocks in memory, checked on the way in. ``asked`` lists the CIDs that were read."""

    def __init__(self) -> None:
        self.held: dict[Cid, bytes] = {}
        self.asked: list[Cid] = []

    def put(self, cid: Cid, block: bytes) -> None:
        assert isinstance(block, bytes), "what is put must be the receiver's to keep"
        verify(cid, block)
        self.held[cid] = block

    def get(self, cid: Cid) -> bytes:
        self.asked.append(cid)
        try:
            return self.held[cid]
        except KeyError:
            raise NotAvailableOffline(f"{cid} is not here") from None


class Keystream:
    """The ChaCha20 key stream that the published vectors are made of, as a file of a given size."""

    def __init__(self, seed: str, size_bytes: int) -> None:
        self._key = hashlib.sha256(seed.encode()).digest()
        self.size_bytes = size_bytes
        self._at = 0

    def at(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``, a multiple of 64."""
        assert offset % 64 == 0
        nonce = (offset // 64).to_bytes(8, "little") + bytes(8)
        size = min(size, self.size_bytes - offset)
        return Cipher(ChaCha20(self._key, nonce), None).encryptor().update(bytes(size))

    def readinto(self, buffer: memoryview) -> int:
        data = self.at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()
