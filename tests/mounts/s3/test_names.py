"""Every key has one path, no two have the same, and a path leads back to its key."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifs.errors import InvalidArgument, NameTooLong, NotFound, NotPermitted
from unifs.mounts.s3.names import (
    Places,
    is_beside_object,
    is_part,
    key_of,
    names_beside,
    names_of,
    parts_of,
    prefix_of,
)
from unifs.mounts.s3.options import S3Options

RAW = [chr(0xDC00 + value) for value in range(0x80, 0x100)]
pieces = st.one_of(
    st.sampled_from(["%", "%%", "%%+", "%%2", "%%2F", "%%25", "%%00", "%%C3", "%%BC", "%%FF", "+"]),
    st.sampled_from([".", "..", "\0", "\n", "a", "F", "2", "ü", "€", "\U0001f600", *RAW]),
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=3),
)


def is_real(text: str) -> bool:
    """Whether surrogates stand for bytes that are not UTF-8, as they do in what a service sends."""
    data = text.encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "surrogateescape") == text


segments = st.lists(pieces, max_size=6).map("".join).filter(is_real)
long_segments = st.builds(
    lambda start, fill, end: (start + fill * 400)[:990] + end,
    segments,
    st.sampled_from(["x", "%", "é", "%%2F", "€a"]),
    segments,
).filter(lambda text: is_real(text) and len(text.encode("utf-8", "surrogateescape")) < 3000)


def check_names(names: tuple[str, ...]) -> None:
    for name in names:
        data = name.encode("utf-8", "surrogateescape")
        assert os.fsdecode(data) == name
        assert 0 < len(data) <= 255
        assert name not in (".", "..")
        assert "\0" not in name
        assert "/" not in name
    for name in names[:-1]:
        assert name.endswith("%%+")


@given(segments)
def test_a_segment_leads_to_its_name_and_back(segment: str) -> None:
    names = names_of(segment)
    check_names(names)
    assert key_of("/".join(names)) == segment


@given(long_segments)
def test_a_long_segment_is_directories(segment: str) -> None:
    names = names_of(segment)
    check_names(names)
    for count in range(1, len(names)):
        above = "/".join(names[:count])
        assert is_part(above)
        assert parts_of(above) == count
        if len(above) < 500:
            assert segment.startswith(prefix_of(above))
    if len(segment.encode("utf-8", "surrogateescape")) <= 1024:
        assert key_of("/".join(names)) == segment


@given(st.lists(segments, min_size=1, max_size=4))
def test_a_key_leads_to_its_path_and_back(parts: list[str]) -> None:
    key = "/".join(parts)
    path = "/".join(name for part in parts for name in names_of(part))
    assert key_of(path) == key
    assert prefix_of(path) == f"{key}/"


@given(st.binary(min_size=1, max_size=200).filter(lambda name: not set(name) & {0, 47}))
def test_a_name_leads_to_its_key_and_back_or_is_refused(data: bytes) -> None:
    name = os.fsdecode(data)
    if name in (".", ".."):
        return
    try:
        key = key_of(name)
    except InvalidArgument:
        assert "%%" in name
        return
    assert names_of(key) == (name,)
    key.encode()


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a/b", "a/b"),
        ("100%", "100%"),
        ("a%20b%2F", "a%20b%2F"),
        ("a//b", "a/%%/b"),
        ("/lead", "%%/lead"),
        ("trail/", "trail/%%"),
        ("./x/..", "%%2E/x/%%2E."),
        ("...", "..."),
        ("50%%2F", "50%%25%2F"),
        ("%%C3%%BC", "\udcc3%%25%BC"),
        ("%%FF", "\udcff"),
        ("\udcff", "%%FF"),
        ("nul\0", "nul%%00"),
        ("end%%", "end%%25%"),
        ("end%%+", "end%%25%+"),
        ("%%", "%%25%"),
        ("new\nline", "new\nline"),
        ("ü€", "ü€"),
    ],
)
def test_the_documented_escapes(key: str, path: str) -> None:
    assert "/".join(name for part in key.split("/") for name in names_of(part)) == path
    assert key_of(path) == key


def test_a_directory_beside_an_object_has_the_keys_of_its_plain_name() -> None:
    assert prefix_of("k%%") == "k/"
    assert key_of("k%%/x") == "k/x"
    assert prefix_of("%%%%") == "/"


filling_segments = st.builds(lambda end: ("x" * 256 + end)[-256:], segments)


@given(st.one_of(segments, long_segments, filling_segments))
def test_a_directory_beside_any_object_has_names_of_its_own(segment: str) -> None:
    names = names_beside(segment)
    check_names(names)
    path = "/".join(names)
    assert not {names, names[:1]} & {names_of(segment)}
    assert is_beside_object(path)
    if len(segment.encode("utf-8", "surrogateescape")) < 1000:
        assert prefix_of(path) == f"{segment}/"
        assert key_of(f"{path}/x") == f"{segment}/x"


@pytest.mark.parametrize("size", [253, 254, 255, 256, 506, 507, 508])
def test_where_there_is_no_room_beside_an_object_the_name_has_parts(size: int) -> None:
    *_, last = names_beside("x" * size)
    assert last.endswith("x%%")
    assert len(names_beside("x" * size)) == 1 + (size > 253) + (size > 505)


@pytest.mark.parametrize("name", ["a%%2Fb", "a%%41", "a%%", "x%%+", "%%C3%%BC", "%%2F"])
def test_names_that_no_key_is_shown_as_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        key_of(name)


@pytest.mark.parametrize(
    ("above", "name", "kind"),
    [
        ("d", "a%%2Fb", stat.S_IFREG),
        ("d", "a%%2Fb", stat.S_IFDIR),
        (None, "a%%2Fb", stat.S_IFREG),
        ("d", "a%%", stat.S_IFREG),
        ("d", "a%%", stat.S_IFDIR),
        ("d", "a%%+", stat.S_IFDIR),
        ("", "%%", stat.S_IFREG),
        ("", ".unifs-probe-0123456789abcdef", stat.S_IFREG),
    ],
)
def test_names_that_are_never_made(above: str | None, name: str, kind: int) -> None:
    places = Places(S3Options(bucket="b"))
    with pytest.raises(InvalidArgument):
        places.check_name(above, os.fsencode(name), stat.S_ISDIR(kind))


@pytest.mark.parametrize(
    ("above", "name", "kind"),
    [
        ("", "100%", stat.S_IFREG),
        ("", "bad\udcff", stat.S_IFREG),
        ("d", "50%%25%2F", stat.S_IFDIR),
        ("d", "%%", stat.S_IFDIR),
        ("d", "%%", stat.S_IFREG),
        ("d", ".unifs-probe-0123456789abcdef", stat.S_IFREG),
        ("d/long%%+", "a%%2F", stat.S_IFREG),
    ],
)
def test_names_that_may_be_made(above: str, name: str, kind: int) -> None:
    places = Places(S3Options(bucket="b"))
    places.check_name(above, os.fsencode(name), stat.S_ISDIR(kind))


def test_buckets_and_nothing_else_lie_where_buckets_lie() -> None:
    places = Places(S3Options())
    places.check_name("", b"a-bucket", True)
    places.check_name("a-bucket", b"Any Name", True)
    for name in (b"Upper", b"a b", b"ab", b"-dash", b"x" * 64):
        with pytest.raises(InvalidArgument, match="cannot be a bucket"):
            places.check_name("", name, True)
    with pytest.raises(NotPermitted, match="mkdir makes one"):
        places.check_name("", b"a-file", False)
    with pytest.raises(InvalidArgument, match="tries services"):
        places.check_name("b", b".unifs-probe-0123456789abcdef", False)


def test_the_longest_key() -> None:
    assert key_of("/".join(["x" * 255] * 4)) == "/".join(["x" * 255] * 4)
    with pytest.raises(NameTooLong):
        key_of("/".join(["x" * 255] * 4) + "/yy")
    with pytest.raises(NameTooLong):
        key_of("/".join(["é" * 120] * 5))


def test_places() -> None:
    everything = Places(S3Options())
    assert everything.object_at("bucket/a/b") == ("bucket", "a/b")
    assert everything.prefix_at("bucket") == ("bucket", "")
    assert everything.split("") == ("", "")
    assert everything.is_top("bucket")
    assert not everything.is_top("bucket/a")
    for path in ("bücket/a", "b?policy", "b#x/a", "b%2F/a", "b\r\nx", " "):
        with pytest.raises(NotFound):
            everything.split(path)
    for path in ("bucket", "bucket/%%"):
        with pytest.raises(InvalidArgument):
            everything.object_at(path)
    part = Places(S3Options(bucket="one", prefix="/a/b/"))
    assert part.object_at("c") == ("one", "a/b/c")
    assert part.prefix_at("") == ("one", "a/b/")
    assert part.is_top("")
