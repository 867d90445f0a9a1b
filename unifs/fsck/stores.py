"""Stores: segments of blocks, the block index, pins, and who may read the secrets."""

from __future__ import annotations

import json
import os
import stat
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw

from unifs.fsck.look import Check, Finding, is_cid
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.block_index import PlaceKind, section_holder, split_holder
from unifs.ipfs.embedded.sections import (
    HEADER,
    Gap,
    Head,
    footer,
    gap_entry,
    read_data_end,
    read_footer,
    scan,
    varint,
)
from unifs.journal.recovery import unnamed_files
from unifs.state.credentials import FILE_NAME
from unifs.vfs.unindexed import index_container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

#: In the order of their numbers in the block index.
STORES = ("nodes", "segments")
_PLACES = "select multihash,kind,holder,offset,length from blocks where multihash>? order by 1"


def segments(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Files of sections: what no footer covers is read section by section."""
    for store in STORES:
        for number in numbers(look, store):
            descriptor = look.segment(store, number)
            if descriptor is None:
                continue
            name = f"{store}/{number}.car"
            if os.pread(descriptor, len(HEADER), 0) != HEADER:
                sentence = f"{name} has no header"
                yield Finding("SEGMENT_HEADER", sentence, mend=partial(_head, store, number))
            if read_footer(descriptor) is not None:
                continue
            size = os.fstat(descriptor).st_size
            if read_data_end(descriptor) is not None:
                sentence = f"the footer of {name} does not match its checksum"
                yield Finding("SEGMENT_FOOTER", sentence, mend=partial(_close, store, number))
                continue
            end = len(HEADER)
            for entry in scan(descriptor, len(HEADER), size):
                if isinstance(entry, Gap):
                    sentence = (
                        f"{name} has {entry.length} bytes at {entry.offset} that are no block"
                    )
                    yield Finding("SEGMENT_GAP", sentence, mend=partial(_close, store, number))
                end = entry.offset + entry.length
            if end < size and any(os.pread(descriptor, min(size - end, 1 << 20), end)):
                sentence = f"{name} ends with {size - end} bytes that are no block"
                yield Finding("SEGMENT_TAIL", sentence, mend=partial(_close, store, number))


def numbers(look: Look, store: str) -> list[int]:
    """The segments of a store."""
    names = (name[:-4] for name in os.listdir(look.state / store) if name.endswith(".car"))
    return sorted(int(name) for name in names if name.isdigit())


def _head(store: str, number: int, mending: Mending) -> None:
    path = mending.look.state / store / f"{number}.car"
    _keep(path, [(0, len(HEADER))], mending)
    with open(path, "r+b") as file:
        file.write(HEADER)
        file.flush()
        os.fsync(file.fileno())


def _close(store: str, number: int, mending: Mending) -> None:
    """A footer that names what is there; bytes that are no block are copied to lost+found."""
    path = mending.look.state / store / f"{number}.car"
    if str(path) in mending.done:
        return
    mending.done.add(str(path))
    with open(path, "r+b") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        sound_end = read_data_end(descriptor)
        index, end, count = bytearray(), len(HEADER), 0
        gaps: list[tuple[int, int]] = []
        for entry in scan(descriptor, len(HEADER), sound_end or size):
            if isinstance(entry, Gap):
                index += gap_entry(entry.length)
                gaps.append((entry.offset, entry.length))
            else:
                index += varint(len(entry.cid_binary) + entry.length) + entry.cid_binary
            count += 1
            end = entry.offset + entry.length
        if end < (sound_end or size):
            gaps.append((end, (sound_end or size) - end))
        _keep(path, gaps, mending)
        if mending.storage is not None:
            # It is open, knows its gaps and writes its footer when it is closed.
            return
        data = footer(index, end, count)
        os.pwrite(descriptor, data, end)
        os.ftruncate(descriptor, end + len(data))
        os.fsync(descriptor)
    mending.look.close()


def _keep(path: Path, gaps: list[tuple[int, int]], mending: Mending) -> None:
    for offset, length in gaps:
        target = mending.new_file(f"{path.parent.name}-{path.stem}-{offset}")
        with open(path, "rb") as source, open(target, "wb") as file:
            at = offset
            while part := os.pread(source.fileno(), min(1 << 20, offset + length - at), at):
                file.write(part)
                at += len(part)
            file.flush()
            os.fsync(file.fileno())
        # Its name too: what was copied is overwritten next.
        mending.sync(mending.lost_found)
        where = f"{path.parent.name}/{path.name}, {length} bytes at {offset}"
        mending.kept.append(f"{where}, are in {target.name} in lost+found now")


# --- the block index ------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[apsw.Connection | None]:
    """A connection to one of the small databases; None where the file is none."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error:
        yield None
        return
    with closing(connection):
        connection.set_busy_timeout(10_000)
        try:
            is_sound = connection.pragma("quick_check") == "ok"
        except apsw.Error:
            is_sound = False
        yield connection if is_sound else None


def index(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Places of blocks that are nowhere. The index is derived: it is only ever made anew."""
    path = look.state / "blocks.db"
    if not path.exists():
        return
    with opened(path) as connection:
        if connection is None:
            sentence = "blocks.db, the block index, is no sound database"
            yield Finding("INDEX_DAMAGED", sentence, mend=_forget_index)
            return
        wrong = 0
        try:
            for multihash, kind, holder, offset, length in _places(connection):
                problem = _place_problem(look, kind, holder, offset, length)
                if problem:
                    wrong += 1
                    text = multihash.hex() if isinstance(multihash, bytes) else repr(multihash)
                    sentence = f"the block index says that {text} lies in {problem}"
                    # Once for all of them.
                    mend = _forget_index if wrong == 1 else None
                    yield Finding("INDEX_NOWHERE", sentence, wrong, mend)
            for (number,) in connection.execute("select id from containers").fetchall():
                if not isinstance(number, int) or not look.container(number).exists():
                    wrong += 1
                    sentence = f"the block index knows container {number}, which is not there"
                    mend = _forget_index if wrong == 1 else None
                    yield Finding("INDEX_NOWHERE", sentence, wrong, mend)
        except apsw.Error as error:
            sentence = f"the block index cannot be read: {error}"
            yield Finding("INDEX_DAMAGED", sentence, mend=_forget_index)


def _places(connection: apsw.Connection) -> Iterator[Any]:
    """All rows, a page of keys at a time: the daemon writes beside."""
    after: Any = b""
    while rows := connection.execute(f"{_PLACES} limit 4096", (after,)).fetchall():
        yield from rows
        if len(rows) < 4096:
            return
        after = rows[-1][0]
        rest = "select multihash,kind,holder,offset,length from blocks where multihash=?"
        known = set(rows)
        yield from (row for row in connection.execute(rest, (after,)) if row not in known)


def _place_problem(look: Look, kind: Any, holder: Any, offset: Any, length: Any) -> str:
    if not all(isinstance(each, int) and each >= 0 for each in (kind, holder, offset, length)):
        return "no place at all"
    if kind == PlaceKind.SECTION:
        store, number = split_holder(holder)
        descriptor = look.segment(STORES[store], number) if store < len(STORES) else None
        if descriptor is None:
            return f"segment {number} of store {store}, which is not there"
        end = os.fstat(descriptor).st_size
        return f"{STORES[store]}/{number}.car behind its end" if offset + length > end else ""
    try:
        end = look.container(holder).stat().st_size
    except (OSError, OverflowError):
        return f"container {holder}, which is not there"
    return f"container {holder} behind its end" if offset + length > end else ""


def _forget_index(mending: Mending) -> None:
    """It is read again from the segments and the sealed contents."""
    if mending.storage is not None:
        storage = mending.storage
        storage.blocks.rebuild()
        # Contents are told again at the next start; what only pins need has nobody to tell it.
        for path in unnamed_files(storage.database, storage.state):
            index_container(storage, int(path.name, 16))
        return
    for suffix in ("", "-wal", "-shm"):
        (mending.look.state / f"blocks.db{suffix}").unlink(missing_ok=True)


def indexed_containers(look: Look) -> set[int]:
    """Containers whose blocks the index knows: a pin may need them."""
    with opened(look.state / "blocks.db") as connection:
        if connection is None:
            return set()
        try:
            rows: list[Any] = connection.execute("select id from containers").fetchall()
            return {number for (number,) in rows if isinstance(number, int)}
        except apsw.Error:
            return set()


# --- pins and secrets -----------------------------------------------------------------------------


def pins(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Pins whose root is not here."""
    path = look.state / "pins.db"
    if not path.exists():
        return
    with opened(path) as connection, opened(look.state / "blocks.db") as blocks:
        if connection is None:
            sentence = "pins.db, the database of pins, is no sound database"
            yield Finding("PINS_DAMAGED", sentence, mend=_put_pins_away)
            return
        try:
            rows: list[Any] = connection.execute("select cid,recursive,name from pins").fetchall()
        except apsw.Error as error:
            sentence = f"the database of pins cannot be read: {error}"
            yield Finding("PINS_DAMAGED", sentence, mend=_put_pins_away)
            return
        for binary, recursive, name in rows:
            if not (isinstance(binary, bytes) and is_cid(binary)):
                sentence = f"the pin {name!r} is of no CID"
                yield Finding("PIN_SHAPE", sentence, mend=partial(_unpin, binary, name))
                continue
            cid = Cid.decode(binary)
            if not (cid.is_identity or blocks is None or _has(look, blocks, cid.multihash)):
                kind = "recursive" if recursive else "direct"
                sentence = f"{cid} ({kind} pin {name!r}) is pinned and not here"
                yield Finding("PIN_MISSING", sentence, mend=partial(_unpin, binary, name))


def _has(look: Look, blocks: apsw.Connection, multihash: bytes) -> bool:
    """Whether a block is here; the index may not have come to the newest yet."""
    query = "select 1 from blocks where multihash=? limit 1"
    if blocks.execute(query, (multihash,)).fetchone() is not None:
        return True
    if multihash[:2] == b"\x12\x20":
        query = "select 1 from content where leaves is not null and instr(leaves,?) limit 1"
        if look.one(query, (multihash[2:],)) is not None:
            return True
    rows: list[Any] = blocks.execute("select holder,upto from segments").fetchall()
    return multihash in _unindexed(look, dict(rows))


def _unindexed(look: Look, known: dict[int, int]) -> set[bytes]:
    """Hashes of the sections that the index has not come to."""
    found: set[bytes] = set()
    for store, folder in enumerate(STORES):
        for number in numbers(look, folder):
            descriptor = look.segment(folder, number)
            upto = known.get(section_holder(store, number), len(HEADER))
            if descriptor is None or not isinstance(upto, int):
                continue
            end = read_data_end(descriptor) or os.fstat(descriptor).st_size
            for entry in scan(descriptor, max(upto, len(HEADER)), end):
                if isinstance(entry, Head):
                    found.add(Cid.decode(entry.cid_binary).multihash)
    return found


def _unpin(binary: Any, name: Any, mending: Mending) -> None:
    with opened(mending.look.state / "pins.db") as connection:
        if connection is not None:
            connection.execute("delete from pins where cid is ?", (binary,))
    text = str(binary)
    if isinstance(binary, bytes):
        text = str(Cid.decode(binary)) if is_cid(binary) else binary.hex()
    mending.kept.append(f"the pin {name!r} of {text} is gone; pin it again once its root is here")


def _put_pins_away(mending: Mending) -> None:
    for suffix in ("-shm", "-wal", ""):
        path = mending.look.state / f"pins.db{suffix}"
        if path.exists():
            mending.put_away(path)


def secrets(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Who may read and change what is here."""
    mode = stat.S_IMODE(look.state.stat().st_mode)
    if mode & 0o022:
        sentence = f"others can change the state directory (mode {mode:04o})"
        yield Finding("STATE_MODE", sentence, mend=_close_state)
    path = look.state / FILE_NAME
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return
    if mode & 0o077:
        sentence = f"others can read {FILE_NAME} (mode {mode:04o}); change the secrets in it"
        yield Finding("CREDENTIALS_MODE", sentence, mend=_close_secrets)
    try:
        table = json.loads(path.read_bytes())
        is_sound = isinstance(table, dict) and isinstance(table.get("entries"), dict)
    except (OSError, ValueError):
        is_sound = False
    if not is_sound:
        sentence = f"{FILE_NAME} cannot be read"
        yield Finding("CREDENTIALS_DAMAGED", sentence, mend=_put_secrets_away)


def _close_state(mending: Mending) -> None:
    mending.look.state.chmod(stat.S_IMODE(mending.look.state.stat().st_mode) & ~0o022)


def _close_secrets(mending: Mending) -> None:
    (mending.look.state / FILE_NAME).chmod(0o600)


def _put_secrets_away(mending: Mending) -> None:
    _close_secrets(mending)
    mending.put_away(mending.look.state / FILE_NAME)


CHECKS = (
    Check(secrets),
    Check(segments, is_for_rest=True),
    Check(index, is_for_rest=True),
    Check(pins, is_for_rest=True),
)
