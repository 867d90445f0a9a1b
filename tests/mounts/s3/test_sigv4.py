"""Signatures against the published vectors: the SigV4 test suite and the S3 documentation."""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qs

import pytest

from unifs.mounts.s3.options import Credentials
from unifs.mounts.s3.sigv4 import (
    EMPTY_SHA256,
    KEYS_MAX,
    UNSIGNED_PAYLOAD,
    Pairs,
    Signable,
    Signer,
    encoded,
    encoded_query,
    moment_of,
)

SUITE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_MOMENT = "20150830T123600Z"
BASE: Pairs = (("host", "example.amazonaws.com"), ("x-amz-date", SUITE_MOMENT))
GUIDE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
GUIDE_MOMENT = "20130524T000000Z"
GUIDE_HOST = ("host", "examplebucket.s3.amazonaws.com")
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfI"
    "eoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0"
    "wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypN"
    "C9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)


def signature(authorization: str) -> str:
    return authorization.rpartition("Signature=")[2]


def suite(request: Signable, credentials: Credentials = SUITE) -> str:
    return signature(
        Signer("service").authorization(request, credentials, "us-east-1", SUITE_MOMENT)
    )


@pytest.mark.parametrize(
    ("name", "method", "path", "query", "headers", "expected"),
    [
        (
            "get-vanilla",
            "GET",
            "/",
            (),
            (),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "get-vanilla-query",
            "GET",
            "/",
            (),
            (),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "get-vanilla-empty-query-key",
            "GET",
            "/",
            (("Param1", "value1"),),
            (),
            "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
        ),
        (
            "get-vanilla-query-order-key-case",
            "GET",
            "/",
            (("Param2", "value2"), ("Param1", "value1")),
            (),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "get-vanilla-query-unreserved",
            "GET",
            "/",
            ((UNRESERVED, UNRESERVED),),
            (),
            "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
        ),
        (
            "get-vanilla-utf8-query",
            "GET",
            "/",
            (("ሴ", "bar"),),
            (),
            "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
        ),
        (
            "get-unreserved",
            "GET",
            f"/{UNRESERVED}",
            (),
            (),
            "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
        ),
        (
            "get-utf8",
            "GET",
            encoded("/ሴ", "/"),
            (),
            (),
            "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
        ),
        (
            "get-space",
            "GET",
            encoded("/example space/", "/"),
            (),
            (),
            "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
        ),
        (
            "get-header-key-duplicate",
            "GET",
            "/",
            (),
            (("my-header1", "value2"), ("my-header1", "value2"), ("my-header1", "value1")),
            "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        ),
        (
            "get-header-value-order",
            "GET",
            "/",
            (),
            (
                ("my-header1", "value4"),
                ("my-header1", "value1"),
                ("my-header1", "value3"),
                ("my-header1", "value2"),
            ),
            "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
        ),
        (
            "get-header-value-trim",
            "GET",
            "/",
            (),
            (("my-header1", " value1"), ("my-header2", ' "a   b   c"')),
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        (
            "post-vanilla",
            "POST",
            "/",
            (),
            (),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "post-vanilla-query",
            "POST",
            "/",
            (("Param1", "value1"),),
            (),
            "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
        ),
        (
            "post-header-value-case",
            "POST",
            "/",
            (),
            (("my-header1", "VALUE1"),),
            "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
        ),
        (
            "post-sts-token",
            "POST",
            "/",
            (),
            (("x-amz-security-token", TOKEN),),
            "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
        ),
    ],
)
def test_vectors_of_the_suite(
    name: str, method: str, path: str, query: Pairs, headers: Pairs, expected: str
) -> None:
    assert suite(Signable(method, path, query, BASE + headers, EMPTY_SHA256)) == expected


# --- the S3 documentation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            Signable(
                "GET",
                "/test.txt",
                (),
                (
                    GUIDE_HOST,
                    ("range", "bytes=0-9"),
                    ("x-amz-content-sha256", EMPTY_SHA256),
                    ("x-amz-date", GUIDE_MOMENT),
                ),
                EMPTY_SHA256,
            ),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            Signable(
                "PUT",
                encoded("/test$file.text", "/"),
                (),
                (
                    GUIDE_HOST,
                    ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                    ("x-amz-content-sha256", hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()),
                    ("x-amz-date", GUIDE_MOMENT),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                ),
                hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
            ),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            Signable(
                "GET",
                "/",
                (("lifecycle", ""),),
                (
                    GUIDE_HOST,
                    ("x-amz-content-sha256", EMPTY_SHA256),
                    ("x-amz-date", GUIDE_MOMENT),
                ),
                EMPTY_SHA256,
            ),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            Signable(
                "GET",
                "/",
                (("max-keys", "2"), ("prefix", "J")),
                (
                    GUIDE_HOST,
                    ("x-amz-content-sha256", EMPTY_SHA256),
                    ("x-amz-date", GUIDE_MOMENT),
                ),
                EMPTY_SHA256,
            ),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_examples_of_the_s3_guide(request_: Signable, expected: str) -> None:
    made = Signer().authorization(request_, GUIDE, "us-east-1", GUIDE_MOMENT)
    assert signature(made) == expected


def test_the_presigned_example_of_the_s3_guide() -> None:
    request = Signable("GET", "/test.txt", (), (GUIDE_HOST,), UNSIGNED_PAYLOAD)
    query = Signer().presigned(request, GUIDE, "us-east-1", (GUIDE_MOMENT, 86400))
    fields = parse_qs(query)
    assert fields["X-Amz-Signature"] == [
        "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    ]
    assert fields["X-Amz-Expires"] == ["86400"]
    assert fields["X-Amz-SignedHeaders"] == ["host"]


def test_a_session_token_is_part_of_a_presigned_query() -> None:
    request = Signable("GET", "/k", (), (GUIDE_HOST,), UNSIGNED_PAYLOAD)
    session = Credentials(GUIDE.access_key, GUIDE.secret_key, "to/ken")
    query = Signer().presigned(request, session, "us-east-1", (GUIDE_MOMENT, 60))
    assert "&X-Amz-Security-Token=to%2Fken&" in query


def test_bytes_that_are_not_text_are_encoded_as_they_are() -> None:
    assert encoded("a\udcff/ü", "/") == "a%FF/%C3%BC"
    assert encoded_query([("b", "2"), ("a", "x y"), ("a", "")]) == "a=&a=x%20y&b=2"


def test_a_day_key_is_derived_once_and_few_are_kept() -> None:
    signer = Signer()
    request = Signable("GET", "/", (), (GUIDE_HOST,), EMPTY_SHA256)
    first = signer.authorization(request, GUIDE, "us-east-1", GUIDE_MOMENT)
    assert signer.authorization(request, GUIDE, "us-east-1", GUIDE_MOMENT) == first
    assert len(signer._keys) == 1
    for number in range(KEYS_MAX * 2):
        signer.authorization(request, GUIDE, f"region-{number}", GUIDE_MOMENT)
    assert len(signer._keys) == KEYS_MAX


def test_the_moment_is_utc() -> None:
    assert moment_of(1_369_353_600) == GUIDE_MOMENT
