"""The mounts that the contract suite judges, each with a hand on its backend.

To add a mount: write a Subject (``open`` yields it inside the mount's ``serve``) and name it in
``SUBJECTS``. A read-only mount implements ``seed`` and leaves the rest; the suite asks
``supports`` for what else it may test.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.ipfs.embedded.stores import Store
from tests.mounts.remote import RemoteMount
from tests.mounts.s3.identities import Fixed
from unifs.ipfs.embedded.node import EmbeddedNode
from unifs.ipfs.embedded.pins import Pins
from unifs.ipfs.node import AddOptions, HostSource
from unifs.mounts.ipfs import IpfsMount
from unifs.mounts.local import LocalMount
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.names import key_of
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.servers.s3 import S3Server
    from unifs.mounts.base import Mount

    #: path -> bytes of a file, or None for a directory.
    Tree = Mapping[str, bytes | None]
    Opener = Callable[[Path, S3Server | None], AbstractAsyncContextManager["Subject"]]


class Bytes:
    """A content to put."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = len(data)
        self.reads = 0

    async def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        return self.data[offset : offset + size]


class Cut(Bytes):
    """A content that ends before its size."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size_bytes += 10


@dataclass
class Subject:
    """One mount under test."""

    mount: Mount

    async def seed(self, tree: Tree) -> str:
        """Put a tree at the backend behind unifs's back; the path under which it stands."""
        raise NotImplementedError

    def change(self, path: str, data: bytes | None) -> None:
        """Somebody else replaces a file, or removes it."""
        raise NotImplementedError

    def content(self, path: str) -> bytes:
        """What the backend holds."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """What a change left at the backend that no scan shows."""
        return []


class Remote(Subject):
    """The in-memory remote."""

    async def seed(self, tree: Tree) -> str:
        assert isinstance(self.mount, RemoteMount)
        for path, data in tree.items():
            if data is None:
                self.mount.plant_directory(path)
            else:
                self.mount.change(path, data)
        return ""

    def change(self, path: str, data: bytes | None) -> None:
        assert isinstance(self.mount, RemoteMount)
        self.mount.change(path, data)

    def content(self, path: str) -> bytes:
        assert isinstance(self.mount, RemoteMount)
        return self.mount.content(path)


class Local(Subject):
    """A host directory."""

    def __init__(self, mount: Mount, directory: Path) -> None:
        super().__init__(mount)
        self.directory = directory

    async def seed(self, tree: Tree) -> str:
        for path, data in tree.items():
            if data is None:
                (self.directory / path).mkdir()
            else:
                (self.directory / path).write_bytes(data)
        return ""

    def change(self, path: str, data: bytes | None) -> None:
        place = self.directory / path
        if data is None:
            place.unlink()
            return
        other = self.directory.parent / "other"
        other.write_bytes(data)
        other.replace(place)

    def content(self, path: str) -> bytes:
        return (self.directory / path).read_bytes()

    def leftovers(self) -> list[str]:
        return [
            name
            for _, _, names in os.walk(self.directory)
            for name in names
            if name.startswith(".unifs-")
        ]


class Ipfs(Subject):
    """The embedded node's content."""

    def __init__(self, mount: IpfsMount, tmp_path: Path) -> None:
        super().__init__(mount)
        self.directory = tmp_path / "seed"

    async def seed(self, tree: Tree) -> str:
        self.directory.mkdir()
        for path, data in tree.items():
            if data is None:
                (self.directory / path).mkdir()
            else:
                (self.directory / path).write_bytes(data)
        assert isinstance(self.mount, IpfsMount)
        node = self.mount._node
        return str((await node.add(HostSource(self.directory), AddOptions(pin=False))).cid)


class S3(Subject):
    """One bucket of a real server."""

    def __init__(self, mount: S3Mount, server: S3Server, bucket: str) -> None:
        super().__init__(mount)
        self.client = server.client()
        self.bucket = bucket

    async def seed(self, tree: Tree) -> str:
        for path, data in tree.items():
            key = f"{path}/" if data is None else key_of(path)
            self.client.put_object(Bucket=self.bucket, Key=key, Body=data or b"")
        return ""

    def change(self, path: str, data: bytes | None) -> None:
        if data is None:
            self.client.delete_object(Bucket=self.bucket, Key=key_of(path))
        else:
            self.client.put_object(Bucket=self.bucket, Key=key_of(path), Body=data)

    def content(self, path: str) -> bytes:
        answer = self.client.get_object(Bucket=self.bucket, Key=key_of(path))
        return bytes(answer["Body"].read())

    def leftovers(self) -> list[str]:
        listed = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [upload["Key"] for upload in listed.get("Uploads", [])]


@asynccontextmanager
async def remote(tmp_path: Path, server: S3Server | None) -> AsyncIterator[Subject]:
    mount = RemoteMount()
    async with mount.serve():
        yield Remote(mount)


@asynccontextmanager
async def local(tmp_path: Path, server: S3Server | None) -> AsyncIterator[Subject]:
    directory = tmp_path / "host"
    directory.mkdir()
    mount = LocalMount(directory)
    async with mount.serve():
        yield Local(mount, directory)


@asynccontextmanager
async def ipfs(tmp_path: Path, server: S3Server | None) -> AsyncIterator[Subject]:
    store = Store(tmp_path / "state", limit_bytes=16 << 20)
    pins = Pins(tmp_path / "pins.db")
    mount = IpfsMount(EmbeddedNode(store.blocks, pins, owner=store.owner))
    try:
        async with mount.serve():
            yield Ipfs(mount, tmp_path)
    finally:
        pins.close()
        store.close()


@asynccontextmanager
async def s3(
    tmp_path: Path, server: S3Server | None, *, is_keeping: bool = False
) -> AsyncIterator[Subject]:
    assert server is not None
    bucket = server.bucket()
    options = S3Options(endpoint=server.endpoint, bucket=bucket, keeps_attributes=is_keeping)
    identity = Fixed(Credentials(server.access_key, server.secret_key))
    mount = S3Mount("s3", options, identity)
    async with mount.serve():
        yield S3(mount, server, bucket)


SUBJECTS: dict[str, Opener] = {
    "remote": remote,
    "local": local,
    "ipfs": ipfs,
    "s3": s3,
    "s3-keeping": partial(s3, is_keeping=True),
    "s3-moto": s3,
}
#: The fixture whose server a subject needs.
SERVERS = {"s3": "s3_server", "s3-keeping": "s3_server", "s3-moto": "moto_server"}
READ_ONLY = {"ipfs"}
#: Test, subject and name -> what a server cannot do, expected to fail until it can.
GAPS = {
    ("test_odd_names", "s3-moto", b"new\nline"): "moto answers 404 to the PUT",
    ("test_odd_names_are_kept", "s3-moto", b"new\nline"): "moto answers 404 to the PUT",
    ("test_odd_names_are_kept", "s3-moto", b"\x01\x7f"): "moto lists it in XML that is none",
}
