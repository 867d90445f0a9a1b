"""One bucket of one SeaweedFS, filled, and the file systems that mount it: for the S3 rows."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from benchlib.processes import stop, wait_until
from benchlib.rows import MIB
from benchlib.sides import Side, environment, program, unifs_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.s3 import Weed

MANY_KEYS = 100_000
SMALL_FILES = 1_000
SMALL_BYTES = 4_096


@dataclass
class Store:
    """The bucket that is mounted, and what the rows find in it."""

    server: Weed
    bucket: str
    big_mib: int

    def load(self) -> None:
        """Put the big object, the many keys and the small files into the bucket."""
        self._load_big()
        self._load_keys(MANY_KEYS)
        for number in range(SMALL_FILES):
            body = random.Random(number).randbytes(SMALL_BYTES)
            self.server.client().put_object(
                Bucket=self.bucket, Key=f"small/f{number:04}", Body=body
            )

    def _load_big(self) -> None:
        client, where = self.server.client(), {"Bucket": self.bucket, "Key": "big/object.bin"}
        where["UploadId"] = client.create_multipart_upload(**where)["UploadId"]
        parts = []
        for number in range(1, self.big_mib // 16 + 1):
            body = os.urandom(16 * MIB)
            etag = client.upload_part(**where, PartNumber=number, Body=body)["ETag"]
            parts.append({"PartNumber": number, "ETag": etag})
        client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})

    def _load_keys(self, count: int) -> None:
        """8,000 keys a second: empty objects, put past S3 at the filer, many a round trip."""
        threads = [
            threading.Thread(target=self._put_keys, args=(range(start, count, 4),))
            for start in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        page = self.server.client().list_objects_v2(
            Bucket=self.bucket, Prefix=f"many/k{count - 1:06}"
        )
        if page["KeyCount"] != 1:
            raise OSError("the keys did not arrive")

    def _put_keys(self, numbers: range) -> None:
        with socket.create_connection(("127.0.0.1", self.server.filer_port)) as filer:
            answers = filer.makefile("rb")
            for start in range(0, len(numbers), 50):
                batch = numbers[start : start + 50]
                filer.sendall(b"".join(self._put_request(number) for number in batch))
                for _ in batch:
                    _skip_answer(answers)

    def _put_request(self, number: int) -> bytes:
        path = f"/buckets/{self.bucket}/many/k{number:06}"
        return f"PUT {path} HTTP/1.1\r\nHost: filer\r\nContent-Length: 0\r\n\r\n".encode()

    def count(self, prefix: str) -> int:
        """Keys with bytes below a prefix."""
        pages = self.server.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.bucket, Prefix=prefix)
        return sum(held["Size"] > 0 for page in found for held in page.get("Contents", []))


def _skip_answer(answers: BinaryIO) -> None:
    if b" 201 " not in answers.readline():
        raise OSError("the filer refuses a key")
    size = 0
    while (line := answers.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    answers.read(size)


@contextlib.contextmanager
def open_s3(kind: str, store: Store, base: Path) -> Iterator[Side]:
    """Mount the store's bucket by ``kind`` (one of SIDES); ``base`` is a directory for as long.

    What is cached there is gone afterwards: 1 GiB that the disk is still writing down would be in
    the next one's way.
    """
    base.mkdir(parents=True)
    mount, log = base / "mnt", base / "log"
    mount.mkdir()
    command, directory = _COMMANDS[kind](store, base)
    variables = environment() | {
        "AWS_ACCESS_KEY_ID": store.server.access_key,
        "AWS_SECRET_ACCESS_KEY": store.server.secret_key,
    }
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=variables, cwd=base
        )
    try:
        wait_until(lambda: os.path.ismount(mount) and directory.is_dir(), server, log)
        yield Side(kind, directory, base, server)
    finally:
        stop(server, mount)
        if not os.path.ismount(mount):
            shutil.rmtree(base)


def _unifs(store: Store, base: Path) -> tuple[list[str], Path]:
    settings = base / "unifs.toml"
    settings.write_text(
        f'[mounts.s3]\nkind = "s3"\nendpoint = "{store.server.endpoint}"\n'
        f'region = "{store.server.region}"\nbucket = "{store.bucket}"\n'
    )
    state, mount = str(base / "state"), base / "mnt"
    command = unifs_command("mount", "--foreground", "--state", state, "--config", str(settings))
    return [*command, str(mount)], mount / "s3"


def _rclone(store: Store, base: Path) -> tuple[list[str], Path]:
    remote = f":s3,provider=SeaweedFS,env_auth=true,endpoint='{store.server.endpoint}':"
    command = [program("rclone"), "mount", remote + store.bucket, str(base / "mnt")]
    command += ["--vfs-cache-mode", "full", "--cache-dir", str(base / "cache")]
    # Its default waits 5 s before it begins to store.
    command += ["--vfs-write-back", "0s", "--config", os.devnull]
    return command, base / "mnt"


def _s3fs(store: Store, base: Path) -> tuple[list[str], Path]:
    options = f"url={store.server.endpoint},use_path_request_style,use_cache={base / 'cache'}"
    options += f",endpoint={store.server.region},sigv4"
    return ["s3fs", store.bucket, str(base / "mnt"), "-f", "-o", options], base / "mnt"


_COMMANDS = {"unifs": _unifs, "rclone": _rclone, "s3fs": _s3fs}
