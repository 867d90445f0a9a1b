"""The UnixFS message: exact bytes out, and the specification's rules for what comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifs.errors import Corrupt
from unifs.ipfs.unixfs.node import DataType, UnixfsData, decode_data, encode_data


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (UnixfsData(DataType.DIRECTORY), "0801"),
        (UnixfsData(DataType.FILE, size_bytes=0), "08021800"),
        (UnixfsData(DataType.FILE, b"ab", 2), "08021202616218" + "02"),
        (UnixfsData(DataType.FILE, None, 300, (255, 45)), "080218ac0220ff01202d"),
        (UnixfsData(DataType.SYMLINK, b"t"), "0804120174"),
        (UnixfsData(DataType.FILE, size_bytes=0, mode=0o644), "0802180038a403"),
        (UnixfsData(DataType.FILE, size_bytes=0, mtime_ns=1_000_000_000), "0802180042020801"),
        (
            UnixfsData(DataType.FILE, size_bytes=0, mtime_ns=-1),
            "08021800" + "4210" + "08" + "ff" * 9 + "01" + "15ffc99a3b",
        ),
    ],
)
def test_exact_bytes_both_ways(node: UnixfsData, message: str) -> None:
    assert encode_data(node).hex() == message
    assert decode_data(bytes.fromhex(message)) == node


def test_packed_block_sizes_and_fields_of_the_future_are_read() -> None:
    assert decode_data(
        bytes.fromhex("08021803220201024a017855000000005900000000" + "00000000")
    ) == (UnixfsData(DataType.FILE, None, 3, (1, 2)))


def test_all_32_bits_of_mode_are_kept() -> None:
    node = UnixfsData(DataType.FILE, size_bytes=0, mode=0xFFFF_F1ED)
    assert decode_data(encode_data(node)).mode == 0xFFFF_F1ED


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "no UnixFS data"),
        ("1800", "type None"),
        ("0806", "type 6"),
        ("08ffffffffffffffffff01", "type"),
        ("0a0102", "wire type 2"),
        ("080208021800", "twice"),
        ("08021200120018" + "00", "twice"),
        ("0802180018" + "00", "twice"),
        ("08021001", "wire type 0"),
        ("0802120561", "cut short"),
        ("080218", "cut short"),
        ("0802188080808080808080808080" + "01", "longer than 64 bits"),
        ("080225" + "00000000", "wire type 5"),
        ("08022201" + "80", "cut short"),
        ("0802180038ffffffff1f", "longer than 32 bits"),
        ("0802180042" + "00", "no seconds"),
        ("08021800420515" + "01000000", "no seconds"),
        ("0802180042070801" + "15" + "00000000", "0 nanoseconds"),
        ("0802180042070801" + "15" + "00ca9a3b", "1000000000 nanoseconds"),
        ("080218004204" + "08010801", "malformed"),
        ("080218004204" + "08011001", "malformed"),
        ("080b", "type 11"),
        ("0802180b0b", "wire type 3"),
    ],
)
def test_what_is_malformed_is_corrupt(message: str, reason: str) -> None:
    with pytest.raises(Corrupt, match=reason):
        decode_data(bytes.fromhex(message))


_NODES = st.builds(
    UnixfsData,
    st.sampled_from(list(DataType)),
    st.none() | st.binary(max_size=200),
    st.none() | st.integers(0, (1 << 64) - 1),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=5).map(tuple),
    st.none() | st.integers(0, 100),
    st.none() | st.sampled_from([8, 256, 1024]),
    st.none() | st.integers(0, (1 << 32) - 1),
    st.none() | st.integers(-(1 << 62), 1 << 62),
)


@given(_NODES)
def test_decoding_undoes_encoding(node: UnixfsData) -> None:
    assert decode_data(encode_data(node)) == node


@given(st.binary(max_size=100).map(lambda tail: b"\x08\x05\x12" + tail) | st.binary(max_size=100))
def test_any_bytes_decode_or_are_corrupt(message: bytes) -> None:
    try:
        node = decode_data(message)
    except Corrupt:
        return
    assert decode_data(encode_data(node)) == node
