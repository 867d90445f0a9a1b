"""Renames at the service, which are copies and deletes: how far they are, and what guards them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from unifs.errors import PermissionDenied
from unifs.mounts.s3.mount import S3Mount

if TYPE_CHECKING:
    import pytest

    from tests.s3.operations import Bench

OBJECTS, FIRST = 12, 5


async def test_how_far_a_rename_is_can_be_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(OBJECTS):
        bench.put(f"d/{number}")
    await bench.names("d")
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)
    delete, asked, goes_on = mount._removing.delete_version, [], trio.Event()

    async def slow(*arguments: Any) -> bool:
        asked.append(arguments)
        if len(asked) > FIRST:
            await goes_on.wait()
        return await delete(*arguments)

    monkeypatch.setattr(mount._removing, "delete_version", slow)
    assert mount.moved(f"{bench.bucket}/d") is None
    await bench.system.rename(f"{bench.bucket}/d", f"{bench.bucket}/e")
    with trio.fail_after(120):
        while mount.moved(f"{bench.bucket}/d") != FIRST:  # noqa: ASYNC110 (a service brings it about)
            await trio.sleep(0.01)
    sentence = f"{FIRST} objects of it are moved so far"
    listed = await bench.shell.json("ctl", "journal", "list")
    assert {each["reason"] for each in listed if each["operation"] == "rename"} == {sentence}
    (explained,) = await bench.shell.json("explain", f"{bench.top}/e")
    assert [text.endswith(sentence) for text in explained["unsynced"]] == [True]
    goes_on.set()
    await bench.system.sync()
    assert mount.moved(f"{bench.bucket}/d") is None
    assert bench.get(f"e/{OBJECTS - 1}") == b"x"


async def test_a_rename_that_was_refused_halfway_goes_on_once_it_is_permitted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put("a", b"mine")
    for number in range(OBJECTS):
        bench.put(f"d/{number}")
    await bench.names()
    await bench.names("d")
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)

    async def denied(*_: Any) -> bool:
        raise PermissionDenied("this key may not delete")

    with monkeypatch.context() as patched:
        for name in ("remove", "delete_version"):
            patched.setattr(mount._removing, name, denied)
        await bench.system.rename(f"{bench.bucket}/a", f"{bench.bucket}/b")
        await bench.system.rename(f"{bench.bucket}/d", f"{bench.bucket}/e")
        await bench.system.until_given_up(2)
    assert (bench.get("a"), bench.get("b")) == (b"mine", b"mine")
    await bench.shell.json("ctl", "journal", "retry")
    await bench.system.sync()
    assert await bench.names() == ["b", "e"]
    assert len(await bench.names("e")) == OBJECTS
    listed = bench.client.list_objects_v2(Bucket=bench.bucket)["Contents"]
    assert {each["Key"] for each in listed} == {"b", "e/", *(f"e/{n}" for n in range(OBJECTS))}


async def test_a_service_that_ignores_conditions_on_copies_is_explained(
    both: Bench,
) -> None:
    """moto ignores them, SeaweedFS does not; the first rename finds it out."""
    both.put("a")
    await both.names()

    async def notes() -> str:
        (explained,) = await both.shell.json("explain", both.top)
        return " ".join(explained["notes"])

    assert "renames are not conditional" not in await notes()
    await both.system.rename(f"{both.bucket}/a", f"{both.bucket}/b")
    await both.system.sync()
    assert ("renames are not conditional" in await notes()) == (both.server.kind == "moto")
