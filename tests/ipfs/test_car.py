"""CAR archives: what is written is read, in any pieces, and every damage names its place."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libipld import decode_dag_cbor

from unifs.errors import Corrupt
from unifs.ipfs import car
from unifs.ipfs.cid import RAW, Cid, identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTENTS = [b"", b"a", b"a", bytes(range(256)) * 2]
CIDS = [
    Cid.raw(hashlib.sha256(CONTENTS[0]).digest()),
    Cid.raw(hashlib.sha256(CONTENTS[1]).digest()),
    Cid.dag_pb(hashlib.sha256(CONTENTS[2]).digest(), 0),
    Cid(1, RAW, b"\xa0\xe4\x02\x20" + hashlib.blake2b(CONTENTS[3], digest_size=32).digest()),
]
HEADER = car.header(CIDS[:1])
SECTIONS = [car.section(cid, data) for cid, data in zip(CIDS, CONTENTS, strict=True)]
ARCHIVE = HEADER + b"".join(SECTIONS)
BLOCKS = list(zip(CIDS, CONTENTS, strict=True))
BOUNDARIES = [len(HEADER) + sum(map(len, SECTIONS[:count])) for count in range(len(SECTIONS) + 1)]

V2_INDEX = b"\x80\x08index"


def v2(inner: bytes, index: bytes = V2_INDEX, padding: int = 10) -> bytes:
    numbers = (51 + padding, len(inner), 51 + padding + len(inner) + 3 if index else 0)
    fixed = bytes(16) + b"".join(number.to_bytes(8, "little") for number in numbers)
    return car_pragma() + fixed + bytes(padding) + inner + (bytes(3) + index if index else b"")


def car_pragma() -> bytes:
    return bytes.fromhex("0aa16776657273696f6e02")


def sections_of(pieces: Iterable[bytes], is_verified: bool = True) -> Iterator[car.Section]:
    reader = car.CarReader(is_verified)
    for piece in pieces:
        yield from reader.feed(piece)
    reader.close()


def roots_of(archive: bytes) -> tuple[Cid, ...]:
    reader = car.CarReader(is_verified=False)
    next(iter(reader.feed(archive)), None)
    return reader.roots or ()


def read(archive: bytes) -> list[tuple[Cid, bytes]]:
    return [(section.cid, section.data) for section in sections_of([archive])]


def test_what_is_written_is_read() -> None:
    assert read(ARCHIVE) == BLOCKS
    assert read(v2(ARCHIVE)) == BLOCKS
    assert read(v2(ARCHIVE, index=b"", padding=0)) == BLOCKS


@pytest.mark.parametrize("count", [0, 1, 3, 30, 300])
def test_roots(count: int) -> None:
    roots = (CIDS * count)[:count]
    head = car.header(roots)
    assert roots_of(head) == tuple(roots)
    body = head[1 if head[0] < 0x80 else 2 :]
    assert decode_dag_cbor(body) == {"roots": [root.binary for root in roots], "version": 1}
    reader = car.CarReader()
    assert list(reader.feed(head + SECTIONS[0])) != []
    reader.close()
    assert (reader.version, reader.roots) == (1, tuple(roots))


def test_sections_say_where_they_lie() -> None:
    sections = list(sections_of([ARCHIVE]))
    assert [section.offset for section in sections] == BOUNDARIES[:-1]
    for section in sections:
        assert ARCHIVE[section.data_offset :].startswith(section.data)
    shifted = list(sections_of([v2(ARCHIVE)]))
    assert [section.offset for section in shifted] == [at + 61 for at in BOUNDARIES[:-1]]


@pytest.mark.parametrize("archive", [ARCHIVE, v2(ARCHIVE)], ids=["v1", "v2"])
@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 64])
def test_pieces_of_any_length(archive: bytes, piece_bytes: int) -> None:
    pieces = [archive[at : at + piece_bytes] for at in range(0, len(archive), piece_bytes)]
    assert [(s.cid, s.data) for s in sections_of(pieces)] == BLOCKS


def test_cut_at_every_byte() -> None:
    for length in range(len(ARCHIVE)):
        sections = sections_of([ARCHIVE[:length]])
        if length in BOUNDARIES:
            assert len(list(sections)) == BOUNDARIES.index(length)
            continue
        whole = max((at for at in BOUNDARIES if at < length), default=0)
        for block in BLOCKS[: BOUNDARIES.index(whole) if whole else 0]:
            section = next(sections)
            assert (section.cid, section.data) == block, length
        with pytest.raises(Corrupt, match=f"at byte {whole}: it ends within"):
            next(sections)


def test_version_2_cut_at_every_byte() -> None:
    archive = v2(ARCHIVE)
    for length in range(len(archive) - len(V2_INDEX) + 1):
        with pytest.raises(Corrupt, match="at byte"):
            read(archive[:length])


def test_a_wrong_byte_in_a_block_is_named_by_its_section() -> None:
    at = BOUNDARIES[3]
    damaged = bytearray(ARCHIVE)
    damaged[-1] ^= 1
    with pytest.raises(Corrupt, match=f"at byte {at}: {CIDS[3]}: the bytes do not match") as caught:
        read(bytes(damaged))
    assert caught.value.context["offset"] == at
    unverified = list(sections_of([bytes(damaged)], is_verified=False))
    assert [section.cid for section in unverified] == CIDS


def _headed(body: bytes) -> bytes:
    return bytes((len(body),)) + body


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"", "at byte 0: it ends within its header"),
        (b"\x00", "a length that is 0"),
        (b"\x80\x00", "not in its shortest form"),
        (b"\x80" * 10, "does not end"),
        (b"\x81\x80\x40", "longer than 1048576 bytes"),
        (_headed(b"\xa0"), "version 0, or its roots are missing"),
        (_headed(b"\xa1\x65roots\x80"), "version 0"),
        (_headed(b"\xa1\x67version\x01"), "version 1, or its roots are missing"),
        (_headed(b"\xa2\x65roots\x80\x67version\x03"), "version 3"),
        (_headed(b"\xa2\x65roots\x80\x67version\x02"), "version 2"),
        (_headed(b"\xa2\x65roots\x80\x65roots\x80"), "repeated key"),
        (_headed(b"\xa2\x65roots\x80\x67versiom\x01"), "unknown"),
        (_headed(b"\xa2\x65roots\x80\x67version\x61"), "another type"),
        (_headed(b"\xa2\x65roots\x81\x01\x67version\x01"), "another type"),
        (_headed(b"\xa2\x65roots\x81\xd8\x2a\x41\x01\x67version\x01"), "no link"),
        (_headed(b"\xa2\x65roots\x81\xd8\x2a\x42\x00\x09\x67version\x01"), "CID version 9"),
        (_headed(b"\xa2\x65roots\x9f\xff\x67version\x01"), "no fixed length"),
        (_headed(b"\xa2\x65roots\x80\x67version\x01\x00"), "more than one value"),
        (_headed(b"\xbb\xff"), "does not parse"),
        (_headed(b"\x81" * 100), "another type"),
        (car_pragma() + car_pragma() + bytes(40), "no valid payload"),
        (car_pragma() + bytes(40), "no valid payload"),
        (v2(v2(ARCHIVE)), "version 2, or its roots"),
        (v2(ARCHIVE + b"\x05abc", index=b""), "runs past the payload"),
        (HEADER + b"\x00", "a length that is 0"),
        (HEADER + b"\x81\x80\x80\x04", "longer than 8388608 bytes"),
        (HEADER + b"\x02\x01\x55", "no CID"),
        (HEADER + b"\x04\x01\x55\x00\x05", "no CID"),
    ],
)
def test_what_is_no_archive_is_corrupt(archive: bytes, reason: str) -> None:
    with pytest.raises(Corrupt, match=reason):
        read(archive)


def test_a_section_of_8_mib_passes() -> None:
    cid = identity(RAW, b"")
    size = car.SECTION_MAX_BYTES - len(cid.binary)
    archive = car.header([]) + car.section_head(cid, size) + bytes(size)
    (section,) = sections_of([archive], is_verified=False)
    assert len(section.data) == size


@given(st.binary(max_size=120) | st.binary(max_size=120).map(lambda tail: HEADER + tail))
def test_any_bytes_are_read_or_corrupt(archive: bytes) -> None:
    try:
        blocks = read(archive)
    except Corrupt:
        return
    roots = roots_of(archive)
    assert read(car.header(roots) + b"".join(car.section(*block) for block in blocks)) == blocks
