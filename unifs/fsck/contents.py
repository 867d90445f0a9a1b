"""Contents: what inodes point to, which files hold it, and how often it is named."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from unifs.fsck.laying import extents_problem, lay_anew, profile_of, set_form
from unifs.fsck.look import Check, Finding, is_cid, mode_of, size_of
from unifs.fsck.saving import give_up, lose, put_together, read, whole_extents
from unifs.fsck.stores import indexed_containers
from unifs.ipfs.unixfs.builder import hash_leaf
from unifs.journal.containers import is_container_name
from unifs.journal.content import CLOSED, LARGE, SEALED, SMALL, large_blob, large_id, small_content
from unifs.journal.extents import ExtentMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

_RANGE_BYTES = 16
#: What a file may have here; offsets are signed.
SIZE_MAX = (1 << 62) - 1


def rows(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """What stands in a content's own row."""
    query = (
        "select id,state,size,extents,proof,durable_size,durable_extents,cid,length(leaves)"
        " from content where id>? and id<=?"
    )
    chunk = profile_of(look).chunk_bytes
    for number, state, size, extents, proof, durable_size, durable, cid, hashes in look.all(
        query, (after, upto)
    ):
        chunks = -(-size // chunk)
        is_hashed = state == SEALED and cid is not None and bool(hashes)
        if not 0 <= size <= SIZE_MAX or (is_hashed and hashes != chunks * 32):
            sentence = f"content {number} cannot have {size} bytes"
            yield Finding("CONTENT_SIZE", sentence, number, partial(_set_length, number))
        elif problem := extents_problem(extents, size, is_hashed):
            sentence = f"the extents of content {number} {problem}"
            yield Finding("CONTENT_EXTENTS", sentence, number, partial(lay_anew, number))
        elif proof is not None and not _is_proof(proof, size):
            sentence = f"the proof of content {number} covers bytes that it does not have"
            yield Finding("CONTENT_PROOF", sentence, number, partial(_reopen, number))
        elif (durable_size is None) != (durable is None) or (
            durable is not None and extents_problem(durable, durable_size)
        ):
            sentence = f"the durable form of content {number} cannot be one"
            yield Finding("CONTENT_DURABLE", sentence, number, partial(_set_durable, number))
        if state not in (CLOSED, SEALED):
            sentence = f"content {number} is neither closed nor sealed"
            yield Finding("CONTENT_STATE", sentence, number, partial(_reopen, number))
        elif state == SEALED and not (cid and is_cid(cid[8:]) and (hashes or not size)):
            sentence = f"content {number} is sealed and its hashes are not complete"
            yield Finding("CONTENT_STATE", sentence, number, partial(_reopen, number))


def _is_proof(proof: bytes, size: int) -> bool:
    ranges = proof[32:]
    if len(proof) < 32 or len(ranges) % _RANGE_BYTES:
        return False
    for place in range(0, len(ranges), _RANGE_BYTES):
        start = int.from_bytes(ranges[place : place + 8], "little")
        end = int.from_bytes(ranges[place + 8 : place + 16], "little")
        if start > end or end > size:
            return False
    return True


def _set_length(number: int, mending: Mending) -> None:
    """As long as an inode says that names it, where that is possible; else as its extents."""
    row = mending.database.one("select extents,leaves from content where id=?", (number,))
    size = likely_size(mending, number, row[0], row[1])
    mending.update("content", "size=?", "id=?", size, number)


def likely_size(mending: Mending, number: int, packed: bytes, leaves: bytes | None) -> int:
    """The size that a content had: one that fits its extents, and its hashes where it has some."""
    ends = whole_extents(packed).ends
    end = min(max([0, *ends]), SIZE_MAX)
    chunk = profile_of(mending.look).chunk_bytes
    query = "select attributes from inode where content=?"
    blob = large_blob(number)
    said = [size_of(row[0]) for row in mending.database.all(query, (blob,)) if mode_of(row[0])]
    for size in said:
        has_hashes = not leaves or -(-size // chunk) * 32 == len(leaves)
        if end <= size <= SIZE_MAX and has_hashes:
            return size
    return end


def _reopen(number: int, mending: Mending) -> None:
    """Closed and durable: the next daemon seals it anew."""
    query = "select size,extents from content where id=?"
    size, extents = mending.database.one(query, (number,))
    mending.keep_rows("content", "id=?", (number,))
    set_form(number, size, whole_extents(extents), mending)


def _set_durable(number: int, mending: Mending) -> None:
    (state,) = mending.database.one("select state from content where id=?", (number,))
    if state == SEALED:
        mending.update("content", "durable_size=null,durable_extents=null", "id=?", number)
    else:
        _reopen(number, mending)


def pointers(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Inodes whose contents are nowhere, or have another length than they say."""
    query = "select ino,content,attributes,gone from inode where ino>? and ino<=?"
    for ino, content, attributes, gone in look.all(query, (after, upto)):
        if not content or content[0] not in (SMALL, LARGE) or not stat.S_ISREG(mode_of(attributes)):
            continue
        if content[0] == SMALL:
            small = small_content(content)
            size = small.length
            if not look.holds_small(small):
                what = f"segments/{small.segment}.car at {small.offset}"
                sentence = f"the bytes of {look.path(ino)} are not in {what}"
                yield Finding("SMALL_LOST", sentence, ino, partial(give_up, ino, content))
                continue
        else:
            row = look.one("select size from content where id=?", (large_id(content),))
            if row is None:
                sentence = f"content {large_id(content)} of {look.path(ino)} has no row"
                yield Finding("CONTENT_NO_ROW", sentence, ino, partial(put_together, ino, content))
                continue
            size = row[0]
        if size != size_of(attributes) and gone is None:
            sentence = f"{look.path(ino)} has {size} bytes and says {size_of(attributes)}"
            yield Finding("FILE_SIZE", sentence, ino, partial(_set_size, ino, content, size))


def _set_size(ino: int, content: bytes, size: int, mending: Mending) -> None:
    """One of the two is wrong: the one that cannot be, or that means more zeros at the end."""
    if content[0] == LARGE:
        number = large_id(content)
        query = "select extents,leaves from content where id=?"
        likely = likely_size(mending, number, *mending.database.one(query, (number,)))
        if likely < size:
            mending.update("content", "size=?", "id=?", likely, number)
            size = likely
    mending.set_content(ino, content, size)


def small_hashes(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Small contents whose bytes are not those that their digest names; where that is asked for."""
    query = "select ino,content from inode where ino>? and ino<=? and substr(content,1,1)=x'01'"
    still = "select 1 from inode where ino=? and content=?"
    for ino, content in look.all(query, (after, upto)) if look.is_thorough else ():
        look.check_cancelled()
        small = small_content(content)
        descriptor = look.segment("segments", small.segment)
        if descriptor is None:
            continue
        data = os.pread(descriptor, small.length, small.offset)
        is_damaged = hashlib.sha256(data).digest() != small.digest
        # A row that names the place still named it while the bytes were read.
        if is_damaged and look.one(still, (ino, content)) is not None:
            sentence = f"the bytes of {look.path(ino)} do not match their hash"
            yield Finding("CONTENT_DAMAGED", sentence, ino, partial(give_up, ino, content))


def large_hashes(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Sealed contents with a leaf that does not match its hash; where that is asked for."""
    profile = profile_of(look)
    query = "select id from content where id>? and id<=? and state=2"
    form = "select size,extents,leaves from content where id=? and state=2"
    for (number,) in look.all(query, (after, upto)) if look.is_thorough else ():
        row = look.one(form, (number,))
        if row is None:
            continue
        size, extents, leaves = row
        known = ExtentMap.unpack(extents)
        for leaf in range(len(leaves) // 32):
            look.check_cancelled()
            start = leaf * profile.chunk_bytes
            data = read(look, known, start, min(start + profile.chunk_bytes, size))
            if data is not None and hash_leaf(profile, data) == leaves[leaf * 32 : leaf * 32 + 32]:
                continue
            # The same form still: what it names had to be there while it was read.
            if look.one(form, (number,)) == row:
                sentence = f"content {number} does not match its hash at {start}"
                yield Finding("CONTENT_DAMAGED", sentence, number, partial(lose, number))
            break


def past(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Contents of the past that are gone."""
    query = "select ino,until,content from inode_past where {page}"
    still = "select 1 from inode_past where ino=? and until=? and content=?"
    pages = look.pages(query, "inode_past", "ino,until")
    for ino, until, content in chain.from_iterable(pages):
        is_lost = False
        if content and content[0] == LARGE and len(content) == 9:
            row = look.one("select 1 from content where id=?", (large_id(content),))
            is_lost = row is None
        elif content and content[0] == SMALL:
            is_lost = len(content) != 49 or not look.holds_small(small_content(content))
        # A row of the past that is still there needs what it names.
        if is_lost and look.one(still, (ino, until, content)) is not None:
            sentence = f"what inode {ino} contained until epoch {until} is gone"
            mend = partial(_forget_past, ino, until)
            yield Finding("PAST_LOST", sentence, ino, mend)


def _forget_past(ino: int, until: int, mending: Mending) -> None:
    mending.delete("inode_past", "ino=? and until=?", ino, until)


def containers(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Files that extents name: there and long enough."""
    query = "select id,extents from content where id>? and id<=?"
    for number, extents in look.all(query, (after, upto)):
        if len(extents) % 24:
            continue
        known = ExtentMap.unpack(extents)
        lost = lost_ranges(look, known)
        if lost:
            start, end, container = lost[0]
            sentence = (
                f"bytes {start}–{end} of content {number} are not in container {container:016x}"
            )
            yield Finding("CONTAINER_LOST", sentence, number, partial(lose, number))


def held(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Files that extents name: held. Recovery removes those that nobody holds: asked before it."""
    query = "select id,extents from content where id>? and id<=?"
    for number, extents in look.all(query, (after, upto)):
        if len(extents) % 24:
            continue
        query = "select container from holding where content=?"
        there = {row[0] for row in look.all(query, (number,))}
        for container in sorted(set(ExtentMap.unpack(extents).containers) - there):
            sentence = f"content {number} names container {container:016x} and does not hold it"
            mend = partial(_hold, number, container)
            yield Finding("HOLDING_MISSING", sentence, number, mend)


def lost_ranges(look: Look, extents: ExtentMap) -> list[tuple[int, int, int]]:
    """(start, end, container) of what no file has."""
    sizes: dict[int, int] = {}
    lost: list[tuple[int, int, int]] = []
    for start, end, container in zip(extents.starts, extents.ends, extents.containers, strict=True):
        if container not in sizes:
            try:
                sizes[container] = look.container(container).stat().st_size
            except OSError:
                sizes[container] = -1
        if sizes[container] < end:
            lost.append((max(start, sizes[container]), end, container))
    return lost


def _hold(number: int, container: int, mending: Mending) -> None:
    mending.execute("insert or ignore into holding values(?,?)", (number, container))


def references(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Contents that are named more or less often than they count."""
    counts: dict[int, int] = {}
    for table in ("inode", "inode_past", "remote"):
        query = f"select content from {table} where substr(content,1,1)=x'02' and length(content)=9"
        for (content,) in look.all(query):
            counts[large_id(content)] = counts.get(large_id(content), 0) + 1
    for number, refs in look.all("select id,refs from content"):
        if refs != counts.get(number, 0):
            sentence = f"content {number} is named {counts.get(number, 0)} times and counts {refs}"
            mend = partial(_count, number, counts.get(number, 0))
            yield Finding("CONTENT_REFS", sentence, number, mend)
    query = "select distinct content from holding where content not in (select id from content)"
    for (number,) in look.all(query):
        if number not in counts:
            sentence = f"containers are held for content {number}, which has no row"
            mend = partial(_release, number)
            yield Finding("HOLDING_STALE", sentence, number, mend)


def _count(number: int, refs: int, mending: Mending) -> None:
    if refs:
        mending.update("content", "refs=?", "id=?", refs, number)
        return
    mending.delete("content", "id=?", number)
    mending.release(number)


def _release(number: int, mending: Mending) -> None:
    mending.release(number)


def carried(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Bytes that fsyncs carried for what is sealed or gone: written back, they would be wrong."""
    query = (
        "select distinct container from redo where offset<0 or container not in (select container"
        " from holding h join content c on c.id=h.content where c.state=1)"
    )
    for (container,) in look.all(query):
        sentence = f"bytes are carried for container {container:016x}, which nobody writes to"
        yield Finding("REDO_STALE", sentence, mend=partial(_drop_carried, container))


def _drop_carried(container: int, mending: Mending) -> None:
    mending.delete("redo", "container=?", container)


def unnamed(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Files of data/ that no content names."""
    named = {row[0] for row in look.all("select distinct container from holding")}
    named |= indexed_containers(look)
    for entry in sorted(os.scandir(look.state / "data"), key=lambda each: each.name):
        if is_container_name(entry.name) and int(entry.name, 16) not in named:
            sentence = f"no content names data/{entry.name} ({entry.stat().st_size} bytes)"
            yield Finding("CONTAINER_UNNAMED", sentence, mend=partial(_put_away, entry.name))


def _put_away(name: str, mending: Mending) -> None:
    mending.put_away(mending.look.state / "data" / name)


CHECKS = (
    Check(rows, "content", "id"),
    Check(pointers, "inode", "ino", needs_recovery=True),
    Check(held, "content", "id"),
    Check(containers, "content", "id", needs_recovery=True),
    Check(small_hashes, "inode", "ino", needs_recovery=True, is_exact=True),
    Check(large_hashes, "content", "id", needs_recovery=True, is_exact=True),
    Check(past, needs_recovery=True, is_exact=True),
    Check(references, is_for_rest=True),
    Check(carried, is_for_rest=True),
    Check(unnamed, is_for_rest=True),
)
