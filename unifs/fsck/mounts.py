"""The mount table: which subtree belongs to which mount, and where it begins."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

from unifs.fsck.look import Check, Finding, Shown, mode_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending


def mounts(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Rows of the mount table, and mounts that have none."""
    known: dict[int, Shown] = look.mounts()
    for number, name, kind, root in look.all("select id,name,kind,root from mount"):
        if number not in known or not name or "/" in name:
            sentence = f"row {number} of the mount table is {name!r}, {kind!r}, {root!r}"
            yield Finding("MOUNT_ROW", sentence, number, partial(_name_mount, number))
            continue
        row = look.one("select attributes,gone from inode where ino=?", (root,))
        if row is None or not stat.S_ISDIR(mode_of(row[0])) or row[1] is not None:
            sentence = f"the root of the mount {name}, inode {root}, is no directory"
            yield Finding("MOUNT_ROOT", sentence, number, partial(_find_root, number))
    query = "select distinct mount from inode where mount not in (select id from mount)"
    for (number,) in look.all(query):
        sentence = f"there are inodes of a mount {number}, which is not in the mount table"
        if look.one("select 1 from inode where mount=? and gone is null", (number,)):
            yield Finding("MOUNT_MISSING", sentence, number, partial(_make_mount, number))
    if not known:
        yield Finding("MOUNT_MISSING", "the mount table has no mount", 0, partial(_make_mount, 1))


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


def _make_mount(number: int, mending: Mending) -> None:
    database = mending.database
    roots = _roots(mending, number)
    taken = {row[0] for row in database.all("select name from mount")}
    if roots and number > 0 and "mfs" not in taken:
        database.execute("insert into mount values(?,?,?,?)", (number, "mfs", "mfs", roots[0]))
        return
    if not any(each.kind == "mfs" for each in mending.look.mounts().values()):
        number = 1 + max(0, database.one("select coalesce(max(id),0) from mount")[0])
        ino = mending.new_ino()
        mending.new_directory(ino, number, 0)
        database.execute("insert into mount values(?,?,?,?)", (number, "mfs", "mfs", ino))
        return
    home, _ = mending.home()
    query = "select ino from inode where mount not in (select id from mount)"
    for (ino,) in database.all(query):
        database.execute("update inode set mount=? where ino=?", (home, ino))


def _name_mount(number: int, mending: Mending) -> None:
    database = mending.database
    _, name, kind, root = database.one("select * from mount where id=?", (number,))
    mending.keep_rows("mount", "id=?", (number,))
    taken = {row[0] for row in database.all("select name from mount where id<>?", (number,))}
    remote = "select 1 from remote where mount=? limit 1"
    if not isinstance(name, str) or not name or "/" in name:
        likely = kind if kind in ("mfs", "ipfs") else "mfs"
        if database.one(remote, (number,)) is not None and kind not in ("mfs", "ipfs"):
            likely = f"mount-{number}"
        name = likely if likely not in taken else f"mount-{number}"
    if not isinstance(kind, str):
        kind = name if name in ("mfs", "ipfs") else "mfs"
    roots = _roots(mending, number)
    if not isinstance(root, int):
        root = roots[0] if roots else mending.new_ino()
    row = (name, kind, root, number)
    database.execute("update mount set name=?,kind=?,root=? where id=?", row)


def _find_root(number: int, mending: Mending) -> None:
    database = mending.database
    mending.keep_rows("mount", "id=?", (number,))
    (root,) = database.one("select root from mount where id=?", (number,))
    if database.one("select 1 from dentry where parent=?", (root,)) is not None or not (
        roots := _roots(mending, number)
    ):
        mending.keep_rows("inode", "ino=?", (root,))
        mending.new_directory(root, number, 0)
        mending.settle(root)
        return
    database.execute("update mount set root=? where id=?", (roots[0], number))


CHECKS = (Check(mounts),)
