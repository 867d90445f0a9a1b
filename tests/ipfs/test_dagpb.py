"""The dag-pb codec against the specification's rules and its list of blocks that are not UnixFS."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifs.errors import Corrupt
from unifs.ipfs import dagpb
from unifs.ipfs.cid import RAW, Cid, identity
from unifs.ipfs.dagpb import PbLink
from unifs.ipfs.unixfs.node import decode_data

CID = Cid.raw(hashlib.sha256(b"").digest()).binary
ODD_CID = bytes.fromhex("015500050001020304")

#: Valid dag-pb, but not UnixFS: the UnixFS specification, "Invalid Test Cases".
NOT_UNIXFS = {
    "bafybeihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku": "",
    "bafybeihyivpglm6o6wrafbe36fp5l67abmewk7i2eob5wacdbhz7as5obe": (
        "12240a2212207521fe19c374a97759226dc5c0c8e674e73950e81b211f7dd3b6b30883a08a51"
    ),
    "bafybeibh647pmxyksmdm24uad6b5f7tx4dhvilzbg2fiqgzll4yek7g7y4": (
        "12340a2212208ab7a6c5e74737878ac73863cb76739d15d4666de44e5756bf55a2f9e9ab5f431209736f6d"
        "65206c696e6b1880c2d72f12370a2212208ab7a6c5e74737878ac73863cb76739d15d4666de44e5756bf55"
        "a2f9e9ab5f44120f736f6d65206f74686572206c696e6b18080a09736f6d652064617461"
    ),
    "bafybeibazl2z4vqp2tmwcfag6wirmtpnomxknqcgrauj7m2yisrz3qjbom": "0a050001020304",
    "bafybeiaqfni3s5s2k2r6rgpxz4hohdsskh44ka5tk6ztbjerqpvxwfkwaq": "0a00",
    "bafybeia53f5n75ituvc3yupuf7tdnxf6fqetrmo2alc6g6iljkmk7ys5mm": "120b0a09015500050001020304",
    "bafybeifq4hcxma3kjljrpxtunnljtc6tvbkgsy3vldyfpfbx2lij76niyu": (
        "12160a090155000500010203041209736f6d65206e616d65"
    ),
    "bafybeie7fstnkm4yshfwnmpp7d3mlh4f4okmk7a54d6c3ffr755q7qzk44": (
        "120d0a090155000500010203041200"
    ),
    "bafybeiezymjvhwfuharanxmzxwuomzjjuzqjewjolr4phaiyp6l7qfwo64": (
        "12140a0901550005000102030418ffffffffffffff0f"
    ),
    "bafybeichjs5otecmbvwh5azdr4jc45mp2qcofh2fr54wjdxhz4znahod2i": (
        "120d0a090155000500010203041800"
    ),
    "bafybeia2qk4u55f2qj7zimmtpulejgz7urp7rzs44cvledcaj42gltkk3u": "0a03010203",
    "bafybeiahfgovhod2uvww72vwdgatl5r6qkoeegg7at2bghiokupfphqcku": (
        "120b0a0901550005000102030412100a09015500050001020304120362617212100a090155000500010203"
        "041203666f6f"
    ),
    "bafybeidrg2f6slbv4yzydqtgmsi2vzojajnt7iufcreynfpxndca4z5twm": (
        "120b0a09015500050001020304120e0a09015500050001020304120161120e0a09015500050001020304120161"
    ),
    "bafybeieube7zxmzoc5bgttub2aqofi6xdzimv5munkjseeqccn36a6v6j4": (
        "120e0a09015500050001020304120161120e0a09015500050001020304120161"
    ),
}


@pytest.mark.parametrize("cid", NOT_UNIXFS)
def test_the_specifications_blocks_decode_but_are_no_unixfs(cid: str) -> None:
    block = bytes.fromhex(NOT_UNIXFS[cid])
    assert str(Cid.dag_pb(hashlib.sha256(block).digest())) == cid
    node = dagpb.decode(block)
    assert dagpb.encode(node.links, node.data) == block
    with pytest.raises(Corrupt, match="UnixFS"):
        decode_data(node.data)


def test_absent_and_empty_fields_are_told_apart() -> None:
    links = [PbLink(ODD_CID, None, None), PbLink(CID, b"", 0), PbLink(CID, None, 5)]
    assert dagpb.decode(dagpb.encode(links, b"")) == (links, b"")
    assert dagpb.decode(dagpb.encode(links, None)) == (links, None)


def test_data_may_stand_before_the_links() -> None:
    link = dagpb.encode_link(CID, b"x", 1)
    assert dagpb.decode(b"\x0a\x01d" + link) == ([PbLink(CID, b"x", 1)], b"d")


def _link(body: bytes) -> bytes:
    return b"\x12" + bytes((len(body),)) + body


HASH = b"\x0a\x24" + CID
NAME = b"\x12\x01n"
TSIZE = b"\x18\x01"
WHOLE = _link(HASH + NAME + TSIZE)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (WHOLE + b"\x0a\x01d" + WHOLE, "both sides"),
        (b"\x0a\x01d\x0a\x01d", "second data"),
        (b"\x0a\x01d" + WHOLE + b"\x0a\x01d", "second data"),
        (b"\x1a\x00", "does not have"),
        (b"\x08\x01", "does not have"),
        (b"\x10\x01", "does not have"),
        (b"\x0a\x02d", "past the end"),
        (WHOLE[:-1], "past the end"),
        (WHOLE + b"\x00", "does not have"),
        (b"\x12", "cut short"),
        (b"\x0a\x80", "cut short"),
        (b"\x0a" + b"\x80" * 10 + b"\x01", "longer than 64 bits"),
        (b"\x0a" + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "past the end"),
        (_link(b""), "without a hash"),
        (_link(b"\x0a"), "without a hash"),
        (_link(NAME + TSIZE), "without a hash"),
        (_link(NAME + HASH), "without a hash"),
        (_link(b"\x0a\x25" + CID), "past the end of its link"),
        (_link(b"\x0a\x00"), "not a CID"),
        (_link(b"\x0a\x03abc"), "not a CID"),
        (_link(HASH + b"\x12\x02n"), "past the end of its link"),
        (_link(HASH + TSIZE + NAME), "out of place"),
        (_link(HASH + HASH), "out of place"),
        (_link(HASH + NAME + NAME), "out of place"),
        (_link(HASH + NAME + TSIZE + TSIZE), "out of place"),
        (_link(HASH + NAME + b"\x20\x01"), "out of place"),
        (_link(HASH + b"\x10\x01"), "out of place"),
        (_link(HASH + NAME + b"\x1a\x01x"), "out of place"),
        (_link(HASH + NAME + b"\x18\x80") + b"\x00", "out of place"),
        (_link(HASH + NAME + b"\x18"), "cut short"),
    ],
)
def test_what_the_specification_refuses_is_corrupt(block: bytes, reason: str) -> None:
    with pytest.raises(Corrupt, match=reason):
        dagpb.decode(block)


def test_a_block_cut_anywhere_is_corrupt_or_ends_between_fields() -> None:
    block = WHOLE + WHOLE + b"\x0a\x01d"
    whole = {0, len(WHOLE), 2 * len(WHOLE), len(block)}
    for length in range(len(block)):
        if length in whole:
            dagpb.decode(block[:length])
        else:
            with pytest.raises(Corrupt):
                dagpb.decode(block[:length])


def test_a_tsize_that_is_not_in_its_shortest_form_is_read() -> None:
    block = _link(HASH + NAME + b"\x18\x81\x00")
    assert dagpb.decode(block).links == [PbLink(CID, b"n", 1)]


_SIZES = st.none() | st.integers(0, 300) | st.integers(0, (1 << 64) - 1)
_NAMES = st.none() | st.binary(max_size=20) | st.binary(min_size=80, max_size=300)
_CIDS = st.sampled_from(
    [
        CID,
        ODD_CID,
        Cid.dag_pb(bytes(32)).binary,
        Cid.dag_pb(bytes(32), 0).binary,
        identity(RAW, bytes(127)).binary,
    ]
)
_LINKS = st.lists(st.builds(PbLink, _CIDS, _NAMES, _SIZES), max_size=8)


@given(_LINKS, st.none() | st.binary(max_size=300))
def test_decoding_undoes_encoding(links: list[PbLink], data: bytes | None) -> None:
    block = dagpb.encode(links, data)
    assert dagpb.decode(block) == (links, data)
    assert dagpb.decode(memoryview(block)) == (links, data)


@given(_LINKS, st.binary(max_size=30), st.data())
def test_a_damaged_block_is_corrupt_or_means_something_else(
    links: list[PbLink], data: bytes, draw: st.DataObject
) -> None:
    block = bytearray(dagpb.encode(links, data))
    at = draw.draw(st.integers(0, len(block) - 1))
    block[at] ^= draw.draw(st.integers(1, 255))
    try:
        node = dagpb.decode(block)
    except Corrupt:
        return
    assert node != (links, data)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_corrupt(block: bytes) -> None:
    try:
        node = dagpb.decode(block)
    except Corrupt:
        return
    assert dagpb.decode(dagpb.encode(node.links, node.data)) == node
