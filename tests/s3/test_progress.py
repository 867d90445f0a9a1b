"""A rename of a directory at the service takes as long as its objects are many: how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

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
