"""Exchanges of names, which are three renames at the service over a place of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from unifs.errors import PermissionDenied, Unreachable
from unifs.mounts.hostcalls import RENAME_EXCHANGE
from unifs.mounts.s3.mount import S3Mount

if TYPE_CHECKING:
    from tests.s3.operations import Bench

OBJECTS, FIRST = 12, 5


def held(bench: Bench) -> dict[str, bytes]:
    """Key -> bytes of everything in the bucket."""
    listed = bench.client.list_objects_v2(Bucket=bench.bucket).get("Contents", ())
    return {each["Key"]: bench.get(each["Key"]) for each in listed}


async def exchange(bench: Bench, one: str, other: str) -> None:
    top = bench.bucket
    await bench.system.rename(f"{top}/{one}", f"{top}/{other}", RENAME_EXCHANGE)


async def synced(bench: Bench) -> None:
    with trio.fail_after(120):
        await bench.system.sync()


async def test_files_and_directories_in_a_bucket_of_many(bench: Bench) -> None:
    """Where buckets lie at the root, nothing can be put aside there."""
    for key in ("a", "b/in", "c", "d/in"):
        bench.put(key, key.encode())
    for directory in ("", "b", "d"):
        await bench.names(directory)
    await exchange(bench, "a", "b")
    await exchange(bench, "c", "b")
    await exchange(bench, "a", "d")
    await synced(bench)
    assert await bench.names() == ["a", "b", "c", "d"]
    wanted = {"a/in": b"d/in", "b": b"c", "c": b"a", "d/in": b"b/in"}
    assert {key: await bench.read(key) for key in wanted} == wanted
    assert {key: data for key, data in held(bench).items() if data} == wanted
    assert {key for key, data in held(bench).items() if not data} == {"a/", "d/"}


async def refused_halfway(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange of two directories, ``a`` and ``b``, of which something was put aside."""
    for number in range(OBJECTS):
        bench.put(f"a/{number}", b"a")
        bench.put(f"b/{number}", b"b")
    for directory in ("", "a", "b"):
        await bench.names(directory)
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)
    delete, asked = mount._removing.delete_version, list[Any]()

    async def denied(*arguments: Any) -> bool:
        asked.append(arguments)
        if len(asked) > FIRST:
            raise PermissionDenied("this key may not delete")
        return await delete(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(mount._removing, "delete_version", denied)
        await exchange(bench, "a", "b")
        await bench.system.until_given_up(1)
        assert await bench.names() == ["a", "b"]
        with trio.fail_after(30):
            # Nobody waits for a rename that was refused.
            assert await bench.names("b")
        listed = await bench.shell.json("ctl", "journal", "list")
        assert "this key may not delete" in {each["reason"] for each in listed}
    assert any(key.startswith(".unifs-moving-") for key in held(bench))


def laid_out(a: bytes, b: bytes) -> dict[str, bytes]:
    """What the bucket holds where those are the bytes of all files of ``a`` and ``b``."""
    numbers = range(OBJECTS)
    return {f"a/{number}": a for number in numbers} | {f"b/{number}": b for number in numbers}


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_one_that_was_refused_halfway_goes_on_once_it_is_permitted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    await refused_halfway(bench, monkeypatch)
    if is_restarted:
        await bench.system.kill()
        await bench.system.until_given_up(1)
    await bench.shell.json("ctl", "journal", "retry")
    await synced(bench)
    assert await bench.names() == ["a", "b"]
    assert held(bench) == laid_out(b"b", b"a") | {"a/": b"", "b/": b""}


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_one_that_was_refused_halfway_can_be_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    await refused_halfway(bench, monkeypatch)
    if is_restarted:
        await bench.system.kill()
    await exchange(bench, "a", "b")
    await synced(bench)
    assert await bench.names() == ["a", "b"]
    found = {key: data for key, data in held(bench).items() if not key.endswith("/")}
    assert found == laid_out(b"a", b"b")
    assert not [key for key in held(bench) if key.startswith(".unifs-moving-")]


@pytest.mark.parametrize("is_directory", [False, True])
async def test_somebody_takes_the_old_place_before_the_answer_is_heard(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_directory: bool
) -> None:
    """What was put aside is known to be ours, though something of another kind is where it was."""
    key, data = ("a/in", b"a") if is_directory else ("a", b"a")
    theirs = "a" if is_directory else "a/theirs"
    bench.put(key, data)
    bench.put("b/in", b"b")
    for directory in ("", "b", *(("a",) if is_directory else ())):
        await bench.names(directory)
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)
    rename, answers = mount._moving.rename, list[str]()

    async def unheard(path: str, new_path: str, *arguments: Any) -> None:
        await rename(path, new_path, *arguments)
        answers.append(new_path)
        if len(answers) == 1:
            bench.put(theirs, b"theirs")
            raise Unreachable("the answer was lost")

    monkeypatch.setattr(mount._moving, "rename", unheard)
    # What is cut off here has been carried out.
    monkeypatch.setattr(bench.system.volume.writeback._calls._late, "_late_s", 0.5)
    await exchange(bench, "a", "b")
    await synced(bench)
    assert ".unifs-moving-" in answers[0]
    await bench.names()
    await synced(bench)
    found = held(bench)
    assert not [each for each in found if each.startswith(".unifs-moving-")]
    assert sorted(each for each in found.values() if each) == [b"a", b"b", b"theirs"]
    assert found["b/in" if is_directory else "b"] == b"a"
    assert found[theirs] == b"theirs"
