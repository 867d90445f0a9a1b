"""RemoteSync: one remote volume as writeback sees it.

It answers where an inode is in the tree and where the backend holds it, hands out bytes that are
durable here, and records what the backend confirmed. Each change is one transaction; memory follows
the commit. It makes no remote call but reads of bytes that exist nowhere else.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unifs.errors import Stale
from unifs.journal.content import REMOTE, SYMLINK, large_id, remote_blob
from unifs.journal.log import Op, unpack_rename
from unifs.journal.writeback import Journal
from unifs.journal.writeback_calls import Upload
from unifs.journal.writeback_order import NOWHERE, Wanted
from unifs.types import Node, SetAttributes, Version
from unifs.vfs.remoteconflict import keep_both, take_ours, take_theirs
from unifs.vfs.remotereaders import MountReader, reader_of
from unifs.vfs.remoterows import COMPLETE, TOLD, UNLISTED, RemoteInode, content_key
from unifs.vfs.tree import ATTRIBUTES
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.journal.writeback import Writeback
    from unifs.journal.writeback_order import Attempt, Known
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

WAITING = (
    "select j.ino,max(j.seq),max(j.state) from journal j left join inode i on i.ino=j.ino"
    " left join remote r on r.ino=j.ino"
    " where j.state is not null and coalesce(i.mount,r.mount)=? group by j.ino order by 2"
)
SETTLE = "update journal set state=null where ino=? and state is not null and seq<=?"
#: Records of inodes of which nothing is left, here or there.
SETTLE_LOST = (
    "update journal set state=null where state is not null"
    " and ino not in (select ino from inode) and ino not in (select ino from remote)"
)
NAMED = "select op,parent,data from journal where ino=? and state is not null order by seq desc"
BEGIN = (
    "insert into remote(ino,mount,version,checked_ns,listing,listed_ns,local,attempt,content)"
    " values(?,?,'',0,0,0,1,?,?)"
    " on conflict(ino) do update set attempt=excluded.attempt,content=excluded.content"
)
END = "update remote set attempt=null,content=null where ino=?"
PLACE = (
    "insert into remote(ino,mount,path,version,checked_ns,listing,listed_ns,synced,told,local)"
    " values(?,?,?,?,?,?,?,?,null,1) on conflict(ino) do update set path=excluded.path,"
    "version=excluded.version,checked_ns=excluded.checked_ns,listing=excluded.listing,cursor=null,"
    "listed_ns=excluded.listed_ns,synced=excluded.synced,told=null,local=1"
)
NOWHERE_NOW = "update remote set path=null,version='',synced=null,told=null where ino=?"
#: Rows that the backend can give again, the longest unasked first.
TRIMMABLE = (
    "select r.ino,i.parent from remote r join inode i on i.ino=r.ino where r.mount=? and"
    " not r.local and r.path<>x'' and i.parent<>0 and not exists"
    " (select 1 from dentry d where d.parent=r.ino) limit ?"
)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A change that writeback gave up. ``path`` is the mount's own, None where no name is left."""

    ino: int
    sequence: int
    path: bytes | None
    reason: str


class RemoteSync(Journal):
    """Implements ``journal.writeback_calls.LocalTree`` and ``journal.writeback.Journal``."""

    writeback: Writeback

    def __init__(self, volume: RemoteVolume, conflicts: str) -> None:
        self.volume = volume
        self.tree = volume.tree
        self.remotes = volume.remotes
        self.root = volume.root
        self.conflicts = conflicts
        #: path -> inode, for attempts of unknown outcome.
        self._attempts: dict[str, int] = {}

    def load(self) -> None:
        """After a start: the attempts that an earlier daemon left."""
        self.root = self.volume.root
        self.tree.commit([(SETTLE_LOST, ())])
        for found in self.remotes.attempts():
            assert found.known.attempt is not None
            self._attempts[found.known.attempt.path] = found.ino

    def is_attempted(self, path: str) -> bool:
        """Whether what stands at ``path`` is perhaps ours, without our knowing."""
        return path in self._attempts

    # --- Objects ----------------------------------------------------------------------------------

    def can(self, capability: str) -> bool:
        return self.volume.mount.supports(capability)

    def known(self, ino: int) -> Known | None:
        return self.remotes.known(ino)

    def at(self, path: str) -> int:
        return self.remotes.at(path)

    def below(self, path: str, limit: int) -> list[int]:
        return self.remotes.below(path, limit)

    def heir(self, path: str) -> int:
        above, _, name = path.rpartition("/")
        parent = self.remotes.at(above) if above else self.root
        return self.tree.find(parent, os.fsencode(name)) if parent else 0

    def wanted(self, ino: int) -> Wanted | None:
        row = self.tree.inode_row(ino)
        if row is None or row[3] is not None:
            return None
        place = self._name(ino, row[1])
        if place is None:
            return None
        mode, uid, gid, _, _, _, mtime_ns, _, _ = ATTRIBUTES.unpack(row[4])
        content = bytes(row[5])
        key: bytes | None = content_key(content)
        if stat.S_ISDIR(mode) or (content and content[0] == REMOTE):
            key = None
        # A directory's time moves with every name in it; no backend is told of that.
        told = TOLD.pack(mode & 0o7777, uid, gid, 0 if stat.S_ISDIR(mode) else mtime_ns)
        return Wanted(*place, mode, key, told)

    def _name(self, ino: int, parent: int) -> tuple[int, bytes] | None:
        """The (directory, name) under which the backend is to have an inode."""
        row = self.remotes.row(ino)
        path = b"" if row is None or row[0] is None else bytes(row[0])
        if not parent:
            return self._linked_name(ino, path)
        name = path.rpartition(b"/")[2]
        if name and self.tree.find(parent, name) == ino:
            return parent, name
        for op, directory, data in self.tree.database.all(NAMED, (ino,)):
            if op in (Op.CREATE, Op.LINK):
                name = bytes(data)
            elif op == Op.RENAME:
                directory, name = unpack_rename(data).new_parent, unpack_rename(data).new_name
            else:
                continue
            if directory == parent and self.tree.find(parent, name) == ino:
                return parent, name
        return next(iter(self.tree.parents(ino, parent)), None)

    def _linked_name(self, ino: int, path: bytes) -> tuple[int, bytes] | None:
        names = sorted(self.tree.parents(ino, 0))
        for parent, name in names:
            above = "" if parent == self.root else (self.known(parent) or NOWHERE).path
            if above is not None and path == os.fsencode(f"{above}/" if above else "") + name:
                return parent, name
        return names[0] if names else None

    # --- what goes out ----------------------------------------------------------------------------

    async def flush(self, seq: int) -> None:
        """Return when the records up to ``seq`` survive a power cut."""
        flusher = self.volume.storage.flusher
        if flusher.durable_seq < seq:
            await flusher.flush()

    async def upload(self, ino: int) -> Upload | None:
        """The inode's bytes, committed, off any overlay, durable; None where they changed again."""
        inode = self.volume.hot_or_row(ino)
        if inode is None or inode.is_gone:
            return None
        await complete(self._freeze, inode)
        content, blob, mark = inode.content, inode.stored, inode.unsynced_bytes
        if blob and blob[0] == REMOTE:
            assert inode.path is not None
            mount = self.volume.mount
            source = MountReader(mount, inode.path, inode.version, inode.attributes.st_size)
            return Upload(source, blob, blob)
        inode.opens += 1
        try:
            await self.volume.writer.make_durable(inode)
        finally:
            inode.opens -= 1
        if inode.stored != blob or inode.is_gone:
            return None
        reader = await reader_of(self.volume.contents, content)
        return Upload(reader, blob, content_key(blob), mark)

    def _freeze(self, inode: RemoteInode) -> None:
        if inode.is_dirty():
            self.volume.writer.commit(inode)
        if inode.overlay is not None:
            self.volume.writer.detach(inode)
        self.volume.writer.content_of(inode)

    async def attempted(self, ino: int) -> Upload | None:
        row = self.tree.database.one("select content from remote where ino=?", (ino,))
        if row is None or row[0] is None or bytes(row[0][:1]) == bytes((REMOTE,)):
            return None
        contents = self.volume.contents
        blob = bytes(row[0])
        return Upload(await reader_of(contents, contents.decode(blob)), blob, content_key(blob))

    def node(self, ino: int) -> Node:
        row = self.tree.inode_row(ino)
        if row is None:
            raise Stale
        mode, _, _, _, size, _, mtime_ns, _, rdev = ATTRIBUTES.unpack(row[4])
        content = bytes(row[5])
        target = content[1:] if content and content[0] == SYMLINK else None
        return Node(mode, size, None, mtime_ns, True, target, rdev)

    def attributes(self, ino: int) -> SetAttributes:
        row = self.tree.inode_row(ino)
        if row is None:
            raise Stale
        mode, uid, gid, _, _, _, mtime_ns, _, _ = ATTRIBUTES.unpack(row[4])
        if stat.S_ISDIR(mode):
            return SetAttributes(mode=mode & 0o7777, uid=uid, gid=gid)
        return SetAttributes(mode=mode & 0o7777, uid=uid, gid=gid, mtime_ns=mtime_ns)

    # --- attempts ---------------------------------------------------------------------------------

    def begin(self, ino: int, attempt: Attempt, blob: bytes) -> None:
        batch: Batch = [(BEGIN, (ino, self.volume.mount_id, attempt.pack(), blob or None))]
        content = large_id(blob)
        if content:
            batch.append(("update content set refs=refs+1 where id=?", (content,)))
        self.tree.commit(batch)
        self._attempts[attempt.path] = ino

    def end(self, ino: int) -> None:
        self._commit_ended(ino, [])

    def _commit_ended(self, ino: int, batch: Batch) -> None:
        """Commit; an attempt of the inode has ended with it."""
        row = self.tree.database.one("select attempt,content from remote where ino=?", (ino,))
        batch.append((END, (ino,)))
        self.tree.commit(batch)
        for path in [path for path, held in self._attempts.items() if held == ino]:
            del self._attempts[path]
        content = large_id(bytes(row[1])) if row is not None and row[1] else 0
        if content:
            self.volume.writer.released.append((self.volume.log.seq, content))

    # --- confirmed --------------------------------------------------------------------------------

    def stored(self, ino: int, path: str, node: Node, upload: Upload | None) -> None:
        volume, known = self.volume, self.known(ino) or NOWHERE
        batch: Batch = []
        other = self._displace(path, ino, batch)
        if known.path is not None and known.path != path:
            self._leave_behind(known, batch)
        row = self.tree.inode_row(ino)
        key = None if row is None else content_key(bytes(row[5]))
        listing, now_ns = UNLISTED, volume.now_ns()
        if upload is not None:
            key = upload.key
            if upload.blob and upload.blob[0] == REMOTE:
                blob = remote_blob(upload.reader.size_bytes, node.version or "")
                batch.append(("update inode set content=? where ino=?", (blob, ino)))
                key = None
        elif stat.S_ISDIR(node.mode):
            key = None
            listing = COMPLETE if known.attempt is not None else UNLISTED
        version = node.version or Version("")
        place = (ino, volume.mount_id, os.fsencode(path), version, now_ns, listing, now_ns, key)
        batch.append((PLACE, place))
        self._commit_ended(ino, batch)
        volume.merge.departed(path)
        self._forget_place(other)
        inode = self._hot(ino)
        if inode is None:
            return
        inode.load(self.remotes.row(ino))
        if inode.overlay is not None:
            inode.based_on = version
        if upload is not None:
            volume.synced_bytes(inode, upload.mark)
            if upload.blob and upload.blob[0] == REMOTE and row is not None:
                inode.stored = blob

    def _displace(self, path: str, ino: int, batch: Batch) -> int:
        other = self.at(path)
        if other and other != ino:
            batch.append(("delete from remote where ino=?", (other,)))
            return other
        return 0

    def _leave_behind(self, known: Known, batch: Batch) -> None:
        """What still stands at the old path becomes an object that nobody names."""
        self.orphan(known.path or "", known.version, batch)

    def orphan(self, path: str, version: Version | None, batch: Batch) -> int:
        """A row for an object at the backend that has no inode and is to be removed."""
        ino = self.tree.new_ino()
        where = (ino, self.volume.mount_id, os.fsencode(path), version or "", 0, 0, 0, None)
        batch.append((PLACE, where))
        batch.append(self.volume.log.row(Op.UNLINK, ino, 0, b""))
        return ino

    def _hot(self, ino: int) -> RemoteInode | None:
        inode = self.volume.inodes.hot.get(ino)
        return inode if isinstance(inode, RemoteInode) else None

    def _forget_place(self, ino: int) -> None:
        inode = self._hot(ino) if ino else None
        if inode is not None:
            inode.path, inode.version, inode.synced = None, Version(""), None

    def moved(self, ino: int, path: str, new_path: str) -> None:
        batch: Batch = []
        other = self._displace(new_path, ino, batch)
        batch.extend(self.remotes.move(ino, path, new_path))
        self._commit_ended(ino, batch)
        self.volume.merge.departed(path)
        self.volume.merge.departed(new_path)
        self._forget_place(other)
        for inode in self.volume.inodes.hot.values():
            if isinstance(inode, RemoteInode) and inode.volume is self.volume:
                below = inode.path
                if below == path:
                    inode.path = new_path
                elif below is not None and below.startswith(f"{path}/"):
                    inode.path = new_path + below[len(path) :]

    def removed(self, ino: int, is_foreign: bool) -> None:
        known = self.known(ino) or NOWHERE
        self._commit_ended(ino, [("delete from remote where ino=?", (ino,))])
        self._forget_place(ino)
        if known.path is None:
            return
        if is_foreign:
            self._unlist(known.path.rpartition("/")[0])
        else:
            self.volume.merge.departed(known.path)

    def _unlist(self, path: str) -> None:
        """What the rows say of a directory is not what the backend has."""
        ino = self.at(path) if path else self.root
        inode = self.volume.hot_or_row(ino) if ino else None
        if inode is not None:
            inode.listing, inode.cursor = UNLISTED, None
            self.tree.commit([self.remotes.store(inode)])
            self.volume.tell_inode(ino)

    def told(self, ino: int) -> None:
        wanted = self.wanted(ino)
        if wanted is not None:
            self.tree.commit([("update remote set told=? where ino=?", (wanted.told, ino))])
            inode = self._hot(ino)
            if inode is not None:
                inode.told = wanted.told

    def kept_here(self, ino: int) -> None:
        wanted = self.wanted(ino)
        if wanted is not None:
            now_ns = self.volume.now_ns()
            row = (ino, self.volume.mount_id, None, "", now_ns, 0, 0, wanted.key)
            self._commit_ended(ino, [(PLACE, row)])

    # --- somebody else ----------------------------------------------------------------------------

    def ancestors_of_due(self) -> set[int]:
        """Every directory that has something due below it."""
        self.writeback.collect()
        above: set[int] = set()
        for ino in self.writeback.dues:
            row = self.tree.inode_row(ino)
            for parent in {parent for parent, _ in self._places(ino, row)}:
                while parent and parent not in above:
                    above.add(parent)
                    row = self.tree.inode_row(parent)
                    parent = row[1] if row is not None else 0
        return above

    def _places(self, ino: int, row: tuple[object, ...] | None) -> Iterable[tuple[int, bytes]]:
        if row is None or row[3] is not None:
            return ()
        return self.tree.parents(ino, int(row[1]))  # type: ignore[call-overload]

    def is_due(self, ino: int) -> bool:
        return self.writeback.is_due(ino)

    def vanished(self, ino: int) -> None:
        """Somebody removed an object, and all below it: what is due here is put there anew."""
        known = self.known(ino) or NOWHERE
        keep = self.ancestors_of_due()
        below = [] if known.path is None else self.remotes.below(known.path, -1)
        for one in [ino, *below]:
            row = self.tree.inode_row(one)
            if row is None or row[3] is not None:
                self._commit_ended(one, [("delete from remote where ino=?", (one,))])
                continue
            is_remote = bool(row[5]) and row[5][0] == REMOTE
            if (self.is_due(one) and not is_remote) or one in keep:
                self._commit_ended(one, [(NOWHERE_NOW, (one,))])
                self._forget_place(one)
                self.writeback.add(one)
                continue
            for parent, name in list(self.tree.parents(one, row[1])):
                self.volume.merge.drop(parent, name, one)

    def conflict(self, ino: int, path: str, node: Node) -> None:
        """Somebody else's object stands where ours is to be; the volume's policy decides."""
        row = self.tree.inode_row(ino)
        if row is None or row[3] is not None:
            return
        known = self.known(ino) or NOWHERE
        if self.conflicts == "ours" and stat.S_IFMT(node.mode) != stat.S_IFDIR:
            take_ours(self, ino, path, node)
        elif self.conflicts == "theirs" and known.path in (None, path):
            take_theirs(self, ino, path, node)
        else:
            keep_both(self, ino, path, node)

    # --- Journal ----------------------------------------------------------------------------------

    def waiting(self) -> Iterable[tuple[int, int, int]]:
        volume = self.volume
        rows = self.tree.database.all(WAITING, (volume.mount_id,))
        for ino, _, _ in rows:
            inode = volume.hot_or_row(ino)
            if inode is not None and stat.S_ISREG(inode.attributes.st_mode) and not inode.is_gone:
                volume.wrote(inode, inode.attributes.st_size)
        return rows

    def settle(self, ino: int, seq: int) -> None:
        self.tree.commit([(SETTLE, (ino, seq)), ("update remote set local=1 where ino=?", (ino,))])
        inode = self._hot(ino)
        if inode is not None:
            inode.is_local = True
            if not inode.is_dirty():
                self.volume.synced_bytes(inode, inode.unsynced_bytes)
        self.volume.writer.changed.pop(self.volume.mount_id, None)

    def set_quarantined(self, ino: int, is_quarantined: bool) -> None:
        statement = "update journal set state=? where ino=? and state is not null"
        self.tree.commit([(statement, (int(is_quarantined), ino))])

    def renew(self, ino: int) -> None:
        self.tree.commit([self.volume.log.row(Op.SETATTR, ino, 0, b"")])

    def is_open(self, ino: int) -> bool:
        inode = self._hot(ino)
        return inode is not None and inode.writers > 0

    # --- for control operations -------------------------------------------------------------------

    def waiting_count(self) -> int:
        """How many inodes the backend does not have as they are here, quarantined ones included."""
        self.writeback.collect()
        return len(self.writeback.dues)

    def quarantined(self) -> list[Quarantined]:
        """What was given up, and why."""
        self.writeback.collect()
        return [
            Quarantined(due.ino, due.seq, self.tree.path(due.ino), str(due.error or ""))
            for due in self.writeback.dues.values()
            if due.is_quarantined
        ]

    # --- bounds -----------------------------------------------------------------------------------

    def hurry_all(self) -> None:
        """Too much is unsynced: commit what is open, write back everything now."""
        for inode in list(self.volume.writer.open.values()):
            if inode.volume is self.volume and inode.is_dirty():
                self.volume.writer.commit(inode)
        self.writeback.hurry()

    def trim(self, limit: int) -> int:
        """Drop up to ``limit`` rows that the backend can give again; how many went."""
        volume = self.volume
        rows = self.tree.database.all(TRIMMABLE, (volume.mount_id, limit))
        count = 0
        for ino, parent in rows:
            hot = self._hot(ino)
            if volume.inodes.count(ino) or (hot is not None and hot.is_busy()):
                continue
            if self.is_due(ino) or self.tree.xattrs(ino):
                continue
            above = volume.hot_or_row(parent)
            if above is None:
                continue
            for where, name in list(self.tree.parents(ino, parent)):
                above.listing, above.cursor = UNLISTED, None
                self.tree.commit([self.remotes.store(above)])
                volume.merge.drop(where, name, ino)
                count += 1
        return count
