"""What people do with a directory, with the real programs, on /s3 over a real SeaweedFS.

The tests are those of ``tests/fuse/test_workloads.py``. After each of them, everything reaches the
service, and the bucket has the bytes that the tree shows.
"""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import pytest

from tests.fuse import test_workloads as workloads
from tests.s3.test_user_story import Story
from unifs.mounts.s3.names import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

source = workloads.source
globals().update({name: each for name, each in vars(workloads).items() if name.startswith("test_")})


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, weed_of_session: S3Server) -> Iterator[Story]:
    made = Story(tmp_path_factory.mktemp("unifs"), weed_of_session)
    try:
        made.start()
        yield made
        made.daemon.stop()
    finally:
        made.daemon.close()


@pytest.fixture
def place(story: Story) -> Iterator[Path]:
    """An empty directory in a bucket of its own."""
    bucket = story.server.bucket()
    directory = story.root / bucket / "place"
    directory.mkdir()
    yield directory
    story.ctl("sync", str(story.root / bucket))
    (status,) = story.ctl("journal", "status", str(story.root / bucket))
    assert status["quarantined"] == 0
    objects = stored(story, bucket)
    for path in directory.rglob("*"):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if found.st_nlink == 1:
            key = key_of(str(path.relative_to(story.root / bucket)))
            assert objects.get(key) == digest, key
        else:
            assert digest in objects.values(), path


def stored(story: Story, bucket: str) -> dict[str, str]:
    """The hash of each object of a bucket, by key."""
    client = story.server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return {key: hashlib.sha256(story.object(bucket, key)).hexdigest() for key in keys}
