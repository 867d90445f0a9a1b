"""A user's day with /s3: a settings file, a mount, a real SeaweedFS, and what goes wrong.

Nothing here looks inside: files through the kernel, the command line as a program, and the service
through boto3 as anybody else would use it.
"""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.s3.story import until
from tests.servers.s3 import READER_ACCESS_KEY, READER_SECRET_KEY

if TYPE_CHECKING:
    from tests.s3.story import Story

pytestmark = pytest.mark.fuse

MIB = 1 << 20


def test_a_day_with_a_bucket(story: Story) -> None:
    bucket = story.server.bucket()
    story.server.client().put_object(Bucket=bucket, Key="docs/theirs.txt", Body=b"theirs")
    story.start()
    top = story.root / bucket
    assert bucket in os.listdir(story.root)
    assert os.listdir(top) == ["docs"]
    assert (top / "docs/theirs.txt").read_bytes() == b"theirs"
    (top / "new").mkdir()
    big = os.urandom(3 * MIB + 17)
    subprocess.run(["cp", "/dev/stdin", top / "new/big"], input=big, check=True)
    (top / "docs/mine.txt").write_text("mine")
    story.ctl("journal", "sync")
    assert story.object(bucket, "new/big") == big
    assert story.object(bucket, "docs/mine.txt") == b"mine"
    assert os.getxattr(top / "new/big", "user.unifs.state") == b"synced"
    assert subprocess.check_output(["cat", top / "new/big"]) == big
    with (top / "new/big").open("r+b") as file:
        file.seek(MIB)
        file.write(b"in the middle")
    os.rename(top / "docs/mine.txt", top / "new/moved.txt")
    os.unlink(top / "docs/theirs.txt")
    story.ctl("journal", "sync", str(top))
    wanted = big[:MIB] + b"in the middle" + big[MIB + 13 :]
    assert story.object(bucket, "new/big") == wanted
    listed = story.server.client().list_objects_v2(Bucket=bucket)["Contents"]
    keys = {each["Key"] for each in listed if not each["Key"].endswith("/")}
    assert keys == {"new/big", "new/moved.txt"}
    (explained,) = story.ctl("explain", str(top / "new/big"))
    assert f"at the backend: bucket {bucket}, key new/big" in explained["notes"]
    assert (explained["kind"], explained["state"], explained["unsynced"]) == ("s3", "synced", [])


def test_what_was_closed_survives_kill_9_and_arrives(story: Story) -> None:
    bucket = story.server.bucket()
    story.start()
    top = story.root / bucket
    os.listdir(top)
    story.server.freeze()
    contents = {f"f{number}": os.urandom(1000 * number + 1) for number in range(20)}
    contents["big"] = os.urandom(9 * MIB)
    for name, content in contents.items():
        (top / name).write_bytes(content)
    # All of it is there for its readers, and the journal says that the service has none of it.
    assert (top / "f7").read_bytes() == contents["f7"]
    (status,) = story.ctl("journal", "status", str(top))
    assert status["closed"] + status["sealed"] == len(contents)
    story.daemon.kill()
    story.server.thaw()
    story.daemon.start()
    for name, content in contents.items():
        assert (top / name).read_bytes() == content
    story.ctl("journal", "sync")
    for name, content in contents.items():
        assert story.object(bucket, name) == content
    (status,) = story.ctl("journal", "status")
    assert status["closed"] + status["sealed"] + status["quarantined"] == 0


def test_a_service_that_is_down_holds_up_nobody_and_says_so(story: Story) -> None:
    bucket = story.server.bucket()
    story.server.stop()
    story.start()
    assert set(os.listdir(story.daemon.mount)) == {"ipfs", "local", "mfs", "s3"}
    (story.daemon.mount / "mfs/file").write_text("works")
    with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
        os.listdir(story.root)
    (warning,) = story.warnings()
    assert warning.startswith("s3 does not work: ")
    assert "refused" in warning
    (explained,) = story.ctl("explain", f"/s3/{bucket}/a")
    assert "refused" in explained["notes"][0]
    failed = story.run("backends", "test", "s3")
    assert failed.returncode == 3
    assert "nothing listens at 127.0.0.1" in failed.stderr
    story.server.start()
    (tested,) = story.ctl("backends", "test", "s3")
    # The first names at its root: with the buckets of other tests, ours may be further down.
    held = {each["Name"] for each in story.server.client().list_buckets()["Buckets"]}
    assert tested["objects"]
    assert set(tested["objects"]) <= held
    until(lambda: bucket in os.listdir(story.root), "the bucket is listed")
    until(lambda: not story.warnings(), "no warning is left")


def test_wrong_keys_are_one_sentence_at_the_test_and_at_the_first_use(story: Story) -> None:
    story.start()
    right = story.server.secret_key
    cases = [
        (story.server.access_key, "wrong-secret", "the secret key does not belong to the access"),
        ("AKNOBODY", right, "the service does not know the access key AKNOBODY"),
    ]
    for access, secret, sentence in cases:
        story.key("work", access, secret)
        failed = story.run("backends", "test", "s3")
        assert (failed.returncode, sentence in failed.stderr) == (5, True), failed.stderr
        failed = story.run("credentials", "test", "work", "--endpoint", story.server.endpoint)
        assert sentence in failed.stderr
        with pytest.raises(PermissionError):
            os.listdir(story.root)
        (status,) = story.ctl("status")
        assert any(each.startswith("s3 does not work: ") for each in status["warnings"])
    story.key("work", story.server.access_key, right)
    assert isinstance(os.listdir(story.root), list)
    log = story.daemon.log.read_text()
    assert right not in log
    assert "wrong-secret" not in log


def test_what_a_key_may_not_write_is_named_and_goes_out_with_another(story: Story) -> None:
    bucket = story.server.bucket()
    story.server.client().put_object(Bucket=bucket, Key="a", Body=b"theirs")
    story.start()
    story.key("work", READER_ACCESS_KEY, READER_SECRET_KEY)
    top = story.root / bucket
    assert (top / "a").read_bytes() == b"theirs"
    (top / "b").write_bytes(b"mine")
    listed: list[dict[str, Any]] = []

    def is_refused() -> bool:
        listed[:] = story.ctl("journal", "list", "--only", "quarantined")
        return bool(listed)

    until(is_refused, "the change is quarantined")
    assert [each["path"] for each in listed] == [f"/s3/{bucket}/b"]
    assert f"may not store objects at the top of the bucket {bucket!r}" in listed[0]["reason"]
    failed = story.run("journal", "sync", str(top))
    assert failed.returncode == 5
    story.key("work", story.server.access_key, story.server.secret_key)
    story.ctl("journal", "sync")
    assert story.object(bucket, "b") == b"mine"


def test_somebody_elses_change_is_never_overwritten(story: Story) -> None:
    bucket, client = story.server.bucket(), story.server.client()
    client.put_object(Bucket=bucket, Key="report.txt", Body=b"first")
    story.start()
    top = story.root / bucket
    assert (top / "report.txt").read_bytes() == b"first"
    client.put_object(Bucket=bucket, Key="report.txt", Body=b"theirs, meanwhile")
    (top / "report.txt").write_bytes(b"mine")
    story.ctl("journal", "sync")
    assert story.object(bucket, "report.txt") == b"theirs, meanwhile"
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]]
    (mine,) = [key for key in keys if ".conflict-" in key]
    assert story.object(bucket, mine) == b"mine"
    assert mine in os.listdir(top)
    client.put_object(Bucket=bucket, Key="report.txt", Body=b"and again")
    story.ctl("refresh", str(top / "report.txt"))
    assert (top / "report.txt").read_bytes() == b"and again"


def test_a_second_service_at_run_time_with_one_prefix(story: Story) -> None:
    bucket = story.server.bucket()
    story.server.client().put_object(Bucket=bucket, Key="photos/2026/a.jpg", Body=b"jpg")
    story.server.client().put_object(Bucket=bucket, Key="other", Body=b"x")
    story.start()
    story.ctl(
        "backends", "add", "photos", "--endpoint", story.server.endpoint, "--credentials", "work",
        "--bucket", bucket, "--prefix", "photos/", "--durability", "backend",
    )  # fmt: skip
    top = story.daemon.mount / "photos"
    assert os.listdir(top) == ["2026"]
    with (top / "2026/b.jpg").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
        assert story.object(bucket, "photos/2026/b.jpg") == b"new"
    story.daemon.stop()
    story.start()
    assert sorted(os.listdir(top / "2026")) == ["a.jpg", "b.jpg"]
    story.ctl("backends", "rm", "photos")
    assert "photos" not in os.listdir(story.daemon.mount)
    assert story.object(bucket, "photos/2026/a.jpg") == b"jpg"
