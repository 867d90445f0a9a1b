"""Notes of what may still arrive at a backend although nothing of it is due any more.

A call that was cut off is repeated and answered; with that its attempt ends, and no row tells that
the first one may still arrive. So the transaction that ends an attempt notes what else may arrive
at its paths, and the next start reads it: a file that is removed then waits as it would have waited
before (``journal.writeback_late``). A change of attributes has no attempt: it is noted when it is
cut off. A note is a row of ``meta`` for each path.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unifs.errors import NoSpace
from unifs.types import Change, Version
from unifs.vfs.remotewaiting import FORGET, NOTE

if TYPE_CHECKING:
    from unifs.journal.writeback_late import Late
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

log = logging.getLogger(__name__)

#: Bytes that are no text, which a damaged row has, raise where they are read as one.
NOTES: Final = (
    "select key,cast(value as blob) from meta where key>=? and key<? and key not glob '*[^ -~]*'"
)


@dataclass(frozen=True, slots=True)
class Note:
    """What may arrive at a path until a moment of the monotonic clock of a boot."""

    boot: str
    until: float
    calls: list[Change]

    def pack(self) -> str:
        """The value in ``meta``."""
        calls = [
            (each.verb, each.path, each.token, each.new_path, each.base) for each in self.calls
        ]
        return json.dumps({"boot": self.boot, "until": self.until, "calls": calls})


def path_of(key: str) -> str | None:
    """The path that a note's key names; None where it names none."""
    try:
        return os.fsdecode(bytes.fromhex(key.rpartition("/")[2]))
    except ValueError:
        return None


def read(value: object, path: str) -> Note | None:
    """The note of a path from its value; None where that is none."""
    try:
        found = json.loads(value)  # type: ignore[arg-type]
        boot, until = found["boot"], found["until"]
        calls = [_change(*call) for call in found["calls"]]
    except (ValueError, TypeError, KeyError):
        return None
    is_note = isinstance(boot, str) and isinstance(until, float) and math.isfinite(until)
    is_of_path = all(path in (each.path, each.new_path) for each in calls)
    return Note(boot, until, calls) if is_note and is_of_path and calls else None


def _change(verb: str, path: str, token: str, new_path: str, base: str | None) -> Change:
    words = (verb, path, token, new_path, "" if base is None else base)
    if not all(isinstance(each, str) for each in words):
        raise ValueError("they are no words")
    return Change(verb, path, token, new_path, base=None if base is None else Version(base))


def anything(path: str) -> Note:
    """That something may arrive at a path, nobody knows what, as long as anything can.

    Everything waits for a rename: no condition of a backend makes it harmless.
    """
    return Note("", 0.0, [Change("rename", path, "")])


class LateNotes:
    """The notes of one volume."""

    def __init__(self, volume: RemoteVolume, late: Late) -> None:
        self._volume = volume
        self._late = late
        #: Until when, of the monotonic clock, each is needed; the one written last is the last.
        self._until: dict[str, float] = {}

    def _keys(self) -> tuple[str, str]:
        """What stands before the paths, and where it ends."""
        return f"late/{self._volume.mount_id}/", f"late/{self._volume.mount_id}0"

    def load(self) -> None:
        """After a start: tell ``Late``. WouldBlock before anything is done.

        The clock of another boot says nothing: what came from there may arrive for the whole time.
        """
        boot, now = self._volume.contents.boot.decode(), time.monotonic()
        batch: Batch = []
        for key, value in self._volume.tree.database.all(NOTES, self._keys()):
            path = path_of(key)
            if path is None:
                log.warning("a note that names no path is dropped: key=%r", key)
                batch.append((FORGET, (key,)))
                continue
            note = read(value, path)
            if note is None:
                log.warning("a note cannot be read, anything may arrive: path=%s", path)
                note = anything(path)
            is_ours = note.boot == boot
            left_s = note.until - now if is_ours else math.inf
            if left_s <= 0:
                batch.append((FORGET, (key,)))
                continue
            for change in note.calls:
                self._late.noted(change, left_s)
            if is_ours:
                self._until[key] = note.until
            else:
                batch += self._written(key, path)
        if not batch:
            return
        try:
            self._volume.tree.commit(batch, frees=True)
        except NoSpace as error:
            # They stay as they are; the next start reads them again.
            log.warning("old notes stay for now: error=%s", error)

    def of(self, *paths: str | None) -> Batch:
        """Statements of the transaction after which no row tells what may arrive at ``paths``.

        None is no path, and one may be given twice.
        """
        batch: Batch = []
        for path in {path for path in paths if path is not None}:
            batch += self._written(f"{self._keys()[0]}{os.fsencode(path).hex()}", path)
        if batch:
            batch += self._expired()
        return batch

    def _written(self, key: str, path: str) -> Batch:
        calls: list[Change] = []
        left_s = 0.0
        for change, seconds in self._late.at(path):
            if seconds > 0:
                calls.append(change)
                left_s = max(left_s, seconds)
        if not calls:
            return []
        until = time.monotonic() + left_s
        self._until.pop(key, None)
        self._until[key] = until
        boot = self._volume.contents.boot.decode()
        return [(NOTE, (key, Note(boot, until, calls).pack()))]

    def _expired(self) -> Batch:
        """Notes that say nothing any more."""
        now = time.monotonic()
        batch: Batch = []
        while self._until:
            key, until = next(iter(self._until.items()))
            if until > now:
                break
            del self._until[key]
            batch.append((FORGET, (key,)))
        return batch
