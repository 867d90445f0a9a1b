"""The mount table: which subtree belongs to which mount, and where it begins."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

from unifs.fsck.look import Check, Finding, Shown, mode_of
from unifs.vfs.volume import INO_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending


#: Mounts whose kind their name tells.
KINDS = {"mfs": "mfs", "ipfs": "ipfs"}


def mounts(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Rows of the mount table."""
    known: dict[int, Shown] = look.mounts()
    for number, name, kind, root in look.all("select id,name,kind,root from mount"):
        is_sound = number in known and 0 < number < 1 << 31 and bool(name) and "/" not in name
        if not is_sound or KINDS.get(name, kind) != kind or not 1 < root < 1 << INO_SHIFT:
            sentence = f"row {number} of the mount table is {name!r}, {kind!r}, {root!r}"
            yield Finding("MOUNT_ROW", sentence, number, partial(_mend_row, number))
            continue
        row = look.one("select attributes,gone,mount from inode where ino=?", (root,))
        is_root = row is not None and stat.S_ISDIR(mode_of(row[0])) and row[1:] == (None, number)
        if not is_root:
            sentence = f"the root of the mount {name}, inode {root}, is no directory of it"
            yield Finding("MOUNT_ROOT", sentence, number, partial(_find_root, number))


def strays(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Inodes of mounts that the mount table does not have."""
    query = "select distinct mount from inode where mount not in (select id from mount) and {page}"
    for number in {row[0] for rows in look.pages(query, "inode", "ino") for row in rows}:
        sentence = f"there are inodes of a mount {number}, which is not in the mount table"
        yield Finding("MOUNT_MISSING", sentence, number, partial(_make_mount, number))


def absent(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """The mount that is always there."""
    if look.one("select 1 from mount where name='mfs'") is None:
        sentence = "the mount mfs is not in the mount table"
        yield Finding("MOUNT_MISSING", sentence, 0, partial(_make_mount, 0))


def _roots(mending: Mending, number: int) -> list[int]:
    """Directories of a mount that no name leads to, the likeliest root first."""
    query = (
        "select ino,attributes from inode where mount=? and gone is null and ino not in"
        " (select ino from dentry) and ino not in (select root from mount where id<>?"
        " and root is not null) order by (select count(*) from dentry where parent=inode.ino) desc,"
        " ino limit 1000"
    )
    rows = mending.database.all(query, (number, number))
    return [ino for ino, packed in rows if stat.S_ISDIR(mode_of(packed))]


def _names(mending: Mending, but: int = 0) -> set[object]:
    rows = mending.database.all("select name from mount where id<>?", (but,))
    return {row[0] for row in rows}


def _make_mount(number: int, mending: Mending) -> None:
    """A row for a mount: mfs if there is none, else its objects become those of mfs."""
    database = mending.database
    if "mfs" in _names(mending):
        home = database.one("select id from mount where name='mfs'")[0]
        statement = "update inode set mount=? where mount=?"
        database.execute(statement, (home, number))
        return
    other = database.one("select id from mount where kind='mfs' order by id limit 1")
    if other is not None:
        # It has lost its name.
        mending.update("mount", "name='mfs'", "id=?", other[0])
        return
    roots = _roots(mending, number)
    if not roots or not 0 < number < 1 << 31:
        last = database.one("select coalesce(max(id),0) from mount where id<2147483647")[0]
        number = 1 + max(0, last)
        roots = [mending.new_ino()]
        mending.new_directory(roots[0], number, 0)
    database.execute("insert into mount values(?,'mfs','mfs',?)", (number, roots[0]))


def _mend_row(number: int, mending: Mending) -> None:
    """What the row should say, as far as its objects and its own other columns tell."""
    database = mending.database
    row = database.one("select name,kind,root from mount where id=?", (number,))
    if row is None:
        return
    name, kind, root = row
    mending.keep_rows("mount", "id=?", (number,))
    if not 0 < number < 1 << 31:
        database.execute("delete from mount where id=?", (number,))
        return
    taken = _names(mending, number)
    is_sound = isinstance(name, str) and bool(name) and "/" not in name
    if not is_sound:
        name = next((each for each in KINDS if kind == each and each not in taken), None)
        is_remote = database.one("select 1 from remote where mount=?", (number,)) is not None
        if name is None and "mfs" not in taken and not is_remote:
            name = "mfs"
        name = name or f"mount-{number}"
        while name in taken:
            name += "-"
    if name in KINDS or not isinstance(kind, str):
        kind = KINDS.get(name, "mfs")
    if not isinstance(root, int) or not 1 < root < 1 << INO_SHIFT:
        roots = _roots(mending, number)
        root = roots[0] if roots else mending.new_ino()
    statement = "update mount set name=?,kind=?,root=? where id=?"
    database.execute(statement, (name, kind, root, number))


def _find_root(number: int, mending: Mending) -> None:
    """The root that it names where that can be one; else a directory that nothing else leads to."""
    database = mending.database
    mending.keep_rows("mount", "id=?", (number,))
    (root,) = database.one("select root from mount where id=?", (number,))
    row = database.one("select attributes from inode where ino=?", (root,))
    query = (
        "select 1 from mount where root=?1 and id<>?2 union all select 1 from dentry where ino=?1"
    )
    is_taken = database.one(query, (root, number))
    if row is None and not is_taken:
        if database.one("select 1 from dentry where parent=?", (root,)) is not None:
            mending.new_directory(root, number, 0)
            mending.settle(root)
            return
    elif row is not None and stat.S_ISDIR(mode_of(row[0])) and not is_taken:
        mending.update("inode", "gone=null,mount=?", "ino=?", number, root)
        return
    roots = _roots(mending, number)
    if not roots:
        roots = [mending.new_ino()]
        mending.new_directory(roots[0], number, 0)
    database.execute("update mount set root=? where id=?", (roots[0], number))


CHECKS = (Check(mounts), Check(strays, is_exact=True), Check(absent))
