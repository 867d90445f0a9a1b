"""RemoteSync: one remote volume as writeback sees it.

It answers where an inode is in the tree and where the backend holds it, hands out bytes that are
durable here, and records what the backend confirmed. Each change is one transaction; memory follows
the commit. It makes no remote call but reads of bytes that exist nowhere else.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from unifs.errors import Stale, UnifsError
from unifs.journal.content import REMOTE, large_id, remote_blob, remote_size
from unifs.journal.log import Op
from unifs.journal.writeback_order import NOWHERE, Attempt
from unifs.journal.writeback_tree import Upload
from unifs.types import Version
from unifs.vfs.remoteconflict import (
    NOWHERE_NOW,
    keep_both,
    step_aside,
    take_bytes,
    take_ours,
    take_theirs,
)
from unifs.vfs.remotedrop import commit_releasing, drop
from unifs.vfs.remotelate import LateNotes
from unifs.vfs.remotereaders import MountReader, reader_of
from unifs.vfs.remoterows import COMPLETE, UNLISTED, RemoteInode, content_key, told_of
from unifs.vfs.remotewaiting import WaitingRecords
from unifs.waiting import WouldBlock, complete

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.journal.writeback import Writeback
    from unifs.journal.writeback_late import Late
    from unifs.journal.writeback_order import Known
    from unifs.types import Node
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

log = logging.getLogger(__name__)

BEGIN = (
    "insert into remote(ino,mount,version,checked_ns,listing,listed_ns,local,attempt,content)"
    " values(?,?,'',0,0,0,1,?,?)"
    " on conflict(ino) do update set attempt=excluded.attempt,content=excluded.content"
)
DISOWN = (
    "insert into remote(ino,mount,version,checked_ns,listing,listed_ns,local,attempt,content)"
    " select ?,mount,'',0,0,0,1,attempt,content from remote where ino=?"
)
END = "update remote set attempt=null,content=null where ino=?"
PLACE = (
    "insert into remote(ino,mount,path,version,checked_ns,listing,listed_ns,synced,told,local)"
    " values(?,?,?,?,?,?,?,?,null,1) on conflict(ino) do update set path=excluded.path,"
    "version=excluded.version,checked_ns=excluded.checked_ns,listing=excluded.listing,cursor=null,"
    "listed_ns=excluded.listed_ns,synced=excluded.synced,told=null,local=1"
)


class RemoteSync(WaitingRecords):
    """Implements ``journal.writeback_calls.LocalTree`` and ``journal.writeback.Journal``."""

    writeback: Writeback

    def __init__(self, volume: RemoteVolume, conflicts: str, late: Late) -> None:
        super().__init__(volume)
        self._late_notes = LateNotes(volume, late)
        self.conflicts = conflicts
        self.attempts = volume.attempts

    def load(self) -> None:
        """After a start: what an earlier daemon left. WouldBlock before anything is done."""
        self._late_notes.load()
        self.root = self.volume.root
        for found in self.remotes.attempts():
            assert found.known.attempt is not None
            self.attempts.add(found.ino, found.known.attempt, found.known.path)

    # --- what goes out ----------------------------------------------------------------------------

    async def flush(self, seq: int) -> None:
        """Return when the records up to ``seq``, and what came before, survive a power cut."""
        flusher = self.volume.storage.flusher
        if flusher.durable_seq < seq:
            await flusher.flush()

    async def upload(self, ino: int) -> Upload | None:
        """The inode's bytes, committed, off any overlay, durable; None where they changed again.

        Stale where they were the backend's own and nothing stands there any more.
        """
        inode = self.volume.hot_or_row(ino)
        if inode is None or inode.is_gone:
            return None
        await complete(self._freeze, inode)
        content, blob, mark = inode.content, inode.stored, inode.unsynced_bytes
        if blob and blob[0] == REMOTE:
            if inode.path is None:
                raise Stale("its bytes were only at the backend, which does not have them any more")
            mount = self.volume.mount
            source = MountReader(mount, inode.path, inode.version, inode.attributes.st_size)
            source.attributes = told_of(inode.attributes)
            return Upload(source, blob, blob)
        inode.opens += 1
        try:
            await self.volume.writer.durability.make_durable(inode)
        finally:
            inode.opens -= 1
        if inode.stored != blob or inode.is_gone:
            return None
        reader = await reader_of(self.volume.contents, content)
        reader.attributes = told_of(inode.attributes)
        return Upload(reader, blob, content_key(blob), mark)

    def _freeze(self, inode: RemoteInode) -> None:
        if inode.is_dirty():
            self.volume.writer.commit(inode)
        if inode.overlay is not None:
            self.volume.writer.detach(inode)
        self.volume.writer.content_of(inode)

    def token(self, seq: int, verb: str) -> str:
        return f"{self.volume.storage.start}.{seq}.{verb}"

    async def attempted(self, ino: int) -> Upload | None:
        query = "select path,version,attempt,content from remote where ino=?"
        row = self.tree.database.one(query, (ino,))
        if row is None or row[2] is None or Attempt.unpack(row[2]).verb != "put":
            return None
        path, version, _, column = row
        blob = bytes(column or b"")
        if blob and blob[0] == REMOTE:
            # A copy of what stands at the old path still.
            if path is None:
                return None
            source = (os.fsdecode(path), Version(version), remote_size(blob))
            return Upload(MountReader(self.volume.mount, *source), blob, blob)
        contents = self.volume.contents
        return Upload(await reader_of(contents, contents.decode(blob)), blob, content_key(blob))

    # --- attempts ---------------------------------------------------------------------------------

    def begin(self, ino: int, attempt: Attempt, blob: bytes) -> None:
        batch: Batch = [(BEGIN, (ino, self.volume.mount_id, attempt.pack(), blob or None))]
        content = large_id(blob)
        if content:
            batch.append(("update content set refs=refs+1 where id=?", (content,)))
        self.tree.commit(batch)
        # Where it is now matters of a rename alone: a put costs no query for it.
        known = self.known(ino) if attempt.verb == "rename" else None
        self.attempts.add(ino, attempt, None if known is None else known.path)

    def end(self, ino: int) -> None:
        self._commit_ended(ino, [])

    def refused(self, ino: int) -> None:
        known = self.known(ino) or NOWHERE
        assert known.attempt is not None
        self.begin(ino, replace(known.attempt, is_refused=True), b"")

    def disown(self, ino: int) -> None:
        attempt = (self.known(ino) or NOWHERE).attempt
        assert attempt is not None
        other = self.tree.new_ino()
        record = self.volume.log.row(Op.UNLINK, other, 0, b"")
        self.tree.commit([(DISOWN, (other, ino)), (END, (ino,)), record])
        self.attempts.end(ino)
        self.attempts.add(other, attempt, None)

    def _commit_ended(self, ino: int, batch: Batch) -> None:
        """Commit; an attempt of the inode, or its removal, has ended with it."""
        query = "select path,attempt,content from remote where ino=?"
        path, attempt, blob = self.tree.database.one(query, (ino,)) or (None, None, None)
        batch.append((END, (ino,)))
        batch += self._late_notes.of(
            None if path is None else os.fsdecode(path),
            None if attempt is None else Attempt.unpack(attempt).path,
        )
        content = large_id(bytes(blob)) if blob else 0
        commit_releasing(self.volume, batch, [content] if content else [])
        self.attempts.end(ino)

    # --- confirmed --------------------------------------------------------------------------------

    def stored(self, ino: int, path: str, node: Node, upload: Upload | None) -> None:
        volume, known = self.volume, self.known(ino) or NOWHERE
        batch: Batch = []
        other = self.displace(path, ino, batch)
        if known.path is not None and known.path != path:
            self._leave_behind(known, batch)
        row = self.tree.inode_row(ino)
        key = None if row is None else content_key(bytes(row[5]))
        listing, now_ns = UNLISTED, volume.now_ns()
        copied = b""
        if upload is not None:
            key = upload.key
            if key[:1] == bytes((REMOTE,)):
                # Whoever wrote to it meanwhile has taken its bytes from there.
                if row is not None and bytes(row[5]) == key:
                    copied = remote_blob(upload.reader.size_bytes, node.version or "")
                    batch.append(("update inode set content=? where ino=?", (copied, ino)))
                key = None
        elif stat.S_ISDIR(node.mode):
            key = None
            listing = COMPLETE if known.attempt is not None else UNLISTED
        version = node.version or Version("")
        place = (ino, volume.mount_id, os.fsencode(path), version, now_ns, listing, now_ns, key)
        batch.append((PLACE, place))
        self._commit_ended(ino, batch)
        volume.merge.departed(path)
        self.forget_place(other)
        inode = self._hot(ino)
        if inode is None:
            return
        inode.load(self.remotes.row(ino))
        if inode.overlay is not None:
            inode.based_on = version
        if upload is not None:
            volume.unsynced.reached(inode, upload.mark)
            inode.stored = copied or inode.stored

    def displace(self, path: str, ino: int, batch: Batch) -> int:
        """Statements after which nothing else stands there; what did, 0 for nothing."""
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

    def forget_place(self, ino: int) -> None:
        inode = self._hot(ino) if ino else None
        if inode is not None:
            inode.path, inode.version, inode.held = None, Version(""), None

    def moved(self, ino: int, path: str, new_path: str) -> None:
        batch: Batch = []
        other = self.displace(new_path, ino, batch)
        now_ns = self.volume.now_ns()
        batch.extend(self.remotes.move(ino, path, new_path, now_ns))
        self._commit_ended(ino, batch)
        self.volume.merge.departed(path)
        self.volume.merge.departed(new_path)
        self.forget_place(other)
        for inode in self.volume.inodes.hot.values():
            if isinstance(inode, RemoteInode) and inode.volume is self.volume:
                below = inode.path
                if below == path:
                    inode.path, inode.checked_ns = new_path, max(inode.checked_ns, now_ns)
                elif below is not None and below.startswith(f"{path}/"):
                    inode.path = new_path + below[len(path) :]

    def removed(self, ino: int, is_foreign: bool) -> None:
        known = self.known(ino) or NOWHERE
        self._commit_ended(ino, [("delete from remote where ino=?", (ino,))])
        self.forget_place(ino)
        if known.path is None:
            return
        if is_foreign:
            self.unlist(known.path.rpartition("/")[0])
        else:
            self.volume.merge.departed(known.path)

    def unlist(self, path: str) -> None:
        """What the rows say of a directory is not what the backend has."""
        ino = self.at(path) if path else self.root
        inode = self.volume.hot_or_row(ino) if ino else None
        if inode is not None:
            inode.unlist()
            self.tree.commit([self.remotes.store(inode)])
            self.volume.tell_inode(ino)

    def note_late(self, path: str) -> None:
        try:
            if batch := self._late_notes.of(path):
                self.tree.commit(batch)
        except (WouldBlock, UnifsError) as error:
            log.warning("not noted: path=%r may be changed late: %r", path, error)

    def told(self, ino: int) -> None:
        wanted, known = self.wanted(ino), self.known(ino) or NOWHERE
        if wanted is not None:
            batch: Batch = [("update remote set told=? where ino=?", (wanted.told, ino))]
            batch += self._late_notes.of(known.path)
            self.tree.commit(batch)
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
        """Every directory that has something due below it, or something uncommitted."""
        self.writeback.collect()
        above: set[int] = set()
        parents = self.uncommitted_in()
        for ino in self.writeback.dues:
            parents.update(parent for parent, _ in self._places(ino, self.tree.inode_row(ino)))
        for parent in parents:
            while parent and parent not in above:
                above.add(parent)
                row = self.tree.inode_row(parent)
                parent = row[1] if row is not None else 0
        return above

    def uncommitted_in(self) -> set[int]:
        """The directories of what is being written and not committed yet: nothing of it is due."""
        writer = self.volume.writer
        parents = {inode.parent for inode in writer.pending.values() if inode.volume is self.volume}
        for inode in writer.open.values():
            if inode.volume is self.volume and inode.pending is None and inode.is_dirty():
                row = self.tree.inode_row(inode.ino)
                parents.update(parent for parent, _ in self._places(inode.ino, row))
        return parents

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
            hot = self._hot(one)
            is_dirty = hot is not None and hot.is_dirty()
            if (self.is_due(one) and not is_remote) or is_dirty or one in keep:
                self._commit_ended(one, [(NOWHERE_NOW, (one,))])
                self.forget_place(one)
                self.writeback.add(one)
                continue
            if not self.attempts.is_quiet:
                self.end(one)
            drop(self.volume, one)

    def conflict(self, ino: int, path: str, node: Node) -> None:
        """Somebody else's object stands where ours is to be; the volume's policy decides."""
        row = self.tree.inode_row(ino)
        if row is None or row[3] is not None:
            return
        known = self.known(ino) or NOWHERE
        if known.path == path and row[5][:1] == bytes((REMOTE,)):
            take_bytes(self, ino, path, node)
        elif self.heir(path) != ino:
            step_aside(self, ino, path)
        elif self.conflicts == "ours" and stat.S_IFMT(node.mode) != stat.S_IFDIR:
            take_ours(self, ino, path, node)
        elif self.conflicts == "theirs" and known.path in (None, path) and not self._holds(ino):
            take_theirs(self, ino, path, node)
        else:
            keep_both(self, ino, path, node)

    def _holds(self, ino: int) -> bool:
        """Whether it is a directory with something in it, which nobody else has a version of."""
        is_named = any(parent == ino for parent, _ in self.volume.writer.pending)
        return is_named or not self.tree.is_empty(ino)

    def hurry_all(self) -> None:
        """Too much is unsynced: commit what is open, write back everything now."""
        for inode in list(self.volume.writer.open.values()):
            if inode.volume is self.volume and inode.is_dirty():
                self.volume.writer.commit(inode)
        self.writeback.hurry()
