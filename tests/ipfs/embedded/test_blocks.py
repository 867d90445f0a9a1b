"""The blockstore: every kind of place, verification, catching up, rebuilding."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from unifs.errors import Corrupt, DiskFailed, NoSpace, NotAvailableOffline, StateNewer
from unifs.ipfs.cid import Cid, identity
from unifs.ipfs.embedded.block_index import BlockIndex, BlockPlace, PlaceKind
from unifs.ipfs.embedded.blocks import Blocks
from unifs.ipfs.embedded.segments import Place
from unifs.ipfs.embedded.verified import VerifiedPlaces
from unifs.ipfs.unixfs.builder import hash_leaf, leaf_block_parts
from unifs.ipfs.unixfs.profiles import PROFILES

from .stores import Store, digest, put_node, put_raw, raw

if TYPE_CHECKING:
    from pathlib import Path

V0 = PROFILES["unixfs-v0-2015"]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def all_places(store: Store) -> list[tuple[bytes, BlockPlace]]:
    return list(store.blocks.iterate())


def test_what_is_put_is_had_under_every_cid_of_its_hash(store: Store) -> None:
    cid = put_raw(store.blocks, b"data")
    assert store.blocks.get(cid) == b"data"
    assert store.blocks.get(Cid(1, 0x70, cid.multihash)) == b"data"
    assert store.blocks.get(Cid(0, 0x70, cid.multihash)) == b"data"
    assert store.blocks.has(cid)
    assert store.blocks.size(cid) == 4


def test_a_block_is_written_once(store: Store) -> None:
    put_raw(store.blocks, b"data")
    position = store.own.position()
    put_raw(store.blocks, b"data")
    store.blocks.flush()
    put_raw(store.blocks, b"data")
    assert store.own.position() == position


def test_what_could_not_be_synced_is_written_again_after_a_restart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = put_raw(store.blocks, b"data")

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(DiskFailed):
            store.blocks.sync()
    put_raw(store.blocks, b"other")
    with pytest.raises(DiskFailed):
        store.blocks.sync()
    store.blocks.flush()
    store.kill()
    store.open()
    assert store.blocks.get(cid) == b"data"
    assert store.own.failed() == {1}
    put_raw(store.blocks, b"data")
    store.blocks.sync()
    places = [p for p in store.blocks.index.places(cid.multihash) if p.holder > 1]
    assert len(places) == 1
    assert store.own.is_synced(Place(places[0].holder, places[0].offset, 4))


def test_absent_is_not_available_and_never_not_found(store: Store) -> None:
    with pytest.raises(NotAvailableOffline):
        store.blocks.get(raw(b"absent"))
    with pytest.raises(NotAvailableOffline):
        store.blocks.locate(raw(b"absent"))
    with pytest.raises(NotAvailableOffline):
        store.blocks.size(raw(b"absent"))
    assert not store.blocks.has(raw(b"absent"))


def test_identity_cids_carry_their_block(store: Store) -> None:
    cid = identity(0x55, b"inline")
    store.blocks.put(cid, b"inline")
    assert (store.blocks.get(cid), store.blocks.has(cid)) == (b"inline", True)
    assert store.own.segments() == {}


def test_blocks_of_other_hashes_are_kept_and_verified(store: Store) -> None:
    blake = Cid(1, 0x55, b"\xa0\xe4\x02\x20" + hashlib.blake2b(b"b", digest_size=32).digest())
    wrong = Cid(1, 0x55, b"\xa0\xe4\x02\x20" + hashlib.blake2b(b"c", digest_size=32).digest())
    store.blocks.put(blake, b"b")
    store.blocks.put(wrong, b"not c")
    store.kill()
    store.open()
    assert store.blocks.get(blake) == b"b"
    with pytest.raises(Corrupt):
        store.blocks.get(wrong)


def test_rot_is_corrupt_and_names_its_place(store: Store) -> None:
    cid = put_raw(store.blocks, b"data" * 20)
    place = store.blocks.index.places(cid.multihash)[0]
    overwrite(store.own.directory / "1.car", place.offset, b"rot")
    assert store.blocks.get(cid)[:3] == b"rot", "verified once: not hashed again in this process"
    store.close()
    store.open()
    with pytest.raises(Corrupt, match=r"blocks/1\.car, bytes 55–135"):
        store.blocks.get(cid)
    assert not store.blocks.locate(cid).is_verified


def test_verify_always_hashes_at_every_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.blocks.close()
    store.blocks = Blocks(tmp_path / "blocks.db", [store.own], verify="always")
    cid = put_raw(store.blocks, b"data" * 20)
    assert store.blocks.get(cid) == b"data" * 20
    assert not store.blocks.locate(cid).is_verified
    overwrite(store.own.directory / "1.car", 60, b"rot")
    with pytest.raises(Corrupt):
        store.blocks.get(cid)
    store.close()


def test_another_sound_place_is_used_instead_of_a_rotten_one(store: Store) -> None:
    data = b"twice" * 30
    cid = put_raw(store.blocks, data)
    store.owner.container(7, bytes(65536) + data)
    store.blocks.add_container(7, [(digest(data), 65536, len(data))])
    overwrite(store.own.directory / "1.car", 60, b"rot")
    store.close()
    store.open()
    store.owner.container(7, bytes(65536) + data)
    assert store.blocks.get(cid) == data


def test_containers_are_blocks_raw_and_wrapped(store: Store) -> None:
    chunks = [b"a" * 65536, b"b" * 1000]
    store.owner.container(3, b"".join(chunks))
    leaves = [(digest(chunk), n * 65536, len(chunk)) for n, chunk in enumerate(chunks)]
    store.blocks.add_container(3, leaves)
    wrapped = [(hash_leaf(V0, c), n * 65536, len(c)) for n, c in enumerate(chunks)]
    store.blocks.add_container(3, wrapped, is_wrapped=True)
    for chunk, (leaf_digest, _, length) in zip(chunks, wrapped, strict=True):
        prefix, suffix = leaf_block_parts(V0, length)
        cid = Cid.dag_pb(leaf_digest, 0)
        assert store.blocks.get(cid) == prefix + chunk + suffix
        assert store.blocks.size(cid) == len(prefix + chunk + suffix)
        assert store.blocks.get(raw(chunk)) == chunk
        located = store.blocks.locate(cid)
        assert (located.length, located.place.kind) == (length, PlaceKind.WRAPPED)
        assert os.pread(located.fd, length, located.offset) == chunk
    store.close()
    store.open()
    assert store.blocks.index.containers() == {3}
    assert store.blocks.get(raw(chunks[1])) == chunks[1]
    store.blocks.index.forget_container(3)
    assert store.blocks.index.containers() == set()
    with pytest.raises(NotAvailableOffline):
        store.blocks.get(raw(chunks[1]))


def test_a_container_that_is_gone_is_not_available(store: Store) -> None:
    store.blocks.add_container(3, [(digest(b"x"), 0, 1)])
    with pytest.raises(NotAvailableOffline):
        store.blocks.get(raw(b"x"))


def test_located_ranges_hold_the_block(store: Store) -> None:
    cid = put_raw(store.blocks, b"zero copy")
    located = store.blocks.locate(cid)

    assert os.pread(located.fd, located.length, located.offset) == b"zero copy"
    assert located.is_verified, "what was put is what was hashed"


def test_small_contents_of_the_journal_become_blocks(store: Store) -> None:
    contents = [bytes([n]) * n for n in range(50)]
    for data in contents:
        store.contents.append_raw(digest(data), data)
    assert store.blocks.lag_bytes() > 0
    assert store.blocks.catch_up() == 50
    assert store.blocks.lag_bytes() == 0
    assert store.blocks.catch_up() == 0
    assert [store.blocks.get(raw(data)) for data in contents] == contents


def test_what_a_crash_took_from_memory_is_read_again(store: Store) -> None:
    contents = [bytes([n]) * 100 for n in range(60)]
    for number, data in enumerate(contents):
        if number % 2:
            put_raw(store.blocks, data)
        else:
            store.contents.append_raw(digest(data), data)
        if number == 30:
            store.blocks.catch_up()
            store.blocks.flush()
    store.kill()
    store.open()
    assert [store.blocks.get(raw(data)) for data in contents] == contents


def test_places_beyond_a_lost_tail_are_dropped(store: Store) -> None:
    kept = put_raw(store.blocks, b"kept")
    put_raw(store.blocks, b"lost")
    store.blocks.flush()
    store.kill()
    path = store.own.directory / "1.car"
    path.write_bytes(path.read_bytes()[:-2])
    store.open()
    new = put_raw(store.blocks, b"abcd")
    assert store.blocks.get(kept) == b"kept"
    assert store.blocks.get(new) == b"abcd"
    assert not store.blocks.has(raw(b"lost"))


def test_a_rebuilt_index_equals_the_one_that_grew(store: Store) -> None:
    for number in range(100):
        put_raw(store.blocks, bytes([number]) * 90)
        store.contents.append_raw(digest(b"c%d" % number), b"c%d" % number)
        put_node(store.blocks, [raw(bytes([number]) * 90)])
    store.blocks.catch_up()
    grown = all_places(store)
    store.close()
    (store.directory / "blocks.db").unlink()
    store.open()
    assert store.blocks.index.was_rebuilt
    assert all_places(store) == grown
    store.blocks.rebuild()
    assert all_places(store) == grown


def test_a_damaged_index_is_rebuilt_at_the_start(store: Store) -> None:
    cid = put_raw(store.blocks, b"data")
    store.close()
    (store.directory / "blocks.db").write_bytes(b"no database at all" * 100)
    store.open()
    assert store.blocks.index.was_rebuilt
    assert store.blocks.get(cid) == b"data"


def test_the_index_does_not_wait_for_the_disk(store: Store) -> None:
    writer = store.blocks.index._writer
    assert (writer.pragma("journal_mode"), writer.pragma("synchronous")) == ("wal", 1)


def test_a_full_disk_is_called_so_and_loses_no_place(store: Store) -> None:
    index = store.blocks.index
    (pages,) = index._writer.execute("pragma page_count").fetchone()
    index._writer.execute(f"pragma max_page_count={pages}")
    cids = [put_raw(store.blocks, b"%d" % number) for number in range(500)]
    for _ in range(2):
        with pytest.raises(NoSpace):
            index.flush()
        assert index.pending == 500
    index._writer.execute("pragma max_page_count=1000000")
    index.flush()
    assert index.pending == 0
    assert all(map(store.blocks.has, cids))


def test_a_newer_index_is_refused_in_words(tmp_path: Path) -> None:
    index = BlockIndex(tmp_path / "blocks.db")
    index._writer.execute("PRAGMA user_version=99")
    index.close()
    with pytest.raises(StateNewer, match="version 99"):
        BlockIndex(tmp_path / "blocks.db")


def test_delete_is_from_the_index_only_and_a_put_brings_the_block_back(store: Store) -> None:
    cid = put_raw(store.blocks, b"data")
    store.blocks.delete(cid.multihash)
    assert not store.blocks.has(cid)
    put_raw(store.blocks, b"data")
    assert store.blocks.get(cid) == b"data"


def test_iteration_gives_every_place_once_across_batches(store: Store) -> None:
    cids = [put_raw(store.blocks, b"%d" % number) for number in range(300)]
    for _, cid in zip(range(50), cids, strict=False):
        data = store.blocks.get(cid)
        store.contents.append_raw(digest(data), data)
    store.blocks.catch_up()
    store.blocks.flush()
    seen: list[tuple[bytes, BlockPlace]] = []
    after = b""
    while batch := store.blocks.index.iterate(after, 7):
        seen += batch
        after = batch[-1][0]
    assert len(seen) == len(set(seen)) == 350


def test_many_threads_put_and_get(store: Store) -> None:
    failures: list[Exception] = []

    def work(start: int) -> None:
        try:
            for number in range(start, start + 200):
                cid = put_raw(store.blocks, b"%d" % (number % 300))
                assert store.blocks.get(cid) == b"%d" % (number % 300)
                if number % 50 == 0:
                    store.blocks.flush()
                    store.blocks.catch_up()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store.kill()
    store.open()
    assert [store.blocks.get(raw(b"%d" % n)) for n in range(300)] == [b"%d" % n for n in range(300)]


def test_the_memory_of_verified_places_is_bounded() -> None:
    verified = VerifiedPlaces(limit_bytes=10_000)
    for holder in range(100):
        for offset in range(0, 64 * 2000, 64):
            verified.add(BlockPlace(PlaceKind.SECTION, holder, offset, 30))
    assert verified.size_bytes <= 10_000
    assert BlockPlace(PlaceKind.SECTION, 99, 64, 30) in verified
    assert BlockPlace(PlaceKind.SECTION, 99, 32, 30) not in verified
    assert BlockPlace(PlaceKind.SECTION, 0, 64, 30) not in verified
    verified.forget(99, is_section=True)
    assert BlockPlace(PlaceKind.SECTION, 99, 64, 30) not in verified
