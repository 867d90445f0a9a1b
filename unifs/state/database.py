"""tree.db: one SQLite database, one writing connection, owned by the event loop.

A mutation is one transaction, committed inline: ``synchronous=NORMAL`` costs 12–17 µs and survives
kill -9; what must survive a power cut adds one fdatasync of the WAL (``journal.flush``), which
makes NORMAL as durable as FULL. ``wal_autocheckpoint=0``: a checkpoint on the loop would stall it
for the length of an fsync, so the checkpoint thread does it on a connection of its own. Above
``WAL_LIMIT_BYTES`` mutations wait, suspended, while that thread runs one RESTART checkpoint.

What the request loop does without letting anybody else look is committed together
(``state.held``); ``settle`` comes before a sync and before every transaction of one's own.

Failures: SQLITE_FULL rolls back and becomes NoSpace (a transaction that frees space may give up the
reserve and try again); any I/O error becomes JournalFailed for good: memory and disk may disagree,
so every later mutation is refused until a restart has checked the database.

Never open a second descriptor of tree.db itself: closing it would drop SQLite's locks. Connections
of other processes are refused as long as this one is open.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Any

import apsw
import trio

from unifs.errors import Corrupt, DiskFailed, JournalFailed, NoSpace, StateNewer, StateUnusable
from unifs.state import schema
from unifs.state.held import Held
from unifs.state.queries import VFS, Queries, reading_failed
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from unifs.state.ahead import Batch

log = logging.getLogger(__name__)

#: RESTART checkpoint above this; a PASSIVE one each time it has grown by ``PASSIVE_BYTES``.
WAL_LIMIT_BYTES = 64 << 20
PASSIVE_BYTES = 16 << 20
#: The part of the limit, 1 MiB, that is left for what a request commits once it was admitted.
WAL_ROOM = 64
#: A fact about the whole state directory: key, value.
SET_META = "insert or replace into meta values(?,?)"
#: Values in one statement.
AMONG_MAX = 250
FRAME_BYTES = schema.PAGE_BYTES + 24

#: One thread at a time uses the loop's connection: its mutex would guard nothing.
_LOOP_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_NOMUTEX

PRAGMAS = (
    f"page_size={schema.PAGE_BYTES}",
    "journal_mode=wal",
    "synchronous=normal",
    "wal_autocheckpoint=0",
    "cache_size=-16384",
    "temp_store=memory",
)


class Database(Queries):
    """The loop's connection. Every method but ``close`` belongs to the loop's thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: JournalFailed | None = None
        self.is_in_transaction = False
        self.commits = 0
        self.wal_bytes = 0
        self.held = Held(self)
        self._waiting: trio.Event | None = None
        self._checkpoints: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._passive_asked = False
        self._passive_at = PASSIVE_BYTES
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread: threading.Thread | None = None
        try:
            self._connection = apsw.Connection(
                str(path), flags=_LOOP_FLAGS, vfs=VFS, statementcachesize=200
            )
        except apsw.Error as error:
            self.held.close()
            raise _opening_failed(path, error) from error
        self._cursor = self._connection.cursor()
        self.execute: Callable[..., apsw.Cursor] = self._cursor.execute
        try:
            self._prepare()
        except BaseException as error:
            self._connection.close(True)
            self.held.close()
            # Which database it is, the sentence has to say here.
            cause = error.__cause__ if isinstance(error, Corrupt | DiskFailed) else error
            if isinstance(cause, apsw.Error):
                raise _opening_failed(path, cause) from cause
            raise
        self._connection.set_wal_hook(self._committed)
        # The file exists from the first write on, and keeps its inode while a connection is open.
        self.wal = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _prepare(self) -> None:
        version = self.one("pragma user_version")[0]
        if version > schema.VERSION:
            raise StateNewer(
                f"{self.path.parent} has format {version}, this unifs knows up to {schema.VERSION}"
            )
        for pragma in PRAGMAS:
            self.all(f"pragma {pragma}")
        if version:
            self.held.execute_left()
        while version < schema.VERSION:
            self.execute("begin immediate")
            for statement in schema.MIGRATIONS[version]:
                self.execute(statement)
            version += 1
            self.execute(f"pragma user_version={version}")
            self.execute("commit")

    # --- queries ----------------------------------------------------------------------------------

    def fetch(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        """As ``all``, with the one cursor that is always there: for what is asked all the time."""
        try:
            return self.execute(sql, bindings).fetchall()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise reading_failed(error) from error

    def among(self, sql: str, first: tuple[Any, ...], values: list[bytes]) -> Iterator[Any]:
        """Rows of a query whose last condition is ``in (%s)``, asked for many values at a time."""
        for start in range(0, len(values), AMONG_MAX):
            some = values[start : start + AMONG_MAX]
            yield from self.all(sql % ",".join("?" * len(some)), (*first, *some))

    def rows(self, sql: str, bindings: Sequence[Any] = ()) -> Iterator[Any]:
        """Rows one by one; finish before the next mutation, or the WAL cannot be checkpointed."""
        try:
            yield from self._connection.execute(sql, bindings)
        except (apsw.Error, UnicodeDecodeError) as error:
            raise reading_failed(error) from error

    def get_meta(self, key: str, default: Any = None) -> Any:
        row = self.one("select value from meta where key=?", (key,))
        return default if row is None else row[0]

    def get_table(self, key: str) -> dict[str, Any]:
        """A fact that is a JSON object; empty where there is none. Corrupt where it is damaged."""
        try:
            found = json.loads(self.get_meta(key, "{}"))
        except (ValueError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise Corrupt(f"{key} cannot be read in {self.path}: `unifs fsck --repair` mends it")
        return found

    def set_meta(self, key: str, value: Any) -> None:
        """Inside the caller's transaction."""
        self.execute(SET_META, (key, value))

    @property
    def rows_changed(self) -> int:
        """How many rows were changed here since the start, in transactions rolled back too."""
        return self._connection.total_changes()

    # --- transactions -----------------------------------------------------------------------------

    def admit(self, room: int = WAL_ROOM) -> None:
        """WouldBlock where a mutation would have to wait; for who changes memory before he commits.

        After this a few small transactions follow without one.
        """
        if self.failed is not None:
            raise self.refusal()
        limit_bytes = WAL_LIMIT_BYTES
        if room:
            limit_bytes -= limit_bytes // room
        # A checkpoint that lets the WAL start over has the lock of who writes.
        is_due = self.wal_bytes > limit_bytes or self._waiting is not None
        if is_due and self._thread is not None:
            self.settle()
            raise WouldBlock(self._restarted)

    def begin(self) -> None:
        """Start a transaction; WouldBlock while the WAL is above its limit."""
        self.settle()
        self.admit(room=0)
        try:
            self.execute("begin immediate")
        except apsw.Error as error:
            raise self.broken(error) from error
        self.is_in_transaction = True

    def commit(self) -> None:
        """Commit: what was done survives kill -9 when this returns."""
        try:
            self.execute("commit")
        except apsw.Error as error:
            raise self.broken(error) from error
        self.is_in_transaction = False
        self.commits += 1

    def execute_batch(self, batch: Batch, may_hold: bool = True) -> None:
        """Execute the statements as one transaction, all or none.

        What was done survives kill -9 when this returns. Not ``may_hold``: a sync follows.
        """
        if may_hold and self.held.is_allowed and self.held.take(batch):
            return
        self.begin()
        execute = self.execute
        try:
            for sql, bindings in batch:
                execute(sql, bindings)
            execute("commit")
        except apsw.Error as error:
            raise self.broken(error) from error
        except BaseException:
            self.rollback()
            raise
        self.is_in_transaction = False
        self.commits += 1

    def settle(self) -> None:
        """Commit what is held (``state.held``). Never raises."""
        if self.held.batches:
            self.held.settle()

    # --- failures ---------------------------------------------------------------------------------

    def broken(self, error: apsw.Error) -> Exception:
        """Roll back after a statement failed; the failure by its name."""
        if self.is_in_transaction:
            self.is_in_transaction = False
            self.undo()
        if isinstance(error, apsw.FullError):
            return NoSpace()
        if isinstance(error, apsw.IOError | apsw.CorruptError | apsw.NotADBError):
            self.fail(str(error))
            return self.refusal()
        return error

    def rollback(self) -> None:
        """Undo the transaction that an exception interrupted."""
        if self.is_in_transaction:
            self.is_in_transaction = False
            self.undo()

    def undo(self) -> None:
        """Roll back what SQLite has not rolled back by itself."""
        if not self._connection.get_autocommit():
            self.execute("rollback")

    def fail(self, reason: str) -> None:
        """From now on every mutation is refused."""
        if self.failed is None:
            log.error("journal failed, the tree is read-only now: reason=%s", reason)
            self.failed = JournalFailed(f"the journal failed: {reason}")

    def refusal(self) -> JournalFailed:
        """Why a mutation is refused; made anew, since each raise adds frames to an exception."""
        return JournalFailed(str(self.failed))

    # --- checkpoints ------------------------------------------------------------------------------

    def _committed(self, _connection: object, _name: str, pages: int) -> int:
        before, self.wal_bytes = self.wal_bytes, pages * FRAME_BYTES
        if self.wal_bytes < before:
            # The WAL started over.
            self._passive_at = PASSIVE_BYTES
        is_due = self.wal_bytes > self._passive_at and not self._passive_asked
        if is_due and self._thread is not None:
            # Each one syncs the database and writes every changed page: not more often than this.
            self._passive_at = self.wal_bytes + PASSIVE_BYTES
            self._passive_asked = True
            self._checkpoints.put("passive")
        return 0

    async def _restarted(self) -> object:
        if self._waiting is None:
            self._waiting = trio.Event()
            self._checkpoints.put("restart")
        await self._waiting.wait()
        return RETRY

    def make_wal_room(self, room_bytes: int, zeros: bytes) -> bool:
        """Have so many bytes of the WAL on the disk ahead of their use; False where it refuses.

        Where there are fewer, ``zeros`` go behind its end; SQLite takes them for the end. Only
        while no transaction is under way: nobody else writes to the WAL then.
        """
        try:
            end = os.fstat(self.wal).st_size
            if end - self.wal_bytes >= room_bytes:
                return True
            return os.pwrite(self.wal, zeros, end) == len(zeros)
        except OSError as error:
            log.debug("the WAL did not grow ahead of its use: error=%s", error)
            return False

    def start_checkpoints(self) -> None:
        """Start the checkpoint thread; from inside the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(
            target=self._checkpoint_loop, name="checkpoint", daemon=True
        )
        self._thread.start()

    def _checkpoint_loop(self) -> None:
        connection: apsw.Connection | None = None
        while (mode := self._checkpoints.get()) is not None:
            level = apsw.SQLITE_CHECKPOINT_RESTART if mode == "restart" else None
            problem = ""
            try:
                # A disk that fails now may work for the next one.
                connection = connection or self._checkpointer()
                connection.wal_checkpoint(mode=level or apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.BusyError:
                log.debug("checkpoint found the database busy: mode=%s", mode)
            except apsw.Error as error:
                problem = str(error)
            self._report(mode, problem)
        if connection is not None:
            connection.close()

    def _checkpointer(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), vfs=VFS)
        try:
            connection.set_busy_timeout(2000)
            connection.execute("pragma synchronous=normal")
        except BaseException:
            # Else it stays open as long as anybody has the exception's traceback.
            connection.close(True)
            raise
        return connection

    def _report(self, mode: str, problem: str) -> None:
        token = self._token
        assert token is not None
        try:
            token.run_sync_soon(self._checkpointed, mode, problem)
        except trio.RunFinishedError:
            log.debug("checkpoint ended after the loop: mode=%s", mode)

    def _checkpointed(self, mode: str, problem: str) -> None:
        if problem:
            log.warning("checkpoint failed: mode=%s error=%s", mode, problem)
        if mode == "passive":
            self._passive_asked = False
            return
        # The next commit starts the WAL over and the hook tells its real size.
        self.wal_bytes = 0
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    def stop_checkpoints(self) -> None:
        """End the thread; from now on nobody waits for it."""
        if self._thread is not None:
            self._checkpoints.put(None)
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stop the checkpoint thread, checkpoint everything, close."""
        self.stop_checkpoints()
        self.rollback()
        self.settle()
        self.held.close()
        os.close(self.wal)
        try:
            self._connection.close()
        except (apsw.IOError, apsw.FullError) as error:
            # It is closed; the next start finds in the WAL what is not in the database yet.
            log.warning("the last checkpoint failed: error=%s", error)

    def check(self) -> None:
        """Corrupt unless SQLite finds its own structures sound (0.2 s per 100 MiB)."""
        try:
            answer = self.one("pragma quick_check(1)")[0]
        except (apsw.Error, Corrupt) as error:
            raise Corrupt(f"{self.path} is damaged: {error}") from error
        if answer != "ok":
            raise Corrupt(f"{self.path} is damaged: {answer}")


def _opening_failed(path: Path, error: apsw.Error) -> Exception:
    if isinstance(error, apsw.FullError):
        return NoSpace(f"no space left to open {path}")
    if isinstance(error, apsw.NotADBError | apsw.CorruptError):
        return Corrupt(f"{path} is not a sound database: {error}")
    return StateUnusable(f"{path} cannot be opened: {error}")
