"""Keys that end in "/" and have bytes: files like others, at the very keys of directories' markers.

On moto: SeaweedFS drops such bytes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.contract.cancelling import is_reached
from tests.mounts.s3.conftest import world_on
from unifs.errors import NotEmpty, TryAgain
from unifs.mounts.s3.service import Service
from unifs.types import SetAttributes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.mounts.s3.conftest import World
    from tests.servers.s3 import S3Server


async def test_a_directory_with_a_file_at_its_marker_s_key_is_not_empty(moto: World) -> None:
    moto.put("d/", b"theirs")
    with pytest.raises(NotEmpty):
        await moto.mount.remove("d", None, "t1")
    assert moto.get("d/") == b"theirs"


async def test_a_file_stored_there_while_the_directory_is_removed_stays(
    moto: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto.put("d/", b"")
    before(monkeypatch, "DELETE", "d/", lambda: moto.put("d/", b"theirs"))
    with pytest.raises(NotEmpty):
        await moto.mount.remove("d", None, "t1")
    assert moto.get("d/") == b"theirs"


async def test_a_rename_takes_it_along(moto: World) -> None:
    moto.put("d/", b"theirs", ContentType="text/plain", Metadata={"a": "b"})
    moto.put("d/f", b"1")
    moto.put("d/sub/", b"theirs, too")
    await moto.mount.rename("d", "e", "t1")
    assert {key: moto.get(key) for key in moto.listed()} == {
        "e/": b"theirs",
        "e/f": b"1",
        "e/sub/": b"theirs, too",
    }
    assert (moto.head("e/")["ContentType"], moto.head("e/")["Metadata"]["a"]) == ("text/plain", "b")
    # Once more, as after a lost answer.
    await moto.mount.rename("d", "e", "t1")
    assert moto.get("e/") == b"theirs"


async def test_cut_off_anywhere_it_is_at_one_place_or_both(moto: World) -> None:
    for at in range(1, 400, 9):
        moto.put(f"d{at}/", b"theirs")
        moto.put(f"d{at}/f", b"1")
        was_reached = await is_reached(moto.mount.rename(f"d{at}", f"e{at}", f"t{at}"), at)
        after_restart = moto.another()
        await after_restart.rename(f"d{at}", f"e{at}", f"t{at}")
        after_restart.service.close()
        found = {key: moto.get(key) for key in moto.listed() if key[1:].startswith(f"{at}/")}
        assert found == {f"e{at}/": b"theirs", f"e{at}/f": b"1"}
        if not was_reached:
            return
    raise AssertionError("the rename has no end")


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
async def test_what_is_stored_there_during_a_rename_stays(
    moto: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """At the old place before the marker is deleted, or at the new one before it is put."""
    moto.put("d/", b"")
    moto.put("d/f", b"1")
    key = "d/" if method == "DELETE" else "e/"
    before(monkeypatch, method, key, lambda: moto.put(key, b"theirs"))
    if method == "PUT":
        with pytest.raises(NotEmpty):
            await moto.mount.rename("d", "e", "t1")
        assert (moto.get("e/"), moto.get("d/f")) == (b"theirs", b"1")
    else:
        with pytest.raises(TryAgain):
            await moto.mount.rename("d", "e", "t1")
        assert moto.get("d/") == b"theirs"
        await moto.mount.rename("d", "e", "t1")
        assert {key: moto.get(key) for key in moto.listed()} == {"e/": b"theirs", "e/f": b"1"}


async def test_a_directory_is_not_renamed_over_it(moto: World) -> None:
    moto.put("d/f", b"1")
    moto.put("e/", b"theirs")
    with pytest.raises(NotEmpty):
        await moto.mount.rename("d", "e", "t1")
    assert (moto.get("e/"), moto.get("d/f")) == (b"theirs", b"1")


async def test_a_directory_s_attributes_do_not_take_its_place(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = world_on(moto_server, keeps_attributes=True)
    async with keeping.mount.serve():
        keeping.put("d/", b"theirs")
        await keeping.mount.set_attributes("d", SetAttributes(mode=0o700), "t1")
        assert keeping.get("d/") == b"theirs"
        # Those of the file itself are kept with it.
        await keeping.mount.set_attributes("d/%%", SetAttributes(mode=0o600), "t2")
        assert (await keeping.mount.stat("d/%%")).mode & 0o777 == 0o600
        assert keeping.get("d/") == b"theirs"
        keeping.put("e/", b"")
        before(monkeypatch, "PUT", "e/", lambda: keeping.put("e/", b"theirs"))
        for _ in range(2):
            with suppress(TryAgain):
                await keeping.mount.set_attributes("e", SetAttributes(mode=0o700), "t3")
            assert keeping.get("e/") == b"theirs"


def before(
    monkeypatch: pytest.MonkeyPatch, method: str, key: str, happens: Callable[[], object]
) -> None:
    """Something happens once, just before the first such request."""
    call = Service.call

    async def overtaken(self: Service, request: Any) -> Any:
        if (request.method, request.key) == (method, key):
            monkeypatch.setattr(Service, "call", call)
            happens()
        return await call(self, request)

    monkeypatch.setattr(Service, "call", overtaken)
