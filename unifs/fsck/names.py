"""Names: directories, links; whether every object can be reached and says so itself."""

from __future__ import annotations

import stat
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from unifs.fsck.look import Check, Finding, mode_of
from unifs.journal.content import REMOTE
from unifs.journal.log import Op
from unifs.state import schema
from unifs.types import NAME_MAX_BYTES
from unifs.vfs.namespace import ROOT_INO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.fsck.look import Look
    from unifs.fsck.mending import Mending

#: What makes each index, by its name.
INDEXES = {
    statement.partition(" index ")[2].split()[0]: statement
    for statements in schema.MIGRATIONS.values()
    for statement in statements
    if statement.startswith(("create index ", "create unique index "))
}


def indexes(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Indexes, which hold what is unique."""
    there = {row[0] for row in look.all("select name from sqlite_master where type='index'")}
    for name in sorted(INDEXES.keys() - there):
        yield Finding("INDEX_MISSING", f"the index {name} is not there", mend=partial(_index, name))


def _index(name: str, mending: Mending) -> None:
    if name == "dentry_name":
        query = (
            "select parent,id from dentry d where exists (select 1 from dentry o where"
            " o.parent=d.parent and o.name=d.name and o.id<d.id)"
        )
        for parent, number in mending.database.all(query):
            _rename(parent, number, b"duplicate", mending)
    mending.execute(INDEXES[name])


def duplicates(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Names that stand twice in a directory: the index that forbids it is damaged."""
    query = (
        "select parent,max(id),name from dentry not indexed group by parent,name"
        " having count(*)>1 limit 10000"
    )
    for parent, number, name in look.all(query):
        sentence = f"{look.place(parent, name)} is there more than once"
        mend = partial(_rename, parent, number, b"duplicate")
        yield Finding("NAME_DUPLICATE", sentence, parent, mend)


def illegal(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Names that no program can give or open."""
    # With ino: else the index by name has all columns and is taken, and no page ends in it.
    query = (
        "select parent,id,name,ino from dentry where {page} and"
        f" (length(name)>{NAME_MAX_BYTES} or name in (x'',x'2e',x'2e2e')"
        " or instr(name,x'2f') or instr(name,x'00'))"
    )
    for parent, number, name, _ in chain.from_iterable(look.pages(query, "dentry", "parent,id")):
        sentence = f"{look.path(parent)} has the name {name[:300]!r}, which cannot be one"
        mend = partial(_rename, parent, number, b"illegal")
        yield Finding("NAME_ILLEGAL", sentence, parent, mend)


def _rename(parent: int, number: int, why: bytes, mending: Mending) -> None:
    where = "parent=? and id=?"
    mending.keep_rows("dentry", where, (parent, number))
    (ino,) = mending.database.one(f"select ino from dentry where {where}", (parent, number))
    mending.execute(f"delete from dentry where {where}", (parent, number))
    name = mending.add_name(parent, why + b"-name-" + str(number).encode(), ino)
    mending.settle(ino)
    mending.record(Op.LINK, ino, parent, name)
    mending.kept.append(f"a name in inode {parent} is {name.decode()} now")


def targets(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Names of objects that have no row."""
    query = (
        "select d.parent,d.name,d.ino from dentry d left join inode i on i.ino=d.ino"
        " where {page} and i.ino is null"
    )
    for parent, name, ino in chain.from_iterable(look.pages(query, "dentry d", "d.parent,d.id")):
        sentence = f"{look.place(parent, name)} names inode {ino}, which has no row"
        yield Finding("NAME_NO_INODE", sentence, parent, partial(_restore, parent, name, ino))


def _restore(parent: int, name: bytes, ino: int, mending: Mending) -> None:
    """The row from the past or the journal; without both, only a directory can be made again."""
    database = mending.database
    if database.one("select 1 from inode where ino=?", (ino,)) is not None:
        return
    above = database.one("select mount from inode where ino=?", (parent,))
    mount = above[0] if above is not None else mending.home()[0]
    query = "select attributes,content from inode_past where ino=? order by until desc"
    row: Any = database.one(query, (ino,))
    if row is None:
        query = "select data from journal where ino=? and op=7 order by seq desc"
        found = database.one(query, (ino,))
        row = (found[0], b"") if found is not None and stat.S_ISREG(mode_of(found[0])) else None
    is_directory = database.one("select 1 from dentry where parent=?", (ino,)) is not None
    if is_directory or ino <= ROOT_INO:
        row = None
    content = mending.earlier_content(ino, stat.S_IFREG | 0o644, None) if ino > ROOT_INO else None
    if is_directory and ino > ROOT_INO:
        mending.new_directory(ino, mount, parent)
    elif content is not None or (row is not None and not _is_remote(mount, mending)):
        mending.new_object(ino, mount, row, content)
    else:
        mending.drop_name(parent, name)
        _leave_to_backend(ino, mending)
        return
    mending.settle(ino)
    mending.note_directory(parent)
    mending.kept.append(f"inode {ino} ({mending.look.path(ino)}) has a row again")


def places(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Directories that have names in them and are none."""
    # One step of the index for each directory, however many names are in it.
    query = (
        "with recursive above(parent) as (select min(parent) from dentry where parent>?1 union all"
        " select (select min(parent) from dentry d where d.parent>above.parent) from above"
        " where parent<?2) select a.parent,i.ino,i.gone,i.attributes from above a"
        " left join inode i on i.ino=a.parent where a.parent<=?2"
    )
    for parent, ino, gone, attributes in look.all(query, (after, upto)):
        if ino is None:
            sentence = f"there are names in the directory {parent}, which has no row"
            yield Finding("DIRECTORY_NO_INODE", sentence, parent, partial(_make_directory, parent))
        elif not stat.S_ISDIR(mode_of(attributes)):
            sentence = f"there are names in {look.path(parent)}, which is no directory"
            yield Finding("NAME_IN_FILE", sentence, parent, partial(_empty_file, parent))
        elif gone is not None:
            sentence = f"there are names in {look.path(parent)}, which was removed"
            yield Finding("DIRECTORY_GONE", sentence, parent, partial(_revive, parent))


def _make_directory(ino: int, mending: Mending) -> None:
    if ino <= ROOT_INO:
        _empty_file(ino, mending)
        return
    if mending.database.one("select 1 from inode where ino=?", (ino,)) is None:
        mending.new_directory(ino, mending.home()[0], 0)
        query = "select 1 from dentry where ino=?"
        if mending.database.one(query, (ino,)) is None:
            mending.adopt(ino)
        mending.settle(ino)


def _empty_file(parent: int, mending: Mending) -> None:
    """What lies in something that is no directory moves to lost+found under its names."""
    query = "select name,ino from dentry where parent=?"
    for name, ino in mending.database.all(query, (parent,)):
        mending.delete("dentry", "parent=? and name=?", parent, name)
        if mending.database.one("select 1 from dentry where ino=?", (ino,)) is None:
            mending.adopt(ino, name)
        else:
            mending.settle(ino)


def _revive(ino: int, mending: Mending) -> None:
    mending.update("inode", "gone=null", "ino=?", ino)
    mending.settle(ino)


def linked(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """What inodes say of their names."""
    roots = {each.root for each in look.mounts().values()}
    query = (
        "select i.ino,i.mount,i.parent,i.gone,i.attributes,i.content,n.n,n.low,p.mount from inode i"
        " left join temp.named n on n.ino=i.ino left join inode p on p.ino=n.low"
        " where i.ino>? and i.ino<=?"
    )
    for row in look.all(query, (after, upto)):
        ino, mount, parent, gone, attributes, content, count, low, mount_above = row
        is_directory = stat.S_ISDIR(mode_of(attributes))
        if ino in roots:
            if count:
                sentence = f"{look.path(ino)} is the root of a mount and has a name"
                yield Finding("ROOT_NAMED", sentence, ino, partial(_unname, ino, 0))
            continue
        if count is None:
            if gone is None:
                sentence = f"inode {ino} has no name"
                mend = partial(_adopt, ino, content, mount)
                yield Finding("INODE_NO_NAME", sentence, ino, mend)
            continue
        if gone is not None:
            sentence = f"{look.path(ino)} is said to be removed and has a name"
            yield Finding("INODE_GONE", sentence, ino, partial(_revive, ino))
        elif is_directory and count > 1:
            sentence = f"the directory {look.path(ino)} has {count} names"
            yield Finding("DIRECTORY_NAMES", sentence, ino, partial(_unname, ino, 1))
        elif parent and count == 1 and parent != low:
            sentence = f"inode {ino} is in directory {low} and says {parent}"
            yield Finding("INODE_PARENT", sentence, ino, partial(_bring_back, ino))
        elif (parent and count > 1) or (not parent and not _has_links(look, ino, count)):
            sentence = f"the links of {look.path(ino)} are not its {count} names"
            yield Finding("INODE_LINKS", sentence, ino, partial(_settle, ino))
        if not is_directory and int.from_bytes(attributes[12:16], "little") != count:
            links = int.from_bytes(attributes[12:16], "little")
            sentence = f"{look.path(ino)} has {count} names and says {links}"
            yield Finding("LINK_COUNT", sentence, ino, partial(_settle, ino))
        if mount_above is not None and mount != mount_above:
            sentence = f"{look.path(ino)} is of another mount than its directory"
            yield Finding("INODE_MOUNT", sentence, ino, partial(_move, ino, mount_above))


def _has_links(look: Look, ino: int, count: int) -> bool:
    query = (
        "select count(*),sum(exists(select 1 from dentry d where d.parent=l.parent"
        " and d.name=l.name and d.ino=l.ino)) from link l where ino=?"
    )
    return tuple(look.one(query, (ino,))) == (count, count)


def _bring_back(ino: int, mending: Mending) -> None:
    """The name is right, unless it lies in another mount and the row's own directory does not."""
    database = mending.database
    mount, parent = database.one("select mount,parent from inode where ino=?", (ino,))
    (place,) = database.all("select parent,name from dentry where ino=?", (ino,))
    query = "select mount,attributes from inode where ino=? and gone is null"
    there, here = (database.one(query, (each,)) for each in (place[0], parent))
    is_directory = here is not None and stat.S_ISDIR(mode_of(here[1]))
    if there is not None and there[0] != mount and is_directory and here[0] == mount:
        mending.delete("dentry", "parent=? and name=?", *place)
        mending.record(Op.LINK, ino, parent, mending.add_name(parent, place[1], ino))
    mending.settle(ino)


def _settle(ino: int, mending: Mending) -> None:
    mending.settle(ino)


def _move(ino: int, mount: int, mending: Mending) -> None:
    mending.move_mount(ino, mount)


def _adopt(ino: int, content: object, mount: int, mending: Mending) -> None:
    """What a backend has is not kept here."""
    is_there = isinstance(content, bytes) and content[:1] == bytes((REMOTE,))
    has_names = mending.database.one("select 1 from dentry where parent=?", (ino,)) is not None
    if is_there or (_is_remote(mount, mending) and not has_names and not content):
        mending.delete("inode", "ino=?", ino)
        _leave_to_backend(ino, mending)
        return
    mending.adopt(ino)


def _is_remote(mount: int, mending: Mending) -> bool:
    shown = mending.look.mounts().get(mount)
    return shown is not None and shown.kind != "mfs"


def _leave_to_backend(ino: int, mending: Mending) -> None:
    """What it has is listed again; a change that waits here would be taken for a removal there."""
    mending.delete("remote", "ino=?", ino)


def _unname(ino: int, keep: int, mending: Mending) -> None:
    """Only the first name of a directory stays, the one that its row tells."""
    query = "select parent,name from dentry where ino=?"
    (parent,) = mending.database.one("select parent from inode where ino=?", (ino,))
    names = sorted(mending.database.all(query, (ino,)), key=lambda place: place[0] != parent)
    for place in names[keep:]:
        mending.drop_name(*place)
    mending.settle(ino)


def loops(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Directories that lie in themselves."""
    roots = {each.root for each in look.mounts().values()}
    good: set[int] = set(roots)
    query = "select ino,attributes from inode where ino>? and ino<=? and gone is null"
    for ino, attributes in look.all(query, (after, upto)):
        if not stat.S_ISDIR(mode_of(attributes)) or ino in good:
            continue
        path: dict[int, None] = {}
        at: Any = ino
        while at and at not in good and at not in path:
            path[at] = None
            row = look.one("select parent from inode where ino=?", (at,))
            at = row[0] if row is not None else 0
        if at in path:
            known = list(path)
            top = min(known[known.index(at) :])
            sentence = f"the directory {top} lies in itself"
            yield Finding("DIRECTORY_LOOP", sentence, top, partial(_break_loop, top))
        good.update(path)


def _break_loop(ino: int, mending: Mending) -> None:
    mending.displace(ino, "it lay in itself")


def counts(look: Look, after: int, upto: int) -> Iterator[Finding]:
    """Link counts of directories, which are written lazily."""
    kinds = {number for number, each in look.mounts().items() if each.kind == "mfs"}
    query = (
        "select ino,mount,attributes,(select count(*) from dentry d join inode c on c.ino=d.ino"
        " where d.parent=inode.ino and substr(hex(substr(c.attributes,2,1)),1,1)='4')"
        " from inode where ino>? and ino<=? and gone is null"
        " and substr(hex(substr(attributes,2,1)),1,1)='4'"
    )
    for ino, mount, attributes, inside in look.all(query, (after, upto)):
        links = int.from_bytes(attributes[12:16], "little")
        if mount in kinds and links != 2 + inside:
            sentence = f"{look.path(ino)} has {inside} directories and says {links} links"
            yield Finding("DIRECTORY_LINKS", sentence, ino, partial(_settle, ino))


def leftovers(look: Look, _after: int, _upto: int) -> Iterator[Finding]:
    """Rows that belong to inodes which are not there."""
    stale = (
        (
            "xattr",
            "ino,name",
            "not exists (select 1 from inode i where i.ino=xattr.ino)",
            "XATTR_NO_INODE",
        ),
        (
            "link",
            "ino,parent,name",
            "not exists (select 1 from inode i where i.ino=link.ino"
            " and (i.parent=0 or gone is not null))",
            "LINK_STALE",
        ),
    )
    for table, key, where, code in stale:
        query = f"select distinct ino from {table} where {where} and {{page}}"
        for ino in dict.fromkeys(row[0] for rows in look.pages(query, table, key) for row in rows):
            sentence = f"there are rows of {table} for inode {ino} and nothing that they belong to"
            yield Finding(code, sentence, ino, partial(_delete, table, ino))


def _delete(table: str, ino: int, mending: Mending) -> None:
    mending.delete(table, "ino=?", ino)


CHECKS = (
    Check(duplicates, is_long=True),
    Check(indexes),
    Check(illegal, is_exact=True),
    Check(targets, is_exact=True),
    Check(places, "dentry", "parent", is_exact=True),
    Check(linked, "inode", "ino", needs_names=True),
    Check(loops, "inode", "ino"),
    Check(leftovers, is_exact=True),
    Check(counts, "inode", "ino", is_for_rest=True),
)
