"""``unifs ctl s3`` and ``/.unifs/versions`` on a mounted tree, as a user has them."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.s3.story import Story, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.s3 import S3Server

pytestmark = pytest.mark.fuse


@pytest.fixture
def story(tmp_path: Path, s3_server: S3Server) -> Iterator[Story]:
    with started(Story(tmp_path, s3_server)) as made:
        yield made


def test_a_file_gets_its_earlier_bytes_back(story: Story) -> None:
    bucket = story.server.bucket()
    top = story.root / bucket
    story.ctl("s3", "bucket", "versioning", "on", str(top))
    drafts = [b"first draft", os.urandom(3 << 20), b"third"]
    for draft in drafts:
        (top / "report").write_bytes(draft)
        story.ctl("journal", "sync")
    listed = story.ctl("s3", "versions", "ls", str(top / "report"))
    assert [each["size_bytes"] for each in listed] == [5, 3 << 20, 11]
    oldest = listed[-1]["version_id"]
    kept = story.daemon.mount / ".unifs/versions/s3" / bucket / "report"
    assert ".unifs" not in os.listdir(story.daemon.mount)
    assert os.listdir(kept.parent) == ["report"]
    assert {name: (kept / name).read_bytes() for name in os.listdir(kept)} == {
        each["version_id"]: draft for each, draft in zip(reversed(listed), drafts, strict=True)
    }
    assert subprocess.check_output(["cat", kept / oldest]) == drafts[0]
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (kept / oldest).write_bytes(b"x")
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        os.unlink(kept / oldest)
    with (top / "report").open("rb") as open_before:
        assert open_before.read() == b"third"
    story.ctl("s3", "versions", "restore", str(top / "report"), oldest)
    assert (top / "report").read_bytes() == drafts[0]
    assert story.object(bucket, "report") == drafts[0]


def test_a_deleted_file_comes_back_where_it_was(story: Story) -> None:
    bucket = story.server.bucket()
    top = story.root / bucket
    story.ctl("s3", "bucket", "versioning", "on", str(top))
    (top / "d").mkdir()
    (top / "d/f").write_bytes(b"precious")
    story.ctl("journal", "sync")
    os.unlink(top / "d/f")
    story.ctl("journal", "sync")
    assert os.listdir(top / "d") == []
    (deleted, made) = story.ctl("s3", "versions", "ls", str(top / "d/f"))
    assert (deleted["is_deleted"], made["is_deleted"]) == (True, False)
    story.ctl("s3", "versions", "restore", str(top / "d/f"), made["version_id"])
    # Nothing that the kernel remembers of its absence stands in the way.
    assert (top / "d/f").read_bytes() == b"precious"
    assert os.listdir(top / "d") == ["f"]


def test_a_url_of_a_mounted_file_serves_it_and_no_log_has_it(story: Story) -> None:
    bucket = story.server.bucket()
    (story.root / bucket / "a b").write_bytes(b"for everybody")
    story.ctl("journal", "sync")
    result = story.run("s3", "presign", str(story.root / bucket / "a b"), "--field", "url")
    with httpx.Client(trust_env=False) as client:
        answer = client.get(result.stdout.strip())
    assert (answer.status_code, answer.content) == (200, b"for everybody")
    signature = result.stdout.strip().rpartition("X-Amz-Signature=")[2]
    log = story.daemon.log.read_text()
    assert len(signature) == 64
    assert signature not in log
    assert story.server.secret_key not in log + result.stdout + result.stderr
