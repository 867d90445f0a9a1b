"""Renames and removals of many, cut off anywhere, with somebody else at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.contract.cancelling import is_reached
from tests.contract.subjects import Bytes
from tests.contract.test_reading import scanned
from unifs.errors import Conflict, NotEmpty, NotFound, Unreachable
from unifs.mounts.s3 import moving
from unifs.mounts.s3.attributes import DIRECTORY
from unifs.mounts.s3.removing import BATCH_MIN
from unifs.mounts.s3.writing import SINGLE_BYTES
from unifs.types import Change, Version

if TYPE_CHECKING:
    from tests.mounts.s3.conftest import World
    from unifs.mounts.s3.service import Request


def seeded(world: World, top: str, count: int = 6) -> dict[str, bytes]:
    """Keys below a directory, without their beginning."""
    below = {
        f"sub/{number}" if number % 2 else str(number): b"%d" % number for number in range(count)
    }
    for name, data in below.items():
        world.put(f"{top}/{name}", data)
    return below


async def test_a_directory_moves_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "PAGE_KEYS", 2)
    below = seeded(world, "old")
    world.put("older/stays")
    await world.mount.rename("old", "new", "t1")
    assert {key: world.get(key) for key in world.listed() if key.startswith("new/")} == {
        "new/": b""
    } | {f"new/{name}": data for name, data in below.items()}
    assert [key for key in world.listed() if key.startswith("old")] == ["older/stays"]
    await world.mount.rename("old", "new", "t1")
    with pytest.raises(NotFound):
        await world.mount.rename("old", "new", "t2")


async def test_a_move_that_was_cut_off_anywhere_goes_on(world: World) -> None:
    for at in range(1, 200, 7):
        below = seeded(world, f"old{at}", 4)
        call = world.mount.rename(f"old{at}", f"new{at}", f"t{at}")
        was_reached = await is_reached(call, at)
        after_restart = world.another()
        await after_restart.rename(f"old{at}", f"new{at}", f"t{at}")
        there = {key: world.get(key) for key in world.listed() if key.startswith(f"new{at}/")}
        assert there == {f"new{at}/": b""} | {f"new{at}/{n}": data for n, data in below.items()}
        assert not [key for key in world.listed() if key.startswith(f"old{at}/")]
        after_restart.service.close()
        if not was_reached:
            return
    raise AssertionError("the rename has no end")


async def test_what_stands_at_the_new_place_is_not_mixed_in(world: World) -> None:
    seeded(world, "old")
    world.put("new/theirs")
    with pytest.raises(NotEmpty):
        await world.mount.rename("old", "new", "t1")
    assert "new/theirs" in world.listed()
    assert len(world.listed()) == 7


async def test_what_somebody_changes_while_it_moves_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(world, "old", 3)
    copied = world.mount._moving.copies.copy_version
    changed = []

    async def overtaken(source, version, target, headers):  # type: ignore[no-untyped-def]
        made = await copied(source, version, target, headers)
        if source[1] == "old/2" and not changed:
            changed.append(world.put("old/2", b"theirs"))
        return made

    monkeypatch.setattr(world.mount._moving.copies, "copy_version", overtaken)
    await world.mount.rename("old", "new", "t1")
    assert changed
    assert world.get("new/2") == b"theirs"
    assert not [key for key in world.listed() if key.startswith("old")]


async def cut_off(world: World, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Rename old to new; it ends after ``key`` was copied and before it was deleted."""
    delete = world.mount._removing.delete_version

    async def broken(place, version):  # type: ignore[no-untyped-def]
        if place[1] == key:
            raise Unreachable("cut off")
        return await delete(place, version)

    with monkeypatch.context() as patch:
        patch.setattr(world.mount._removing, "delete_version", broken)
        with pytest.raises(Unreachable):
            await world.mount.rename("old", "new", "t1")


async def test_what_somebody_stores_at_the_new_place_stays_when_the_move_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = seeded(world, "old", 4)
    version = world.head("old/2")["ETag"].strip('"')
    await cut_off(world, monkeypatch, "old/2")
    assert {"old/2", "new/2"} <= set(world.listed())
    world.put("new/2", b"theirs")
    after_restart = world.another()
    await after_restart.rename("old", "new", "t1")
    after_restart.service.close()
    there = {key: world.get(key) for key in world.listed()}
    assert there == {"new/": b"", "new/2": b"theirs", f"new/2.conflict-{version[:8]}": b"2"} | {
        f"new/{name}": data for name, data in below.items() if name != "2"
    }


async def test_what_was_copied_is_not_copied_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = seeded(world, "old", 4)
    await cut_off(world, monkeypatch, "old/2")
    stored = world.head("new/2")["LastModified"]
    after_restart = world.another()
    copied, keys = after_restart._moving.copies.copy_version, []

    async def noted(source, version, target, headers):  # type: ignore[no-untyped-def]
        keys.append(target[1])
        return await copied(source, version, target, headers)

    monkeypatch.setattr(after_restart._moving.copies, "copy_version", noted)
    await after_restart.rename("old", "new", "t1")
    after_restart.service.close()
    assert "new/2" not in keys
    assert world.head("new/2")["LastModified"] == stored
    assert {key for key in world.listed() if key != "new/"} == {f"new/{name}" for name in below}


async def overtaken(world: World, ahead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move "old" to "new" while somebody stores ``ahead`` after the first copy: both stay."""
    copied = world.mount._moving.copies.copy_version
    theirs = []

    async def copy(source, version, target, headers):  # type: ignore[no-untyped-def]
        made = await copied(source, version, target, headers)
        if not theirs:
            theirs.append(world.put(ahead, b"theirs"))
        return made

    monkeypatch.setattr(world.mount._moving.copies, "copy_version", copy)
    await world.mount.rename("old", "new", "t1")
    assert world.get(ahead) == b"theirs"
    (beside,) = [key for key in world.listed() if ".conflict-" in key]
    assert world.get(beside) == ahead[-1].encode()
    assert not [key for key in world.listed() if key.startswith("old")]


async def test_what_somebody_stores_ahead_of_a_move_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "PAGE_KEYS", 2)
    seeded(world, "old")
    await overtaken(world, "new/sub/5", monkeypatch)


async def test_a_directory_moves_with_the_empty_ones_in_it(world: World) -> None:
    for key in ("old/", "old/empty/", "old/sub/", "old/sub/below/", "old/sub/f"):
        world.put(key, b"f" if key.endswith("f") else b"", ContentType="application/x-directory")
    await world.mount.rename("old", "new", "t1")
    assert world.listed() == ["new/", "new/empty/", "new/sub/", "new/sub/below/", "new/sub/f"]
    assert world.get("new/sub/f") == b"f"


async def test_nothing_of_a_moved_directory_is_in_the_way_of_a_file(world: World) -> None:
    for key in ("old/", "old/sub/", "old/sub/below/", "old/sub/below/f"):
        world.put(key, b"f" if key.endswith("f") else b"", ContentType="application/x-directory")
    await world.mount.rename("old", "new", "t1")
    await world.mount.make("old", DIRECTORY, "t2")
    await world.mount.put("old/sub", Bytes(b"file"), None, "t3")
    assert world.get("old/sub") == b"file"


async def test_directories_without_markers_are_gone_when_they_are_empty(world: World) -> None:
    for top in ("moved", "removed"):
        world.put(f"{top}/sub/below/f")
    world.client.delete_object(Bucket=world.bucket, Key="removed/sub/below/f")
    await world.mount.rename("moved", "new", "t1")
    await world.mount.remove("removed", None, "t2")
    assert [entry.name for entry in await scanned(world.mount, "")] == [b"new"]


async def test_a_marker_that_is_delivered_twice_is_no_conflict(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(world, "old")
    call = world.mount.service.call

    async def twice(request: Request) -> object:
        answer = await call(request)
        if request.method == "PUT" and request.key == "new/":
            answer = await call(request)
        return answer

    monkeypatch.setattr(world.mount.service, "call", twice)
    await world.mount.rename("old", "new", "t1")
    assert [entry.name for entry in await scanned(world.mount, "")] == [b"new"]


async def test_a_marker_whose_removal_is_delivered_twice_is_gone(
    world: World, moto: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (world, moto):
        call, refused = at.mount.service.call, []

        async def twice(request: Request, call=call, refused=refused) -> object:  # type: ignore[no-untyped-def]
            answer = await call(request)
            if request.method == "DELETE" and request.key in ("d/", "old/"):
                try:
                    answer = await call(request)
                except (Conflict, NotFound) as error:
                    refused.append(request.key)
                    raise error
            return answer

        at.put("d/", b"")
        seeded(at, "old", 2)
        at.put("old/", b"")
        with monkeypatch.context() as patch:
            patch.setattr(at.mount.service, "call", twice)
            await at.mount.remove("d", None, "t1")
            await at.mount.rename("old", "new", "t2")
        assert refused == ["d/", "old/"]
        assert [entry.name for entry in await scanned(at.mount, "")] == [b"new"]


async def test_the_last_step_of_a_move_is_taken_up_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(world, "old")
    call = world.mount.service.call

    async def cut_off(request: Request) -> object:
        if request.method == "DELETE" and request.key == "old/":
            raise Unreachable("cut off")
        return await call(request)

    with monkeypatch.context() as patch:
        patch.setattr(world.mount.service, "call", cut_off)
        with pytest.raises(Unreachable):
            await world.mount.rename("old", "new", "t1")
    await world.mount.rename("old", "new", "t1")
    assert [entry.name for entry in await scanned(world.mount, "")] == [b"new"]


async def test_a_directory_of_nothing_is_in_no_directory_s_way(world: World) -> None:
    seeded(world, "old", 2)
    world.put("new/f")
    world.client.delete_object(Bucket=world.bucket, Key="new/f")
    await world.mount.rename("old", "new", "t1")
    assert sorted(world.listed()) == ["new/", "new/0", "new/sub/1"]


@pytest.mark.parametrize("marker", ["theirs", "with attributes"])
async def test_an_empty_directory_gives_way_to_another(world: World, marker: str) -> None:
    seeded(world, "old", 2)
    if marker == "theirs":
        world.put("new/", b"")
    else:
        await world.mount.make("new", DIRECTORY, "t0")
    await world.mount.rename("old", "new", "t1")
    assert sorted(world.listed()) == ["new/", "new/0", "new/sub/1"]


async def test_a_directory_that_lost_its_last_file_is_in_no_file_s_way(world: World) -> None:
    for name in ("put", "moved/deep", "large"):
        world.put(f"d/{name}/f")
        world.client.delete_object(Bucket=world.bucket, Key=f"d/{name}/f")
    world.put("a", b"a")
    await world.mount.make("d", DIRECTORY, "t1")
    await world.mount.put("d/put", Bytes(b"new"), None, "t2")
    await world.mount.rename("a", "d/moved", "t3")
    large = bytes(SINGLE_BYTES + 1)
    await world.mount.put("d/large", Bytes(large), None, "t4")
    assert (world.get("d/put"), world.get("d/moved")) == (b"new", b"a")
    assert world.get("d/large") == large


async def test_a_rename_replaces_what_it_is_to_replace_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Version(world.put("there", b"before"))
    world.put("a", b"a")
    world.put("b", b"b")
    copied = world.mount._moving.copies.copy_version

    async def overtaken(source, version, target, how):  # type: ignore[no-untyped-def]
        world.put(target[1], b"theirs")
        return await copied(source, version, target, how)

    with monkeypatch.context() as patch:
        patch.setattr(world.mount._moving.copies, "copy_version", overtaken)
        with pytest.raises(Conflict):
            await world.mount.rename("a", "there", "t1", base)
        with pytest.raises(Conflict):
            await world.mount.rename("b", "free", "t2")
    assert [world.get(key) for key in ("a", "b", "there", "free")] == [
        *(b"a", b"b"),
        *(b"theirs", b"theirs"),
    ]
    await world.mount.rename("a", "there", "t3", Version(world.head("there")["ETag"].strip('"')))
    assert (world.listed(), world.get("there")) == (["b", "free", "there"], b"a")


async def test_a_rename_whose_answer_was_lost_spares_what_came_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("a", b"a")
    copied = world.mount._moving.copies.copy_version

    async def unheard(source, version, target, how):  # type: ignore[no-untyped-def]
        await copied(source, version, target, how)
        raise Unreachable("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(world.mount._moving.copies, "copy_version", unheard)
        with pytest.raises(Unreachable):
            await world.mount.rename("a", "b", "t1")
    world.put("a", b"theirs")
    await world.mount.rename("a", "b", "t1")
    assert (world.get("a"), world.get("b")) == (b"theirs", b"a")


async def test_where_copies_ignore_conditions_a_look_comes_first(moto: World) -> None:
    assert not await moto.mount._conditions.copying(moto.bucket)
    moto.put("a", b"a")
    moto.put("there", b"theirs")
    with pytest.raises(Conflict):
        await moto.mount.rename("a", "there", "t1", Version("0" * 32))
    await moto.mount.rename("a", "b", "t2")
    assert (moto.listed(), moto.get("b"), moto.get("there")) == (["b", "there"], b"a", b"theirs")


async def test_where_copies_ignore_conditions_each_is_looked_for(
    moto: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody stores at the new place after the listing, before its own copy, stays."""
    monkeypatch.setattr(moving, "COPIES_MAX", 1)
    seeded(moto, "old", 4)
    await overtaken(moto, "new/sub/3", monkeypatch)


async def test_a_file_changed_while_it_moves_stays_at_both_places(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("old", b"ours")
    copied = world.mount._moving.copies.copy_version

    async def overtaken(source, version, target, headers):  # type: ignore[no-untyped-def]
        made = await copied(source, version, target, headers)
        world.put("old", b"theirs")
        return made

    monkeypatch.setattr(world.mount._moving.copies, "copy_version", overtaken)
    await world.mount.rename("old", "new", "t1")
    assert (world.get("old"), world.get("new")) == (b"theirs", b"ours")


# --- many removals --------------------------------------------------------------------------------


async def removals(world: World, count: int, top: str = "d") -> list[tuple[Change, None]]:
    for number in range(count):
        world.put(f"{top}/f{number}<&>", b"%d" % number)
    entries = await scanned(world.mount, top)
    return [
        (
            Change("remove", f"{top}/{entry.name.decode()}", f"t{number}", base=entry.node.version),
            None,
        )
        for number, entry in enumerate(entries)
    ]


async def test_many_removals_are_one_request(world: World) -> None:
    changes = await removals(world, 60)
    await world.mount.honours(world.bucket)
    before = world.mount.service.requests
    assert await world.mount.commit(changes) == [None] * 60
    assert world.mount.service.requests - before < 10
    assert world.listed() == ["d/"]
    assert await world.mount.commit(changes) == [None] * 60


async def test_in_a_batch_too_what_somebody_changed_stays(world: World) -> None:
    changes = await removals(world, BATCH_MIN + 4)
    world.put("d/f3<&>", b"theirs")
    world.client.delete_object(Bucket=world.bucket, Key="d/f5<&>")
    outcomes = await world.mount.commit(changes)
    failed = [
        change.path for (change, _), outcome in zip(changes, outcomes, strict=True) if outcome
    ]
    assert failed == ["d/f3<&>"]
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome is not None)
    assert world.get("d/f3<&>") == b"theirs"


async def test_a_service_that_ignores_etags_in_batches_gets_single_removals(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = await removals(world, BATCH_MIN)
    removing = world.mount._removing
    delete = removing._delete_objects

    async def careless(bucket, keys):  # type: ignore[no-untyped-def]
        assert len(keys) == 1, "only the probe"
        await delete(bucket, [(keys[0][0], world.head(keys[0][0])["ETag"].strip('"'))])
        return {}

    monkeypatch.setattr(removing, "_delete_objects", careless)
    world.put("d/f3<&>", b"theirs")
    outcomes = await world.mount.commit(changes)
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
    assert world.listed() == ["d/", "d/f3<&>"]


async def test_puts_and_removals_in_one_commit_keep_their_order(world: World) -> None:
    version = Version(world.put("a", b"1"))
    outcomes = await world.mount.commit(
        [
            (Change("put", "b", "t1"), Bytes(b"2")),
            (Change("remove", "a", "t2", base=version), None),
            (Change("remove", "missing", "t3"), None),
            (Change("put", "a", "t4"), Bytes(b"3")),
        ]
    )
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Node",
        "NoneType",
        "NoneType",
        "Node",
    ]
    assert (world.get("a"), world.get("b")) == (b"3", b"2")


async def test_a_slow_service_can_be_left(world: World) -> None:
    world.server.freeze()
    with trio.move_on_after(0.5) as scope:
        await world.mount.stat("f")
    assert scope.cancelled_caught
    world.server.thaw()
    with pytest.raises(NotFound):
        await world.mount.stat("f")
