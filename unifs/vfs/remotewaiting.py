"""The records of a remote volume that wait for its backend, and why some were given up.

Implements ``journal.writeback_due.Journal`` for ``RemoteSync``. Why a change was given up stands in
``meta`` beside its records, so that the next start can say.
"""

from __future__ import annotations

import json
import logging
import stat
from typing import TYPE_CHECKING, Final

from unifs.errorcodes import error_classes
from unifs.errors import NoSpace, TryAgain, UnifsError
from unifs.journal.log import Op
from unifs.journal.writeback_due import GIVEN_UP, Journal
from unifs.vfs.remoteplaces import Places
from unifs.vfs.remoterows import RemoteInode
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.vfs.tree import Statement

log = logging.getLogger(__name__)

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
#: Of what has a place neither here nor there.
FORGET_LOST = (
    "delete from remote where ino=? and path is null"
    " and ino not in (select ino from inode where gone is null)"
)
QUARANTINE = "update journal set state=? where ino=? and state is not null"
#: The key in ``meta``, before the inode's number; ``TIDY`` counts its letters.
REFUSED: Final = "refused/"
NOTE = "insert or replace into meta(key,value) values(?,?)"
FORGET = "delete from meta where key=?"
#: As bytes: a damaged row may have some that are no text.
WHY = "select cast(value as blob) from meta where key=?"
#: Of changes that are not given up any more.
TIDY = (
    "delete from meta where key>='refused/' and key<'refused0'"
    " and cast(substr(key,9) as integer) not in (select ino from journal where state=1)"
)
#: More of a service's words helps nobody.
REASON_MAX: Final = 1000


class WaitingRecords(Places, Journal):
    """The rows of ``journal`` that wait, of one remote volume."""

    def tidy(self) -> None:
        """After a start: nothing waits of which nothing is left. WouldBlock before it is done.

        Where a full disk takes no commit at all, the next start does it: nobody asks for these.
        """
        try:
            self.tree.commit([(SETTLE_LOST, ()), (TIDY, ())], frees=True)
        except NoSpace as error:
            log.warning("what is left of lost changes stays for now: error=%s", error)

    def waiting(self) -> Iterable[tuple[int, int, int]]:
        volume = self.volume
        rows = self.tree.database.all(WAITING, (volume.mount_id,))
        for ino, _, _ in rows:
            inode = volume.hot_or_row(ino)
            if inode is not None and stat.S_ISREG(inode.attributes.st_mode) and not inode.is_gone:
                volume.unsynced.wrote(inode, inode.attributes.st_size)
        return rows

    def settle(self, ino: int, seq: int) -> None:
        local = "update remote set local=1 where ino=?", (ino,)
        self.tree.commit([(SETTLE, (ino, seq)), local, (FORGET_LOST, (ino,))])
        inode = self._hot(ino)
        if inode is not None:
            inode.is_local = True
            if not inode.is_dirty():
                self.volume.unsynced.reached(inode, inode.unsynced_bytes)
        self.volume.writer.changed.pop(self.volume.mount_id, None)
        self.volume.cold.note(ino)

    def set_quarantined(self, ino: int, refusal: UnifsError | None) -> None:
        key = f"{REFUSED}{ino}"
        note: Statement = FORGET, (key,)
        if refusal is not None:
            note = NOTE, (key, json.dumps([refusal.code, str(refusal)[:REASON_MAX]]))
        try:
            self.tree.commit([(QUARANTINE, (int(refusal is not None), ino)), note])
        except (WouldBlock, UnifsError) as error:
            log.warning("not noted: ino=%d given_up=%s %r", ino, refusal is not None, error)

    def refusal(self, ino: int) -> UnifsError:
        told = self.tree.database.one(WHY, (f"{REFUSED}{ino}",))
        if told is None:
            return TryAgain(GIVEN_UP)
        try:
            code, reason = json.loads(told[0])
            return error_classes().get(code, UnifsError)(str(reason))
        except (ValueError, TypeError):
            log.warning("why it was given up cannot be read: ino=%d", ino)
            return TryAgain(GIVEN_UP)

    def renew(self, ino: int) -> None:
        self.tree.commit([self.volume.log.row(Op.SETATTR, ino, 0, b"")])

    def is_open(self, ino: int) -> bool:
        inode = self._hot(ino)
        return inode is not None and inode.writers > 0

    def _hot(self, ino: int) -> RemoteInode | None:
        inode = self.volume.inodes.hot.get(ino)
        return inode if isinstance(inode, RemoteInode) else None
