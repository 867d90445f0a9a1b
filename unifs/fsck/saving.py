"""Saving: what becomes of a file whose bytes are lost, wholly or in part.

In this order: another copy of the same bytes; the backend's, where it has exactly these; in /mfs
the CID of what was there, so that every byte that is left can be read under the old name, what is
missing is an honest error, and an import of the blocks heals it; an earlier content; and where none
of these is to be had, the object moves to lost+found with what is left. Nothing is ever read as
zeros that was something else.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from unifs.errors import UnifsError
from unifs.fsck.look import mode_of, size_of
from unifs.ipfs.cid import Cid
from unifs.ipfs.unixfs.builder import hash_leaf, leaf_block_parts, leaf_cid
from unifs.journal.content import (
    LARGE,
    SEALED,
    SMALL,
    SmallContent,
    large_blob,
    large_id,
    linked_blob,
    remote_blob,
    small_content,
)
from unifs.journal.extents import HOLE, ExtentMap
from unifs.journal.trust import Trust
from unifs.vfs.remoterows import content_key

if TYPE_CHECKING:
    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending
    from unifs.vfs.storage import Storage


def give_up(ino: int, blob: bytes, mending: Mending) -> None:
    """The content of an inode cannot be read whole: find the best that takes its place."""
    storage = mending.storage
    if storage is None:
        # Before recovery has run nothing of it can be moved; the same check comes again after it.
        return
    row = mending.database.one("select attributes,mount,gone from inode where ino=?", (ino,))
    if row is None:
        return
    attributes, mount, gone = row
    path = mending.look.path(ino)
    copy = _other_copy(blob, storage)
    if copy is not None:
        mending.set_content(ino, copy.blob, copy.length)
        mending.kept.append(f"{path}: its bytes were found elsewhere")
        return
    shown = mending.look.mounts().get(mount)
    link = _link(blob, storage, mending) if shown is not None and shown.kind == "mfs" else None
    if link is not None:
        mending.set_content(ino, linked_blob(link), size_of(attributes))
        cid = Cid.decode(link[8:])
        mending.kept.append(f"{path} is linked to {cid} now; what is missing of it can be imported")
        return
    if gone is not None:
        # The past shows it as missing, as it does what it has forgotten.
        _keep_rest(path, ino, blob, mending)
        mending.delete("inode", "ino=?", ino)
        return
    version = _at_backend(ino, blob, mending)
    if version is not None:
        mending.set_content(ino, remote_blob(size_of(attributes), version), size_of(attributes))
        mending.kept.append(f"{path} is read from its backend again")
        return
    _keep_rest(path, ino, blob, mending)
    _fall_back(ino, blob, mending)


def _keep_rest(path: str, ino: int, blob: bytes, mending: Mending) -> None:
    """What can be read of a content goes to lost+found."""
    storage = mending.storage
    assert storage is not None
    target = mending.new_file(str(ino))
    try:
        kept = Trust(mending.database, storage.segments, storage.state).save(blob, target)
        names = ", ".join(each.name for each in kept)
        mending.kept.append(f"{path}: what was left of its bytes is in {names}")
    except (OSError, UnifsError) as error:
        target.unlink(missing_ok=True)
        files = _keep_files(blob, mending)
        what = f"the files that it held are {files}" if files else "nothing of its bytes is left"
        mending.kept.append(f"{path}: {what}: {error}")


def _keep_files(blob: bytes, mending: Mending) -> str:
    """Names in lost+found for the files of a large content of which nothing else is known."""
    query = "select container from holding where content=?"
    rows = mending.database.all(query, (large_id(blob),)) if blob[0] == LARGE else []
    files = (mending.look.container(container) for (container,) in rows)
    return ", ".join(mending.link_file(source).name for source in files if source.exists())


def _fall_back(ino: int, blob: bytes, mending: Mending) -> None:
    path = mending.look.path(ino)
    (attributes,) = mending.database.one("select attributes from inode where ino=?", (ino,))
    earlier = mending.earlier_content(ino, mode_of(attributes), blob)
    if earlier is not None:
        mending.set_content(ino, earlier, mending.size(earlier))
        mending.kept.append(f"{path} went back to {mending.size(earlier)} bytes")
        return
    mending.set_content(ino, b"", 0)
    if stat.S_ISREG(mode_of(attributes)):
        mending.displace(ino, "its bytes are lost")


def _other_copy(blob: bytes, storage: Storage) -> SmallContent | None:
    """A small content whose bytes stand at another place, made durable at a new one."""
    if blob[0] != SMALL:
        return None
    digest = small_content(blob).digest
    try:
        data = storage.blocks.get(Cid.raw(digest))
        place = storage.segments.append_raw(digest, data)
        target = storage.segments.sync_target()
        if target is not None:
            target.run()
    except UnifsError:
        return None
    return SmallContent(place.segment, place.offset, place.length, digest)


def _link(blob: bytes, storage: Storage, mending: Mending) -> bytes | None:
    """The CID column of a lost content, once the blocks that are left are the node's own."""
    profile = storage.profile
    if blob[0] == SMALL:
        if not profile.has_raw_leaves:
            return None
        small = small_content(blob)
        return small.length.to_bytes(8, "little") + Cid.raw(small.digest).binary
    query = "select state,cid,leaves,size,extents from content where id=?"
    row = mending.database.one(query, (large_id(blob),))
    if row is None or row[0] != SEALED or row[1] is None:
        return None
    _, cid, leaves, size, extents = row
    known = whole_extents(extents)
    chunk = profile.chunk_bytes
    for number in range(len(leaves) // 32):
        start, end = number * chunk, min(number * chunk + chunk, size)
        data = read(mending.look, known, start, end)
        if data is None or hash_leaf(profile, data) != leaves[number * 32 : number * 32 + 32]:
            continue
        prefix, suffix = leaf_block_parts(profile, len(data))
        storage.blocks.put(
            leaf_cid(profile, leaves[number * 32 : number * 32 + 32]), prefix + data + suffix
        )
    storage.blocks.sync()
    return bytes(cid)


def whole_extents(packed: bytes) -> ExtentMap:
    """The extents in a column, but for one at its end that is cut."""
    return ExtentMap.unpack(packed[: len(packed) // 24 * 24])


def read(look: Look, extents: ExtentMap, start: int, end: int) -> bytes | None:
    """The bytes of a range, None where a file does not have them."""
    parts: list[bytes] = []
    for container, first, last in extents.pieces(start, end):
        if container == HOLE:
            parts.append(bytes(last - first))
            continue
        try:
            with open(look.container(container), "rb") as file:
                data = os.pread(file.fileno(), last - first, first)
        except OSError:
            return None
        if len(data) != last - first:
            return None
        parts.append(data)
    return b"".join(parts)


def _at_backend(ino: int, blob: bytes, mending: Mending) -> str | None:
    """The version of exactly these bytes at the backend."""
    query = "select version,synced,path from remote where ino=?"
    row: Any = mending.database.one(query, (ino,))
    if row is None or not row[0] or row[2] is None or row[1] != content_key(blob):
        return None
    return str(row[0])


def lose(number: int, mending: Mending) -> None:
    """Every row that names a large content finds something else; nothing can be moved before."""
    if mending.storage is None:
        return
    blob = large_blob(number)
    for (ino,) in mending.database.all("select ino from inode where content=?", (blob,)):
        give_up(ino, blob, mending)
    mending.delete("inode_past", "content=?", blob)
    mending.update("remote", "content=null,attempt=null", "content=?", blob)
    mending.delete("content", "id=?", number)
    mending.release(number)


def put_together(ino: int, blob: bytes, mending: Mending) -> None:
    """A large content without a row: where it had one file, that file has its bytes."""
    number = large_id(blob)
    database = mending.database
    query = "select container from holding where content=?"
    held = [row[0] for row in database.all(query, (number,))]
    row = database.one("select attributes,gone from inode where ino=?", (ino,))
    if row is None or database.one("select 1 from content where id=?", (number,)) is not None:
        return
    path = mending.look.container(held[0]) if len(held) == 1 else None
    if path is None or not path.exists():
        give_up(ino, blob, mending)
        return
    size = size_of(row[0])
    extents = data_of(str(path), held[0], size)
    mending.sync(path)
    packed = extents.pack()
    statement = (
        "insert into content(id,refs,state,boot,size,extents,durable_size,durable_extents)"
        " values(?,1,1,?,?,?,?,?)"
    )
    boot = str(database.get_meta("boot", "")).encode()
    database.execute(statement, (number, boot, size, packed, size, packed))
    mending.kept.append(f"{mending.look.path(ino)} was put together from {path.name}")


def data_of(path: str, container: int, size: int) -> ExtentMap:
    """What of a sparse file is data, up to a size."""
    made = ExtentMap()
    with open(path, "rb") as file:
        at, end = 0, min(size, os.fstat(file.fileno()).st_size)
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            made.lay(start, min(at, end), container)
    return made
