"""Shapes: facts about the whole directory, attributes, contents and attempts that cannot be read.

They come after ``columns`` and before everything else: whoever reads such a row would fail.
"""

from __future__ import annotations

import json
import stat
from functools import partial
from typing import TYPE_CHECKING, Any

from unifs.fsck.columns import EPOCHS_MAX, NUMBERS_MAX
from unifs.fsck.look import Check, Finding, content_problem, is_cid, mode_of
from unifs.fsck.mending import attributes_of
from unifs.ipfs.unixfs.profiles import PROFILES
from unifs.journal.content import EXPANDED, LINKED, REMOTE, SYMLINK, linked_blob, symlink_blob
from unifs.journal.writeback_order import Attempt
from unifs.state import directory
from unifs.vfs import remotelate
from unifs.vfs.remoterows import TOLD
from unifs.vfs.storage import possible_profiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

#: Whole numbers of meta; what takes the place of anything else is worked out from the rows.
META = (
    "epoch",
    "sealed_seq",
    "pruned_seq",
    "last_ino",
    "times_seq",
    "is_clean",
    "content_id",
    "held",
)
#: Mounts that were added, whose rows a mount has, what may still arrive, why it was given up.
NOTES = (
    "select key,typeof(value),cast(value as blob) from meta where"
    " key in ('local_directories','backends','backend_sources')"
    " or key>='late/' and key<'late0' or key>='refused/' and key<'refused0'"
)


def meta(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Facts about the whole state directory."""
    known: dict[str, Any] = dict(look.all("select key,value from meta"))
    for key in META:
        value = known.get(key, 0)
        limit = 2 * EPOCHS_MAX if key == "epoch" else NUMBERS_MAX
        if not isinstance(value, int) or not 0 <= value <= limit:
            mend = partial(_set_number, key)
            yield Finding("META_VALUE", f"{key} of the state directory is {value!r}", mend=mend)
    yield from _profile(look, known.get("profile"))
    if not isinstance(known.get("boot", ""), str):
        # Another boot would mean that nothing is trusted which is not proven.
        mend = partial(_set_meta, "boot", directory.boot_id())
        yield Finding("META_VALUE", "boot is no text", mend=mend)


def _profile(look: Look, known: object) -> Iterator[Finding]:
    """How files become CIDs: without it the next start would take what the settings say."""
    if known in PROFILES:
        return
    possible = possible_profiles(look.all)
    mend = partial(_set_meta, "profile", possible[0])
    if known is not None:
        sentence = f"the profile of the state directory is {known!r}"
        yield Finding("META_VALUE", sentence, mend=mend)
    elif len(possible) == 1:
        sentence = f"the profile of the state directory, by its contents {possible[0]}, is missing"
        yield Finding("META_MISSING", sentence, mend=mend)


def notes(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Facts that are written as JSON."""
    for key, kind, value in look.all(NOTES):
        raw = value if kind == "text" else None
        problem, mend = "", partial(_forget_note, key)
        if key.startswith("late/"):
            path = remotelate.path_of(key)
            if path is None:
                problem = "names no path"
            elif remotelate.read(raw, path) is None:
                problem = "cannot be read"
                # Of what may have been on its way only the path is known.
                mend = partial(_set_meta, key, remotelate.anything(path).pack())
        elif not _is_note(key, raw):
            problem = "cannot be read"
        if problem:
            sentence = f"the note {key!r} of the state directory {problem}"
            yield Finding("META_NOTE", sentence, mend=mend)


def _is_note(key: str, raw: bytes | None) -> bool:
    try:
        known = json.loads(raw or b"")
    except ValueError:
        return False
    if key.startswith("refused/"):
        return isinstance(known, list) and [type(each) for each in known] == [str, str]
    inside: type = dict if key == "backends" else str
    return isinstance(known, dict) and all(isinstance(each, inside) for each in known.values())


def _forget_note(key: str, mending: Mending) -> None:
    mending.delete("meta", "key=?", key)


def behind(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Rows of an epoch that has not come."""
    newest = _newest_epoch(look)
    # Asked after the rows: it only grows.
    row = look.one("select value from meta where key='epoch'")
    epoch = 1 if row is None else row[0]
    if isinstance(epoch, int) and 0 <= epoch < newest:
        sentence = f"rows are of epoch {newest}, and it is epoch {epoch}"
        yield Finding("EPOCH_BEHIND", sentence, mend=partial(_set_number, "epoch"))


def _newest_epoch(look: Look) -> int:
    """The newest one that a row is of."""
    epochs = [1]
    for table, key in (("inode", "ino"), ("dentry", "parent,id")):
        query = f"select coalesce(max(epoch),1) from {table} where {{page}}"
        epochs += [rows[0][0] for rows in look.pages(query, table, key)]
    for column in ("until) from inode_past", "until) from dentry_past", "epoch)+1 from epoch"):
        epochs.append(look.one(f"select max({column}")[0] or 1)
    return max(epochs)


def _set_number(key: str, mending: Mending) -> None:
    # Nothing is known to be sealed, pruned or told, and the journal has what it has.
    _set_meta(key, _newest_epoch(mending.look) if key == "epoch" else 0, mending)


def _set_meta(key: str, value: object, mending: Mending) -> None:
    mending.keep_rows("meta", "key=?", (key,))
    mending.database.set_meta(key, value)


def inodes(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Attributes and contents that cannot be read."""
    query = "select ino,attributes,content,cid from inode where ino>? and ino<=?"
    for ino, attributes, content, cid in look.all(query, (after, upto)):
        mode = mode_of(attributes)
        if not mode:
            sentence = f"the attributes of {look.path(ino)} are none"
            yield Finding("ROW_ATTRIBUTES", sentence, ino, partial(_set_attributes, ino))
        elif problem := content_problem(content, mode):
            sentence = f"what {look.path(ino)} should contain {problem}"
            yield Finding("ROW_CONTENT", sentence, ino, partial(_set_content, ino))
        if stat.S_ISDIR(mode) and isinstance(cid, bytes) and not is_cid(cid[8:]):
            sentence = f"the CID of {look.path(ino)} is none"
            yield Finding("ROW_CID", sentence, ino, partial(_forget_cid, ino))


def _forget_cid(ino: int, mending: Mending) -> None:
    mending.update("inode", "cid=null", "ino=?", ino)
    mending.note_directory(ino)


def _set_attributes(ino: int, mending: Mending) -> None:
    """What it is, its names and contents tell; who owns it, nobody knows any more."""
    database = mending.database
    mending.keep_rows("inode", "ino=?", (ino,))
    (content,) = database.one("select content from inode where ino=?", (ino,))
    query = (
        "select attributes from inode_past where ino=? order by until desc",
        "select data from journal where ino=? and op=7 order by seq desc",
    )
    known = [row[0] for each in query for row in database.all(each, (ino,))]
    kind = content[:1] if isinstance(content, bytes) else b""
    is_directory = kind == bytes((EXPANDED,)) or database.one(
        "select 1 from dentry where parent=? union all select 1 from mount where root=?", (ino, ino)
    )
    mode = stat.S_IFDIR if is_directory else stat.S_IFREG
    mode = stat.S_IFLNK if kind == bytes((SYMLINK,)) else mode
    attributes = attributes_of(mode | (0o644 if mode == stat.S_IFREG else 0o755))
    for each in known:
        if stat.S_IFMT(mode_of(each)) == mode:
            attributes = bytes(each)
            break
    database.execute("update inode set attributes=? where ino=?", (attributes, ino))
    mending.settle(ino)


def _set_content(ino: int, mending: Mending) -> None:
    """An earlier content; else the object keeps its name only where it is not one of bytes."""
    if not mending.has_home:
        # The mount table is mended in this round; then this is found again.
        return
    database = mending.database
    query = "select attributes,content,cid from inode where ino=?"
    attributes, content, cid = database.one(query, (ino,))
    mode = mode_of(attributes)
    earlier = mending.earlier_content(ino, mode, content)
    if earlier is not None:
        size = int.from_bytes(attributes[16:24], "little")
        if stat.S_ISREG(mode) and earlier[0] not in (LINKED, REMOTE):
            size = mending.size(earlier)
        mending.set_content(ino, earlier, size)
        mending.kept.append(f"inode {ino} went back to an earlier content")
        return
    if stat.S_ISLNK(mode):
        mending.set_content(ino, symlink_blob(b"lost"), 4)
    elif stat.S_ISDIR(mode) and isinstance(cid, bytes) and not _has_names(mending, ino):
        mending.set_content(ino, linked_blob(cid), 0)
        return
    else:
        mending.set_content(ino, b"", 0)
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        mending.displace(ino, "its content was unreadable")


def _has_names(mending: Mending, ino: int) -> bool:
    return mending.database.one("select 1 from dentry where parent=?", (ino,)) is not None


def remotes(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """What is known of objects at backends."""
    query = "select ino,told,attempt,content from remote where ino>? and ino<=?"
    for ino, told, attempt, content in look.all(query, (after, upto)):
        wrong: list[str] = []
        if isinstance(told, bytes) and len(told) != TOLD.size:
            wrong.append("told")
        if isinstance(attempt, str) and not _is_attempt(attempt):
            wrong.append("attempt")
        if content and content_problem(content, stat.S_IFREG):
            wrong.append("content")
        for column in wrong:
            sentence = f"{column} of the object behind {look.path(ino)} cannot be read"
            yield Finding("ROW_REMOTE", sentence, ino, partial(_forget_remote, ino, column))


def _is_attempt(text: str) -> bool:
    try:
        known = Attempt.unpack(text)
    except (ValueError, TypeError):
        return False
    words = (known.verb, known.path, known.token, known.key, known.base or "")
    return all(isinstance(each, str) for each in words)


def _forget_remote(ino: int, column: str, mending: Mending) -> None:
    """What was on its way is compared with what the backend has, as after somebody else's write."""
    mending.update("remote", f"{column}=null", "ino=?", ino)


CHECKS = (Check(inodes, "inode", "ino"), Check(remotes, "remote", "ino"))
META_CHECKS = (Check(meta), Check(notes, is_exact=True), Check(behind, is_exact=True))
