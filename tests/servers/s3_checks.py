"""What our S3 mount may rely on: one function a claim about a service.

``test_s3_semantics.py`` runs them against every server we have; a function raises (AssertionError
or boto3's ClientError) where the claim does not hold. They read like the mount's assumptions,
because that is what they are: whoever lets the mount rely on something new adds it here.

Longer than most because the claims are one list, and nothing but a list.
"""

from __future__ import annotations

import base64
import hashlib
import time
import urllib.request
import zlib
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.error import HTTPError

import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.servers.s3 import DIRECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.s3 import S3Server

PART = 5 << 20


class Bench:
    """A fresh bucket of a server, and short calls for it."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.bucket = server.bucket()
        self.client = server.client()

    def put(self, key: str, body: bytes = b"x", **more: Any) -> str:
        """Store an object; its ETag."""
        answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return str(answer["ETag"])

    def get(self, key: str, **more: Any) -> bytes:
        answer = self.client.get_object(Bucket=self.bucket, Key=key, **more)
        with answer["Body"] as body:
            return bytes(body.read())

    def head(self, key: str, **more: Any) -> dict[str, Any]:
        return dict(self.client.head_object(Bucket=self.bucket, Key=key, **more))

    def keys(self, **more: Any) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.bucket, **more)
        return [held["Key"] for held in answer.get("Contents", [])]

    def url(self, method: str = "get_object", key: str = "a", expires: int = 60) -> str:
        parameters = {"Bucket": self.bucket, "Key": key}
        return str(self.client.generate_presigned_url(method, parameters, ExpiresIn=expires))

    def upload(self, key: str, parts: list[bytes], **complete: Any) -> dict[str, Any]:
        """A multipart upload."""
        where = {"Bucket": self.bucket, "Key": key}
        where["UploadId"] = self.client.create_multipart_upload(**where)["UploadId"]
        done = []
        for number, body in enumerate(parts, 1):
            etag = self.client.upload_part(**where, PartNumber=number, Body=body)["ETag"]
            done.append({"PartNumber": number, "ETag": etag})
        listed = {"MultipartUpload": {"Parts": done}}
        return dict(self.client.complete_multipart_upload(**where, **listed, **complete))


@contextmanager
def refused(*codes: str) -> Iterator[None]:
    """The body must be refused with one of these error codes or HTTP statuses."""
    with pytest.raises((ClientError, HTTPError)) as caught:
        yield
    error = caught.value
    if isinstance(error, ClientError):
        status = str(error.response["ResponseMetadata"]["HTTPStatusCode"])
        told = {error.response["Error"]["Code"], status}
    else:
        told = {str(error.code)}
        error.close()
    assert told & set(codes), f"refused with {told}, not {codes}"


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# --- who asks -----------------------------------------------------------------------------------


def a_wrong_secret_is_refused(at: Bench) -> None:
    with refused("SignatureDoesNotMatch"):
        at.server.client(aws_secret_access_key="wrong").list_objects_v2(Bucket=at.bucket)


def an_unknown_access_key_is_refused(at: Bench) -> None:
    with refused("InvalidAccessKeyId"):
        at.server.client(aws_access_key_id="AKNOBODY").list_objects_v2(Bucket=at.bucket)


def anonymous_is_refused(at: Bench) -> None:
    anonymous = at.server.client(config=Config(signature_version=UNSIGNED))
    at.put("a")
    with refused("AccessDenied", "403"):
        anonymous.get_object(Bucket=at.bucket, Key="a")


def a_presigned_url_serves(at: Bench) -> None:
    at.put("a", b"content")
    with DIRECT.open(at.url()) as answer:
        assert answer.read() == b"content"
    request = urllib.request.Request(at.url("put_object", "b"), b"put", method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    with DIRECT.open(request):
        assert at.get("b") == b"put"


def an_expired_presigned_url_is_refused(at: Bench) -> None:
    at.put("a")
    url = at.url(expires=1)
    time.sleep(2.1)
    with refused("403"):
        DIRECT.open(url)


def a_tampered_presigned_url_is_refused(at: Bench) -> None:
    at.put("a")
    at.put("b")
    with refused("403"):
        DIRECT.open(at.url(key="a").replace("/a?", "/b?"))


def a_skewed_clock_is_refused(at: Bench) -> None:
    with (
        mock.patch("botocore.auth.get_current_datetime", _long_ago),
        refused("RequestTimeTooSkewed"),
    ):
        at.client.list_objects_v2(Bucket=at.bucket)


def _long_ago(*_: Any, **__: Any) -> Any:
    return datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)


# --- conditions ---------------------------------------------------------------------------------


def put_if_absent_creates_once(at: Bench) -> None:
    at.put("a", b"first", IfNoneMatch="*")
    with refused("PreconditionFailed"):
        at.put("a", b"second", IfNoneMatch="*")
    assert at.get("a") == b"first"


def put_if_match_replaces_that_version_only(at: Bench) -> None:
    first = at.put("a", b"first")
    second = at.put("a", b"second", IfMatch=first)
    with refused("PreconditionFailed"):
        at.put("a", b"third", IfMatch=first)
    assert at.get("a") == b"second"
    assert at.head("a")["ETag"] == second


def put_if_match_of_nothing_is_refused(at: Bench) -> None:
    etag = at.put("a")
    at.client.delete_object(Bucket=at.bucket, Key="a")
    with refused("PreconditionFailed", "NoSuchKey"):
        at.put("a", b"second", IfMatch=etag)
    assert at.keys() == []


def complete_if_absent_creates_once(at: Bench) -> None:
    at.upload("a", [b"first"], IfNoneMatch="*")
    with refused("PreconditionFailed"):
        at.upload("a", [b"second"], IfNoneMatch="*")
    assert at.get("a") == b"first"


def complete_if_match_replaces_that_version_only(at: Bench) -> None:
    etag = at.put("a", b"first")
    at.put("a", b"foreign")
    with refused("PreconditionFailed"):
        at.upload("a", [b"second"], IfMatch=etag)
    assert at.get("a") == b"foreign"


def delete_if_match_removes_that_version_only(at: Bench) -> None:
    etag = at.put("a", b"first")
    at.put("a", b"foreign")
    with refused("PreconditionFailed"):
        at.client.delete_object(Bucket=at.bucket, Key="a", IfMatch=etag)
    assert at.get("a") == b"foreign"
    at.client.delete_object(Bucket=at.bucket, Key="a", IfMatch=at.head("a")["ETag"])
    assert at.keys() == []


def get_if_match_reads_that_version_only(at: Bench) -> None:
    etag = at.put("a", b"first")
    assert at.get("a", IfMatch=etag, Range="bytes=1-2") == b"ir"
    at.put("a", b"foreign")
    with refused("PreconditionFailed", "412"):
        at.get("a", IfMatch=etag, Range="bytes=1-2")


def copy_if_source_match_copies_that_version_only(at: Bench) -> None:
    etag = at.put("a", b"first")
    at.put("a", b"foreign")
    source = {"Bucket": at.bucket, "Key": "a"}
    with refused("PreconditionFailed", "412"):
        at.client.copy_object(Bucket=at.bucket, Key="b", CopySource=source, CopySourceIfMatch=etag)
    assert at.keys() == ["a"]


def copy_if_absent_creates_once(at: Bench) -> None:
    at.put("a", b"source")
    at.put("b", b"foreign")
    source = {"Bucket": at.bucket, "Key": "a"}
    with refused("PreconditionFailed"):
        at.client.copy_object(Bucket=at.bucket, Key="b", CopySource=source, IfNoneMatch="*")
    assert at.get("b") == b"foreign"


# --- bytes --------------------------------------------------------------------------------------


def a_wrong_md5_is_refused(at: Bench) -> None:
    with refused("BadDigest"):
        at.put("a", b"content", ContentMD5=md5(b"other"))
    assert at.keys() == []


def a_body_that_is_not_the_signed_one_is_refused(at: Bench) -> None:
    def swap(request: Any, **_: Any) -> None:
        request.body = b"other"

    client = at.server.client()
    client.meta.events.register("before-send.s3.PutObject", swap)
    try:
        with refused("XAmzContentSHA256Mismatch", "BadDigest"):
            client.put_object(Bucket=at.bucket, Key="a", Body=b"bytes")
    finally:
        client.meta.events.unregister("before-send.s3.PutObject", swap)
    assert at.keys() == []


def a_wrong_crc32_is_refused(at: Bench) -> None:
    crc = base64.b64encode(zlib.crc32(b"other").to_bytes(4)).decode()
    with refused("BadDigest", "InvalidRequest", "XAmzContentChecksumMismatch"):
        at.put("a", b"content", ChecksumCRC32=crc)
    assert at.keys() == []


def the_etag_of_a_put_is_its_md5(at: Bench) -> None:
    assert at.put("a", b"content") == f'"{hashlib.md5(b"content").hexdigest()}"'


def ranges_are_exact(at: Bench) -> None:
    body = pattern(100_000)
    at.put("a", body)
    assert at.get("a", Range="bytes=10-19") == body[10:20]
    assert at.get("a", Range="bytes=99990-200000") == body[99_990:]
    assert at.get("a", Range="bytes=-7") == body[-7:]
    with refused("InvalidRange", "416"):
        at.get("a", Range="bytes=100000-100001")


def metadata_is_kept_and_replaced_by_a_put(at: Bench) -> None:
    at.put("a", Metadata={"unifs-token": "t1", "mtime": "1.5"}, ContentType="text/x-odd")
    head = at.head("a")
    assert head["Metadata"] == {"unifs-token": "t1", "mtime": "1.5"}
    assert head["ContentType"] == "text/x-odd"
    at.put("a")
    assert at.head("a")["Metadata"] == {}


def copy_onto_itself_replaces_metadata(at: Bench) -> None:
    at.put("a", b"content", Metadata={"mode": "1"})
    at.client.copy_object(
        Bucket=at.bucket,
        Key="a",
        CopySource={"Bucket": at.bucket, "Key": "a"},
        Metadata={"mode": "2"},
        MetadataDirective="REPLACE",
    )
    assert at.head("a")["Metadata"] == {"mode": "2"}
    assert at.get("a") == b"content"


# --- multipart ----------------------------------------------------------------------------------


def multipart_shows_nothing_before_it_is_complete(at: Bench) -> None:
    where = {"Bucket": at.bucket, "Key": "a"}
    upload = at.client.create_multipart_upload(**where, Metadata={"t": "1"})["UploadId"]
    part = at.client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x")
    assert at.keys() == []
    listed = at.client.list_multipart_uploads(Bucket=at.bucket)["Uploads"]
    assert [(held["Key"], held["UploadId"]) for held in listed] == [("a", upload)]
    parts = at.client.list_parts(**where, UploadId=upload)["Parts"]
    assert [(held["PartNumber"], held["ETag"], held["Size"]) for held in parts] == [
        (1, part["ETag"], 1)
    ]
    at.client.abort_multipart_upload(**where, UploadId=upload)
    assert at.client.list_multipart_uploads(Bucket=at.bucket).get("Uploads", []) == []
    with refused("NoSuchUpload"):
        at.client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x")


def multipart_joins_its_parts(at: Bench) -> None:
    body = pattern(2 * PART + 1000)
    done = at.upload("a", [body[:PART], body[PART : 2 * PART], body[2 * PART :]])
    assert done["ETag"].strip('"').endswith("-3")
    assert at.head("a")["ContentLength"] == len(body)
    assert at.get("a") == body
    assert at.get("a", Range=f"bytes={PART - 5}-{PART + 4}") == body[PART - 5 : PART + 5]


def a_part_may_be_sent_again(at: Bench) -> None:
    where = {"Bucket": at.bucket, "Key": "a"}
    where["UploadId"] = at.client.create_multipart_upload(**where)["UploadId"]
    at.client.upload_part(**where, PartNumber=1, Body=b"first")
    etag = at.client.upload_part(**where, PartNumber=1, Body=b"second")["ETag"]
    at.client.complete_multipart_upload(
        **where, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}
    )
    assert at.get("a") == b"second"


def complete_twice_is_success_or_no_such_upload(at: Bench) -> None:
    where = {"Bucket": at.bucket, "Key": "a"}
    where["UploadId"] = at.client.create_multipart_upload(**where)["UploadId"]
    etag = at.client.upload_part(**where, PartNumber=1, Body=b"x")["ETag"]
    parts = {"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": etag}]}}
    at.client.complete_multipart_upload(**where, **parts)
    with suppress(at.client.exceptions.NoSuchUpload):
        at.client.complete_multipart_upload(**where, **parts)
    assert at.get("a") == b"x"


def a_small_part_in_the_middle_is_refused(at: Bench) -> None:
    with refused("EntityTooSmall"):
        at.upload("a", [b"small", b"last"])
    assert at.keys() == []


def a_wrong_part_etag_is_refused(at: Bench) -> None:
    where = {"Bucket": at.bucket, "Key": "a"}
    where["UploadId"] = at.client.create_multipart_upload(**where)["UploadId"]
    at.client.upload_part(**where, PartNumber=1, Body=b"x")
    parts = [{"PartNumber": 1, "ETag": '"00000000000000000000000000000000"'}]
    with refused("InvalidPart"):
        at.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


def upload_part_copy_takes_ranges(at: Bench) -> None:
    body = pattern(PART + 1000)
    etag = at.put("source", body)
    where = {"Bucket": at.bucket, "Key": "a"}
    where["UploadId"] = at.client.create_multipart_upload(**where)["UploadId"]
    copied = at.client.upload_part_copy(
        **where,
        PartNumber=1,
        CopySource={"Bucket": at.bucket, "Key": "source"},
        CopySourceRange=f"bytes=1000-{PART + 999}",
        CopySourceIfMatch=etag,
    )["CopyPartResult"]["ETag"]
    tail = at.client.upload_part(**where, PartNumber=2, Body=b"tail")["ETag"]
    parts = [{"PartNumber": 1, "ETag": copied}, {"PartNumber": 2, "ETag": tail}]
    at.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert at.get("a") == body[1000:] + b"tail"


def upload_part_copy_checks_its_source(at: Bench) -> None:
    etag = at.put("source", pattern(PART))
    at.put("source", b"foreign")
    where = {"Bucket": at.bucket, "Key": "a"}
    where["UploadId"] = at.client.create_multipart_upload(**where)["UploadId"]
    with refused("PreconditionFailed", "412"):
        at.client.upload_part_copy(
            **where,
            PartNumber=1,
            CopySource={"Bucket": at.bucket, "Key": "source"},
            CopySourceIfMatch=etag,
        )


# --- listing ------------------------------------------------------------------------------------


def pages_join_without_gap_or_double(at: Bench) -> None:
    names = [f"d/{number:02}" for number in range(7)] + ["d/sub/x", "d/sub/y", "e"]
    for name in names:
        at.put(name)
    assert sorted(_paged(at, "d/")) == [f"d/{number:02}" for number in range(7)] + ["d/sub/"]


def pages_join_where_a_key_is_a_prefix_too(at: Bench) -> None:
    for name in ("a", "a!", "a/b", "a/c", "a0", "b/", "b/c", "c"):
        at.put(name)
    assert sorted(_paged(at, "")) == ["a", "a!", "a/", "a0", "b/", "c"]


def a_page_has_no_more_than_asked_for(at: Bench) -> None:
    for name in ("B", "a", "a!", "a/b", "a0"):
        at.put(name)
    page = at.client.list_objects_v2(Bucket=at.bucket, Delimiter="/", MaxKeys=2)
    assert len(page["Contents"]) + len(page.get("CommonPrefixes", [])) == 2


def _paged(at: Bench, prefix: str) -> list[str]:
    """All of a directory, three at a time."""
    found: list[str] = []
    token: dict[str, str] = {}
    for _ in range(20):
        page = at.client.list_objects_v2(
            Bucket=at.bucket, Prefix=prefix, Delimiter="/", MaxKeys=3, **token
        )
        found += [held["Key"] for held in page.get("Contents", [])]
        found += [held["Prefix"] for held in page.get("CommonPrefixes", [])]
        if not page["IsTruncated"]:
            return found
        token = {"ContinuationToken": page["NextContinuationToken"]}
    raise AssertionError("the listing does not end")


def a_listing_starts_after_a_key(at: Bench) -> None:
    for name in ("a", "b", "c", "d"):
        at.put(name)
    assert at.keys(StartAfter="b") == ["c", "d"]
    assert at.keys(StartAfter="bb") == ["c", "d"]


def keys_come_in_byte_order(at: Bench) -> None:
    names = ["B", "a", "a!", "a/b", "a0", "é", "\N{PILE OF POO}"]
    for name in names:
        at.put(name)
    assert at.keys() == sorted(names, key=lambda name: name.encode())


def a_listing_sees_what_was_just_written(at: Bench) -> None:
    for number in range(10):
        at.put(f"k{number}")
        assert len(at.keys()) == number + 1
    for number in range(10):
        at.client.delete_object(Bucket=at.bucket, Key=f"k{number}")
        assert len(at.keys()) == 9 - number


def deletes_come_in_batches(at: Bench) -> None:
    names = [f"k{number:04}" for number in range(100)]
    for name in names:
        at.put(name)
    doomed = [{"Key": name} for name in [*names[:-1], "never there"]]
    answer = at.client.delete_objects(Bucket=at.bucket, Delete={"Objects": doomed})
    assert len(answer["Deleted"]) == 100
    assert answer.get("Errors", []) == []
    assert at.keys() == names[-1:]


def deleting_nothing_is_success(at: Bench) -> None:
    at.client.delete_object(Bucket=at.bucket, Key="never there")


# --- versions -----------------------------------------------------------------------------------


def versions_are_kept_and_deletes_are_marked(at: Bench) -> None:
    at.client.put_bucket_versioning(Bucket=at.bucket, VersioningConfiguration={"Status": "Enabled"})
    where = {"Bucket": at.bucket, "Key": "a"}
    first = at.client.put_object(**where, Body=b"first")["VersionId"]
    second = at.client.put_object(**where, Body=b"second")["VersionId"]
    assert at.client.delete_object(**where)["DeleteMarker"]
    with refused("NoSuchKey", "404"):
        at.get("a")
    assert at.get("a", VersionId=first) == b"first"
    held = at.client.list_object_versions(Bucket=at.bucket)
    assert {version["VersionId"] for version in held["Versions"]} == {first, second}
    assert len(held["DeleteMarkers"]) == 1


# --- odd keys -----------------------------------------------------------------------------------


def _keeps_key(key: str) -> Callable[[Bench], None]:
    def check(at: Bench) -> None:
        at.put(key, b"odd")
        assert at.get(key) == b"odd"
        listed = at.client.list_objects_v2(Bucket=at.bucket)
        assert [held["Key"] for held in listed.get("Contents", [])] == [key]
        at.client.copy_object(
            Bucket=at.bucket, Key="copy", CopySource={"Bucket": at.bucket, "Key": key}
        )
        assert at.get("copy") == b"odd"

    return check


def a_key_may_be_a_prefix_too(at: Bench) -> None:
    at.put("a", b"object")
    at.put("a/b", b"below")
    assert at.get("a") == b"object"
    assert at.get("a/b") == b"below"
    assert at.keys() == ["a", "a/b"]


def a_marker_keeps_its_metadata(at: Bench) -> None:
    at.put("d/", b"", Metadata={"mode": "16877"})
    assert at.head("d/")["Metadata"] == {"mode": "16877"}


def a_marker_of_an_empty_directory_is_kept(at: Bench) -> None:
    at.put("d/", b"")
    assert at.keys() == ["d/"]
    at.put("d/a")
    at.client.delete_object(Bucket=at.bucket, Key="d/a")
    assert at.keys() == ["d/"]
    at.client.delete_object(Bucket=at.bucket, Key="d/")
    assert at.keys() == []


# --- buckets ------------------------------------------------------------------------------------


def a_bucket_with_keys_is_not_deleted(at: Bench) -> None:
    at.put("a")
    with refused("BucketNotEmpty"):
        at.client.delete_bucket(Bucket=at.bucket)
    assert at.keys() == ["a"]


def a_missing_bucket_is_named(at: Bench) -> None:
    with refused("NoSuchBucket"):
        at.client.put_object(Bucket=f"{at.bucket}-missing", Key="a", Body=b"x")
    with refused("NoSuchBucket"):
        at.client.list_objects_v2(Bucket=f"{at.bucket}-missing")


ODD_KEYS = {
    "space": "with space",
    "plus": "ü+&=?#",
    "percent": "%20",
    "newline": "new\nline",
    "double slash": "o//dbl",
    "trailing slash": "trail/",
    "dots": "o/../dot",
    "one dot": "o/./dot",
    "leading slash": "/lead",
    "cjk": "漢字",
    "control": "\x01bell\x7f",
    "1024 bytes": "/".join(["k" * 127] * 8)[:1024],
    "segment over 255 bytes": "s" * 300,
}
CHECKS: dict[str, Callable[[Bench], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        a_wrong_secret_is_refused,
        an_unknown_access_key_is_refused,
        anonymous_is_refused,
        a_presigned_url_serves,
        an_expired_presigned_url_is_refused,
        a_tampered_presigned_url_is_refused,
        a_skewed_clock_is_refused,
        put_if_absent_creates_once,
        put_if_match_replaces_that_version_only,
        put_if_match_of_nothing_is_refused,
        complete_if_absent_creates_once,
        complete_if_match_replaces_that_version_only,
        delete_if_match_removes_that_version_only,
        get_if_match_reads_that_version_only,
        copy_if_source_match_copies_that_version_only,
        copy_if_absent_creates_once,
        a_wrong_md5_is_refused,
        a_body_that_is_not_the_signed_one_is_refused,
        a_wrong_crc32_is_refused,
        the_etag_of_a_put_is_its_md5,
        ranges_are_exact,
        metadata_is_kept_and_replaced_by_a_put,
        copy_onto_itself_replaces_metadata,
        multipart_shows_nothing_before_it_is_complete,
        multipart_joins_its_parts,
        a_part_may_be_sent_again,
        complete_twice_is_success_or_no_such_upload,
        a_small_part_in_the_middle_is_refused,
        a_wrong_part_etag_is_refused,
        upload_part_copy_takes_ranges,
        upload_part_copy_checks_its_source,
        pages_join_without_gap_or_double,
        pages_join_where_a_key_is_a_prefix_too,
        a_page_has_no_more_than_asked_for,
        a_listing_starts_after_a_key,
        keys_come_in_byte_order,
        a_listing_sees_what_was_just_written,
        deletes_come_in_batches,
        deleting_nothing_is_success,
        versions_are_kept_and_deletes_are_marked,
        a_key_may_be_a_prefix_too,
        a_marker_of_an_empty_directory_is_kept,
        a_marker_keeps_its_metadata,
        a_bucket_with_keys_is_not_deleted,
        a_missing_bucket_is_named,
    )
} | {f"key with {name} is kept": _keeps_key(key) for name, key in ODD_KEYS.items()}
