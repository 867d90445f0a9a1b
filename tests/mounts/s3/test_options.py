"""Options of a mount as they go over the wire: what each request says, and that services take it.

SeaweedFS judges signatures, TLS and access; moto keeps encryption and storage classes. What neither
can prove (that Amazon takes a request so) is compared with the API's documentation, header by
header; docs/s3.md says which options that is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.contract.subjects import Bytes
from tests.mounts.s3.identities import Fixed
from tests.mounts.s3.tls import Authority, secured
from tests.servers import s3 as servers
from tests.servers.faultproxy import FaultProxy
from tests.servers.s3 import Weed
from unifs.answers.s3check import check
from unifs.errors import ConfigInvalid, PermissionDenied, Unreachable
from unifs.mounts.s3.attributes import DIRECTORY
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.servers.http1 import Head
    from tests.servers.s3 import S3Server

MIB = 1 << 20
KEY = base64.b64encode(bytes(range(32))).decode()
KEY_MD5 = base64.b64encode(hashlib.md5(bytes(range(32))).digest()).decode()
SSE = "x-amz-server-side-encryption"
SSE_C = f"{SSE}-customer-"
SOURCE_C = "x-amz-copy-source-server-side-encryption-customer-"


@dataclass
class Wire:
    """A mount behind a proxy that writes down what is asked."""

    mount: S3Mount
    server: S3Server
    bucket: str
    heads: list[Head] = field(default_factory=list)

    def asked(self, operation: str) -> list[dict[str, str]]:
        """The headers of each request of one operation, by the API's name for it."""
        found = [head for head in self.heads if _operation(head) == operation]
        return [
            {name.decode().lower(): value.decode() for name, value in head.headers}
            for head in found
        ]

    def operations(self) -> set[str]:
        return {_operation(head) for head in self.heads}

    def told(self, key: str, **more: Any) -> dict[str, Any]:
        client = self.server.client()
        return dict(client.head_object(Bucket=self.bucket, Key=key, **more))


def _operation(head: Head) -> str:
    path, _, query = head.target.partition("?")
    names = {part.partition("=")[0] for part in query.split("&")}
    is_copy = head.get(b"x-amz-copy-source") is not None
    if "/" not in path.strip("/"):
        return f"{head.method} of the bucket: {'+'.join(sorted(names))}"
    match head.method:
        case "PUT" if "partNumber" in names:
            return "UploadPartCopy" if is_copy else "UploadPart"
        case "PUT":
            return "CopyObject" if is_copy else "PutObject"
        case "POST" if "uploads" in names:
            return "CreateMultipartUpload"
        case "POST" if "uploadId" in names:
            return "CompleteMultipartUpload"
        case "GET" if "uploadId" in names:
            return "ListParts"
        case "DELETE" if "uploadId" in names:
            return "AbortMultipartUpload"
        case "HEAD" | "GET" | "DELETE":
            return {"HEAD": "HeadObject", "GET": "GetObject", "DELETE": "DeleteObject"}[head.method]
    return f"{head.method} {path}"


@asynccontextmanager
async def wire(server: S3Server, **options: Any) -> AsyncIterator[Wire]:
    bucket = server.bucket()
    identity = Fixed(Credentials(server.access_key, server.secret_key))
    async with FaultProxy(server.endpoint) as proxy:
        told = S3Options(**{"endpoint": proxy.endpoint, "bucket": bucket} | options)
        made = Wire(S3Mount("s3", told, identity), server, bucket)
        # A script that fails nobody.
        proxy.script = made.heads.append  # type: ignore[assignment]
        async with made.mount.serve():
            yield made


async def everything(made: Wire) -> None:
    """Each operation on objects once: small, in parts, changed in parts, read, copied, removed."""
    mount, large = made.mount, bytes(17 * MIB)
    await mount.make("d", DIRECTORY, "t0")
    await mount.put("small", Bytes(b"small"), None, "t1")
    node = await mount.put("large", Bytes(large), None, "t2")
    await mount.put("large", Bytes(large[:-1] + b"x"), node.version, "t3")
    node = await mount.stat("small")
    assert node.version is not None
    assert await mount.read("small", node.version, 0, 100) == b"small"
    await mount.rename("small", "moved", "t4")
    await mount.remove("moved", (await mount.stat("moved")).version, "t5")


# --- where the bucket's name stands -------------------------------------------------------------


@pytest.fixture
def domain_server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Weed]:
    """A SeaweedFS that has a name of its own, under which buckets are hosts."""
    options = (*servers.WEED_OPTIONS, "-s3.domainName=s3.test")
    monkeypatch.setattr(servers, "WEED_OPTIONS", options)
    with Weed(tmp_path_factory.mktemp("domain")) as server:
        yield server


async def test_buckets_as_hosts_are_signed_and_answered_so(
    domain_server: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data path and boto3, on a server that checks the signature of the Host header."""
    bucket = domain_server.bucket()
    lookup = socket.getaddrinfo
    hosts: set[str] = set()

    def resolve(host: Any, *arguments: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if isinstance(name, str) and name.endswith("s3.test"):
            hosts.add(name)
            host = "127.0.0.1"
        return lookup(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    endpoint = f"http://s3.test:{domain_server.port}"
    options = S3Options(endpoint=endpoint, addressing="virtual", region="us-east-1")
    identity = Fixed(Credentials(domain_server.access_key, domain_server.secret_key))
    mount = S3Mount("s3", options, identity)
    async with mount.serve():
        await mount.make(f"{bucket}/a b", DIRECTORY, "t0")
        await mount.put(f"{bucket}/a b/ü", Bytes(b"virtual"), None, "t1")
        node = await mount.stat(f"{bucket}/a b/ü")
        assert node.version is not None
        assert await mount.read(f"{bucket}/a b/ü", node.version, 0, 100) == b"virtual"
        names = [entry.name for entry in (await mount.scan(f"{bucket}/a b", None)).entries]
        assert names == ["ü".encode()]
        assert bucket.encode() in [entry.name for entry in (await mount.scan("", None)).entries]
        assert await mount.buckets.versioning(bucket) == "off"
        url = await mount.presign("GET", f"{bucket}/a b/ü", 60)
    assert url.startswith(f"http://{bucket}.s3.test:")
    assert hosts == {f"{bucket}.s3.test", "s3.test"}


# --- TLS ----------------------------------------------------------------------------------------


async def test_a_private_authority_is_believed_by_both_ways_to_the_service(
    s3_server: S3Server, tmp_path: Path
) -> None:
    authority, bucket = Authority(tmp_path), s3_server.bucket()
    identity = Fixed(Credentials(s3_server.access_key, s3_server.secret_key))
    async with secured(s3_server.endpoint, authority.server()) as endpoint:
        options = S3Options(endpoint=endpoint, bucket=bucket, ca_file=str(authority.file))
        mount = S3Mount("s3", options, identity)
        async with mount.serve():
            node = await mount.put("f", Bytes(b"over TLS"), None, "t1")
            assert node.version is not None
            assert await mount.read("f", node.version, 0, 100) == b"over TLS"
            assert "f" in await check(options, identity.credentials)
            # By boto3, which has authorities of its own.
            assert await mount.buckets.versioning(bucket) == "off"


@pytest.mark.parametrize("wrong", ["unknown", "another", "name"])
async def test_a_certificate_that_does_not_fit_is_refused_by_both(
    s3_server: S3Server, tmp_path: Path, wrong: str
) -> None:
    authority, bucket = Authority(tmp_path), s3_server.bucket()
    file = {"unknown": "", "another": str(Authority(tmp_path, "another").file)}.get(wrong)
    context = authority.server("elsewhere.test") if wrong == "name" else authority.server()
    trusted = str(authority.file) if file is None else file
    identity = Fixed(Credentials(s3_server.access_key, s3_server.secret_key))
    async with secured(s3_server.endpoint, context) as endpoint:
        mount = S3Mount(
            "s3", S3Options(endpoint=endpoint, bucket=bucket, ca_file=trusted), identity
        )
        async with mount.serve():
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await mount.put("f", Bytes(b"x"), None, "t1")
            with pytest.raises(Unreachable, match=r"(?i)certificate|hostname"):
                await mount.buckets.versioning(bucket)
    assert "Contents" not in s3_server.client().list_objects_v2(Bucket=bucket)


async def test_a_file_of_authorities_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("nothing here")
    for name in ("empty", "absent"):
        options = S3Options(endpoint="https://127.0.0.1:1", ca_file=str(tmp_path / name))
        with pytest.raises(ConfigInvalid, match=f"ca_file .*{name}: "):
            S3Mount("s3", options, Fixed(None))


# --- encryption at the service ------------------------------------------------------------------

#: Which requests may, and must, name the encryption (API reference, "Request Syntax" of each).
STORING = {"PutObject", "CreateMultipartUpload", "CopyObject"}


@pytest.mark.parametrize(
    ("encryption", "key", "wanted"),
    [
        ("s3", "", {SSE: "AES256"}),
        ("kms", "", {SSE: "aws:kms"}),
        ("kms", "arn:aws:kms:us-east-1:123456789012:key/k", {SSE: "aws:kms"}),
    ],
)
async def test_the_services_keys_are_asked_for_where_objects_begin(
    moto_server: S3Server, encryption: str, key: str, wanted: dict[str, str]
) -> None:
    if key:
        wanted = wanted | {f"{SSE}-aws-kms-key-id": key}
    async with wire(moto_server, encryption=encryption, encryption_key=key) as made:
        await everything(made)
        await made.mount.put("kept", Bytes(b"kept"), None, "t6")
        assert made.operations() >= STORING | {"UploadPart", "GetObject", "HeadObject"}
        for operation in made.operations():
            for headers in made.asked(operation):
                said = {name: text for name, text in headers.items() if SSE in name}
                assert said == (wanted if operation in STORING else {}), operation
        told = made.told("kept")
        assert told["ServerSideEncryption"] == wanted[SSE]
        assert not key or told["SSEKMSKeyId"] == key


async def test_a_key_of_ones_own_goes_with_each_request_that_touches_bytes(
    moto_server: S3Server, tmp_path: Path
) -> None:
    """SSE-C, over TLS; the proxy behind it sees what was inside."""
    authority, bucket = Authority(tmp_path), moto_server.bucket()
    ours = {f"{SSE_C}algorithm": "AES256", f"{SSE_C}key": KEY, f"{SSE_C}key-md5": KEY_MD5}
    theirs = {name.replace(SSE_C, SOURCE_C): text for name, text in ours.items()}
    identity = Fixed(Credentials(moto_server.access_key, moto_server.secret_key))
    async with (
        FaultProxy(moto_server.endpoint) as proxy,
        secured(proxy.endpoint, authority.server()) as endpoint,
    ):
        options = S3Options(
            endpoint=endpoint, bucket=bucket, ca_file=str(authority.file), encryption="c",
            encryption_key=KEY,
        )  # fmt: skip
        made = Wire(S3Mount("s3", options, identity), moto_server, bucket)
        proxy.script = made.heads.append  # type: ignore[assignment]
        async with made.mount.serve():
            await everything(made)
    touching = STORING | {"UploadPart", "UploadPartCopy", "GetObject", "HeadObject"}
    assert made.operations() >= touching
    for operation in made.operations():
        for headers in made.asked(operation):
            said = {name: text for name, text in headers.items() if "encryption" in name}
            wanted = ours if operation in touching else {}
            if operation in ("CopyObject", "UploadPartCopy"):
                wanted = ours | theirs
            assert said == wanted, operation
    with pytest.raises(ConfigInvalid, match="use https"):
        S3Mount("s3", S3Options(endpoint="http://127.0.0.1:1", encryption="c"), identity)


@pytest.mark.parametrize(("key", "sentence"), [("?", "not base64"), ("AAAA", "3 bytes, not 32")])
async def test_a_key_that_is_none_is_named_and_not_shown(key: str, sentence: str) -> None:
    options = S3Options(endpoint="https://127.0.0.1:1", encryption="c", encryption_key=key)
    with pytest.raises(ConfigInvalid, match=sentence) as caught:
        S3Mount("s3", options, Fixed(None))
    assert key not in str(caught.value).removeprefix("encryption_key")
    assert key not in repr(options)


# --- who pays, where it lies, who asks ----------------------------------------------------------


async def test_who_pays_is_said_with_every_request(s3_server: S3Server) -> None:
    """RequesterPaysBuckets: "include x-amz-request-payer in the header", in URLs as a parameter."""
    async with wire(s3_server, requester_pays=True) as made:
        await everything(made)
        await made.mount.buckets.versioning(made.bucket)
        await made.mount.put("f", Bytes(b"paid"), None, "t6")
        await made.mount.objects.put_tags((made.bucket, "f"), {"a": "b"})
        url = await made.mount.presign("GET", "f", 60)
        assert "x-amz-request-payer=requester" in url
        # The parameter is under the signature: SeaweedFS takes the URL as it is, and no other.
        assert await trio.to_thread.run_sync(fetched, url) == (200, b"paid")
        tampered = url.replace("=requester", "=somebody")
        assert (await trio.to_thread.run_sync(fetched, tampered))[0] == 403
        payers = [
            head.get(b"x-amz-request-payer")
            for head in made.heads
            if "X-Amz-Sig" not in head.target
        ]
        assert len(payers) > 20
        assert set(payers) == {b"requester"}


def fetched(url: str) -> tuple[int, bytes]:
    import httpx

    with httpx.Client(trust_env=False) as client:
        answer = client.get(url)
        return answer.status_code, answer.content


async def test_a_storage_class_is_asked_for_where_objects_begin(moto_server: S3Server) -> None:
    async with wire(moto_server, storage_class="STANDARD_IA") as made:
        await everything(made)
        await made.mount.put("kept", Bytes(b"kept"), None, "t6")
        await made.mount.rename("kept", "copied", "t7")
        assert made.told("copied")["StorageClass"] == "STANDARD_IA"
        assert made.told("large")["StorageClass"] == "STANDARD_IA"
        for operation in made.operations():
            for headers in made.asked(operation):
                said = headers.get("x-amz-storage-class")
                assert said == ("STANDARD_IA" if operation in STORING else None), operation


async def test_a_public_bucket_is_read_by_nobody_in_particular(s3_server: S3Server) -> None:
    bucket, client = s3_server.bucket(), s3_server.client()
    client.put_object(Bucket=bucket, Key="d/f", Body=b"public")
    options = S3Options(endpoint=s3_server.endpoint, bucket=bucket)
    mount = S3Mount("s3", options, Fixed(None))
    async with mount.serve():
        with pytest.raises(PermissionDenied):
            await mount.scan("", None)
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        assert [entry.name for entry in (await mount.scan("", None)).entries] == [b"d"]
        node = await mount.stat("d/f")
        assert node.version is not None
        assert await mount.read("d/f", node.version, 0, 100) == b"public"
        with pytest.raises(PermissionDenied):
            await mount.put("mine", Bytes(b"x"), None, "t1")


async def test_an_anonymous_request_is_not_signed(moto_server: S3Server) -> None:
    bucket = moto_server.bucket()
    async with FaultProxy(moto_server.endpoint) as proxy:
        options = S3Options(endpoint=proxy.endpoint, bucket=bucket)
        made = Wire(S3Mount("s3", options, Fixed(None)), moto_server, bucket)
        proxy.script = made.heads.append  # type: ignore[assignment]
        async with made.mount.serve():
            # moto has its own mind on who nobody is; what counts is what was asked.
            for call in (made.mount.scan("", None), made.mount.buckets.versioning(bucket)):
                try:
                    await call
                except PermissionDenied:
                    continue
        assert len(made.heads) >= 2
        assert all(head.get(b"authorization") is None for head in made.heads)


async def test_a_prefix_is_in_every_request(s3_server: S3Server) -> None:
    async with wire(s3_server, prefix="in/here/") as made:
        await everything(made)
        await made.mount.scan("", None)
        for head in made.heads:
            path, _, query = head.target.partition("?")
            is_bucket = path == f"/{made.bucket}"
            assert (f"/{made.bucket}/in/here/" in path) or is_bucket, head.target
            if is_bucket and "list-type" in query:
                assert "prefix=in%2Fhere" in query
