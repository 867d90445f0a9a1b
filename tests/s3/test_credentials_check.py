"""``unifs ctl credentials test`` against a service with a certificate of a private authority."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.mounts.s3.tls import Authority, secured
from tests.servers.s3 import READER_ACCESS_KEY, READER_SECRET_KEY
from unifs.control.daemon_protocol import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.s3.operations import Bench


@dataclass
class Private:
    """The service of a bench behind TLS, and an entry ``work`` that it takes."""

    bench: Bench
    endpoint: str
    authority: str

    async def test(self, *arguments: str) -> dict[str, Any]:
        (answer,) = await self.bench.shell.json("ctl", "credentials", "test", *arguments)
        return answer

    def listed(self, answer: dict[str, Any]) -> None:
        """Buckets are told, the first of them."""
        theirs = [each["Name"] for each in self.bench.client.list_buckets()["Buckets"]]
        assert answer["buckets"] == theirs[: len(answer["buckets"])] != []

    async def refused(self, code: int, sentence: str, *arguments: str) -> None:
        found, _, error = await self.bench.shell.run("ctl", "credentials", "test", *arguments)
        assert (found, sentence in error) == (code, True), (found, error)

    async def backend(self, name: str, **more: object) -> None:
        told = {"kind": "s3", "endpoint": self.endpoint, "credentials": "work"}
        await self.bench.system.daemon.remotes.add(name, told | more)


@asynccontextmanager
async def private(bench: Bench, path: Path) -> AsyncIterator[Private]:
    server, authority = bench.server, Authority(path)
    secret = Secret(access_key=server.access_key, secret_key=server.secret_key)
    await bench.system.daemon.credentials.add("work", secret, replace=False)
    async with secured(server.endpoint, authority.server()) as endpoint:
        yield Private(bench, endpoint, str(authority.file))


async def test_a_private_authority_is_named_at_the_test(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with private(bench, tmp_path) as service:
        there = ("work", "--endpoint", service.endpoint)
        await service.refused(3, "certificate of 127.0.0.1", *there)
        answer = await service.test(*there, "--ca-file", service.authority)
        assert answer["endpoint"] == service.endpoint
        service.listed(answer)
        # A relative name is one of the caller's directory, not of the daemon's.
        monkeypatch.chdir(tmp_path)
        relative = service.authority.removeprefix(f"{tmp_path}/")
        service.listed(await service.test(*there, "--ca-file", relative))
        other = str(Authority(tmp_path, "another").file)
        await service.refused(3, "is not trusted", *there, "--ca-file", other)


async def test_what_is_not_told_is_what_the_backend_is_told(bench: Bench, tmp_path: Path) -> None:
    async with private(bench, tmp_path) as service:
        await service.backend("x", ca_file=service.authority)
        for given in (("work",), ("work", "--endpoint", f"{service.endpoint}/")):
            answer = await service.test(*given)
            assert answer["endpoint"].rstrip("/") == service.endpoint
            service.listed(answer)
        # What is told goes before it.
        other = str(Authority(tmp_path, "another").file)
        await service.refused(3, "is not trusted", "work", "--ca-file", other)
        # A key that no backend uses, at a service that one shows: whom to trust is the service's.
        secret = Secret(access_key=READER_ACCESS_KEY, secret_key="not hers")
        await bench.system.daemon.credentials.add("hers", secret, replace=False)
        there = ("hers", "--endpoint", service.endpoint)
        await service.refused(5, f"does not belong to the access key {READER_ACCESS_KEY}", *there)
        secret = Secret(access_key=READER_ACCESS_KEY, secret_key=READER_SECRET_KEY)
        await bench.system.daemon.credentials.add("hers", secret, replace=True)
        service.listed(await service.test(*there))


async def test_a_backend_of_one_bucket_is_tested_by_that(bench: Bench, tmp_path: Path) -> None:
    """Its key need not be allowed to list buckets. No key of encryption is asked for."""
    async with private(bench, tmp_path) as service:
        bench.put("a/b")
        more = {"prefix": "a/", "encryption": "kms", "encryption_key": "arn"}
        await service.backend("x", ca_file=service.authority, bucket=bench.bucket, **more)
        answer = await service.test("work")
        assert answer["endpoint"] == f"{service.endpoint}/{bench.bucket}/a"
        assert answer["buckets"] == [bench.bucket]


async def test_which_service_is_asked_has_to_be_clear(bench: Bench, tmp_path: Path) -> None:
    async with private(bench, tmp_path) as service:
        await service.backend("x", ca_file=service.authority)
        await service.backend("y", endpoint=bench.server.endpoint)
        places = ", ".join(sorted([bench.server.endpoint, service.endpoint]))
        await service.refused(2, f"work is used at {places}: name one as the endpoint", "work")
        for endpoint in (bench.server.endpoint, service.endpoint):
            answer = await service.test("work", "--endpoint", endpoint)
            assert answer["endpoint"] == endpoint


@pytest.mark.parametrize(
    ("endpoint", "sentence"),
    [
        ("s3.example.com", "endpoint has to be like https://s3.example.com"),
        ("ftp://s3.example.com", "endpoint has to be like"),
        ("http://host:port", "endpoint has to be like"),
        ("https://host/bucket", "a bucket stands in the key bucket"),
        ("https://me:hunter2@host", "a user or password has no place in it"),
    ],
)
async def test_what_is_no_endpoint_is_named(
    bench: Bench, tmp_path: Path, endpoint: str, sentence: str
) -> None:
    async with private(bench, tmp_path) as service:
        code, _, error = await bench.shell.run(
            "ctl", "credentials", "test", "work", "--endpoint", endpoint
        )
        assert (code, sentence in error, "hunter2" in error) == (2, True, False), error
        await service.refused(2, "region: 'eu west' has to be", "work", "--region", "eu west")
        missing = ("--endpoint", service.endpoint, "--ca-file", str(tmp_path / "absent"))
        await service.refused(2, "absent: No such file or directory", "work", *missing)
