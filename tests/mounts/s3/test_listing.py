"""XML as services write it, as they should not, and as nobody should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifs.errors import Corrupt
from unifs.mounts.s3.listing import (
    KeyPage,
    escaped,
    plain_etag,
    quoted_etag,
    records,
)

PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix>
<NextContinuationToken>to&amp;ken</NextContinuationToken><KeyCount>3</KeyCount>
<IsTruncated>true</IsTruncated>
<Contents><Key>a%20b%2Bc+d%0A%FF</Key><LastModified>2026-11-21T14:53:14.123Z</LastModified>
<ETag>&quot;900150983cd24fb0d6963f7d28e17f72&quot;</ETag><Size>3</Size>
<Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>plain</Key><LastModified>2026-11-21T14:53:14Z</LastModified>
<ETag>"e-2"</ETag><Size>70</Size></Contents>
<CommonPrefixes><Prefix>d%2F/</Prefix></CommonPrefixes>
<EncodingType>url</EncodingType></ListBucketResult>"""


def page_of(text: str) -> KeyPage:
    return KeyPage(text.encode())


def test_a_page() -> None:
    page = page_of(PAGE)
    first, second = page.objects
    assert first.key == "a b+c d\n\udcff"
    assert first.etag == "900150983cd24fb0d6963f7d28e17f72"
    assert (first.size_bytes, first.mtime_ns) == (3, 1_795_272_794_000_000_000)
    assert (second.key, second.etag, second.mtime_ns) == ("plain", "e-2", first.mtime_ns)
    assert page.prefixes == ["d//"]
    assert (page.is_truncated, page.token) == (True, "to&ken")


def test_keys_that_are_not_encoded_are_taken_as_they_are() -> None:
    page = page_of(PAGE.replace("<EncodingType>url</EncodingType>", ""))
    assert page.objects[0].key == "a%20b%2Bc+d%0A%FF"


@pytest.mark.parametrize(
    "text",
    [
        PAGE[:-20],
        PAGE.replace("<Size>3</Size>", ""),
        PAGE.replace("<Size>3</Size>", "<Size>many</Size>"),
        PAGE.replace("2026-11-21T14:53:14Z", "yesterday"),
        PAGE.replace("<Key>plain", "<Key>" + "k" * 70_000),
        "<html>sorry",
        "",
        '<!DOCTYPE x [<!ENTITY a "b">]>' + PAGE.partition("?>")[2],
    ],
)
def test_what_is_cut_incomplete_or_hostile_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt):
        page_of(text)


@given(st.binary(max_size=200))
def test_noise_is_corrupt_or_an_empty_page(data: bytes) -> None:
    try:
        page = KeyPage(data)
    except Corrupt:
        return
    assert page.objects == []


def test_small_answers() -> None:
    found = records(b"<R><Part><N>1</N></Part><Part><N>2</N><E>x</E></Part><T>t</T></R>", "Part")
    assert found.found == [{"N": "1"}, {"N": "2", "E": "x"}]
    assert found.last["T"] == "t"
    with pytest.raises(Corrupt):
        records(b"<R><Part>", "Part")


def test_etags_and_escapes() -> None:
    assert plain_etag('"a-2"') == "a-2"
    assert plain_etag("a-2") == "a-2"
    assert quoted_etag(plain_etag('W/"weak"')) == 'W/"weak"'
    assert quoted_etag("a") == '"a"'
    assert escaped("a<b>&\n\x7f") == "a&lt;b&gt;&amp;&#10;&#127;"
