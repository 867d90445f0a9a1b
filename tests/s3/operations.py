"""A whole daemon without a kernel in front of a real service, and the command line against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.mounts.s3.identities import Fixed
from tests.remotes.system import S3, DaemonSystem
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from pathlib import Path

    from tests.control.conftest import Shell
    from tests.servers.s3 import S3Server


@dataclass
class Bench:
    """One bucket of a service, a daemon that shows the service as /s3, and its command line."""

    server: S3Server
    bucket: str
    system: DaemonSystem
    shell: Shell

    @property
    def client(self) -> Any:
        return self.server.client()

    @property
    def top(self) -> str:
        return f"/s3/{self.bucket}"

    async def ctl(self, *arguments: str) -> list[dict[str, Any]]:
        """The answers of ``unifs ctl s3 …``, which succeeds."""
        return await self.shell.json("ctl", "s3", *arguments)

    async def one(self, *arguments: str) -> dict[str, Any]:
        (answer,) = await self.ctl(*arguments)
        return answer

    async def refused(self, code: int, sentence: str, *arguments: str) -> None:
        """It fails with that exit code, and says so."""
        found, _, error = await self.shell.run("ctl", "s3", *arguments)
        assert (found, sentence in error) == (code, True), (found, error)

    def put(self, key: str, data: bytes = b"x", **more: Any) -> dict[str, Any]:
        """Somebody else stores an object."""
        return dict(self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **more))

    def get(self, key: str) -> bytes:
        with self.client.get_object(Bucket=self.bucket, Key=key)["Body"] as body:
            return bytes(body.read())

    async def read(self, key: str) -> bytes:
        return await self.system.read(f"{self.bucket}/{key}")

    async def write(self, key: str, data: bytes) -> None:
        await self.system.write(f"{self.bucket}/{key}", data)

    async def names(self, directory: str = "") -> list[str]:
        """The whole listing of a directory of the bucket."""
        files = self.system.daemon.files
        return sorted([each.name async for each in files.ls(f"{self.top}/{directory}")])

    def keep_versions(self) -> None:
        told = {"Status": "Enabled"}
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=told)


def daemon_of(server: S3Server, path: Path, **options: Any) -> DaemonSystem:
    """A daemon with a mount ``s3`` of a service; ``options`` are those of the mount."""
    told = S3Options(**{"endpoint": server.endpoint} | options)
    credentials = Fixed(Credentials(server.access_key, server.secret_key))
    settings = S3 | {"endpoint": server.endpoint}
    if told.bucket:
        settings |= {"bucket": told.bucket, "prefix": told.prefix}
    system = DaemonSystem(path, s3=settings)
    system.backends["s3"] = S3Mount("s3", told, credentials)
    return system
