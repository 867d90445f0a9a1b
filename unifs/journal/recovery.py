"""Recovery: from what a crash left to a tree in which everything acknowledged is there.

Runs at every start, before anything else reads the tree; ``Recovery.run`` returns a receipt where
it had something to do. A file in lost+found it becomes unless the start before, on the same boot,
journaled nothing and nothing was found: one that is killed before it is mounted, again and again,
leaves no file each time. It replays nothing onto SQLite (transactions are whole or absent); it
decides which *bytes* can be trusted (``journal.trust``), and removes what nobody names.

After a crash of the daemon alone (same boot id) the page cache is intact: closed records are
trusted. Their bytes are synced before anything that they replaced is removed: the power may fail
next. Files that no content names any more are removed by who opens the storage, which knows what
pins may still need of them. After a crash of the machine (other boot id) a record may be durable
while its bytes are not. What fsyncs carried in their transactions is written to its containers
first (``journal.redo``). Then every content with a record after ``sealed_seq`` and every large one
that is not sealed is looked at: a small one must hash to its digest; of a large one the proof must
hold, else it goes back to the form that its last fsync made durable. What fails both is lost, and
its inode walks back through its records: the content before, and where it took a name from another
inode by a rename and no fsync ever covered its bytes, that inode gets the name back. What is left
of the bytes goes to lost+found; the receipt names each.

Crash windows, each tested by its number (tests/journal/test_recovery.py):

1. segment bytes appended, transaction not committed: the section is garbage, collected later
2. container written, transaction not committed: a file that no row names is deleted
3. transaction committed, process killed: everything is there
4. transaction in a durable WAL, segment bytes lost: hash fails, last good content
5. transaction in a durable WAL, container bytes lost: proof or durable form, else last good content
6. rename durable, bytes of its source lost: the displaced inode returns
7. rows without a name, not yet removed: removed
8. directory times newer than their rows: taken from the journal
9. content rows whose references were not counted down: counted anew
10. container files whose rows are gone, not yet deleted: deleted
11. killed, started, then the power fails: what the first recovery removed was replaced by synced
    bytes
12. stopped cleanly, then the power fails before closed contents were written out: as 5
13. fsync returned, the bytes that its transaction carried lost from their container: written again
14. killed after changes were acknowledged that were held: noted, and executed when the database is
    opened (``state.held``), before anything here is asked
15. killed after such a transaction committed: its number says that its notes are done
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import apsw

from unifs.errors import NoSpace, UnifsError, from_os_error
from unifs.journal.containers import is_container_name
from unifs.journal.content import CLOSED, COLUMN_BYTES, first_id, large_blob
from unifs.journal.extents import ExtentMap
from unifs.journal.log import Log, Op, unpack_rename
from unifs.journal.redo import apply, set_aside
from unifs.journal.returning import Returning
from unifs.journal.trust import Trust
from unifs.state.durable import receipt_text, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from unifs.ipfs.embedded.segments import Segments
    from unifs.state.ahead import Batch
    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory

log = logging.getLogger(__name__)

#: The second byte of the packed attributes holds the type bits of the mode: 4 is a directory.
SUBDIRECTORIES = (
    "select count(*) from dentry d join inode i on i.ino=d.ino"
    " where d.parent=? and substr(hex(substr(i.attributes,2,1)),1,1)='4'"
)
#: Its form of an earlier epoch is history; a directory has no content that is counted.
KEEP_DIRECTORY = (
    "insert or ignore into inode_past select ino,?,epoch,attributes,content from inode"
    " where ino=? and epoch<?"
)
#: Whether an inode has a content, or had it.
NAMED = "select 1 from inode where content=? union all select 1 from inode_past where content=?"
#: After ``_sync_closed``.
CLOSED_IS_DURABLE = "update content set durable_size=size,durable_extents=extents where state=?"


@dataclass(slots=True)
class Receipt:
    """What recovery found and did. Lists hold one sentence each."""

    time_ns: int
    is_other_boot: bool
    records_checked: int = 0
    reverted: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    #: Bytes that fsyncs had carried and that were written to their containers.
    carried_bytes: int = 0
    #: Files of contents that are removed, but for what pins need of them.
    removed_files: int = 0
    removed_rows: int = 0
    #: What was no block in the segments that had to be looked through.
    damaged: list[str] = field(default_factory=list)
    #: Why nothing was removed: the disk refused to sync what took the place of it.
    kept: str = ""

    def has_losses(self) -> bool:
        return bool(self.reverted or self.returned)

    def has_content(self) -> bool:
        """Whether it tells more than that there was a start."""
        told = asdict(self)
        del told["time_ns"]
        return any(told.values())


class Recovery:
    """One run over a state directory."""

    def __init__(
        self,
        database: Database,
        segments: Segments,
        state: StateDirectory,
        damaged: Sequence[str] = (),
    ) -> None:
        """``damaged``: what was found wrong while the segments were opened, for the receipt."""
        self._database = database
        self._state = state
        self._trust = Trust(database, segments, state)
        self._sealed_seq: int = database.get_meta("sealed_seq", 0)
        self._last_seq: int = Log(database).seq
        self._has_changes = database.get_meta("start_seq", -1) != self._last_seq
        self._receipt_name = ""
        is_other_boot = str(database.get_meta("boot", state.boot_id)) != state.boot_id
        self._receipt = Receipt(time.time_ns(), is_other_boot, damaged=[*damaged])

    def run(self) -> Receipt | None:
        """Make the tree right; the receipt, or None after a clean stop."""
        was_clean = bool(self._database.get_meta("is_clean", 1))
        is_needed = not was_clean or (self._receipt.is_other_boot and self._has_unsealed())
        is_needed = is_needed or bool(self._database.held.refused)
        if not was_clean and self._receipt.is_other_boot:
            self._database.check()
        if is_needed and not self._receipt.is_other_boot:
            self._sync_closed()
        try:
            self._commit(is_needed)
        except (apsw.FullError, NoSpace):
            # What recovery has to write is little; users free space once the tree is mounted.
            if not self._state.give_up_reserve():
                raise
            receipt = self._receipt
            self._receipt = Receipt(receipt.time_ns, receipt.is_other_boot, kept=receipt.kept)
            self._receipt.damaged = receipt.damaged
            self._commit(is_needed)
        if not is_needed:
            return None
        self._sync_rows()
        self._tell()
        return self._receipt

    def _has_unsealed(self) -> bool:
        query = "select 1 from content where state=? limit 1"
        is_any_closed = self._database.one(query, (CLOSED,)) is not None
        return is_any_closed or self._last_seq > self._sealed_seq

    def _commit(self, is_needed: bool) -> None:
        database = self._database
        database.begin()
        try:
            if is_needed:
                self._recover()
            database.set_meta("content_id", first_id(database))
            database.set_meta("boot", self._state.boot_id)
            database.set_meta("is_clean", 0)
            database.set_meta("start_seq", Log(database).seq)
            database.commit()
        except BaseException:
            database.rollback()
            raise

    def _recover(self) -> None:
        if self._receipt.is_other_boot:
            receipt, lost_found = self._receipt, self._state.lost_found
            receipt.damaged += set_aside(self._database, lost_found, str(receipt.time_ns))
            receipt.carried_bytes = apply(self._database, self._state.data)
            self._check_bytes()
        self._save_refused()
        self._directory_times()
        if not self._receipt.kept:
            # The containers have it now; ``_sync_closed`` synced them where the boot is the same.
            self._database.execute("delete from redo")
            self._remove_nameless()
            self._count_references()
            if not self._receipt.is_other_boot:
                self._database.execute(CLOSED_IS_DURABLE, (CLOSED,))
            # Small bytes of every record so far were hashed or synced.
            self._database.set_meta("sealed_seq", max(self._sealed_seq, Log(self._database).seq))
            self._receipt.removed_files = len(list(unnamed_files(self._database, self._state)))
        self._write_receipt()

    # --- bytes ------------------------------------------------------------------------------------

    def _check_bytes(self) -> None:
        """Windows 4, 5, 6, 12 and 13."""
        receipt = self._receipt
        database = self._database
        query = "select distinct ino from journal where seq>? and op in (?,?)"
        bindings = (self._sealed_seq, Op.CREATE.value, Op.CONTENT.value)
        suspects: dict[int, bytes] = {}
        for (ino,) in database.all(query, bindings):
            row = database.one("select content from inode where ino=?", (ino,))
            if row is not None:
                suspects[ino] = row[0]
        query = "select id from content where state=?"
        closed = {large_blob(row[0]) for row in database.all(query, (CLOSED,))}
        if closed:
            # Their records may be older than sealed_seq, which speaks of small contents only.
            query = "select ino,content from inode where substr(content,1,1)=x'02'"
            suspects.update(row for row in database.all(query) if row[1] in closed)
        receipt.records_checked = len(suspects)
        returning = Returning(database, self._trust, self._state.lost_found, str(receipt.time_ns))
        returning.run(suspects)
        receipt.reverted, receipt.returned = returning.reverted, returning.returned
        receipt.saved = returning.saved
        receipt.damaged += [f"cannot be read, kept: {words}" for words in self._trust.unreadable]

    def _save_refused(self) -> None:
        """Bytes of changes that could not be made (``state.replay``), where no row names them."""
        receipt = self._receipt
        for number, refused in enumerate(self._database.held.refused, 1):
            for blob in _contents(refused.batch):
                if self._database.one(NAMED, (blob, blob)) is not None:
                    continue
                target = self._state.lost_found / f"{receipt.time_ns}-note-{number}"
                try:
                    kept = self._trust.save(blob, target)
                    words = f"its bytes are in {', '.join(path.name for path in kept)}"
                except (OSError, UnifsError) as error:
                    words = f"nothing of its bytes could be read: {error}"
                receipt.saved.append(f"{refused.sentence}: {words}")

    def _sync_closed(self) -> None:
        """Same boot: bring to disk what is only closed, so that what it replaced may go.

        Windows 7, 10 and 11. A segment that has its footer already was perhaps never synced.
        """
        try:
            for path in self._unsynced_files():
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            self._receipt.kept = f"what was closed could not be synced: {error}"

    def _unsynced_files(self) -> Iterator[str]:
        for folder in (self._state.segments, self._state.nodes):
            yield from (str(path) for path in folder.iterdir() if path.suffix == ".car")
        query = "select extents from content where state=?"
        containers: set[int] = set()
        for (extents,) in self._database.all(query, (CLOSED,)):
            containers.update(ExtentMap.unpack(extents).containers)
        yield from (self._trust.path(container) for container in containers)
        yield from (str(self._state.segments), str(self._state.nodes), str(self._state.data))

    def _sync_rows(self) -> None:
        """The rows are durable before the files that they no longer name go."""
        try:
            os.fdatasync(self._database.wal)
        except OSError as error:
            raise from_os_error(error) from error

    # --- what every crash leaves ------------------------------------------------------------------

    def _directory_times(self) -> None:
        """Times and link counts of directories are written lazily: take them from the journal."""
        newest: dict[int, int] = {}
        for record in Log(self._database).records(self._database.get_meta("times_seq", 0)):
            if record.op in (Op.CREATE, Op.UNLINK, Op.RMDIR, Op.LINK, Op.RENAME):
                newest[record.parent] = max(newest.get(record.parent, 0), record.time_ns)
            if record.op is Op.RENAME:
                to = unpack_rename(record.data).new_parent
                newest[to] = max(newest.get(to, 0), record.time_ns)
            if record.op is Op.SETATTR:
                # Times that somebody set, older ones too, stand in the row.
                newest.pop(record.ino, None)
        for ino, time_ns in newest.items():
            query = "select attributes from inode where ino=? and gone is null"
            row = self._database.one(query, (ino,))
            if row is None:
                continue
            attributes = bytearray(row[0])
            links = 2 + self._database.one(SUBDIRECTORIES, (ino,))[0]
            attributes[12:16] = links.to_bytes(4, "little")
            for at in (32, 40):
                known = int.from_bytes(attributes[at : at + 8], "little")
                attributes[at : at + 8] = max(known, time_ns).to_bytes(8, "little")
            if attributes == row[0]:
                continue
            epoch = self._database.get_meta("epoch", 1)
            self._database.execute(KEEP_DIRECTORY, (epoch, ino, epoch))
            statement = "update inode set attributes=?,epoch=? where ino=?"
            self._database.execute(statement, (bytes(attributes), epoch, ino))

    def _remove_nameless(self) -> None:
        """Rows that were born and lost their last name in one epoch are nobody's history."""
        execute = self._database.execute
        where = "gone is not null and gone<=epoch"
        execute(
            "insert or ignore into xattr_past select x.ino,i.gone,x.epoch,x.name,x.value"
            f" from xattr x join (select ino,gone from inode where {where}) i on i.ino=x.ino"
            " where x.epoch<i.gone"
        )
        execute(f"delete from xattr where ino in (select ino from inode where {where})")
        execute(f"delete from inode where {where}")
        self._receipt.removed_rows = self._database.one("select changes()")[0]

    def _count_references(self) -> None:
        """How often each large content is named, from the rows that name them."""
        counts: dict[int, int] = {}
        for table in ("inode", "inode_past", "remote"):
            query = f"select content from {table} where substr(content,1,1)=x'02'"
            for (content,) in self._database.rows(query):
                content_id = int.from_bytes(content[1:9], "little")
                counts[content_id] = counts.get(content_id, 0) + 1
        execute = self._database.execute
        for (content_id,) in self._database.all("select id from content"):
            if content_id in counts:
                statement = "update content set refs=? where id=?"
                execute(statement, (counts[content_id], content_id))
            else:
                execute("delete from content where id=?", (content_id,))
                execute("delete from holding where content=?", (content_id,))

    # --- the receipt ------------------------------------------------------------------------------

    def _write_receipt(self) -> None:
        """Durable before the rows are: what was given up is named, whatever happens next.

        A receipt whose transaction never came is followed by one of the next recovery.
        """
        if not (self._has_changes or self._receipt.has_content()):
            return
        self._receipt_name = f"receipt-{self._receipt.time_ns}.json"
        text = receipt_text(asdict(self._receipt))
        try:
            write_durably(self._state.lost_found / self._receipt_name, text.encode("ascii"))
        except OSError as error:
            log.warning("the receipt could not be written: error=%s text=%s", error, text)

    def _tell(self) -> None:
        receipt = self._receipt
        level = logging.WARNING if receipt.has_losses() else logging.INFO
        log.log(
            level,
            "recovered: other_boot=%s reverted=%d returned=%d receipt=%s",
            receipt.is_other_boot,
            len(receipt.reverted),
            len(receipt.returned),
            self._receipt_name or "none, nothing was found",
        )


def _contents(batch: Batch) -> list[bytes]:
    """The newest contents that a note's statements name."""
    found = [
        value
        for sql, bindings in batch
        if " inode " in sql
        for value in bindings
        if isinstance(value, bytes) and value and len(value) == COLUMN_BYTES.get(value[0])
    ]
    return found[-1:]


def unnamed_files(database: Database, state: StateDirectory) -> Iterator[Path]:
    """Files of data/ that no content names (windows 2 and 10)."""
    named = {row[0] for row in database.all("select distinct container from holding")}
    for path in state.data.iterdir():
        if not is_container_name(path.name):
            log.warning("not ours, left alone: path=%s", path)
        elif int(path.name, 16) not in named:
            yield path
