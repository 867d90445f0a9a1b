"""Every claim of ``s3_checks.py`` against every server, with the gaps we know by name.

A gap is strict: a server that closes one fails the test, so that this list stays the truth about
what an S3 service may lack, and with it what our mount has to live with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from tests.servers.s3_checks import CHECKS, Bench

if TYPE_CHECKING:
    from tests.servers.s3 import S3Server

#: Names are paths of a filer underneath: folded, refused or listed as such.
WEED_GAPS = {
    "key with double slash is kept": "listed as o/dbl",
    "key with leading slash is kept": "listed without the slash",
    "key with trailing slash is kept": "a directory: listed, its bytes dropped",
    "key with dots is kept": "InvalidRequest",
    "key with one dot is kept": "InvalidRequest",
    "key with segment over 255 bytes is kept": "KeyTooLongError",
    "a marker keeps its metadata": "a directory has none",
    "keys come in byte order": "depth first: a, a/b, a!, a0",
    "a page has no more than asked for": "one more where a key is a prefix too",
    "a body that is not the signed one is refused": "x-amz-content-sha256 is signed, not checked",
}
MOTO_GAPS = {
    "a wrong secret is refused": "signatures are not looked at",
    "an unknown access key is refused": "signatures are not looked at",
    "an expired presigned url is refused": "signatures are not looked at",
    "a tampered presigned url is refused": "signatures are not looked at",
    "a skewed clock is refused": "signatures are not looked at",
    "a body that is not the signed one is refused": "stored as it came",
    "a wrong md5 is refused": "stored as it came",
    "a wrong crc32 is refused": "stored as it came",
    "complete if match replaces that version only": "If-Match is ignored",
    "copy if source match copies that version only": "the source's condition is ignored",
    "upload part copy checks its source": "the source's condition is ignored",
    "copy if absent creates once": "If-None-Match is ignored",
    "multipart shows nothing before it is complete": "a part of an aborted upload: 500",
    "key with newline is kept": "404 at put",
}


def judge(server: S3Server, check: str, gaps: dict[str, str]) -> None:
    if check not in gaps:
        CHECKS[check](Bench(server))
        return
    with pytest.raises((AssertionError, ClientError, pytest.fail.Exception)):
        CHECKS[check](Bench(server))


def test_the_gaps_name_checks() -> None:
    assert WEED_GAPS.keys() | MOTO_GAPS.keys() <= CHECKS.keys()


@pytest.mark.parametrize("check", CHECKS)
def test_weed(s3_server: S3Server, check: str) -> None:
    judge(s3_server, check, WEED_GAPS)


@pytest.mark.parametrize("check", CHECKS)
def test_moto(moto_server: S3Server, check: str) -> None:
    judge(moto_server, check, MOTO_GAPS)
