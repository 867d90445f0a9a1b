"""``unifs ctl s3`` on buckets: policies, versions kept or not, lifecycles, uploads in parts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.control.conftest import Shell
from tests.mounts.s3.identities import Fixed
from tests.remotes.system import S3, DaemonSystem
from tests.s3.operations import Bench
from unifs.errors import NotFound, UnifsError, Unsupported
from unifs.mounts.s3.bucketsettings import BucketSettings
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RULES: dict[str, Any] = {
    "Rules": [
        {
            "ID": "old",
            "Status": "Enabled",
            "Filter": {"Prefix": "logs/"},
            "Expiration": {"Days": 30},
        }
    ]
}


def policy_of(bucket: str) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "read",
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{bucket}/*",
            }
        ],
    }


async def written(bench: Bench, *words: str) -> Any:
    """The JSON document that an operation writes."""
    code, out, error = await bench.shell.run("ctl", "s3", *words)
    assert (code, error) == (0, "")
    return json.loads(out)


async def test_a_policy_is_set_told_and_removed(both: Bench, tmp_path: Path) -> None:
    wanted, file = policy_of(both.bucket), tmp_path / "policy.json"
    file.write_text(json.dumps(wanted))
    await both.refused(4, "has no policy", "bucket", "policy", "get", both.top)
    told = await both.one("bucket", "policy", "put", both.top, str(file))
    assert told["bucket"] == both.bucket
    assert await written(both, "bucket", "policy", "get", both.top) == wanted
    theirs = both.client.get_bucket_policy(Bucket=both.bucket)["Policy"]
    assert json.loads(theirs) == wanted
    await both.ctl("bucket", "policy", "rm", both.top)
    await both.refused(4, "has no policy", "bucket", "policy", "get", both.top)


async def test_a_lifecycle_is_set_told_and_removed(both: Bench, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(RULES))
    await both.refused(4, "has no lifecycle", "lifecycle", "get", both.top)
    await both.ctl("lifecycle", "put", both.top, str(file))
    (rule,) = (await written(both, "lifecycle", "get", both.top))["Rules"]
    assert (rule["ID"], rule["Expiration"]["Days"]) == ("old", 30)
    # What is read can be written again.
    file.write_text(json.dumps(await written(both, "lifecycle", "get", both.top)))
    await both.ctl("lifecycle", "put", both.top, str(file))
    await both.ctl("lifecycle", "rm", both.top)
    await both.refused(4, "has no lifecycle", "lifecycle", "get", both.top)


async def test_versions_are_kept_from_a_word_on_and_to_a_word(both: Bench) -> None:
    words = ("bucket", "versioning")
    assert (await both.one(*words, "get", both.top))["versioning"] == "off"
    assert (await both.one(*words, "on", both.top))["versioning"] == "on"
    status = both.client.get_bucket_versioning(Bucket=both.bucket)["Status"]
    assert status == "Enabled"
    assert (await both.one(*words, "suspend", both.top))["versioning"] == "suspended"
    assert (await both.one(*words, "get", both.top))["versioning"] == "suspended"


@pytest.fixture
async def nowhere(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    """One bucket of a service that nobody can reach: what is answered, is answered here."""
    system = DaemonSystem(tmp_path, s3=S3 | {"bucket": "bucket"})
    options = S3Options(endpoint=str(S3["endpoint"]), bucket="bucket")
    system.backends["s3"] = S3Mount("s3", options, Fixed(Credentials("AK", "secret")))
    async with system:
        monkeypatch.setenv("UNIFS_HOME", str(system.path))
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        yield Bench(None, "", system, Shell(system, capfdbinary))  # type: ignore[arg-type]


async def test_documents_that_are_none_are_named(nowhere: Bench, tmp_path: Path) -> None:
    file = tmp_path / "document"
    cases = [
        (b"{", "is not JSON"),
        (b"[1]", "has to be a JSON object"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * ((1 << 20) + 1), "larger than 1048576 bytes"),
    ]
    for data, sentence in cases:
        file.write_bytes(data)
        for words in (("bucket", "policy"), ("lifecycle",)):
            await nowhere.refused(2, sentence, *words, "put", "/s3", str(file))
    file.write_text('{"Rules": []}')
    await nowhere.refused(2, "has no rules", "lifecycle", "put", "/s3", str(file))
    file.write_text('{"Rules": [{"Status": 7, "Nonsense": 1}]}')
    directory = str(tmp_path)
    sentence = f"{directory} is a directory, not a document"
    await nowhere.refused(5, sentence, "lifecycle", "put", "/s3", directory)
    await nowhere.refused(2, "Nonsense", "lifecycle", "put", "/s3", str(file))
    file.write_text("{}")
    await nowhere.refused(3, "Could not connect", "bucket", "policy", "put", "/s3", str(file))


async def test_what_is_no_bucket_is_named(bench: Bench) -> None:
    bench.put("d/f")
    for path in ("/s3", f"{bench.top}/d", f"{bench.top}/d/f"):
        await bench.refused(2, "is no bucket", "bucket", "versioning", "get", path)
    for words in (
        ("bucket", "versioning", "get", "/s3/no-such-bucket"),
        ("multipart", "ls", "/s3/no-such-bucket"),
        ("versions", "ls", "/s3/no-such-bucket/f"),
        ("presign", "/s3/no-such-bucket/f", "--method", "put"),
    ):
        await bench.refused(4, "/s3/no-such-bucket does not exist", *words)
    await bench.refused(2, "no absolute path", "bucket", "policy", "get", "s3")
    await bench.refused(2, "name a path below", "bucket", "policy", "get", "/")


async def test_uploads_are_listed_and_aborted(both: Bench) -> None:
    both.put("d/there")
    begun = {
        key: both.client.create_multipart_upload(Bucket=both.bucket, Key=key)["UploadId"]
        for key in ("d/a b", "d/there", "e//odd", "top")
    }
    both.client.upload_part(
        Bucket=both.bucket, Key="top", UploadId=begun["top"], PartNumber=1, Body=b"part"
    )
    listed = {
        each["upload_id"]: each["path"] for each in await both.ctl("multipart", "ls", both.top)
    }
    assert listed[begun["top"]] == f"{both.top}/top"
    assert set(listed) == set(begun.values())
    below = await both.ctl("multipart", "ls", f"{both.top}/d")
    assert {each["path"] for each in below} == {f"{both.top}/d/a b", f"{both.top}/d/there"}
    (one,) = await both.ctl("multipart", "ls", f"{both.top}/d/there")
    assert one["upload_id"] == begun["d/there"]
    for upload_id, path in listed.items():
        await both.ctl("multipart", "abort", path, upload_id)
    assert await both.ctl("multipart", "ls", both.top) == []
    if both.server.kind == "moto":
        # SeaweedFS calls it a success, each time.
        words = ("multipart", "abort", f"{both.top}/top", begun["top"])
        await both.refused(4, "has no upload", *words)


async def test_an_upload_that_unifs_sends_begins_again(bench: Bench) -> None:
    """Aborted under its hands, between two tries: the change is not lost."""
    path, data = f"{bench.top}/big", bytes(range(256)) * (70 << 10)
    await bench.names()
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)
    aborted: list[str] = []
    parts = mount.service.call

    async def call(request: Any) -> Any:
        if ("uploadId" in dict(request.query)) and request.method == "PUT" and not aborted:
            upload_id = dict(request.query)["uploadId"]
            aborted.append(upload_id)
            (listed,) = await bench.ctl("multipart", "ls", path)
            assert listed["upload_id"] == upload_id
            await bench.ctl("multipart", "abort", path, upload_id)
        return await parts(request)

    mount.service.call = call  # type: ignore[method-assign]
    await bench.write("big", data)
    await bench.system.sync()
    assert aborted
    assert bench.get("big") == data


# --- what a service lacks ------------------------------------------------------------------------


class Forgetful:
    """A service that takes everything and keeps nothing, as some gateways do."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    async def call(self, operation: str, **parameters: object) -> dict[str, Any]:
        answer = self.answers.get(operation, {})
        if isinstance(answer, UnifsError):
            raise answer
        return dict(answer)


async def test_what_is_taken_and_not_kept_is_unsupported() -> None:
    gone = NotFound("nothing", s3_code="NoSuchBucketPolicy")
    rules = NotFound("nothing", s3_code="NoSuchLifecycleConfiguration")
    control: Any = Forgetful(get_bucket_policy=gone, get_bucket_lifecycle_configuration=rules)
    settings = BucketSettings(control)
    with pytest.raises(Unsupported, match="does not keep it"):
        await settings.put_policy("b", b"{}")
    with pytest.raises(Unsupported, match="does not keep it"):
        await settings.put_lifecycle("b", json.dumps(RULES).encode())
    with pytest.raises(Unsupported, match="versions are still off"):
        await settings.set_versioning("b", is_on=True)


async def test_what_a_service_does_not_know_is_unsupported_by_name(bench: Bench) -> None:
    """The answer of a service without the call, in the words of the command line."""
    unknown = Unsupported("put_bucket_policy: the service answers 501 (NotImplemented)")
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)
    control: Any = Forgetful(delete_bucket_policy=unknown)
    mount.buckets = BucketSettings(control)
    await bench.refused(7, "501 (NotImplemented)", "bucket", "policy", "rm", bench.top)


async def test_an_anonymous_mount_has_nothing_to_sign_with() -> None:
    mount = S3Mount("s3", S3Options(endpoint="http://127.0.0.1:1", bucket="b"), Fixed(None))
    with pytest.raises(Unsupported, match="no key to sign"):
        await mount.presign("GET", "f", 60)
    options = S3Options(
        endpoint="https://127.0.0.1:1", encryption="c", encryption_key="A" * 43 + "="
    )
    mount = S3Mount("s3", options, Fixed(Credentials("AK", "secret")))
    with pytest.raises(Unsupported, match="cannot carry the key"):
        await mount.presign("GET", "b/f", 60)
