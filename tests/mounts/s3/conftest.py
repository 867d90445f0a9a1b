"""A bucket on a real SeaweedFS, a mount of it, and boto3's hand on what lies there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.mounts.s3.identities import Fixed
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers.s3 import S3Server


@dataclass
class World:
    """One bucket, and mounts of it."""

    server: S3Server
    bucket: str
    mount: S3Mount

    @property
    def client(self) -> Any:
        return self.server.client()

    def another(self, **options: Any) -> S3Mount:
        """Another mount of the same bucket, as after a restart; its caller closes its service."""
        told = replace(self.mount.options, **options)
        return S3Mount("s3", told, self.mount.service.credentials)

    def put(self, key: str, data: bytes = b"x", **more: Any) -> str:
        """Somebody else stores an object; its ETag."""
        answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **more)
        return str(answer["ETag"]).strip('"')

    def get(self, key: str) -> bytes:
        with self.client.get_object(Bucket=self.bucket, Key=key)["Body"] as body:
            return bytes(body.read())

    def head(self, key: str) -> dict[str, Any]:
        return dict(self.client.head_object(Bucket=self.bucket, Key=key))

    def listed(self) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.bucket)
        return [found["Key"] for found in answer.get("Contents", [])]

    def uploads(self) -> list[str]:
        answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [found["Key"] for found in answer.get("Uploads", [])]


def world_on(server: S3Server, **options: Any) -> World:
    bucket = server.bucket()
    told = S3Options(endpoint=server.endpoint, bucket=bucket, **options)
    identity = Fixed(Credentials(server.access_key, server.secret_key))
    return World(server, bucket, S3Mount("s3", told, identity))


@pytest.fixture
async def world(s3_server: S3Server) -> AsyncIterator[World]:
    made = world_on(s3_server)
    async with made.mount.serve():
        yield made


@pytest.fixture
async def keeping(s3_server: S3Server) -> AsyncIterator[World]:
    """With attributes in metadata."""
    made = world_on(s3_server, keeps_attributes=True)
    async with made.mount.serve():
        yield made


@pytest.fixture
async def moto(moto_server: S3Server) -> AsyncIterator[World]:
    """The second opinion: keys that SeaweedFS folds or refuses."""
    made = world_on(moto_server)
    async with made.mount.serve():
        yield made
