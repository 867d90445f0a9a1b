"""What must hold of a tree at any moment between two calls: rows against rows, memory against rows.

``check(fs)`` raises AssertionError with everything that is wrong.
"""

from __future__ import annotations

import stat
from collections import Counter
from typing import TYPE_CHECKING

from unifs.journal.content import LargeContent, large_id
from unifs.journal.extents import ExtentMap
from unifs.journal.redo import KNOWN
from unifs.vfs.ipfsvolume import IpfsVolume
from unifs.vfs.tree import ATTRIBUTES
from unifs.vfs.treeinode import TreeInode

if TYPE_CHECKING:
    from tests.vfs.harness import FileSystem


def check(fs: FileSystem, *, at_rest: bool = False) -> None:
    """All invariants; ``at_rest``: nothing is open and everything due has been done."""
    problems = [*_rows(fs), *_contents(fs), *_carried(fs), *_memory(fs)]
    if at_rest:
        problems += _rest(fs)
    assert not problems, "\n".join(problems)


def _rows(fs: FileSystem) -> list[str]:
    database = fs.storage.database
    wrong: list[str] = []
    names = database.all("select parent,name,ino from dentry")
    inodes = {
        row[0]: row[1:] for row in database.all("select ino,parent,gone,attributes from inode")
    }
    links = Counter(ino for _, _, ino in names)
    roots = {volume.root for volume in fs.loader.volumes.values()}
    modes = {ino: ATTRIBUTES.unpack(row[2])[0] for ino, row in inodes.items()}
    for parent, name, ino in names:
        if ino not in inodes:
            wrong.append(f"{name!r} in {parent} names inode {ino}, which has no row")
        elif inodes[ino][1] is not None:
            wrong.append(f"{name!r} in {parent} names inode {ino}, which is gone")
        if not stat.S_ISDIR(modes.get(parent, 0)):
            wrong.append(f"{name!r} lies in {parent}, which is no directory")
    by_ino: dict[int, set[tuple[int, bytes]]] = {}
    for parent, name, ino in names:
        by_ino.setdefault(ino, set()).add((parent, name))
    linked: dict[int, set[tuple[int, bytes]]] = {}
    for ino, parent, name in database.all("select ino,parent,name from link"):
        linked.setdefault(ino, set()).add((parent, name))
    roots = {row[0] for row in database.all("select root from mount")}
    for ino, (parent, gone, packed) in inodes.items():
        if ino in roots or gone is not None:
            continue
        mode, _, _, nlink, *_ = ATTRIBUTES.unpack(packed)
        if not stat.S_ISDIR(mode) and nlink != links[ino]:
            wrong.append(f"inode {ino} says {nlink} links and has {links[ino]}")
        if not links[ino]:
            wrong.append(f"inode {ino} has neither a name nor an end")
        elif parent and by_ino[ino] != {place for place in by_ino[ino] if place[0] == parent}:
            wrong.append(f"inode {ino} says it lies in {parent} only")
        elif not parent and linked.get(ino) != by_ino[ino]:
            wrong.append(f"links of inode {ino}: {linked.get(ino)}, names {by_ino[ino]}")
        if links[ino] > 1 and stat.S_ISDIR(mode):
            wrong.append(f"directory {ino} has {links[ino]} names")
    wrong += [f"links of inode {ino}, which has no name" for ino in linked.keys() - links.keys()]
    wrong += [
        f"{table} of inode {row[0]}, which is not there"
        for table in ("xattr", "link")
        for row in database.all(f"select ino from {table} where ino not in (select ino from inode)")
    ]
    return wrong


def _carried(fs: FileSystem) -> list[str]:
    """What fsyncs carry is known, and stands for no content that is sealed or gone."""
    database = fs.storage.database
    rows = {name: last for name, _, last, _ in database.all(KNOWN)}
    marks = fs.writer.durability.carried.marks(rows)
    known = {name: last for name, (_, last, _) in marks.items()}
    wrong = [] if known == rows else [f"carried: {rows} in rows, {known} in memory"]
    query = (
        "select container from redo where container not in (select container from holding h"
        " join content c on c.id=h.content where c.state=1)"
    )
    wrong += [f"carried for container {row[0]}: for nothing" for row in database.all(query)]
    return wrong


def _contents(fs: FileSystem) -> list[str]:
    database = fs.storage.database
    wrong: list[str] = []
    refs: Counter[int] = Counter()
    for table in ("inode", "inode_past", "remote"):
        for (blob,) in database.all(f"select content from {table} where content is not null"):
            if large_id(blob):
                refs[large_id(blob)] += 1
    waiting = Counter(content for _, content in fs.writer.released)
    waiting.update(content for _, content in fs.writer.replaced)
    holding = set(database.all("select content,container from holding"))
    ids = set()
    for content, counted, extents in database.all("select id,refs,extents from content"):
        ids.add(content)
        if counted != refs[content] + waiting[content]:
            wrong.append(
                f"content {content} counts {counted}, rows name it {refs[content]} times,"
                f" {waiting[content]} are waiting to be released"
            )
        held = {container for owner, container in holding if owner == content}
        named = set(ExtentMap.unpack(extents).containers)
        if not named <= held:
            wrong.append(f"content {content} names containers {named}, holds {held}")
        path = fs.storage.contents.containers.path
        gone = [container for container in named if not path(container).exists()]
        wrong += [f"container {container} of content {content} is not there" for container in gone]
    wrong += [f"content {content} has no row" for content in refs if content not in ids]
    wrong += [f"holding of content {row[0]}, which is gone" for row in holding if row[0] not in ids]
    return wrong


def _memory(fs: FileSystem) -> list[str]:
    writer, database = fs.writer, fs.storage.database
    wrong: list[str] = []
    for inode in fs.vfs.inodes.hot.values():
        if not isinstance(inode, TreeInode):
            continue
        ino = inode.ino
        key = inode.pending
        if (key is not None) != (writer.pending.get(key or (0, b"")) is inode):
            wrong.append(f"inode {ino} and the table of pending ones disagree")
        if (inode.overlay is not None) != (writer.open.get(ino) is inode):
            wrong.append(f"inode {ino} and the table of open ones disagree")
        if inode.is_touched != (writer.touched.get(ino) is inode):
            wrong.append(f"inode {ino} and the table of touched ones disagree")
        if inode.writers > inode.opens or inode.writers < 0:
            wrong.append(f"inode {ino} has {inode.opens} handles, {inode.writers} of writers")
        if key is not None or inode.is_gone:
            continue
        row = database.one("select parent,attributes,content from inode where ino=?", (ino,))
        if row is None:
            wrong.append(f"inode {ino} is hot and has no row")
            continue
        wrong += _inode(inode, row)
    return wrong


def _inode(inode: TreeInode, row: tuple[int, bytes, bytes]) -> list[str]:
    wrong: list[str] = []
    parent, packed, content = row
    if parent != inode.parent:
        wrong.append(f"inode {inode.ino} is in {inode.parent}, its row says {parent}")
    if content != inode.stored:
        wrong.append(f"inode {inode.ino} has another content than its row")
    a = inode.attributes
    mode, uid, gid, nlink, size, *_ = ATTRIBUTES.unpack(packed)
    known: list[tuple[str, int, int]] = [
        ("mode", a.st_mode, mode),
        ("uid", a.st_uid, uid),
        ("gid", a.st_gid, gid),
    ]
    if not inode.is_touched and not isinstance(inode.volume, IpfsVolume):
        # How many directories are known below /ipfs is asked anew at every start.
        known.append(("nlink", a.st_nlink, nlink))
    if not inode.is_dirty() and not stat.S_ISDIR(mode):
        known.append(("size", a.st_size, size))
    wrong += [
        f"inode {inode.ino}: {what} is {here}, its row says {there}"
        for what, here, there in known
        if here != there
    ]
    if isinstance(inode.content, LargeContent) and inode.content.blob != inode.stored:
        wrong.append(f"inode {inode.ino} decoded another content than it stores")
    return wrong


def _rest(fs: FileSystem) -> list[str]:
    writer = fs.writer
    tables = {"pending", "touched", "open", "forgotten"}
    left = {name: getattr(writer, name) for name in tables}
    wrong = [f"something is left in {name}: {held}" for name, held in left.items() if held]
    containers = fs.storage.contents.containers
    if containers._pinned:
        wrong.append(f"containers are still held: {containers._pinned}")
    named = {row[0] for row in fs.storage.database.all("select container from holding")}
    files = {int(path.name, 16) for path in fs.storage.state.data.iterdir()}
    dead = set(getattr(writer, "dead_containers", ()))
    if files - named - dead:
        wrong.append(f"containers that nobody names: {files - named}")
    counts = [ino for ino, count in enumerate(fs.vfs.inodes.counts) if count]
    if counts:
        wrong.append(f"look-ups that nobody forgot: {counts}")
    return wrong
