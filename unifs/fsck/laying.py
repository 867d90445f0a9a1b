"""Laying: where the bytes of a content lie, when its own column cannot be right.

It is found again in the files that the content holds: of a sealed one leaf by leaf, by their
hashes; of a closed one where it holds one file, which has all of its bytes. Where neither helps,
the content is lost as any other (``saving``). What a file has is never read as zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.fsck.saving import data_of, lose, read, whole_extents
from unifs.ipfs.unixfs.builder import hash_leaf
from unifs.ipfs.unixfs.profiles import DEFAULT_PROFILE, PROFILES
from unifs.journal.content import SEALED
from unifs.journal.extents import ExtentMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending
    from unifs.ipfs.unixfs.profiles import Profile


def profile_of(look: Look) -> Profile:
    """How files of this state directory become CIDs."""
    row = look.one("select value from meta where key='profile'")
    return PROFILES.get(row[0] if row else "", DEFAULT_PROFILE)


def extents_problem(blob: bytes, size: int, is_sealed: bool = False) -> str:
    """Why an extents column is none of a content of that size; "" where it is one."""
    if len(blob) % 24:
        return "are cut"
    at, held = 0, 0
    for place in range(0, len(blob), 24):
        start, length, container = (
            int.from_bytes(blob[place + part : place + part + 8], "little") for part in (0, 8, 16)
        )
        if start < at or not length:
            return "are not in order"
        if not 0 < container < 1 << 63:
            return "name no container"
        at = start + length
        held += length
    if is_sealed and held < size:
        # Sealing lays its own container below holes.
        return "have a hole"
    return "go beyond its end" if at > size else ""


def lay_anew(number: int, mending: Mending) -> None:
    """Extents for a content whose own are none."""
    query = "select state,size,extents,leaves from content where id=?"
    state, size, packed, leaves = mending.database.one(query, (number,))
    known, written = ExtentMap(), whole_extents(packed)
    for start, end, container in zip(written.starts, written.ends, written.containers, strict=True):
        if start < end and 0 < container < 1 << 63:
            known.lay(start, min(end, size), container)
    query = "select container from holding where content=?"
    held = {row[0] for row in mending.database.all(query, (number,))} | set(known.containers)
    mending.keep_rows("content", "id=?", (number,))
    if state == SEALED and leaves:
        made = _by_leaves(mending.look, sorted(held), size, leaves)
        packed = (made or known).pack()
        mending.execute("update content set extents=? where id=?", (packed, number))
        for container in sorted(set(made.containers if made is not None else ())):
            mending.execute("insert or ignore into holding values(?,?)", (number, container))
        if made is None:
            lose(number, mending)
    elif len(held) == 1:
        (container,) = held
        path = mending.look.container(container)
        found = data_of(str(path), container, size) if path.exists() else known
        set_form(number, size, found, mending)
    else:
        # Which file has the newer bytes of a page nobody knows: an earlier content is whole.
        mending.execute("delete from content where id=?", (number,))


def _by_leaves(look: Look, held: Sequence[int], size: int, leaves: bytes) -> ExtentMap | None:
    """Each leaf where its bytes are; None where one is nowhere."""
    profile, made = profile_of(look), ExtentMap()
    for index in range(len(leaves) // 32):
        start = index * profile.chunk_bytes
        end = min(start + profile.chunk_bytes, size)
        for container in held:
            place = ExtentMap()
            place.lay(start, end, container)
            data = read(look, place, start, end)
            if data is not None and hash_leaf(profile, data) == leaves[index * 32 :][:32]:
                made.lay(start, end, container)
                break
        else:
            return None
    return made


def set_form(number: int, size: int, extents: ExtentMap, mending: Mending) -> None:
    """The content is closed in this form: it is hashed and sealed anew."""
    packed = extents.pack()
    statement = (
        "update content set state=1,size=?,extents=?,proof=null,durable_size=?,durable_extents=?,"
        "cid=null,leaves=null where id=?"
    )
    mending.execute(statement, (size, packed, size, packed, number))
    for container in sorted(set(extents.containers)):
        mending.sync(mending.look.container(container))
        mending.execute("insert or ignore into holding values(?,?)", (number, container))
