"""Collection: garbage goes, everything that a root reaches or somebody imports stays."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unifs.errors import Corrupt, NotAvailableOffline, TryAgain
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded import collect, writers
from unifs.ipfs.embedded.collect import Collection, Collector
from unifs.ipfs.embedded.links import walk
from unifs.ipfs.embedded.marks import Marks, Root
from unifs.ipfs.embedded.verify import verify_blocks
from unifs.ipfs.embedded.writers import Writers

from .stores import Kept, Store, digest, put_node, put_raw, raw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.ipfs.embedded.block_index import BlockPlace


def collector(store: Store, roots: set[Cid]) -> Collector:
    return Collector(store.blocks, Kept(lambda: map(Root, list(roots))), owner=store.owner)


def tree(store: Store, label: bytes, width: int = 5) -> tuple[Cid, list[Cid]]:
    leaves = [put_raw(store.blocks, b"%s leaf %d" % (label, n) * 10) for n in range(width)]
    inner = put_node(store.blocks, leaves, label)
    return put_node(store.blocks, [inner, leaves[0]], label + b" root"), [*leaves, inner]


def is_complete(store: Store, root: Cid) -> bool:
    try:
        return all(bool(store.blocks.get(cid)) for cid in walk(root, store.blocks.get))
    except NotAvailableOffline:
        return False


async def test_garbage_goes_and_roots_stay_and_space_comes_back(store: Store) -> None:
    kept, _ = tree(store, b"kept")
    garbage = [tree(store, b"garbage %d" % n) for n in range(20)]
    before = store.own.statistics().size_bytes
    report = await collector(store, {kept}).collect(grace_s=0)
    assert is_complete(store, kept)
    for root, below in garbage:
        assert not any(store.blocks.has(cid) for cid in (root, *below))
    assert report.removed_blocks == 20 * 7
    assert store.own.statistics().size_bytes < before / 4
    assert report.freed_bytes > before / 2
    assert (report.missing, report.damages) == ([], [])
    store.kill()
    store.open()
    assert is_complete(store, kept)


async def test_a_direct_root_keeps_one_block(store: Store) -> None:
    root, below = tree(store, b"t")
    collection = Collector(store.blocks, Kept(lambda: [Root(root, is_recursive=False)]))
    await collection.collect(grace_s=0)
    assert store.blocks.has(root)
    assert not any(store.blocks.has(cid) for cid in below)


async def test_what_was_just_written_has_a_grace(store: Store) -> None:
    root, _ = tree(store, b"new")
    report = await collector(store, set()).collect()
    assert report.removed_blocks == 0
    assert is_complete(store, root)


async def test_an_import_is_safe_until_it_has_linked_its_root(store: Store) -> None:
    roots: set[Cid] = set()
    collection = collector(store, roots)
    shared = put_raw(store.blocks, b"there before the import")
    old = put_raw(store.blocks, b"old garbage")
    with store.blocks.importing():
        assert put_raw(store.blocks, b"there before the import") == shared
        first = put_raw(store.blocks, b"new")
        report = await collection.collect(grace_s=0)
        assert report.removed_blocks == 1, "only the old garbage"
        assert not store.blocks.has(old)
        root = put_node(store.blocks, [shared, first])
        roots.add(root)
    await collection.collect(grace_s=0)
    assert is_complete(store, root)


async def test_a_root_made_during_the_sweep_is_seen(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_SWEEP_SLICE", 1)
    late, _ = tree(store, b"late")
    early = put_raw(store.blocks, b"garbage")
    calls = 0

    def roots() -> list[Root]:
        nonlocal calls
        calls += 1
        return [Root(late)] if calls > 1 else []

    await Collector(store.blocks, Kept(roots)).collect(grace_s=0)
    assert is_complete(store, late)
    assert not store.blocks.has(early)


async def test_makers_of_roots_see_what_a_sweep_took(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_SWEEP_SLICE", 2)
    trees = [tree(store, b"%d" % n)[0] for n in range(4)]
    roots: set[Cid] = set()
    collection = collector(store, roots)
    complete: list[Cid] = []

    async def make_roots() -> None:
        for root in trees:
            await trio.lowlevel.checkpoint()
            with collection.kept.lock:
                roots.add(root)
            if is_complete(store, root):
                complete.append(root)
            else:
                roots.discard(root)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collection.collect, 0)
        await make_roots()
    assert all(is_complete(store, root) for root in complete)
    await collection.collect(grace_s=0)
    assert all(is_complete(store, root) for root in complete)


@pytest.mark.parametrize("is_batch", [False, True])
async def test_what_a_put_finds_just_before_it_is_dropped_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_batch: bool
) -> None:
    cids = [put_raw(store.blocks, b"%d" % number * 200) for number in range(60)]
    put_raw(store.blocks, b"last" * 5000)
    index = store.blocks.index
    remove, sizes = index.remove, []

    def put_first(entries: Iterable[tuple[bytes, BlockPlace]]) -> None:
        if not sizes:
            before = store.own.position()
            if is_batch:
                store.blocks.put_all([(cids[7].binary, b"7" * 200)])
            else:
                store.blocks.put(cids[7], b"7" * 200)
            assert store.own.position() == before
        sizes.append(len(dropped := [*entries]))
        remove(dropped)

    monkeypatch.setattr(index, "remove", put_first)
    report = await collector(store, set()).collect(grace_s=0)
    assert sum(sizes) > 60
    assert report.removed_blocks == 60
    assert report.segments_removed > 0
    for _ in range(2):
        assert store.blocks.get(cids[7]) == b"7" * 200
        assert not store.blocks.has(cids[8])
        store.kill()
        store.open()


async def test_segments_filled_during_a_collection_are_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = collector(store, set())
    written: list[Cid] = []

    async def after_the_sweep(marks: Marks, report: Collection) -> None:
        written.extend(put_raw(store.blocks, b"%d" % n * 200) for n in range(60))

    monkeypatch.setattr(collection, "_release_containers", after_the_sweep)
    report = await collection.collect(grace_s=0)
    assert len(store.own.segments()) > 2
    assert report.segments_removed == 0
    assert all(store.blocks.has(cid) for cid in written)


async def test_a_damaged_node_stops_the_collection(store: Store) -> None:
    root, leaves = tree(store, b"t")
    garbage = put_raw(store.blocks, b"garbage")
    place = store.blocks.index.places(root.multihash)[0]
    store.close()
    path = store.own.directory / "1.car"
    data = bytearray(path.read_bytes())
    data[place.offset] ^= 1
    path.write_bytes(data)
    store.open()
    with pytest.raises(Corrupt, match=r"blocks/1\.car"):
        await collector(store, {root}).collect(grace_s=0)
    assert store.blocks.has(garbage)
    assert all(store.blocks.has(leaf) for leaf in leaves)


async def test_missing_blocks_are_reported_and_do_not_stop_it(store: Store) -> None:
    absent = Cid.dag_pb(digest(b"absent"))
    root = put_node(store.blocks, [absent, put_raw(store.blocks, b"here")])
    report = await collector(store, {root}).collect(grace_s=0)
    assert report.missing == [str(absent)]
    assert store.blocks.get(raw(b"here")) == b"here"


async def test_a_rotten_leaf_is_never_copied_and_its_segment_stays(store: Store) -> None:
    kept = put_raw(store.blocks, b"kept" * 10)
    for number in range(40):
        put_raw(store.blocks, b"%d" % number * 100)
    place = store.blocks.index.places(kept.multihash)[0]
    store.close()
    path = store.own.directory / "1.car"
    data = bytearray(path.read_bytes())
    data[place.offset] ^= 1
    path.write_bytes(data)
    store.open()
    report = await collector(store, {kept}).collect(grace_s=0)
    assert len(report.damages) == 1
    assert "blocks/1.car" in report.damages[0]
    assert path.exists()
    with pytest.raises(Corrupt):
        store.blocks.get(kept)


async def test_dead_containers_go_and_what_pins_need_is_rescued(store: Store) -> None:
    chunks = [b"%d" % n * 65536 for n in range(3)]
    store.owner.container(5, b"".join(chunks))
    leaves = [(digest(chunk), n * 65536, 65536) for n, chunk in enumerate(chunks)]
    store.blocks.add_container(5, leaves)
    root = put_node(store.blocks, [raw(chunks[1])])
    store.owner.dead.append(5)
    report = await collector(store, {root}).collect(grace_s=0)
    assert report.containers_removed == 1
    assert not (store.owner.directory / "5").exists()
    assert store.blocks.get(raw(chunks[1])) == chunks[1]
    assert not store.blocks.has(raw(chunks[0]))
    store.kill()
    store.open()
    assert is_complete(store, root)


async def test_contents_move_with_their_owners_knowledge(store: Store) -> None:
    contents = [b"content %d " % n * 12 for n in range(30)]
    places = [store.contents.append_raw(digest(data), data) for data in contents]
    first = [n for n, place in enumerate(places) if place.segment == 1]
    live, pinned, dead = first[0], first[1], first[2:]
    store.owner.live[1, 1] = {places[live].offset}
    for place in places:
        if place.segment > 1:
            store.owner.live.setdefault((1, place.segment), set()).add(place.offset)
    report = await collector(store, {raw(contents[pinned])}).collect(grace_s=0)
    assert report.segments_removed == 1
    ((number, old, new),) = store.owner.moves
    assert (number, old) == (1, places[live])
    assert store.contents.read(new) == contents[live]
    assert store.blocks.get(raw(contents[live])) == contents[live]
    assert store.blocks.get(raw(contents[pinned])) == contents[pinned]
    assert not any(store.blocks.has(raw(contents[n])) for n in dead)
    assert store.blocks.has(raw(contents[-1]))


async def test_collections_follow_each_other(store: Store) -> None:
    root, _ = tree(store, b"t")
    collection = collector(store, {root})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collection.collect)
        nursery.start_soon(collection.collect)
    assert is_complete(store, root)


async def test_cancelling_leaves_everything_reachable(store: Store) -> None:
    root, _ = tree(store, b"kept")
    for number in range(20):
        tree(store, b"garbage %d" % number)
    collection = collector(store, {root})
    with trio.move_on_after(0.005):
        await collection.collect(grace_s=0)
    assert is_complete(store, root)
    await collection.collect(grace_s=0)
    assert is_complete(store, root)


def test_collection_is_due_near_the_limit(store: Store) -> None:
    collection = Collector(store.blocks, Kept(list), limit_bytes=10_000)
    assert not collection.is_due()
    for number in range(90):
        put_raw(store.blocks, b"%d" % number * 40)
    assert collection.is_due()
    full = Collector(store.blocks, Kept(list), limit_bytes=store.own.statistics().size_bytes)
    assert full.is_due()
    full.watermark_percent = 100
    assert not full.is_due()
    assert not Collector(store.blocks, Kept(list)).is_due()


async def test_too_many_touched_blocks_postpone_a_collection(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "TOUCHED_MAX", 10)
    cids = [put_raw(store.blocks, b"%d" % n) for n in range(20)]
    with store.blocks.importing():
        for number in range(20):
            put_raw(store.blocks, b"%d" % number)
        with pytest.raises(TryAgain):
            await collector(store, set()).collect()
    assert all(store.blocks.has(cid) for cid in cids)


def test_the_cutoff_is_before_whatever_came_after_its_time() -> None:
    now = 0.0
    made = Writers(clock=lambda: now, grace_s=60)
    written: list[tuple[float, tuple[int, int]]] = []
    for step in range(10_000):
        now = step * 0.21
        position = (1 + step // 1000, step % 1000 * 50)
        made.before_put(b"%d" % step, position)
        made.wrote(b"%d" % step)
        written.append((now, position))
    cutoff = made.cutoff((99, 0))
    assert cutoff is not None
    assert cutoff.since_s == now - 60
    for when, position in written:
        if when >= cutoff.since_s:
            assert cutoff.protects(*position)
    assert sum(not cutoff.protects(*position) for _, position in written) > 9000
    assert len(made._samples) <= 4096


async def test_verification_names_every_damaged_block(store: Store) -> None:
    cids = [put_raw(store.blocks, b"block %d " % n * 10) for n in range(100)]
    store.owner.container(2, b"container")
    store.blocks.add_container(2, [(digest(b"container"), 0, 9)])
    sound = await verify_blocks(store.blocks, collector(store, set()).rebuild_index)
    assert (sound.blocks, sound.damages) == (101, [])
    victims = {cids[3], cids[50], raw(b"container")}
    for cid in (cids[3], cids[50]):
        place = store.blocks.index.places(cid.multihash)[0]
        path = store.own.directory / f"{place.holder}.car"
        data = bytearray(path.read_bytes())
        data[place.offset + 5] ^= 1
        path.write_bytes(data)
    store.owner.container(2, b"Container")
    told: list[int] = []
    found = await verify_blocks(
        store.blocks, collector(store, set()).rebuild_index, lambda state: told.append(state.blocks)
    )
    assert {damage.cid for damage in found.damages} == victims
    assert any("container 2" in damage.where for damage in found.damages)
    assert told[-1] == 101


async def test_verification_names_gaps_and_rebuilds_a_damaged_index(store: Store) -> None:
    for number in range(3):
        put_raw(store.blocks, b"block %d" % number * 20)
    store.kill()
    path = store.own.directory / "1.car"
    data = bytearray(path.read_bytes())
    data[18] ^= 0x55
    path.write_bytes(data)
    store.open()
    found = await verify_blocks(store.blocks, collector(store, set()).rebuild_index)
    assert [damage.cid for damage in found.damages] == [None]
    assert "blocks/1.car" in found.damages[0].where
    assert not found.is_index_rebuilt


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 25)),
        st.tuples(st.just("node"), st.lists(st.integers(0, 40), min_size=1, max_size=4)),
        st.tuples(st.just("pin"), st.integers(0, 40)),
        st.tuples(st.just("unpin"), st.integers(0, 40)),
        st.tuples(st.just("collect"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS)
def test_collection_never_takes_what_is_reachable(
    operations: list[tuple[str, int | list[int]]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory), limit_bytes=600)
        try:
            trio.run(_run_against_a_model, store, operations)
        finally:
            store.close()


async def _run_against_a_model(store: Store, operations: list[tuple[str, int | list[int]]]) -> None:
    made: list[Cid] = []
    below: dict[Cid, set[Cid]] = {}
    pinned: set[Cid] = set()
    present: set[Cid] = set()
    for verb, value in operations:
        if verb == "put" and isinstance(value, int):
            cid = put_raw(store.blocks, b"%d" % value * 30)
            below[cid] = {cid}
            made.append(cid)
            present.add(cid)
        elif verb == "node" and isinstance(value, list) and made:
            children = [made[n % len(made)] for n in value]
            cid = put_node(store.blocks, children)
            below[cid] = {cid}.union(*(below[child] for child in children))
            made.append(cid)
            present.add(cid)
        elif verb == "pin" and isinstance(value, int) and made:
            cid = made[value % len(made)]
            if below[cid] <= present:
                pinned.add(cid)
        elif verb == "unpin" and isinstance(value, int) and made:
            pinned.discard(made[value % len(made)])
        elif verb == "collect":
            await collector(store, pinned).collect(grace_s=0)
            present = set().union(*(below[cid] for cid in pinned)) & present
        elif verb == "crash":
            store.blocks.flush()
            store.kill()
            store.open()
        for cid in present:
            assert store.blocks.get(cid)
    await collector(store, pinned).collect(grace_s=0)
    reachable = set().union(*(below[cid] for cid in pinned))
    for cid in reachable:
        assert store.blocks.get(cid)
    assert {m for m, _ in store.blocks.iterate()} == {cid.multihash for cid in reachable}


def test_marks_stay_small(store: Store) -> None:
    leaves = [raw(b"%d" % n) for n in range(2000)]
    root = put_node(store.blocks, leaves)
    marks = Marks(store.blocks)
    marks.add_roots([Root(root)])
    while marks.run(10):
        pass
    assert all(leaf.multihash in marks for leaf in leaves)
    assert root.multihash in marks
    assert len(marks._bits) == 1024
