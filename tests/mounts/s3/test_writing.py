"""Puts and markers on a real server, and on one that keeps no conditions or loses its answers."""

from __future__ import annotations

import stat
import time
import urllib.request
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import Bytes
from tests.mounts.s3.identities import Fixed
from tests.servers.faultproxy import Fault, FaultProxy
from tests.servers.s3 import DIRECT, READER_ACCESS_KEY, READER_SECRET_KEY
from unifs.errors import (
    Conflict,
    Exists,
    InvalidArgument,
    IsADirectory,
    NotEmpty,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unreachable,
    Unsupported,
)
from unifs.mounts.s3.conditions import Honoured
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.names import PROBE
from unifs.mounts.s3.options import Credentials
from unifs.types import Node, SetAttributes, Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.mounts.s3.conftest import World
    from unifs.mounts.s3.service import Answer, Request

DIRECTORY = Node(stat.S_IFDIR | 0o755)


async def version_of(mount: S3Mount, path: str) -> Version:
    version = (await mount.stat(path)).version
    assert version is not None
    return version


async def test_an_object_says_what_it_is(world: World) -> None:
    await world.mount.put("page.html", Bytes(b"<p>"), None, "t1")
    await world.mount.put("plain", Bytes(b"x"), None, "t2")
    assert world.head("page.html")["ContentType"] == "text/html"
    head = world.head("plain")
    assert head["ContentType"] == "application/octet-stream"
    assert head["Metadata"] == {"unifs-token": "t2"}


async def test_what_the_options_ask_for_is_sent(world: World) -> None:
    mount = world.another(checksum="sha256", storage_class="STANDARD")
    await mount.put("f", Bytes(b"x"), None, "t1")
    crc = world.another(checksum="crc32c")
    await crc.put("g", Bytes(b"x" * 100_000), None, "t2")
    assert world.get("f") == b"x"
    assert world.get("g") == b"x" * 100_000
    mount.service.close()
    crc.service.close()


async def test_a_header_is_one_line(world: World) -> None:
    mount = world.another(storage_class="STANDARD\r\nx-amz-acl: public-read")
    with pytest.raises(InvalidArgument):
        await mount.put("f", Bytes(b"x"), None, "t1")
    assert world.listed() == []
    mount.service.close()


async def test_a_service_with_conditions_is_left_without_a_trace(world: World) -> None:
    assert await world.mount.honours(world.bucket) == Honoured(True, True, True)
    assert world.mount.is_conditional
    assert world.listed() == []


class Careless(S3Mount):
    """A mount of a service that ignores conditions, or knows none."""

    def ignore(self, *, says_so: bool) -> None:
        call = self.service.call

        async def careless(request):  # type: ignore[no-untyped-def]
            dropped = [name for name in request.headers if name in ("if-match", "if-none-match")]
            if dropped and request.method in ("PUT", "DELETE", "POST"):
                if says_so:
                    raise Unsupported("501", s3_code="NotImplemented")
                for name in dropped:
                    del request.headers[name]
            return await call(request)

        self.service.call = careless  # type: ignore[method-assign]


@pytest.fixture(params=[False, True], ids=["ignores", "says so"])
async def careless(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Careless]:
    mount = Careless("s3", world.mount.options, world.mount.service.credentials)
    mount.ignore(says_so=request.param)
    async with mount.serve():
        yield mount


async def test_without_conditions_it_looks_before_it_writes(
    world: World, careless: Careless
) -> None:
    first = await careless.put("f", Bytes(b"1"), None, "t1")
    assert not careless.is_conditional
    assert await careless.honours(world.bucket) == Honoured(False, False, False)
    assert not [key for key in world.listed() if PROBE in key]
    with pytest.raises(Conflict):
        await careless.put("f", Bytes(b"2"), None, "t2")
    world.put("f", b"theirs")
    with pytest.raises(Conflict):
        await careless.put("f", Bytes(b"3"), first.version, "t3")
    with pytest.raises(Conflict):
        await careless.remove("f", first.version, "t4")
    assert world.get("f") == b"theirs"
    second = await careless.put("f", Bytes(b"5"), await version_of(careless, "f"), "t5")
    again = await careless.put("f", Bytes(b"5"), first.version, "t5")
    assert again.version == second.version
    await careless.remove("f", second.version, "t6")
    assert world.listed() == []


async def test_a_put_whose_answer_was_lost_recognises_itself(world: World) -> None:
    async with FaultProxy(world.server.endpoint) as proxy:
        mount = world.another(endpoint=proxy.endpoint)
        base = (await mount.put("f", Bytes(b"1"), None, "t1")).version
        proxy.plan(Fault("lose_answer"), method="PUT")
        with pytest.raises(Unreachable):
            await mount.put("f", Bytes(b"2"), base, "t2")
        stored = await mount.put("f", Bytes(b"2"), base, "t2")
        assert stored.version == world.head("f")["ETag"].strip('"')
        assert world.get("f") == b"2"
        assert proxy.dealt["lose_answer"] == 1
        mount.service.close()


async def test_a_wrong_etag_in_the_answer_is_found_out(world: World) -> None:
    async with FaultProxy(world.server.endpoint) as proxy:
        mount = world.another(endpoint=proxy.endpoint)
        await mount.honours(world.bucket)
        proxy.plan(Fault("wrong_etag"), method="PUT")
        stored = await mount.put("f", Bytes(b"1"), None, "t1")
        assert proxy.dealt["wrong_etag"] == 1
        assert stored.version == world.head("f")["ETag"].strip('"')
        mount.service.close()


async def test_a_service_that_asks_for_less_is_heard(world: World) -> None:
    async with FaultProxy(world.server.endpoint) as proxy:
        mount = world.another(endpoint=proxy.endpoint)
        await mount.honours(world.bucket)
        fault = Fault("answer", status=503, code="SlowDown", retry_after_s=1)
        proxy.plan(fault, method="PUT")
        with pytest.raises(RateLimited) as caught:
            await mount.put("f", Bytes(b"1"), None, "t1")
        assert caught.value.context["retry_after_s"] == 1.0
        assert mount.statistics()["requests_allowed"] == mount.options.parallel_max // 2
        mount.service.close()


def shifted(by_s: float) -> float:
    return time.time() + by_s


async def test_a_clock_that_is_wrong_is_put_right(world: World) -> None:
    for offset in (3600.0, -3600.0):
        clock = partial(shifted, offset)
        mount = S3Mount("s3", world.mount.options, world.mount.service.credentials, clock)
        await mount.put(f"f{offset}", Bytes(b"1"), None, "t1")
        assert abs(mount.service._skew_s + offset) < 60
        mount.service.close()
    assert len(world.listed()) == 2


def NOW() -> float:
    import time

    return time.time()


async def test_who_may_not_write_hears_so_and_secrets_stay_secret(world: World) -> None:
    world.put("f", b"1")
    reader = S3Mount(
        "s3", world.mount.options, Fixed(Credentials(READER_ACCESS_KEY, READER_SECRET_KEY))
    )
    assert await reader.read("f", await version_of(reader, "f"), 0, 10) == b"1"
    wrong = S3Mount("s3", world.mount.options, Fixed(Credentials("AKNOBODY", "wrong-secret")))
    nobody = S3Mount("s3", world.mount.options, Fixed(None))
    for mount in (reader, wrong, nobody):
        with pytest.raises(PermissionDenied) as caught:
            await mount.put("g", Bytes(b"2"), None, "t1")
        text = f"{caught.value!r} {caught.value.context}"
        assert "wrong-secret" not in text
        assert READER_SECRET_KEY not in text
        mount.service.close()
    assert world.listed() == ["f"]


# --- directories and special files ----------------------------------------------------------------


async def test_a_directory_is_a_marker_and_outlives_its_files(world: World) -> None:
    await world.mount.make("d", DIRECTORY, "t1")
    assert world.listed() == ["d/"]
    world.put("implicit/f", b"1")
    await world.mount.remove("implicit/f", await version_of(world.mount, "implicit/f"), "t2")
    assert world.listed() == ["d/", "implicit/"]
    await world.mount.remove("implicit", None, "t3")
    await world.mount.remove("d", None, "t4")
    assert world.listed() == []


async def test_a_file_in_a_new_directory_is_one_request(world: World) -> None:
    await world.mount.make("d", DIRECTORY, "t1")
    await world.mount.make("d/sub", DIRECTORY, "t2")
    await world.mount.honours(world.bucket)
    call, asked = world.mount.service.call, []

    async def noted(request: Request) -> Answer:
        if ("prefix", PROBE) not in request.query:
            # The sweep of probes runs beside it.
            asked.append(f"{request.method} {request.key}")
        return await call(request)

    world.mount.service.call = noted  # type: ignore[method-assign]
    for number in range(10):
        await world.mount.put(f"d/{number}", Bytes(b"x"), None, f"t{number}")
    assert asked == [f"PUT d/{number}" for number in range(10)]
    with pytest.raises(IsADirectory):
        await world.mount.put("d/sub", Bytes(b"x"), None, "t3")


async def test_special_files_need_attributes(world: World, keeping: World) -> None:
    link = Node(stat.S_IFLNK | 0o777, target=b"t")
    with pytest.raises(Unsupported):
        await world.mount.make("link", link, "t1")
    with pytest.raises(Unsupported):
        await keeping.mount.make("null", Node(stat.S_IFCHR | 0o666, rdev=259), "t1")
    made = await keeping.mount.make("link", link, "t1")
    assert made == await keeping.mount.stat("link")
    assert keeping.get("link") == b"t"
    assert keeping.head("link")["Metadata"]["mode"] == str(stat.S_IFLNK | 0o777)


async def test_attributes_are_kept_as_s3fs_keeps_them(keeping: World) -> None:
    await keeping.mount.put("f", Bytes(b"x"), None, "t1")
    changes = SetAttributes(mode=0o600, uid=7, gid=8, mtime_ns=1_500_000_000_500_000_000)
    await keeping.mount.set_attributes("f", changes, "t2")
    kept = keeping.head("f")["Metadata"]
    assert kept["mode"] == str(stat.S_IFREG | 0o600)
    assert (kept["uid"], kept["gid"], kept["mtime"]) == ("7", "8", "1500000000.500000000")
    assert kept["unifs-token"] == "t1"
    before = keeping.mount.service.requests
    await keeping.mount.set_attributes("f", changes, "t3")
    assert keeping.mount.service.requests == before + 1


async def test_a_directory_without_a_marker_gets_one_for_its_attributes(keeping: World) -> None:
    keeping.put("d/f")
    for mode in (0o700, 0o711):
        await keeping.mount.set_attributes("d", SetAttributes(mode=mode), "t1")
    assert keeping.listed() == ["d/", "d/f"]


async def test_names_that_cannot_be_keys_are_refused(world: World) -> None:
    for path in ("a%%2Fb", "x%%", "short%%+"):
        with pytest.raises(InvalidArgument):
            await world.mount.put(path, Bytes(b"x"), None, "t1")
        with pytest.raises(InvalidArgument):
            await world.mount.make(path, DIRECTORY, "t1")
    assert world.listed() == []


# --- buckets, prefixes ----------------------------------------------------------------------------


async def test_buckets_are_the_root(world: World) -> None:
    mount = world.another(bucket="")
    world.put("f", b"1")
    names = [entry.name.decode() for entry in (await mount.scan("", None)).entries]
    assert world.bucket in names
    assert stat.S_ISDIR((await mount.stat(world.bucket)).mode)
    assert (await mount.stat(f"{world.bucket}/f")).size_bytes == 1
    with pytest.raises(NotFound):
        await mount.stat("no-such-bucket")
    with pytest.raises(NotFound):
        await mount.scan("no-such-bucket", None)
    made = f"{world.bucket}-made"
    await mount.make(made, DIRECTORY, "t1")
    with pytest.raises(Exists):
        await mount.make(made, DIRECTORY, "t2")
    await mount.put(f"{made}/f", Bytes(b"2"), None, "t3")
    await mount.rename(f"{world.bucket}/f", f"{made}/g", "t4")
    with pytest.raises(Unsupported):
        await mount.rename(made, "other-name", "t5")
    for name in ("f", "g"):
        path = f"{made}/{name}"
        await mount.remove(path, await version_of(mount, path), "t6")
    await mount.remove(made, None, "t7")
    await mount.remove(made, None, "t7")
    mount.service.close()


@pytest.mark.parametrize("kept", ["an object", "a version"])
async def test_a_bucket_that_holds_anything_is_not_removed(
    world: World, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """The service is not even asked: SeaweedFS, unless told otherwise, removes the objects, too."""
    mount, asked = world.another(bucket=""), []
    remove = mount.control.remove_bucket

    async def noted(bucket: str) -> None:
        asked.append(bucket)
        await remove(bucket)

    monkeypatch.setattr(mount.control, "remove_bucket", noted)
    if kept == "a version":
        told = {"Status": "Enabled"}
        world.client.put_bucket_versioning(Bucket=world.bucket, VersioningConfiguration=told)
    world.put("theirs")
    if kept == "a version":
        world.client.delete_object(Bucket=world.bucket, Key="theirs")
    with pytest.raises(NotEmpty):
        await mount.remove(world.bucket, None, "t1")
    assert asked == []
    mount.service.close()


async def test_a_prefix_is_a_root(world: World) -> None:
    mount = S3Mount(
        "s3", replace(world.mount.options, prefix="a/b/"), world.mount.service.credentials
    )
    await mount.put("f", Bytes(b"1"), None, "t1")
    await mount.make("d", DIRECTORY, "t2")
    assert world.listed() == ["a/b/d/", "a/b/f"]
    assert sorted(e.name for e in (await mount.scan("", None)).entries) == [b"d", b"f"]
    mount.service.close()


async def test_a_presigned_url_needs_no_identity(world: World) -> None:
    world.put("a b+ü", b"signed")
    url = await world.mount.presign("GET", "a b+ü", 60)
    with DIRECT.open(url) as answer:
        assert answer.read() == b"signed"
    url = await world.mount.presign("PUT", "new", 60)
    request = urllib.request.Request(url, data=b"put", method="PUT")
    with DIRECT.open(request) as answer:
        assert answer.status == 200
    assert world.get("new") == b"put"
    for method, expiry_s in (("DELETE", 60), ("GET", 0), ("GET", 8 * 24 * 3600)):
        with pytest.raises(InvalidArgument):
            await world.mount.presign(method, "new", expiry_s)
