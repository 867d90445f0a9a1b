"""Inconsistencies, each planted by hand: what it is called, and what it does to the files."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fsck.world import State


@dataclass(frozen=True)
class Plant:
    """``moved``: files that are elsewhere in /mfs afterwards; ``lost``: whose bytes are not to be
    had any more; both by their old paths. ``verify``: found by hashing only.
    """

    code: str
    name: str
    plant: Callable[[State], object]
    moved: dict[str, str]
    lost: tuple[str, ...] = ()
    verify: bool = False


PLANTS: list[Plant] = []


def plant(
    code: str,
    *,
    moved: dict[str, str] | None = None,
    lost: tuple[str, ...] = (),
    verify: bool = False,
) -> Callable[[Callable[[State], object]], Callable[[State], object]]:
    """Register one."""

    def register(function: Callable[[State], object]) -> Callable[[State], object]:
        PLANTS.append(Plant(code, function.__name__, function, moved or {}, lost, verify))
        return function

    return register


# --- names ----------------------------------------------------------------------------------------


@plant("NAME_NO_INODE")
def a_file_without_a_row(state: State) -> None:
    state.run("delete from inode where ino=?", state.ino("solo"))


@plant("NAME_NO_INODE")
def a_directory_without_a_row(state: State) -> None:
    state.run("delete from inode where ino=?", state.ino("d"))


@plant("NAME_NO_INODE")
def a_name_of_nothing(state: State) -> None:
    state.run("insert into dentry values(?,999,x'61',4242,1)", state.ino("d"))


@plant("INODE_NO_NAME", moved={"solo": "lost+found/inode-{solo}"})
def a_file_without_a_name(state: State) -> str:
    ino = state.ino("solo")
    state.run("delete from dentry where ino=?", ino)
    return str(ino)


@plant(
    "INODE_NO_NAME",
    moved={
        name: name.replace("d/e", "lost+found/inode-{d/e}") for name in ("d/e/huge", "d/e/open")
    },
)
def a_directory_without_a_name(state: State) -> None:
    state.run("delete from dentry where ino=?", state.ino("d/e"))


@plant("INODE_GONE")
def a_removed_file_with_a_name(state: State) -> None:
    state.run("update inode set gone=1 where ino=?", state.ino("solo"))


@plant("LINK_COUNT")
def a_wrong_link_count(state: State) -> None:
    state.attributes("solo", 12, 9)


@plant("DIRECTORY_LINKS")
def a_wrong_link_count_of_a_directory(state: State) -> None:
    state.attributes("d", 12, 77)


@plant("INODE_PARENT")
def a_wrong_directory(state: State) -> None:
    state.run("update inode set parent=? where ino=?", state.ino("d/e"), state.ino("solo"))


@plant("INODE_LINKS")
def a_missing_link(state: State) -> None:
    state.run("delete from link where parent=?", state.ino("d"))


@plant("LINK_STALE")
def a_link_too_many(state: State) -> None:
    state.run("insert into link values(?,?,x'78')", state.ino("solo"), state.ino("d"))


@plant("DIRECTORY_NAMES")
def a_directory_with_two_names(state: State) -> None:
    sql = "insert into dentry values(?,999,x'78',?,1)"
    state.run(sql, state.ino(""), state.ino("d/e"))


@plant("ROOT_NAMED")
def a_root_with_a_name(state: State) -> None:
    sql = "insert into dentry values(?,999,x'78',?,1)"
    state.run(sql, state.ino("d"), state.ino(""))


@plant(
    "DIRECTORY_LOOP",
    moved={
        name: name.replace("d/", "lost+found/inode-{d}/", 1)
        for name in ("d/a2", "d/large", "d/e/huge", "d/e/open", "d/empty")
    },
)
def a_directory_in_itself(state: State) -> None:
    top, below = state.ino("d"), state.ino("d/e")
    state.run("update dentry set parent=? where ino=?", below, top)
    state.run("update inode set parent=? where ino=?", below, top)


@plant("NAME_ILLEGAL", moved={"solo": "illegal-name-{dentry solo}"})
def a_name_with_a_slash(state: State) -> None:
    state.run("update dentry set name=x'612f62' where ino=?", state.ino("solo"))


@plant("NAME_ILLEGAL", moved={"solo": "illegal-name-{dentry solo}"})
def a_name_that_is_dot_dot(state: State) -> None:
    state.run("update dentry set name=x'2e2e' where ino=?", state.ino("solo"))


@plant("INDEX_MISSING", moved={"solo": "duplicate-name-{dentry solo}"})
def a_name_twice_without_an_index(state: State) -> None:
    state.run("drop index dentry_name")
    state.run("update dentry set name=x'61' where ino=?", state.ino("solo"))


@plant("NAME_DUPLICATE", moved={"solo": "duplicate-name-{dentry solo}"})
def a_name_twice(state: State) -> None:
    state.run("drop index dentry_name")
    state.run("update dentry set name=x'61' where ino=?", state.ino("solo"))


@plant("NAME_IN_FILE", moved={"d/large": "lost+found/large"})
def a_name_in_a_file(state: State) -> None:
    state.run("update dentry set parent=? where ino=?", state.ino("solo"), state.ino("d/large"))


@plant("DIRECTORY_GONE")
def a_name_in_a_removed_directory(state: State) -> None:
    state.run("update inode set gone=2 where ino=?", state.ino("d"))


@plant("DIRECTORY_NO_INODE", moved={"d/large": "lost+found/inode-5555/large"})
def a_name_in_no_directory(state: State) -> None:
    state.run("update dentry set parent=5555 where ino=?", state.ino("d/large"))


@plant("XATTR_NO_INODE")
def an_attribute_of_nothing(state: State) -> None:
    state.run("insert into xattr values(4242,x'757365722e61',x'61',1)")


# --- mounts ---------------------------------------------------------------------------------------


@plant("INODE_MOUNT")
def a_file_of_another_mount(state: State) -> None:
    state.run("insert into mount values(77,'other','ipfs',?)", state.ino("d/e"))
    state.run("delete from mount where id=77")
    other = state.one("select id from mount where name<>'mfs'")
    state.run("update inode set mount=? where ino=?", other, state.ino("d/e"))


@plant("MOUNT_ROW")
def a_mount_without_a_name(state: State) -> None:
    state.run("update mount set name=null where name='mfs'")


@plant("MOUNT_ROW")
def a_mount_without_a_kind(state: State) -> None:
    state.run("update mount set kind=null where name='mfs'")


@plant("MOUNT_ROOT")
def a_mount_with_another_root(state: State) -> None:
    state.run("update mount set root=? where name='mfs'", state.ino("solo"))


@plant("MOUNT_ROOT")
def a_mount_whose_root_has_no_row(state: State) -> None:
    state.run("delete from inode where ino=?", state.ino(""))


@plant("MOUNT_MISSING")
def a_missing_mount(state: State) -> None:
    state.run("delete from mount where name='mfs'")


# --- shapes ---------------------------------------------------------------------------------------


@plant("ROW_TYPE")
def a_parent_that_is_text(state: State) -> None:
    state.run("update inode set parent='x' where ino=?", state.ino("solo"))


@plant("ROW_TYPE")
def extents_that_are_text(state: State) -> None:
    state.run("update content set proof='x' where id=?", state.content_id("d/e/open"))


@plant("ROW_TYPE")
def an_end_of_no_history_that_is_text(state: State) -> None:
    state.run("insert into untracked values(?,'x')", state.ino("d"))


@plant("META_VALUE")
def an_epoch_that_is_text(state: State) -> None:
    state.run("update meta set value='x' where key='epoch'")


@plant("META_VALUE")
def an_unknown_profile(state: State) -> None:
    state.run("update meta set value='x' where key='profile'")


@plant("META_VALUE")
def a_boot_that_is_a_number(state: State) -> None:
    state.run("update meta set value=7 where key='boot'")


@plant("EPOCH_BEHIND")
def rows_of_a_later_epoch(state: State) -> None:
    state.run("update meta set value=1 where key='epoch'")


@plant("ROW_ATTRIBUTES")
def attributes_of_a_file_that_are_cut(state: State) -> None:
    state.run("update inode set attributes=x'00' where ino=?", state.ino("d/large"))


@plant("ROW_ATTRIBUTES")
def attributes_of_a_directory_that_are_cut(state: State) -> None:
    state.run("update inode set attributes=x'' where ino=?", state.ino("d"))


@plant("ROW_CONTENT")
def a_content_of_no_kind(state: State) -> None:
    state.run("update inode set content=x'ff' where ino=?", state.ino("solo"))


@plant("ROW_CONTENT")
def a_directory_with_a_content(state: State) -> None:
    state.run("update inode set content=x'01' where ino=?", state.ino("d"))


@plant("ROW_CONTENT")
def a_symlink_without_a_target(state: State) -> None:
    state.run("update inode set content=x'' where ino=?", state.ino("d/link"))


@plant("ROW_CID")
def a_directory_with_a_wrong_cid(state: State) -> None:
    state.run("update inode set cid=x'0102' where ino=?", state.ino("d"))


@plant("ROW_REMOTE")
def an_attempt_that_cannot_be_read(state: State) -> None:
    state.run(
        "insert into remote(ino,mount,version,checked_ns,listing,listed_ns,local,attempt)"
        " values(?,1,'',0,0,0,1,'{')",
        state.ino("solo"),
    )


# --- records --------------------------------------------------------------------------------------


def _record(state: State, op: int, ino: int, data: bytes, waits: int | None) -> None:
    seq = 1 + state.one("select max(seq) from journal")
    state.run("insert into journal values(?,0,?,?,0,?,?)", seq, op, ino, data, waits)


@plant("RECORD_SHAPE")
def a_record_of_no_kind(state: State) -> None:
    _record(state, 77, state.ino("solo"), b"", None)


@plant("RECORD_SHAPE")
def a_rename_that_is_cut(state: State) -> None:
    _record(state, 6, state.ino("solo"), b"cut", 0)


@plant("RECORD_STATE")
def a_record_in_no_state(state: State) -> None:
    _record(state, 7, state.ino("solo"), b"", 9)


@plant("RECORD_NO_INODE")
def a_record_that_waits_for_nobody(state: State) -> None:
    _record(state, 7, 4242, b"", 0)


@plant("RECORD_CONTENT")
def a_record_of_another_content(state: State) -> None:
    _record(state, 2, state.ino("d/large"), (0).to_bytes(4, "little") + b"\x02" + bytes(8), None)


@plant("SEALED_AHEAD")
def more_sealed_than_there_is(state: State) -> None:
    state.run("update meta set value=? where key='sealed_seq'", 1 << 40)


@plant("EPOCH_AHEAD")
def an_epoch_with_records_that_are_not_there(state: State) -> None:
    state.run("update epoch set seq=? where epoch=1", 1 << 40)


@plant("EPOCH_ROOT")
def a_root_that_is_no_cid(state: State) -> None:
    state.run("update epoch set root=x'0102'")


@plant("PAST_EPOCHS")
def a_past_that_never_was(state: State) -> None:
    packed = state.one("select attributes from inode where ino=?", state.ino("solo"))
    state.run("insert into inode_past values(?,1,9,?,x'')", state.ino("d"), packed)


@plant("PAST_SHAPE")
def a_past_without_attributes(state: State) -> None:
    state.run("insert into inode_past values(?,2,1,x'00',x'')", state.ino("d/large"))


# --- contents -------------------------------------------------------------------------------------


@plant("CONTENT_SIZE")
def a_content_of_negative_size(state: State) -> None:
    state.run("update content set size=-5 where id=?", state.content_id("d/large"))


@plant("CONTENT_EXTENTS")
def extents_that_are_cut(state: State) -> None:
    sql = "update content set extents=cast(extents||x'01' as blob) where id=?"
    state.run(sql, state.content_id("d/large"))


@plant("CONTENT_EXTENTS")
def extents_beyond_the_end(state: State) -> None:
    number = state.content_id("d/large")
    extents = bytearray(state.one("select extents from content where id=?", number))
    extents[8:16] = (1 << 30).to_bytes(8, "little")
    state.run("update content set extents=? where id=?", bytes(extents), number)


@plant("CONTENT_EXTENTS")
def extents_that_overlap(state: State) -> None:
    sql = "update content set extents=cast(extents||extents as blob) where id=?"
    state.run(sql, state.content_id("d/large"))


@plant("CONTENT_PROOF")
def a_proof_of_bytes_beyond_the_end(state: State) -> None:
    proof = bytes(32) + (0).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little")
    state.run("update content set proof=? where id=?", proof, state.content_id("d/e/open"))


@plant("CONTENT_DURABLE")
def half_a_durable_form(state: State) -> None:
    number = state.content_id("d/e/open")
    state.run("update content set durable_size=5,durable_extents=null where id=?", number)


@plant("CONTENT_STATE")
def a_content_in_no_state(state: State) -> None:
    state.run("update content set state=7 where id=?", state.content_id("d/large"))


@plant("CONTENT_STATE")
def a_sealed_content_without_hashes(state: State) -> None:
    state.run("update content set leaves=null where id=?", state.content_id("d/e/huge"))


@plant("SMALL_LOST")
def a_small_file_whose_place_is_wrong(state: State) -> None:
    blob = bytearray(state.content("solo"))
    blob[5:13] = (1 << 20).to_bytes(8, "little")
    state.run("update inode set content=? where ino=?", bytes(blob), state.ino("solo"))


@plant("SMALL_LOST", lost=("solo",))
def a_small_file_with_another_digest(state: State) -> None:
    blob = bytearray(state.content("solo"))
    blob[-1] ^= 1
    state.run("update inode set content=? where ino=?", bytes(blob), state.ino("solo"))


@plant("CONTENT_NO_ROW")
def a_large_file_without_a_content(state: State) -> None:
    state.run("delete from content where id=?", state.content_id("d/large"))


@plant("CONTENT_NO_ROW", moved={"d/large": "lost+found/inode-{d/large}"}, lost=("d/large",))
def a_large_file_without_anything(state: State) -> None:
    number = state.content_id("d/large")
    state.run("delete from content where id=?", number)
    state.run("delete from holding where content=?", number)


@plant("FILE_SIZE")
def a_wrong_size(state: State) -> None:
    state.attributes("solo", 16, 3)


@plant("PAST_LOST")
def a_past_content_that_is_gone(state: State) -> None:
    packed = state.one("select attributes from inode where ino=?", state.ino("solo"))
    content = b"\x02" + (4242).to_bytes(8, "little")
    state.run("insert into inode_past values(?,2,1,?,?)", state.ino("d/large"), packed, content)


@plant("CONTAINER_LOST", lost=("d/e/huge",))
def a_missing_container(state: State) -> None:
    state.container("d/e/huge").unlink()


@plant("CONTAINER_LOST", lost=("d/e/huge",))
def a_container_that_is_too_short(state: State) -> None:
    os.truncate(state.container("d/e/huge"), (1 << 20) + 5)


@plant("CONTAINER_LOST", moved={"d/e/open": "lost+found/inode-{d/e/open}"}, lost=("d/e/open",))
def a_missing_container_of_what_is_not_sealed(state: State) -> None:
    state.container("d/e/open").unlink()


@plant("HOLDING_MISSING")
def a_container_that_is_not_held(state: State) -> None:
    state.run("delete from holding where content=?", state.content_id("d/large"))


@plant("CONTENT_REFS")
def a_wrong_reference_count(state: State) -> None:
    state.run("update content set refs=9 where id=?", state.content_id("d/large"))


@plant("CONTENT_REFS")
def a_content_that_nobody_names(state: State) -> None:
    state.run(
        "insert into content(id,refs,state,size,extents) values(4242,1,1,0,x'')",
    )


@plant("HOLDING_STALE")
def a_container_held_for_nothing(state: State) -> None:
    shutil.copy(state.container("d/large"), state.path / "data" / f"{99:016x}")
    state.run("insert into holding values(4242,99)")


@plant("REDO_STALE")
def bytes_carried_for_what_is_sealed(state: State) -> None:
    name = int(state.container("d/large").name, 16)
    state.run("insert into redo values(?,1,0,x'ff')", name)


@plant("CONTAINER_UNNAMED")
def a_container_that_nobody_names(state: State) -> None:
    (state.path / "data" / f"{99:016x}").write_bytes(b"whose are these?")


@plant("CONTENT_DAMAGED", lost=("solo",), verify=True)
def a_rotten_small_file(state: State) -> None:
    blob = state.content("solo")
    segment = int.from_bytes(blob[1:5], "little")
    _flip(state.path / "segments" / f"{segment}.car", int.from_bytes(blob[5:13], "little"))


@plant("CONTENT_DAMAGED", lost=("d/e/huge",), verify=True)
def a_rotten_large_file(state: State) -> None:
    _flip(state.container("d/e/huge"), (1 << 20) + 77)


def _flip(path: os.PathLike[str], offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes((byte ^ 0xFF,)))


# --- stores ---------------------------------------------------------------------------------------


@plant("SEGMENT_HEADER")
def a_segment_without_a_header(state: State) -> None:
    _flip(sorted((state.path / "segments").glob("*.car"))[0], 3)


@plant("SEGMENT_FOOTER")
def a_footer_that_is_wrong(state: State) -> None:
    path = sorted((state.path / "segments").glob("*.car"))[0]
    _flip(path, path.stat().st_size - 80)


@plant("SEGMENT_TAIL")
def a_segment_with_a_tail(state: State) -> None:
    path = sorted((state.path / "nodes").glob("*.car"))[-1]
    with open(path, "ab") as file:
        file.write(b"\x05tail")


@plant("SEGMENT_GAP", lost=("solo",))
def a_segment_with_a_gap(state: State) -> None:
    blob = state.content("solo")
    path = state.path / "segments" / f"{int.from_bytes(blob[1:5], 'little')}.car"
    offset = int.from_bytes(blob[5:13], "little")
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(offset - 38)
        file.write(b"\xff" * 100)
        # Without a footer it is read section by section.
        file.truncate(size - 10)


@plant("INDEX_DAMAGED")
def a_block_index_that_is_none(state: State) -> None:
    for name in ("blocks.db-wal", "blocks.db-shm"):
        (state.path / name).unlink(missing_ok=True)
    (state.path / "blocks.db").write_bytes(b"no database" * 1000)


@plant("INDEX_NOWHERE")
def a_block_that_is_nowhere(state: State) -> None:
    state.small("blocks.db", "insert into blocks values(x'1220',0,77,5,5)")


@plant("INDEX_NOWHERE")
def a_container_of_blocks_that_is_not_there(state: State) -> None:
    state.small("blocks.db", "insert into containers values(77)")


@plant("PINS_DAMAGED")
def a_database_of_pins_that_is_none(state: State) -> None:
    for name in ("pins.db-wal", "pins.db-shm"):
        (state.path / name).unlink(missing_ok=True)
    (state.path / "pins.db").write_bytes(b"no database" * 1000)


@plant("PIN_SHAPE")
def a_pin_of_no_cid(state: State) -> None:
    state.small("pins.db", "insert into pins values(x'0102',1,'bad',0)")


@plant("PIN_MISSING")
def a_pin_of_what_is_not_here(state: State) -> None:
    binary = (b"\x01\x55\x12\x20" + bytes(32)).hex()
    state.small("pins.db", f"insert into pins values(x'{binary}',1,'far',0)")


@plant("CREDENTIALS_MODE")
def secrets_that_others_can_read(state: State) -> None:
    path = state.path / "credentials.json"
    path.write_text('{"version": 1, "entries": {}}')
    path.chmod(0o644)


@plant("CREDENTIALS_DAMAGED")
def secrets_that_cannot_be_read(state: State) -> None:
    path = state.path / "credentials.json"
    path.write_text("{")
    path.chmod(0o600)


@plant("STATE_MODE")
def a_directory_that_others_can_change(state: State) -> None:
    state.path.chmod(0o777)


@plant("DATABASE")
def an_index_that_misses_a_row(state: State) -> None:
    state.without_index("dentry_name", "insert into dentry values(?,999,x'78',?,1)")
