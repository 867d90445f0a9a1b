"""``unifs ctl s3`` on objects: URLs, versions, tags and storage classes, on real services."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import httpx

from tests.s3.operations import Bench, daemon_of
from unifs.mounts.s3 import copies, multipart

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.servers.s3 import S3Server

MIB = 1 << 20


def fetch(method: str, url: str, data: bytes | None = None) -> httpx.Response:
    """A client that knows nothing of S3, nor of the environment's proxies."""
    with httpx.Client(trust_env=False) as client:
        return client.request(method, url, content=data)


# --- URLs ----------------------------------------------------------------------------------------


async def test_a_url_serves_and_stores_without_a_key(both: Bench) -> None:
    both.put("a b+ü/100%", b"signed")
    got = await both.one("presign", f"{both.top}/a b+ü/100%")
    assert (got["method"], both.server.secret_key in json.dumps(got)) == ("get", False)
    answer = fetch("GET", got["url"])
    assert (answer.status_code, answer.content) == (200, b"signed")
    put = await both.one("presign", f"{both.top}/new", "--method", "put", "--expiry-s", "60")
    assert fetch("PUT", put["url"], b"stored by a URL").status_code == 200
    assert await both.read("new") == b"stored by a URL"
    text = await both.shell.text("ctl", "s3", "presign", f"{both.top}/new", "--field", "url")
    assert fetch("GET", text.strip()).content == b"stored by a URL"


async def test_a_url_is_for_one_method_one_object_and_a_while(bench: Bench) -> None:
    bench.put("a", b"1")
    bench.put("b", b"2")
    url = (await bench.one("presign", f"{bench.top}/a"))["url"]
    assert fetch("PUT", url, b"x").status_code == 403
    assert fetch("GET", url.replace("/a?", "/b?")).status_code == 403
    assert fetch("GET", url.partition("?")[0]).status_code == 403
    await bench.refused(2, "1 s to 7 days", "presign", f"{bench.top}/a", "--expiry-s", "604801")
    await bench.refused(2, "1 s to 7 days", "presign", f"{bench.top}/a", "--expiry-s", "0")
    assert bench.get("a") == b"1"


async def test_a_url_is_not_made_of_what_the_service_does_not_have(bench: Bench) -> None:
    await bench.names()
    bench.server.freeze()
    await bench.write("mine", b"not there yet")
    await bench.refused(5, "have not reached the service", "presign", f"{bench.top}/mine")
    bench.server.thaw()
    await bench.system.sync()
    url = (await bench.one("presign", f"{bench.top}/mine"))["url"]
    assert fetch("GET", url).content == b"not there yet"
    await bench.refused(4, "does not exist", "presign", f"{bench.top}/nothing")
    await bench.refused(2, "is no object", "presign", bench.top)
    await bench.refused(7, "no mount of an S3 service", "presign", "/mfs/a")
    await bench.refused(7, "no mount of an S3 service", "presign", "/elsewhere/a")


async def test_what_was_renamed_here_is_found_where_the_service_has_it(bench: Bench) -> None:
    bench.put("old/f", b"moved")
    assert await bench.read("old/f") == b"moved"
    await bench.system.rename(f"{bench.bucket}/old", f"{bench.bucket}/new")
    await bench.system.sync()
    url = (await bench.one("presign", f"{bench.top}/new/f"))["url"]
    assert "/new/f?" in url
    assert fetch("GET", url).content == b"moved"


# --- versions ------------------------------------------------------------------------------------


async def test_versions_are_told_read_and_restored(both: Bench) -> None:
    both.keep_versions()
    first, second = os.urandom(5 * MIB), b"second"
    ids = [both.put("d/f", data)["VersionId"] for data in (first, second)]
    both.put("d/f.longer", b"another key")
    path = f"{both.top}/d/f"
    assert await both.read("d/f") == second
    listed = await both.ctl("versions", "ls", path)
    told = [(each["version_id"], each["size_bytes"], each["is_latest"]) for each in listed]
    assert told == [(ids[1], 6, True), (ids[0], 5 * MIB, False)]
    code, out, _ = await both.shell.run("ctl", "s3", "versions", "get", path, ids[0])
    assert (code, out) == (0, first)
    restored = await both.one("versions", "restore", path, ids[0])
    assert restored["size_bytes"] == 5 * MIB
    # The tree knows it at once, whatever it believed before.
    assert await both.read("d/f") == first
    assert both.get("d/f") == first
    assert len(await both.ctl("versions", "ls", path)) == 3
    await both.write("d/f", b"third")
    await both.system.sync()
    assert both.get("d/f") == b"third"
    assert await both.names("d") == ["f", "f.longer"]
    await both.refused(4, "has no version 'nonsense'", "versions", "get", path, "nonsense")
    await both.refused(4, "has no version", "versions", "restore", path, "nonsense")


async def test_a_version_that_is_too_large_for_one_copy_is_restored_in_parts(
    both: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "COPY_MAX_BYTES", MIB)
    monkeypatch.setattr(multipart, "COPY_PART_BYTES", 5 * MIB)
    both.keep_versions()
    first = os.urandom(12 * MIB)
    made = both.put("f", first, Metadata={"color": "red"})["VersionId"]
    both.put("f", b"second")
    await both.ctl("versions", "restore", f"{both.top}/f", made)
    head = both.client.head_object(Bucket=both.bucket, Key="f")
    assert head["ETag"].endswith('-3"')
    assert head["Metadata"]["color"] == "red"
    assert both.get("f") == first
    assert await both.read("f") == first
    assert len(await both.ctl("versions", "ls", f"{both.top}/f")) == 3


async def test_a_deleted_object_has_versions_and_comes_back(both: Bench) -> None:
    both.keep_versions()
    made = both.put("d/gone", b"was here")["VersionId"]
    path = f"{both.top}/d/gone"
    assert await both.names("d") == ["gone"]
    await both.system.unlink(f"{both.bucket}/d/gone")
    await both.system.sync()
    listed = await both.ctl("versions", "ls", path)
    assert [(each["is_deleted"], each["size_bytes"]) for each in listed] == [
        (True, None),
        (False, 8),
    ]
    marker = listed[0]["version_id"]
    await both.refused(4, "is its deletion", "versions", "get", path, marker)
    await both.refused(4, "is its deletion", "versions", "restore", path, marker)
    await both.ctl("versions", "restore", path, made)
    assert await both.read("d/gone") == b"was here"
    assert both.get("d/gone") == b"was here"
    await both.refused(4, "keeps no version of it", "versions", "ls", f"{both.top}/never")


async def test_restoring_waits_for_what_is_written_here(bench: Bench) -> None:
    bench.keep_versions()
    made = bench.put("f", b"first")["VersionId"]
    path = f"{bench.top}/f"
    assert (await bench.names(), await bench.read("f")) == (["f"], b"first")
    bench.server.freeze()
    await bench.write("f", b"mine, on its way")
    for words in (
        ("versions", "restore", path, made),
        ("tags", "put", path, "a=b"),
        ("storage-class", "set", path, "STANDARD_IA"),
    ):
        await bench.refused(5, "unifs ctl journal sync", *words)
    await bench.system.unlink(f"{bench.bucket}/f")
    await bench.refused(5, "unifs ctl journal sync", "versions", "restore", path, made)
    bench.server.thaw()
    await bench.system.sync()
    await bench.ctl("versions", "restore", path, made)
    assert await bench.read("f") == b"first"
    assert await bench.names() == ["f"]


async def test_a_bucket_without_versions_has_one_of_each_object(both: Bench) -> None:
    both.put("f", b"only")
    (told,) = await both.ctl("versions", "ls", f"{both.top}/f")
    assert (told["version_id"], told["is_latest"], told["size_bytes"]) == ("null", True, 4)
    code, out, _ = await both.shell.run("ctl", "s3", "versions", "get", f"{both.top}/f", "null")
    assert (code, out) == (0, b"only")
    await both.ctl("versions", "restore", f"{both.top}/f", "null")
    assert both.get("f") == b"only"
    text = await both.shell.text("ctl", "s3", "versions", "ls", f"{both.top}/f")
    assert "VERSION ID" in text.upper()
    assert "null" in text


# --- tags and storage classes --------------------------------------------------------------------


async def test_tags_are_set_told_and_taken_off(both: Bench) -> None:
    both.put("f", b"1")
    path = f"{both.top}/f"
    before = (await both.system.stat(f"{both.bucket}/f")).mtime_ns
    assert await both.ctl("tags", "get", path) == []
    told = await both.one("tags", "put", path, "kind=report", "for=you+me @home", "empty=")
    assert told["tags"] == ["kind=report", "for=you+me @home", "empty="]
    found = {each["tag"]: each["value"] for each in await both.ctl("tags", "get", path)}
    assert found == {"kind": "report", "for": "you+me @home", "empty": ""}
    theirs = both.client.get_object_tagging(Bucket=both.bucket, Key="f")["TagSet"]
    assert {each["Key"]: each["Value"] for each in theirs} == found
    await both.ctl("tags", "put", path, "kind=letter")
    assert await both.ctl("tags", "get", path) == [{"tag": "kind", "value": "letter"}]
    await both.ctl("tags", "rm", path)
    assert await both.ctl("tags", "get", path) == []
    assert (await both.system.stat(f"{both.bucket}/f")).mtime_ns == before
    # A change after it is no conflict: the bytes are the same.
    await both.write("f", b"2")
    await both.system.sync()
    assert both.get("f") == b"2"
    assert await both.names() == ["f"]


async def test_nonsense_for_tags_and_classes_is_named(bench: Bench) -> None:
    bench.put("d/f", b"1")
    path = f"{bench.top}/d/f"
    await bench.refused(2, "'kind' is no tag", "tags", "put", path, "kind")
    await bench.refused(2, "'=x' is no tag", "tags", "put", path, "=x")
    await bench.refused(2, "given twice", "tags", "put", path, "a=1", "a=2")
    await bench.refused(5, "is a directory", "tags", "get", f"{bench.top}/d")
    await bench.refused(4, "does not exist", "tags", "get", f"{bench.top}/d/g")
    await bench.refused(2, "is no storage class", "storage-class", "set", path, "a b")
    await bench.refused(2, "service answers 400", "tags", "put", path, "k" * 129 + "=v")


async def test_a_storage_class_is_set_and_the_file_stays_as_it_was(moto_bench: Bench) -> None:
    moto_bench.put("f", b"bytes", Metadata={"color": "red"}, ContentType="text/x-red")
    path = f"{moto_bench.top}/f"
    assert await moto_bench.read("f") == b"bytes"
    assert (await moto_bench.one("storage-class", "get", path))["storage_class"] == "STANDARD"
    told = await moto_bench.one("storage-class", "set", path, "STANDARD_IA")
    assert told["storage_class"] == "STANDARD_IA"
    head = moto_bench.client.head_object(Bucket=moto_bench.bucket, Key="f")
    assert (head["StorageClass"], head["Metadata"]) == ("STANDARD_IA", {"color": "red"})
    assert head["ContentType"] == "text/x-red"
    assert await moto_bench.read("f") == b"bytes"
    await moto_bench.write("f", b"later")
    await moto_bench.system.sync()
    assert moto_bench.get("f") == b"later"
    assert await moto_bench.names() == ["f"]
    sentence = "service answers 400"
    await moto_bench.refused(2, sentence, "storage-class", "set", path, "NO_SUCH_CLASS")


async def test_a_class_that_a_service_does_not_keep_is_unsupported_or_kept(bench: Bench) -> None:
    bench.put("f", b"bytes")
    path = f"{bench.top}/f"
    code, _, error = await bench.shell.run("ctl", "s3", "storage-class", "set", path, "GLACIER")
    kept = (await bench.one("storage-class", "get", path))["storage_class"]
    assert (code, kept) in ((0, "GLACIER"), (7, "STANDARD")), error
    assert await bench.read("f") == b"bytes"


async def test_a_mount_that_is_read_only_changes_nothing(
    s3_server: S3Server, tmp_path: Path, bench: Bench
) -> None:
    bench.put("f", b"1")
    bench.system.volume.refuses_changes = True
    path = f"{bench.top}/f"
    for words in (
        ("presign", path, "--method", "put"),
        ("versions", "restore", path, "null"),
        ("tags", "put", path, "a=b"),
        ("storage-class", "set", path, "STANDARD"),
        ("bucket", "versioning", "on", bench.top),
        ("bucket", "policy", "rm", bench.top),
        ("lifecycle", "rm", bench.top),
        ("multipart", "abort", path, "x"),
    ):
        await bench.refused(5, "read-only by the settings", *words)
    assert (await bench.one("presign", path))["url"]


async def test_a_mount_of_one_prefix_speaks_of_its_own_keys(
    s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="in/here/f", Body=b"below")
    options = {"bucket": bucket, "prefix": "in/here/"}
    async with daemon_of(s3_server, tmp_path, **options) as system:
        s3 = system.daemon.s3
        told = await s3.presign("/s3/f", "get", 60)
        assert f"/{bucket}/in/here/f?" in told.url
        assert fetch("GET", told.url).content == b"below"
        await s3.put_tags("/s3/f", ["a=b"])
        tags = client.get_object_tagging(Bucket=bucket, Key="in/here/f")["TagSet"]
        assert tags == [{"Key": "a", "Value": "b"}]
        assert (await s3.versioning("/s3")).bucket == bucket
        upload = client.create_multipart_upload(Bucket=bucket, Key="in/here/up/load")
        client.create_multipart_upload(Bucket=bucket, Key="elsewhere")
        (found,) = [each async for each in s3.uploads("/s3")]
        assert (found.path, found.upload_id) == ("/s3/up/load", upload["UploadId"])
        await s3.abort(found.path, found.upload_id)
        assert [each async for each in s3.uploads("/s3")] == []
