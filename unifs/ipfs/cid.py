"""Content identifiers: text and bytes in, one frozen value out, and the check that bytes match.

Everything below ``ipfs/`` names blocks by ``Cid``; the mounts and the control operations parse what
users type through ``Cid.parse``. Only this module knows multibase, codecs and multihashes. It never
does I/O, and it never accepts bytes whose hash it cannot compute: such a CID parses (its name is
known), and ``verify`` refuses it by name.

``libipld`` does the base conversions (a whole ``parse`` takes 1.3 µs);
``multiformats`` (95 ms to import, 150 µs a call) is asked only for the name of a code that stands
in neither table below.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from libipld import decode_multibase, encode_multibase

from unifs.errors import Corrupt, InvalidCid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    Bytes = bytes | bytearray | memoryview

RAW: Final = 0x55
DAG_PB: Final = 0x70
SHA2_256: Final = 0x12
IDENTITY: Final = 0x00

#: The longest content that an identity CID may carry (UnixFS specification, "Identity CID Size
#: Limit").
IDENTITY_MAX_BYTES: Final = 128
#: No registered hash is longer; a longer digest is not one.
DIGEST_MAX_BYTES: Final = 128
#: The longest text: an identity CID of 128 bytes in base2 has 1,073 characters.
TEXT_MAX_CHARS: Final = 1100

#: IPLD codecs that need no look-up. Others are asked of the multicodec table.
_CODECS: Final = {RAW: "raw", DAG_PB: "dag-pb", 0x71: "dag-cbor", 0x72: "libp2p-key"}


def _sha256(data: Bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sha512(data: Bytes) -> bytes:
    return hashlib.sha512(data).digest()


def _sha3_256(data: Bytes) -> bytes:
    return hashlib.sha3_256(data).digest()


def _sha3_512(data: Bytes) -> bytes:
    return hashlib.sha3_512(data).digest()


def _blake2b_256(data: Bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def _blake2b_512(data: Bytes) -> bytes:
    return hashlib.blake2b(data).digest()


#: Hashes that ``verify`` computes: multihash code → (name, digest bytes, function).
_HASHES: Final[dict[int, tuple[str, int, Callable[[Bytes], bytes]]]] = {
    SHA2_256: ("sha2-256", 32, _sha256),
    0x13: ("sha2-512", 64, _sha512),
    0x14: ("sha3-512", 64, _sha3_512),
    0x16: ("sha3-256", 32, _sha3_256),
    0xB220: ("blake2b-256", 32, _blake2b_256),
    0xB240: ("blake2b-512", 64, _blake2b_512),
}

_RAW_SHA2_256: Final = b"\x01\x55\x12\x20"
_DAG_PB_SHA2_256: Final = b"\x01\x70\x12\x20"
_SHA2_256_32: Final = b"\x12\x20"


@dataclass(frozen=True, slots=True)
class Cid:
    """One content identifier: ``version`` 0 or 1, the ``codec`` code and the whole ``multihash``.

    The constructor trusts its caller; what comes from outside goes through ``parse``, ``decode`` or
    ``read``, which raise ``InvalidCid``. Two CIDs of the same bytes that differ in version or codec
    are different values with the same ``multihash``.
    """

    version: int
    codec: int
    multihash: bytes

    @staticmethod
    def raw(digest: bytes) -> Cid:
        """The CIDv1 of a raw block with this sha2-256 digest (32 bytes)."""
        return Cid(1, RAW, _SHA2_256_32 + digest)

    @staticmethod
    def dag_pb(digest: bytes, version: int = 1) -> Cid:
        """The CID of a dag-pb block with this sha2-256 digest (32 bytes)."""
        return Cid(version, DAG_PB, _SHA2_256_32 + digest)

    @staticmethod
    def parse(text: str) -> Cid:
        """The CID that a person or a program wrote, in any multibase that libipld knows.

        Raises ``InvalidCid`` that names what is wrong: the multibase, the version, the codec, the
        hash, or the length of the digest.
        """
        if len(text) > TEXT_MAX_CHARS:
            raise InvalidCid(f"{text[:16]}… is too long for a CID ({len(text)} characters)")
        is_v0 = len(text) == 46 and text.startswith("Qm")
        if len(text) < 2:
            raise InvalidCid(f"{text!r} is too short for a CID")
        based = "z" + text if is_v0 else text
        try:
            _base, binary = decode_multibase(based)
        except ValueError as error:
            raise InvalidCid(f"{_shown(text)} is not a CID: {_multibase_fault(based)}") from error
        if not is_v0 and binary[:2] == _SHA2_256_32:
            raise InvalidCid(f"{_shown(text)} is not a CID: a CIDv0 takes no multibase prefix")
        try:
            return Cid.decode(binary)
        except InvalidCid as error:
            raise InvalidCid(f"{_shown(text)} is not a CID: {error}") from error

    @staticmethod
    def decode(binary: Bytes) -> Cid:
        """The CID that these bytes are, all of them; raises ``InvalidCid`` otherwise."""
        if len(binary) == 36:
            head = binary[:4]
            if head == _RAW_SHA2_256 or head == _DAG_PB_SHA2_256:  # noqa: SIM109 (memoryviews)
                return Cid(1, binary[1], bytes(binary[2:]))
        cid, end = Cid.read(binary, 0)
        if end != len(binary):
            raise InvalidCid(f"{len(binary) - end} bytes follow the digest")
        return cid

    @staticmethod
    def read(buffer: Bytes, offset: int = 0) -> tuple[Cid, int]:
        """The CID at ``offset`` and the offset behind it; raises ``InvalidCid``."""
        head = bytes(buffer[offset : offset + 4])
        if head in (_RAW_SHA2_256, _DAG_PB_SHA2_256):
            end = offset + 36
            multihash = bytes(buffer[offset + 2 : end])
            if len(multihash) == 34:
                return Cid(1, head[1], multihash), end
        elif head[:2] == _SHA2_256_32:
            end = offset + 34
            multihash = bytes(buffer[offset:end])
            if len(multihash) == 34:
                return Cid(0, DAG_PB, multihash), end
        return _read_any(buffer, offset)

    @property
    def binary(self) -> bytes:
        """The CID as bytes, as links in blocks and sections in CARs carry it."""
        if self.version == 0:
            return self.multihash
        if self.codec < 0x80:
            return bytes((1, self.codec)) + self.multihash
        return b"\x01" + encode_varint(self.codec) + self.multihash

    @property
    def hash_code(self) -> int:
        """The multihash's code: 0x12 is sha2-256, 0 is identity."""
        first = self.multihash[0]
        return first if first < 0x80 else _read_varint(self.multihash, 0)[0]

    @property
    def digest(self) -> bytes:
        """The hash alone, without its code and length."""
        if self.multihash[0] == SHA2_256:
            return self.multihash[2:]
        _code, at = _read_varint(self.multihash, 0)
        _length, at = _read_varint(self.multihash, at)
        return self.multihash[at:]

    @property
    def is_identity(self) -> bool:
        """Whether the CID carries its content in itself."""
        return self.multihash[0] == IDENTITY

    @property
    def identity_bytes(self) -> bytes:
        """The content that an identity CID carries."""
        assert self.is_identity, "only an identity CID carries its content"
        return self.digest

    def to_v1(self) -> Cid:
        """The same block's CIDv1."""
        return self if self.version == 1 else Cid(1, self.codec, self.multihash)

    def __str__(self) -> str:
        if self.version == 0:
            text: str = encode_multibase("z", self.multihash)
            return text[1:]
        base = "k" if self.codec == 0x72 else "b"
        return str(encode_multibase(base, self.binary))


def identity(codec: int, content: bytes) -> Cid:
    """The CIDv1 that carries ``content`` (at most 128 bytes) in itself."""
    if len(content) > IDENTITY_MAX_BYTES:
        raise InvalidCid(f"an identity CID of {len(content)} bytes; at most {IDENTITY_MAX_BYTES}")
    return Cid(1, codec, b"\x00" + encode_varint(len(content)) + content)


def verify(cid: Cid, data: Bytes) -> None:
    """Raise ``Corrupt`` unless ``data`` is the block that ``cid`` names.

    A hash that is known but not computed here raises ``Unsupported`` with its name.
    """
    if cid.multihash[0] == SHA2_256:
        if hashlib.sha256(data).digest() != cid.multihash[2:]:
            raise Corrupt(f"{cid}: the bytes do not match their hash", cid=str(cid))
        return
    if cid.is_identity:
        if cid.digest != data:
            raise Corrupt(f"{cid}: the bytes are not those in the CID", cid=str(cid))
        return
    entry = _HASHES.get(cid.hash_code)
    if entry is None:
        name = _multicodec_name(cid.hash_code, "multihash")
        raise Unsupported(f"{cid}: blocks hashed with {name} cannot be verified here")
    if entry[2](data) != cid.digest:
        raise Corrupt(f"{cid}: the bytes do not match their hash", cid=str(cid))


def encode_varint(value: int) -> bytes:
    """``value`` (≥ 0) as an unsigned LEB128 varint, in its shortest form."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(buffer: Bytes, offset: int) -> tuple[int, int]:
    """One multiformats varint: at most 9 bytes, shortest form only."""
    value = shift = 0
    while shift < 63:
        if offset >= len(buffer):
            raise InvalidCid("it is cut short")
        byte = buffer[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise InvalidCid("a number in it is not in its shortest form")
            return value, offset
        shift += 7
    raise InvalidCid("a number in it is too long")


def _read_any(buffer: Bytes, offset: int) -> tuple[Cid, int]:
    version, at = _read_varint(buffer, offset)
    if version != 1:
        raise InvalidCid(f"CID version {version} is not known")
    codec, at = _read_varint(buffer, at)
    if codec not in _CODECS and _multicodec_name(codec, "ipld") is None:
        raise InvalidCid(f"codec 0x{codec:x} is not known")
    start = at
    code, at = _read_varint(buffer, at)
    length, at = _read_varint(buffer, at)
    _check_digest(code, length)
    end = at + length
    if end > len(buffer):
        raise InvalidCid("it is cut short")
    return Cid(1, codec, bytes(buffer[start:end])), end


def _check_digest(code: int, length: int) -> None:
    if code == IDENTITY:
        if length > IDENTITY_MAX_BYTES:
            raise InvalidCid(f"identity digest of {length} bytes; at most {IDENTITY_MAX_BYTES}")
        return
    entry = _HASHES.get(code)
    if entry is not None:
        if length != entry[1]:
            raise InvalidCid(f"{entry[0]} digest of {length} bytes instead of {entry[1]}")
        return
    name = _multicodec_name(code, "multihash")
    if name is None:
        raise InvalidCid(f"hash 0x{code:x} is not known")
    if not 0 < length <= DIGEST_MAX_BYTES:
        raise InvalidCid(f"{name} digest of {length} bytes")


def _multicodec_name(code: int, tag: str) -> str | None:
    from multiformats import multicodec  # 95 ms to import, needed for rare codes only

    if not multicodec.exists(code=code):
        return None
    entry = multicodec.get(code=code)
    if entry.tag == tag or (tag == "ipld" and entry.tag == "serialization"):
        return str(entry.name)
    return None


def _multibase_fault(text: str) -> str:
    from multiformats import multibase  # 95 ms to import, needed for messages only

    if not text.isascii() or not multibase.exists(code=text[0]):
        return f"no multibase begins with {text[0]!r}"
    return f"it is not valid {multibase.get(code=text[0]).name}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
