"""CIDs: every way to write one, and a named reason for every way to get one wrong."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libipld import encode_multibase

from unifs.errors import Corrupt, InvalidCid, Unsupported
from unifs.ipfs import cid as cids
from unifs.ipfs.cid import DAG_PB, RAW, Cid, verify

HELLO = b"hello world"
DIGEST = hashlib.sha256(HELLO).digest()
V1 = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
EMPTY_DIRECTORY_V0 = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
EMPTY_DIRECTORY_V1 = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


def test_the_same_cid_in_every_multibase() -> None:
    cid = Cid.raw(DIGEST)
    assert str(cid) == V1
    for base in "bBcCvVtTfFzZkKmuMU0":
        text = encode_multibase(base, cid.binary)
        assert Cid.parse(text) == cid, base


def test_upper_case_base32_is_the_same_cid() -> None:
    assert Cid.parse(V1.upper()) == Cid.raw(DIGEST)


def test_cidv0_and_its_v1() -> None:
    v0 = Cid.parse(EMPTY_DIRECTORY_V0)
    assert (v0.version, v0.codec) == (0, DAG_PB)
    assert str(v0) == EMPTY_DIRECTORY_V0
    assert str(v0.to_v1()) == EMPTY_DIRECTORY_V1
    assert v0.to_v1().multihash == v0.multihash
    assert Cid.decode(v0.binary) == v0


def test_identity_cids_carry_their_content() -> None:
    empty = Cid.parse("bafkqaaa")
    assert empty.is_identity
    assert empty.identity_bytes == b""
    assert str(cids.identity(DAG_PB, bytes.fromhex("0a020801"))) == "bafyaabakaieac"
    verify(cids.identity(RAW, b"abc"), b"abc")
    with pytest.raises(Corrupt):
        verify(cids.identity(RAW, b"abc"), b"abd")


def test_identity_cid_of_128_bytes_but_not_of_129() -> None:
    # Both stand in the UnixFS specification, "Identity CID Size Limit".
    longest = Cid.parse("bafkqbaabijbe" + "eqscijbe" * 25 + "e")
    assert longest.identity_bytes == b"B" * 128
    with pytest.raises(InvalidCid, match="identity digest of 129 bytes; at most 128"):
        Cid.parse("bafkqbaibifau" + "cqkbifau" * 25 + "cqi")
    with pytest.raises(InvalidCid):
        cids.identity(RAW, bytes(129))


def _text(binary: bytes) -> str:
    return str(encode_multibase("b", binary))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "too short"),
        ("b", "too short"),
        ("xafkqaaa", "no multibase begins with 'x'"),
        ("éafkqaaa", "no multibase begins with"),
        ("ba!kqaaa", "not valid base32"),
        ("b" + "a" * 2000, "too long"),
        (EMPTY_DIRECTORY_V0[:-1] + "0", "not valid base58btc"),
        (EMPTY_DIRECTORY_V0[:-1], "no multibase begins with 'Q'"),
        ("z" + EMPTY_DIRECTORY_V0, "takes no multibase prefix"),
        (_text(b"\x02\x55\x12\x20" + DIGEST), "version 2 is not known"),
        (_text(b"\x01\xff\xff\x7f\x12\x20" + DIGEST), "codec 0x1fffff is not known"),
        (_text(b"\x01\x12\x12\x20" + DIGEST), "codec 0x12 is not known"),
        (_text(b"\x01\x55\xff\xff\x7f\x20" + DIGEST), "hash 0x1fffff is not known"),
        (_text(b"\x01\x55\x55\x20" + DIGEST), "hash 0x55 is not known"),
        (_text(b"\x01\x55\x12\x1f" + DIGEST[:31]), "sha2-256 digest of 31 bytes instead of 32"),
        (_text(b"\x01\x55\x1e\x00"), "blake3 digest of 0 bytes"),
        (_text(b"\x01\x55\x12\x20" + DIGEST[:31]), "cut short"),
        (_text(b"\x01\x55\x12\x20" + DIGEST + b"x"), "1 bytes follow"),
        (_text(b"\x01\xd5\x00\x12\x20" + DIGEST), "shortest form"),
        (_text(b"\x01" + b"\xff" * 12), "too long"),
        (_text(b"\x01"), "cut short"),
    ],
)
def test_what_is_wrong_with_a_cid_is_named(text: str, reason: str) -> None:
    with pytest.raises(InvalidCid, match=reason):
        Cid.parse(text)


def test_a_registered_codec_that_is_rare() -> None:
    cid = Cid(1, 0x0129, b"\x12\x20" + DIGEST)
    assert Cid.parse(str(cid)) == cid
    assert cid.binary[:3] == b"\x01\xa9\x02"


def test_a_libp2p_key_is_written_in_base36() -> None:
    name = "k2k4r8jvgybbugutpdtjl0a1ifczg1ztvbz4anyhtqqoi9fp5vtivp19"
    assert str(Cid.parse(name)) == name


@pytest.mark.parametrize(
    ("code", "digest"),
    [
        (0x12, hashlib.sha256(HELLO).digest()),
        (0x13, hashlib.sha512(HELLO).digest()),
        (0x14, hashlib.sha3_512(HELLO).digest()),
        (0x16, hashlib.sha3_256(HELLO).digest()),
        (0xB220, hashlib.blake2b(HELLO, digest_size=32).digest()),
        (0xB240, hashlib.blake2b(HELLO).digest()),
    ],
)
def test_bytes_are_checked_against_the_cid(code: int, digest: bytes) -> None:
    multihash = cids.encode_varint(code) + cids.encode_varint(len(digest)) + digest
    cid = Cid.decode(Cid(1, RAW, multihash).binary)
    assert (cid.hash_code, cid.digest) == (code, digest)
    verify(cid, HELLO)
    verify(cid, memoryview(HELLO))
    with pytest.raises(Corrupt):
        verify(cid, HELLO + b"!")


def test_a_hash_that_is_not_computed_here_is_refused_by_name() -> None:
    cid = Cid.decode(b"\x01\x55\x1e\x20" + bytes(32))
    with pytest.raises(Unsupported, match="blake3"):
        verify(cid, b"")


@given(st.binary(max_size=80))
def test_any_bytes_are_a_cid_or_refused(binary: bytes) -> None:
    try:
        cid, end = Cid.read(binary)
    except InvalidCid:
        return
    assert cid.binary == binary[:end]
    assert Cid.parse(str(cid)) == cid


@given(st.text(max_size=70))
def test_any_text_is_a_cid_or_refused(text: str) -> None:
    try:
        cid = Cid.parse(text)
    except InvalidCid:
        return
    assert Cid.parse(str(cid)) == cid
