"""Cold content: what was written here and is at the backend becomes the backend's, with its bytes
in the evictable cache.

A confirmed change leaves its content among the contents of this machine, which are never evicted:
without this, everything ever uploaded would stay. Some time after nothing is due any more and
nobody has the file open, its bytes are copied to the cache under the version that the backend
confirmed, and the row names that version instead of the content. Reading it then is reading any
other remote file.

One task of ``RemoteVolume.serve``. It never touches what is open, due, not sealed, or not exactly
what that version holds. The row's change is a record of its own (SYNC: recovery does not go behind
it), so the content's bytes go only after it is durable.
"""

from __future__ import annotations

import logging
import stat
from collections import deque
from typing import TYPE_CHECKING

import trio

from unifs.cache.memory import EXTENT_BYTES
from unifs.cache.source import Source
from unifs.errors import UnifsError
from unifs.journal.content import SEALED, LargeContent, SmallContent, large_id, remote_blob
from unifs.journal.log import Op
from unifs.vfs.remotecid import known_cid, record
from unifs.vfs.remoterows import content_key
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.journal.content import Content
    from unifs.types import Version
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

log = logging.getLogger(__name__)

COLD_S = 60.0
LOOK_S = 1.0
#: Inodes that wait to become cold; what comes beyond it is found by looking through the rows.
QUEUE_MAX = 100_000
#: Inode numbers looked through at once after a start: 10 ms where all of them are this mount's.
SCAN_INOS = 20_000
#: Larger files are not copied to the cache: they would push out everything else.
COPY_BYTES_MAX = 1 << 30

SYNCED = "select ino from remote where ino>? and ino<=? and mount=? and synced is not null"


class Cold:
    """Turns one volume's synced contents cold. Belongs to the event loop's thread."""

    def __init__(self, volume: RemoteVolume) -> None:
        self._volume = volume
        self.cold_s = COLD_S
        self.cooled = 0
        self._queue: deque[tuple[float, int]] = deque()
        #: Where looking through the rows goes on; beyond the last one it is over.
        self._scanned = 0
        self._has_lost = False
        self._more = trio.Event()

    def note(self, ino: int) -> None:
        """Nothing of this inode is due any more."""
        if len(self._queue) >= QUEUE_MAX:
            self._has_lost = True
            return
        if not self._queue:
            self._more.set()
        self._queue.append((trio.current_time() + self.cold_s, ino))

    async def run(self) -> None:
        """Look through the rows once, then at what becomes cold, until cancelled."""
        while True:
            self._more = trio.Event()
            is_scanned = self._scan()
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                _, ino = self._queue.popleft()
                await self._try(ino)
            if not self._queue and self._has_lost:
                self._scanned, self._has_lost, is_scanned = 0, False, False
            until = self._queue[0][0] if self._queue else float("inf")
            with trio.move_on_at(until if is_scanned else now + LOOK_S):
                await self._more.wait()

    def _scan(self) -> bool:
        """Take up the next rows; whether that was all of them, or there is enough for now."""
        tree = self._volume.tree
        if self._scanned >= tree.last_ino or len(self._queue) > QUEUE_MAX // 2:
            return True
        upto = self._scanned + SCAN_INOS
        bindings = (self._scanned, upto, self._volume.mount_id)
        for (ino,) in tree.database.all(SYNCED, bindings):
            self.note(ino)
        self._scanned = upto if upto < tree.last_ino else 1 << 62
        return self._scanned > tree.last_ino

    async def _try(self, ino: int) -> None:
        inode = self._volume.hot_or_row(ino)
        if inode is None:
            return
        try:
            content = await complete(self._content, inode)
            if content is None:
                return
            if self._is_in_use(inode, content):
                self.note(ino)
                return
            await self._cool(inode, content)
        except (UnifsError, OSError) as error:
            log.warning("content stays on this machine: ino=%d error=%s", ino, error)

    def _content(self, inode: RemoteInode) -> Content | None:
        """The content that the backend has in exactly this version; None where it has not."""
        is_file = stat.S_ISREG(inode.attributes.st_mode) and not inode.is_gone
        if not is_file or inode.path is None or not inode.version or inode.held is None:
            return None
        if self._volume.is_changed(inode) or content_key(inode.stored) != inode.held:
            return None
        return self._volume.writer.content_of(inode)

    def _is_in_use(self, inode: RemoteInode, content: Content) -> bool:
        if inode.opens or inode.overlay is not None or inode.is_touched:
            return True
        if isinstance(content, LargeContent):
            return content.state != SEALED
        return inode.seq > self._volume.storage.flusher.sealed_seq

    async def _cool(self, inode: RemoteInode, content: Content) -> None:
        volume, version, stored = self._volume, inode.version, inode.stored
        size = inode.attributes.st_size
        if size <= COPY_BYTES_MAX:
            source = Source.of(volume.name, volume.mount, inode.path or "", version, size)
            for start in range(0, size, EXTENT_BYTES):
                data = await complete(self._piece, content, start)
                await volume.cache.keep(source, start // EXTENT_BYTES, data)
        await complete(self._finish, inode, content, (stored, version))

    def _finish(self, inode: RemoteInode, content: Content, before: tuple[bytes, Version]) -> None:
        """Turn it unless somebody opened or changed it meanwhile."""
        is_same = (inode.stored, inode.version) == before
        is_known = self._volume.hot_or_row(inode.ino) is inode and self._content(inode) is not None
        if is_same and is_known and not self._is_in_use(inode, content):
            self._turn(inode)
        else:
            self.note(inode.ino)

    def _piece(self, content: Content, start: int) -> bytes:
        contents = self._volume.contents
        if isinstance(content, SmallContent):
            return bytes(contents.read_small(content, start, EXTENT_BYTES))
        return bytes(contents.read_large(content, start, EXTENT_BYTES))

    def _turn(self, inode: RemoteInode) -> None:
        volume = self._volume
        blob = remote_blob(inode.attributes.st_size, inode.version)
        cid = known_cid(volume, inode)
        kept = [] if cid is None else [record(inode.ino, inode.version, cid)]
        batch: Batch = [
            *kept,
            ("update inode set content=? where ino=?", (blob, inode.ino)),
            ("update remote set synced=null where ino=?", (inode.ino,)),
            volume.writer.log.row(Op.SYNC, inode.ino, inode.parent, blob),
        ]
        volume.tree.commit(batch)
        volume.writer.release([large_id(inode.stored)])
        inode.stored, inode.content, inode.held, inode.synced = blob, None, None, blob
        inode.based_on = None
        self.cooled += 1
