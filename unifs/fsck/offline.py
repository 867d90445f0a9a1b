"""Offline: fsck of a state directory that no daemon has.

Called by ``unifs fsck``. Looking changes nothing, not even the write-ahead log. Repairing works in
two rounds: rows first, as far as recovery needs them to be sound; then recovery as at every start;
then everything, with the blocks at hand. Each check is asked and mended in one transaction, after
the receipt that names what it changes is durable, and again until nothing more changes.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import apsw

from unifs.errors import Corrupt, DiskFailed, NoSpace, NotFound, StateNewer, from_os_error
from unifs.fsck.checks import STAGES
from unifs.fsck.columns import is_text_of
from unifs.fsck.look import Check, Finding, Look
from unifs.fsck.mending import Mending
from unifs.state import ahead, schema
from unifs.state.database import Database
from unifs.state.directory import StateDirectory
from unifs.state.durable import receipt_text, write_durably
from unifs.state.held import next_number
from unifs.state.queries import VFS, Queries
from unifs.state.replay import replay
from unifs.vfs.storage import DEFAULT_PROFILE, Storage
from unifs.vfs.unindexed import index_container

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from unifs.errors import UnifsError
    from unifs.state.replay import Refused

#: Exit codes, after the habit of e2fsck.
CLEAN, REPAIRED, LEFT, FAILED = 0, 1, 4, 8
#: Findings of one check that are mended in one transaction; what is more comes in the next round.
FINDINGS_MAX = 10_000
ROUNDS_MAX = 16


@dataclass(slots=True)
class Outcome:
    """What an fsck found and did. ``needs_recovery``: the next start, or a repair, has to recover
    what a crash left; what recovery decides was not looked at.
    """

    found: list[Finding] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    #: Name of the receipt in lost+found; "" where nothing was changed.
    receipt: str = ""
    needs_recovery: bool = False
    has_recovered: bool = False
    #: Until what was found is mended, other questions cannot be asked.
    is_partial: bool = False

    @property
    def exit_code(self) -> int:
        """``CLEAN``, ``REPAIRED`` or ``LEFT``."""
        if self.left:
            return LEFT
        return REPAIRED if self.found else CLEAN


class Reader(Queries):
    """A connection to tree.db that leaves the write-ahead log as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        has_log = path.with_name("tree.db-wal").exists()
        try:
            flags = apsw.SQLITE_OPEN_READWRITE
            self._connection = apsw.Connection(str(path), flags=flags, vfs=VFS)
        except apsw.Error as error:
            raise _named(path, error) from error
        try:
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(has_log))
            version = self._connection.pragma("user_version")
        except apsw.Error as error:
            self._connection.close(True)
            raise _named(path, error) from error
        if version != schema.VERSION:
            self._connection.close()
            raise StateNewer(
                f"{path.parent} has format {version}, this unifs checks {schema.VERSION}"
            )

    def refused(self, boot_id: str) -> list[Refused]:
        """What of a killed daemon's notes the next start could not execute; nothing is executed."""
        path = self.path.with_name("ahead")
        batches = ahead.look(path, boot_id, next_number(self))
        if not batches:
            return []
        execute = self._connection.execute
        execute("begin immediate")
        try:
            return replay(execute, batches)
        finally:
            if not self._connection.get_autocommit():
                execute("rollback")

    def close(self) -> None:
        """Without a checkpoint of what was there."""
        self._connection.close()


def _named(path: Path, error: apsw.Error) -> UnifsError:
    """What is told of a database that cannot be looked at."""
    if isinstance(error, apsw.FullError):
        return NoSpace(f"no space left for what a look at {path} has to write")
    if isinstance(error, apsw.IOError | apsw.CantOpenError):
        return DiskFailed(f"{path} cannot be read: {error}")
    return Corrupt(f"{path} is no sound database: {error}")


def examine(path: Path, repair: bool = False, is_thorough: bool = False) -> Outcome:
    """Check the state directory ``path``, and mend it where ``repair`` is asked for.

    StateInUse while a daemon has it; NotFound where there is none; Corrupt where SQLite cannot read
    its database. ``is_thorough``: hash every content too.
    """
    if not (path / "tree.db").is_file():
        raise NotFound(f"{path} is no state directory of unifs")
    try:
        return _Repair(path, is_thorough).run() if repair else _look(path, is_thorough)
    except apsw.Error as error:
        raise _named(path / "tree.db", error) from error
    except OSError as error:
        raise from_os_error(error) from error


def _look(path: Path, is_thorough: bool) -> Outcome:
    state = StateDirectory(path)
    try:
        rows = Reader(state.database)
        look = Look(rows, path)
        look.is_thorough = is_thorough
        try:
            stages, needs_recovery = due(look, state.boot_id)
            outcome = Outcome(needs_recovery=needs_recovery)
            for stage in stages:
                if outcome.found:
                    outcome.is_partial = True
                    break
                outcome.found += [each for check in stage for each in _run(check, look)]
            outcome.found += _told(rows.refused(state.boot_id))
            outcome.left = outcome.found
            return outcome
        finally:
            look.close()
            rows.close()
    finally:
        state.close()


def due(look: Look, boot_id: str) -> tuple[list[list[Check]], bool]:
    """The checks that can be asked now, by stage; whether recovery comes before the others."""
    query = "select typeof(value),cast(value as blob) from meta where key=?"
    is_clean = look.one(query, ("is_clean",)) in (None, ("integer", b"1"))
    boot = look.one(query, ("boot",))
    # What cannot be one is no other boot: else nothing would be trusted that is not proven.
    is_text = boot is not None and boot[0] == "text" and is_text_of(boot[1])
    is_same_boot = not is_text or boot[1] == boot_id.encode()
    is_any_closed = look.one("select 1 from content where state=1 limit 1") is not None
    is_other = not is_same_boot and (is_any_closed or not is_clean)
    stages = [
        [
            check
            for check in stage
            if not (check.is_for_rest and (not is_clean or is_other))
            and not (check.needs_recovery and is_other)
        ]
        for stage in STAGES
    ]
    return stages, not is_clean or is_other


def _told(refused: Sequence[Refused]) -> list[Finding]:
    return [Finding("NOTE_REFUSED", each.sentence) for each in refused]


def _run(check: Check, look: Look) -> Iterator[Finding]:
    return islice(check.run(look), FINDINGS_MAX)


class _Repair:
    """One repair of one state directory."""

    def __init__(self, path: Path, is_thorough: bool) -> None:
        self._path = path
        self._is_thorough = is_thorough
        self._outcome = Outcome()
        self._seen: set[tuple[str, str]] = set()
        self._mendings: list[Mending] = []
        self._receipt = path / "lost+found" / f"receipt-{time.time_ns()}.json"

    def run(self) -> Outcome:
        """Mend what can be mended; what is left is in the outcome."""
        profile = self._first()
        # Recovery, as at every start.
        storage = Storage(self._path, profile=profile)
        is_done = False
        try:
            self._outcome.has_recovered = storage.receipt is not None
            # What a put indexes must not stand for sections before it that are not.
            storage.blocks.catch_up()
            for container in sorted(storage.unindexed):
                index_container(storage, container)
            with closing(Look(storage.database, self._path)) as look:
                look.is_thorough = self._is_thorough
                mending = Mending(look, storage.database, storage.state.lost_found)
                mending.storage = storage
                self._mend(STAGES, look, mending)
            is_done = True
        finally:
            # Else the next start has to count references anew.
            storage.close(is_done)
        self._outcome.left = _look(self._path, self._is_thorough).left
        if self._outcome.receipt:
            self._write_receipt()
        return self._outcome

    def _first(self) -> str:
        """Rows, as far as recovery needs them to be sound; the profile of the directory."""
        state = StateDirectory(self._path)
        try:
            database = Database(state.database)
            try:
                with closing(Look(database, self._path)) as look:
                    stages, _ = due(look, state.boot_id)
                    mending = Mending(look, database, state.lost_found)
                    self._tell_refused(database, mending)
                    self._mend(stages, look, mending)
                    if self._outcome.found:
                        self._write_receipt()
                return str(database.get_meta("profile", DEFAULT_PROFILE))
            finally:
                database.close()
        finally:
            state.close()

    def _tell_refused(self, database: Database, mending: Mending) -> None:
        """What of a killed daemon's notes could not be executed when the database was opened."""
        held = database.held
        if held.refused:
            self._outcome.found += _told(held.refused)
            mending.kept.append(f"the changes that could not be made are in {held.receipt}")

    def _mend(self, stages: Sequence[Sequence[Check]], look: Look, mending: Mending) -> None:
        """Ask and mend, stage by stage, until nothing is found."""
        self._mendings.append(mending)
        for stage in stages:
            if not self._mend_stage(stage, look, mending):
                # Later stages expect what this one could not bring about.
                return

    def _mend_stage(self, stage: Sequence[Check], look: Look, mending: Mending) -> bool:
        """Whether nothing is left, or nothing that changes any more in the last stage."""
        before: list[tuple[str, str]] = []
        for _ in range(ROUNDS_MAX):
            found: list[Finding] = []
            for check in stage:
                findings = [*_run(check, look)]
                if findings:
                    self._commit(findings, mending)
                    found += findings
            now = [(each.code, each.sentence) for each in found]
            if not now:
                return True
            if now == before:
                return False
            before = now
        return False

    def _commit(self, findings: list[Finding], mending: Mending) -> None:
        for each in findings:
            if (each.code, each.sentence) not in self._seen:
                self._seen.add((each.code, each.sentence))
                self._outcome.found.append(each)
        mending.database.begin()
        try:
            for each in findings:
                if each.mend is not None:
                    each.mend(mending)
            # Until all is mended the next start has to count references anew.
            mending.database.set_meta("is_clean", 0)
            self._write_receipt()
            mending.database.commit()
        except BaseException:
            mending.database.rollback()
            raise

    def _write_receipt(self) -> None:
        """What was found, and every row as it was: durable before it changes."""
        outcome = self._outcome
        outcome.receipt = self._receipt.name
        outcome.kept = [sentence for each in self._mendings for sentence in each.kept]
        text = {
            "kind": "fsck",
            "time_ns": int(self._receipt.stem.partition("-")[2]),
            "found": [{"code": each.code, "sentence": each.sentence} for each in outcome.found],
            "left": [each.sentence for each in outcome.left],
            "kept": outcome.kept,
            "rows": [row for each in self._mendings for row in each.rows],
            "rows_left_out": sum(each.rows_left_out for each in self._mendings),
        }
        write_durably(self._receipt, receipt_text(text).encode("ascii"))
