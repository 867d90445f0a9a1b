"""Large objects on a real server: in parts, cut off, taken up again, given up."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.contract.subjects import Bytes, Cut
from tests.servers.faultproxy import Fault, FaultProxy
from unifs.errors import Conflict, Corrupt, TryAgain, UnifsError, Unreachable
from unifs.mounts.s3 import copies, multipart, writing
from unifs.mounts.s3.fingerprint import PARTS, Fingerprint
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.multipart import MARK_PART, PARTS_MAX, mark_of, part_bytes

if TYPE_CHECKING:
    from tests.mounts.s3.conftest import World
    from unifs.mounts.s3.multipart import Upload
    from unifs.mounts.s3.service import Answer, Request

MIB = 1 << 20
#: Services take no part but the last below 5 MiB.
PART = 5 * MIB
BIG = os.urandom(MIB) * 12 + b"the end"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", PART)
    monkeypatch.setattr(writing, "SINGLE_BYTES", PART)
    monkeypatch.setattr("unifs.mounts.s3.mount.SINGLE_BYTES", PART)


class Stuck(Bytes):
    """A content that can be hashed, and of which only the first part can be sent."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.hashed: set[int] = set()

    async def read(self, offset: int, size: int) -> bytes:
        if offset >= PART and offset in self.hashed:
            await trio.sleep_forever()
        self.hashed.add(offset)
        return await super().read(offset, size)


async def cut_off(world: World, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """A put that ends when its first part has arrived, as a killed process does."""
    put_part = world.mount._multipart._put_part
    with trio.CancelScope() as scope, monkeypatch.context() as patched:

        async def watched(upload, number, payload):  # type: ignore[no-untyped-def]
            await put_part(upload, number, payload)
            if number == 1:
                scope.cancel()

        patched.setattr(world.mount._multipart, "_put_part", watched)
        await world.mount.put("big", Stuck(BIG), None, token)
    assert scope.cancelled_caught


@pytest.mark.parametrize("size", [1, 17 * MIB, 1 << 30, 100 << 30, 5 << 40])
def test_parts_are_few_enough_and_large_enough(size: int) -> None:
    part = part_bytes(size)
    assert part >= PART
    assert -(-size // part) <= PARTS_MAX < MARK_PART
    assert part <= 5 << 30


async def test_in_parts_and_back(world: World) -> None:
    made = await world.mount.put("big", Bytes(BIG), None, "t1")
    assert made.version is not None
    assert made.version.endswith("-3")
    assert world.get("big") == BIG
    assert set(world.head("big")["Metadata"]) == {"unifs-token", "unifs-parts"}
    assert world.uploads() == []
    parts = [
        await world.mount.read("big", made.version, at, PART) for at in range(0, len(BIG), PART)
    ]
    assert b"".join(parts) == BIG
    again = await world.mount.put("big", Bytes(BIG), None, "t1")
    assert again.version == made.version
    with pytest.raises(Conflict):
        await world.mount.put("big", Bytes(BIG), None, "t2")
    assert world.uploads() == []


@pytest.mark.parametrize("checksum", ["sha256", "crc32c"])
@pytest.mark.parametrize("server", ["world", "moto"])
async def test_parts_carry_the_checksum_that_the_options_ask_for(
    world: World, moto: World, server: str, checksum: Any
) -> None:
    there = {"world": world, "moto": moto}[server]
    mount = there.another(checksum=checksum)
    made = await mount.put("big", Bytes(BIG), None, "t1")
    await mount.put("big", Bytes(BIG + b"more"), made.version, "t2")
    assert there.get("big") == BIG + b"more"
    mount.service.close()


async def test_what_was_cut_off_goes_on_where_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_off(world, monkeypatch, "t1")
    assert world.uploads() == ["big"]
    after_restart = world.another()
    sent: list[int] = []
    call = after_restart.service.call

    async def counted(request: Request):  # type: ignore[no-untyped-def]
        if request.body is not None and request.method == "PUT":
            sent.append(request.body.size_bytes)
        return await call(request)

    after_restart.service.call = counted  # type: ignore[method-assign]
    await after_restart.put("big", Bytes(BIG), None, "t1")
    assert sorted(size for size in sent if size > 100) == [len(BIG) - 2 * PART, PART]
    assert world.get("big") == BIG
    assert world.uploads() == []
    after_restart.service.close()


async def test_another_changes_upload_is_not_taken_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = world.client.create_multipart_upload(Bucket=world.bucket, Key="big")["UploadId"]
    await cut_off(world, monkeypatch, "t1")
    await world.mount.put("big", Bytes(BIG[::-1]), None, "t2")
    assert world.get("big") == BIG[::-1]
    left = world.client.list_multipart_uploads(Bucket=world.bucket)["Uploads"]
    assert len(left) == 2
    assert theirs in [upload["UploadId"] for upload in left]


async def test_what_fails_for_good_is_aborted(world: World) -> None:
    with pytest.raises(Corrupt):
        await world.mount.put("big", Cut(BIG), None, "t1")
    assert world.uploads() == []

    class Overtaken(Bytes):
        async def read(self, offset: int, size: int) -> bytes:
            if offset == 2 * PART:
                world.put("big", b"theirs")
            return await super().read(offset, size)

    with pytest.raises(Conflict):
        await world.mount.put("big", Overtaken(BIG), None, "t2")
    assert world.get("big") == b"theirs"
    assert world.uploads() == []


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_answer_that_is_lost_anywhere_is_made_up_for(world: World, method: str) -> None:
    async with FaultProxy(world.server.endpoint) as proxy:
        mount = world.another(endpoint=proxy.endpoint)
        await mount.honours(world.bucket)
        proxy.plan(Fault("lose_answer"), method=method, times=3)
        for _ in range(8):
            try:
                await mount.put("big", Bytes(BIG), None, "t1")
            except Unreachable:
                continue
            break
        assert world.get("big") == BIG
        assert proxy.dealt["lose_answer"] >= 2
        mount.service.close()


async def test_orphans_are_aborted_when_they_are_a_day_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_off(world, monkeypatch, "t1")
    world.client.create_multipart_upload(Bucket=world.bucket, Key="theirs")
    sweep = world.mount._multipart.sweep
    now = float(world.mount.service._now_s())
    assert await sweep(world.bucket, "", now) == 0
    assert await sweep(world.bucket, "", now + multipart.ORPHAN_S + 60) == 1
    assert world.uploads() == ["theirs"]


async def test_a_copy_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "COPY_MAX_BYTES", MIB)
    monkeypatch.setattr(multipart, "COPY_PART_BYTES", PART)
    made = await world.mount.put("big", Bytes(BIG), None, "t1")
    copy_part, parts = world.mount._multipart._copy_part, []

    async def noted(upload: Upload, number: int, *how: Any) -> None:
        parts.append(number)
        await copy_part(upload, number, *how)

    monkeypatch.setattr(world.mount._multipart, "_copy_part", noted)
    await world.mount.rename("big", "moved", "t2")
    assert sorted(parts) == [1, 2, 3]
    assert world.listed() == ["moved"]
    assert world.get("moved") == BIG
    assert made.version is not None
    # Whoever knows the object by its old version goes on reading and replacing it.
    assert await world.mount.read("moved", made.version, 0, 10) == BIG[:10]
    after_restart = world.another()
    assert await after_restart.read("moved", made.version, 0, 10) == BIG[:10]
    replaced = await after_restart.put("moved", Bytes(b"small"), made.version, "t3")
    assert world.get("moved") == b"small"
    with pytest.raises(UnifsError):
        await after_restart.read("moved", made.version, 0, 10)
    assert replaced.size_bytes == 5
    after_restart.service.close()


async def test_a_copy_onto_itself_spares_what_came_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large object's new attributes or class take minutes: its last step looks again."""
    monkeypatch.setattr(copies, "COPY_MAX_BYTES", MIB)
    await world.mount.put("big", Bytes(BIG), None, "t1")
    completed = world.mount._multipart._completed

    async def overtaken(upload: Upload, *how: Any) -> Any:
        world.put("big", b"theirs")
        return await completed(upload, *how)

    monkeypatch.setattr(world.mount._multipart, "_completed", overtaken)
    with pytest.raises(TryAgain, match="is being changed by somebody"):
        await world.mount.set_storage_class("big", "STANDARD_IA")
    assert world.get("big") == b"theirs"
    assert world.uploads() == []


def test_marks_are_as_long_as_the_sweep_expects() -> None:
    assert len(mark_of("t1")) == multipart.MARK_BYTES
    assert mark_of("t1") != mark_of("t2")


# --- edits ----------------------------------------------------------------------------------------


class Counted:
    """How many bytes of bodies a mount sends."""

    def __init__(self, mount: S3Mount, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent_bytes = 0
        self._call = mount.service.call
        monkeypatch.setattr(mount.service, "call", self.call)

    async def call(self, request: Request) -> Answer:
        if request.body is not None:
            self.sent_bytes += request.body.size_bytes
        return await self._call(request)


@pytest.mark.parametrize("edit", ["append", "middle", "truncate", "nothing"])
async def test_an_edit_sends_the_parts_that_it_changed(
    world: World, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    made = await world.mount.put("big", Bytes(BIG), None, "t1")
    data = {
        "append": BIG + b"more",
        "middle": BIG[: PART + 5] + b"!" + BIG[PART + 6 :],
        "truncate": BIG[: 2 * PART],
        "nothing": BIG,
    }[edit]
    counted = Counted(world.mount, monkeypatch)
    stored = await world.mount.put("big", Bytes(data), made.version, "t2")
    assert stored.version is not None
    assert world.get("big") == data
    parts_sent = {"append": 1, "middle": 1, "truncate": 0, "nothing": 0}[edit]
    assert counted.sent_bytes <= parts_sent * PART + 2000
    assert await world.mount.read("big", stored.version, 0, 5) == data[:5]


async def test_an_edit_of_what_somebody_changed_copies_nothing_of_theirs(world: World) -> None:
    made = await world.mount.put("big", Bytes(BIG), None, "t1")
    world.put("big", BIG[::-1])
    with pytest.raises(Conflict):
        await world.mount.put("big", Bytes(BIG + b"more"), made.version, "t2")
    assert world.get("big") == BIG[::-1]
    assert world.uploads() == []


@pytest.mark.parametrize("count", [1, 3, 80, 81, 9000])
def test_fingerprints_fit_into_metadata_and_find_what_changed(count: int) -> None:
    digests = [f"{number:064x}" for number in range(count)]
    known = Fingerprint.of(PART, digests)
    assert len(PARTS) + len(known.text()) < 2000
    again = Fingerprint.read({PARTS: known.text()})
    assert again == known
    assert known.unchanged(PART, digests) == set(range(1, count + 1))
    assert known.unchanged(PART + 1, digests) == set()
    changed = [*digests[:-1], "f" * 64]
    left = known.unchanged(PART, changed)
    assert count not in left
    assert len(left) >= count - known.group
    for text in ("", "5", "5:1:!", "0:1:AAAA", "5:0:AAAA"):
        assert Fingerprint.read({PARTS: text}) is None


async def test_the_first_large_object_sweeps_its_bucket(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_off(world, monkeypatch, "t1")
    shift = multipart.ORPHAN_S + 60
    later = S3Mount(
        "s3",
        world.mount.options,
        world.mount.service.credentials,
        lambda: time.time() + shift,
    )
    # Only the sweep's clock is ahead.
    later.service._now_s = time.time
    swept, sweep = trio.Event(), later._multipart.sweep

    async def watched(bucket: str, prefix: str, now_s: float) -> int:
        count = await sweep(bucket, prefix, now_s)
        swept.set()
        return count

    monkeypatch.setattr(later._multipart, "sweep", watched)
    async with later.serve():
        await later.put("other", Bytes(BIG), None, "t2")
        with trio.fail_after(10):
            await swept.wait()
    assert world.uploads() == []
    assert world.listed() == ["other"]
