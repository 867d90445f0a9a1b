"""How far a large object is that goes to the service in parts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.multipart import MARK_PART, PART_BYTES

if TYPE_CHECKING:
    import pytest

    from tests.s3.operations import Bench

PARTS, FIRST = 5, 2


async def test_how_much_of_a_large_object_is_sent_can_be_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = bench.system.backends["s3"]
    assert isinstance(mount, S3Mount)
    put_part, goes_on = mount._multipart._put_part, trio.Event()

    async def slow(upload: Any, number: int, payload: Any) -> None:
        if FIRST < number < MARK_PART:
            await goes_on.wait()
        await put_part(upload, number, payload)

    monkeypatch.setattr(mount._multipart, "_put_part", slow)
    content, path = os.urandom(PARTS * PART_BYTES), f"{bench.bucket}/large"
    assert mount.sent(path) is None
    await bench.write("large", content)
    with trio.fail_after(120):
        while mount.sent(path) != FIRST * PART_BYTES:  # noqa: ASYNC110 (a service brings it about)
            await trio.sleep(0.01)
    for below in ((), (bench.top,)):
        (told,) = await bench.shell.json("ctl", "journal", "status", *below)
        assert (told["unsynced_bytes"], told["sent_bytes"]) == (len(content), FIRST * PART_BYTES)
    sentence = f"{FIRST * 8} of {PARTS * 8} MiB are sent so far"
    listed = await bench.shell.json("ctl", "journal", "list")
    assert sentence in [each["reason"] for each in listed]
    (explained,) = await bench.shell.json("explain", f"{bench.top}/large")
    assert [text.endswith(sentence) for text in explained["unsynced"]] == [True]
    goes_on.set()
    await bench.system.sync()
    assert mount.sent(path) is None
    (told,) = await bench.shell.json("ctl", "journal", "status")
    assert (told["unsynced_bytes"], told["sent_bytes"]) == (0, 0)
    assert bench.get("large") == content
