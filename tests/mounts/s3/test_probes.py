"""The objects on which it is tried what a service heeds: one at a time, unseen, and swept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.contract.subjects import Bytes
from tests.contract.test_reading import scanned
from tests.mounts.s3.conftest import World, world_on
from unifs.errors import InvalidArgument, NotFound, PermissionDenied
from unifs.mounts.s3.conditions import LEFT_S
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.names import PROBE, is_probe, new_probe
from unifs.mounts.s3.removing import BATCH_MIN
from unifs.types import Change, Version

if TYPE_CHECKING:
    from tests.servers.s3 import S3Server
    from unifs.mounts.s3.service import Request

LEFT = f"{PROBE}0123456789abcdef"


def test_only_names_of_its_form_are_probes() -> None:
    assert is_probe(new_probe())
    assert not is_probe(f"{PROBE}x")
    assert not is_probe(f"{LEFT}0")


async def test_two_who_ask_at_once_try_on_one_object(world: World) -> None:
    await world.mount.honours(world.bucket)
    call, keys = world.mount.service.call, []

    async def noted(request: Request) -> object:
        if request.method == "PUT" and PROBE in request.key:
            keys.append(request.key)
        return await call(request)

    world.mount.service.call = noted  # type: ignore[method-assign, assignment]
    versions = {f"d/{n}": Version(world.put(f"d/{n}")) for n in range(2 * BATCH_MIN)}
    changes = [(Change("remove", path, path, base=versions[path]), None) for path in versions]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.mount.commit, changes[:BATCH_MIN])
        nursery.start_soon(world.mount.commit, changes[BATCH_MIN:])
    assert len(keys) == 1
    assert world.listed() == ["d/"]


async def test_a_trial_that_is_denied_is_made_again_and_leaves_nothing(world: World) -> None:
    call, asked = world.mount.service.call, []

    async def denied(request: Request) -> object:
        asked.append(request.method)
        raise PermissionDenied("not here")

    conditions = world.mount._conditions
    world.mount.service.call = denied  # type: ignore[method-assign, assignment]
    assert not await conditions.copying(world.bucket)
    assert (asked, world.mount.is_rename_conditional) == (["PUT"], False)
    world.mount.service.call = call  # type: ignore[method-assign]
    assert await conditions.copying(world.bucket)
    assert world.mount.is_rename_conditional
    assert world.listed() == []


async def test_one_who_gives_up_removes_its_probe(world: World) -> None:
    removing = world.mount._removing
    with trio.CancelScope() as scope:

        async def given_up(bucket: str, keys: object) -> dict[str, object]:
            assert [is_probe(key) for key in world.listed()] == [True]
            scope.cancel()
            await trio.sleep_forever()
            return {}

        removing._delete_objects = given_up  # type: ignore[method-assign, assignment]
        await removing._heeds_etags(world.bucket)
    assert scope.cancelled_caught
    assert world.listed() == []


async def test_what_a_killed_daemon_left_is_not_shown(world: World) -> None:
    for key in (LEFT, f"below/{LEFT}", f"{PROBE}mine"):
        world.put(key, b"")
    shown = {entry.name for entry in await scanned(world.mount, "")}
    assert shown == {f"{PROBE}mine".encode(), b"below"}
    assert [entry.name for entry in await scanned(world.mount, "below")] == [LEFT.encode()]
    with pytest.raises(NotFound):
        await world.mount.stat(LEFT)
    with pytest.raises(InvalidArgument, match="tries services"):
        await world.mount.put(LEFT, Bytes(b"x"), None, "t1")


async def test_what_a_killed_daemon_left_is_swept_when_it_is_old(world: World) -> None:
    for key, data in ((LEFT, b""), (f"{PROBE}mine", b""), (f"{LEFT[:-1]}e", b"bytes")):
        world.put(key, data)
    credentials = world.mount.service.credentials
    left = set(world.listed())
    for later_s, gone in ((0.0, set()), (LEFT_S + 60, {LEFT})):
        mount = S3Mount("s3", world.mount.options, credentials)
        mount._now_s = lambda later_s=later_s: time.time() + later_s  # type: ignore[misc]
        async with trio.open_nursery() as nursery:
            mount._nursery = nursery
            await mount.honours(world.bucket)
        mount.service.close()
        assert set(world.listed()) == left - gone


async def test_the_connection_of_a_sweep_that_is_cut_off_is_closed(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_on(s3_server)
    service, lent = world.mount.service, []

    async def sweep(bucket: str, now_s: float) -> int:
        address = service._address
        connection = await service._pool.connect(address)
        try:
            lent.append(connection)
            await trio.sleep_forever()
        finally:
            service._pool.give(address, connection)
        return 0

    monkeypatch.setattr(world.mount._conditions, "sweep", sweep)
    async with world.mount.serve():
        await world.mount.honours(world.bucket)
        await trio.testing.wait_all_tasks_blocked()
    assert len(lent) == 1
    assert service.statistics()["connections_idle"] == 0
