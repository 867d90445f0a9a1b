"""The transaction that is held open while the request loop lets nobody else look.

The loop goes from one request to the next without a checkpoint as long as requests are queued. So
long no other task runs, and no thread starts that would be told what was done; batches are executed
in one transaction, each noted in ``state.ahead`` before it is acknowledged, and committed together:
8 µs less for each. Before the loop lets go, before a sync, and before a transaction of somebody's
own, ``settle`` commits: nobody ever misses in the database what was acknowledged.

Held is only what has its blocks in the WAL already, so that the commit does not fail on a full
disk. On a file system that wants space for overwriting it can: then the reserve is given up, and
where that does not help the journal has failed, as with any I/O error. Nothing is lost: the next
start executes what is noted, and until then it is seen in the transaction that stays open.

Owned by ``Database``; belongs to the event loop's thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import apsw

from unifs.state import directory
from unifs.state.ahead import Ahead
from unifs.state.replay import replay, write_receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.state.ahead import Batch
    from unifs.state.database import Database
    from unifs.state.queries import Queries
    from unifs.state.replay import Refused

log = logging.getLogger(__name__)

#: So many batches, of four pages each where they are small, and the room that they have in the WAL.
HELD_MAX: Final = 32
HELD_WAL_BYTES: Final = 512 << 10
#: By so much the WAL grows where it has less room: 150 µs for what 250 created files take.
WAL_MORE: Final = bytes(1 << 20)
#: The fact in ``meta``: the number of the last transaction that was held.
#: Where it is damaged, the notes that it speaks of are nobody's.
NUMBER: Final = (
    "select value from meta where key='held' and typeof(value)='integer'"
    " and value between 0 and 1<<62"
)
SET_NUMBER: Final = "insert or replace into meta values('held',?)"


class Held:
    """What is executed, noted and not committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ahead = Ahead(database.path.with_name("ahead"), directory.boot_id())
        self._begin(1)
        self.batches: list[Batch] = []
        #: Nobody else looks at the database before who set this has called ``settle``.
        self.is_allowed = False
        #: What the start could not execute of an earlier daemon's notes, and the receipt of it.
        self.refused: list[Refused] = []
        self.receipt = ""
        #: Asked for space where a commit does not find what it was promised.
        self.make_room: Callable[[], bool] = _no_room

    def take(self, batch: Batch) -> bool:
        """Execute and note a batch; False, and nothing done, where it has to be committed alone.

        Errors as ``Database.execute_batch``.
        """
        database = self._database
        batches = self.batches
        if len(batches) >= HELD_MAX:
            self.settle()
        # Refuses where that has failed: what is held stays as it was noted.
        database.admit(room=0)
        if not batches and not self._has_wal_room():
            return False
        execute = database.execute
        try:
            if not batches:
                execute("begin immediate")
            for sql, bindings in batch:
                execute(sql, bindings)
            is_noted = self._ahead.note(batch)
        except BaseException as error:
            self._take_back()
            if isinstance(error, apsw.Error):
                raise database.broken(error) from error
            raise
        if not is_noted:
            self._take_back()
            return False
        batches.append(batch)
        database.commits += 1
        return True

    def _has_wal_room(self) -> bool:
        """Whether the commit of what is held from now on will find its blocks in the WAL."""
        database = self._database
        # Where it ends is told by the next commit.
        return database.wal_bytes > 0 and database.make_wal_room(HELD_WAL_BYTES, WAL_MORE)

    def settle(self) -> None:
        """Commit. Never raises: where that fails for good, so does the journal."""
        if not self.batches or self._database.failed is not None:
            return
        try:
            self._commit()
        except apsw.Error as error:
            log.warning("what is held is executed again: error=%s", error)
            self._again()

    def _commit(self) -> None:
        execute = self._database.execute
        execute(SET_NUMBER, (self._number,))
        execute("commit")
        self.batches.clear()
        self._begin(self._number + 1)

    def _begin(self, number: int) -> None:
        self._number = number
        self._ahead.begin(number)

    def _take_back(self) -> None:
        """Undo the last batch. Those before it are acknowledged: they are done again."""
        try:
            self._database.undo()
        except apsw.Error as error:
            self._database.fail(f"a change could not be taken back: {error}")
        if self.batches:
            self._again()

    def _again(self) -> None:
        try:
            try:
                self._execute_again()
            except apsw.FullError:
                if not self.make_room():
                    raise
                self._execute_again()
        except (apsw.Error, OSError) as error:
            self._database.fail(f"what was acknowledged waits for the next start: {error}")
            self._show()

    def _execute_again(self) -> None:
        self._database.undo()
        self._execute(self.batches)
        self._commit()

    def _show(self) -> None:
        """Leave the transaction open: until that start, whoever reads sees what was acknowledged.

        Memory is as if it had been committed, and it needs nothing of the disk.
        """
        try:
            self._database.undo()
            self._execute(self.batches)
        except apsw.Error as error:
            log.error("what was acknowledged is not seen until then: error=%s", error)

    def _execute(self, batches: list[Batch]) -> None:
        execute = self._database.execute
        execute("begin immediate")
        for batch in batches:
            for sql, bindings in batch:
                execute(sql, bindings)

    def execute_left(self) -> None:
        """At the start: commit what an earlier daemon noted and, being killed, did not commit.

        What does not fit the rows any more is told and left out (``state.replay``).
        """
        self._begin(next_number(self._database))
        batches = self._ahead.left(self._number)
        if batches is None:
            return
        # With its number, so that what another boot noted never counts again: not on the machine
        # where it was noted either, once the directory is back.
        database = self._database
        database.execute("begin immediate")
        self.refused = replay(database.execute, batches)
        if self.refused:
            # Before the transaction: what is told of is given up with it.
            self.receipt = write_receipt(database.path.with_name("lost+found"), self.refused)
        self._commit()
        if batches:
            log.warning("a killed daemon had not committed: changes=%d", len(batches))
        for each in self.refused:
            log.error("%s receipt=%s", each.sentence, self.receipt)

    def close(self) -> None:
        """Let go of the notes; what was held is committed by then, or waits for the next start."""
        self._ahead.close()


def next_number(rows: Queries) -> int:
    """The number whose notes, if there are any, nobody has committed."""
    known = rows.one(NUMBER)
    return 1 if known is None else int(known[0]) + 1


def _no_room() -> bool:
    return False
