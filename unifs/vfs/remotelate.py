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
import os
import time
from typing import TYPE_CHECKING, Final

from unifs.errors import NoSpace
from unifs.types import Change, Version
from unifs.vfs.remotewaiting import FORGET, NOTE

if TYPE_CHECKING:
    from unifs.journal.writeback_late import Late
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.tree import Batch

log = logging.getLogger(__name__)

NOTES: Final = "select key,value from meta where key>=? and key<?"


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
        for key, text in self._volume.tree.database.all(NOTES, self._keys()):
            note = json.loads(text)
            is_ours = note["boot"] == boot
            left_s = note["until"] - now if is_ours else float("inf")
            if left_s <= 0:
                batch.append((FORGET, (key,)))
                continue
            for verb, path, token, new_path, base in note["calls"]:
                version = None if base is None else Version(base)
                self._late.noted(Change(verb, path, token, new_path, base=version), left_s)
            if is_ours:
                self._until[key] = note["until"]
            else:
                batch += self._written(key, bytes.fromhex(key.rpartition("/")[2]))
        if not batch:
            return
        try:
            self._volume.tree.commit(batch, frees=True)
        except NoSpace as error:
            # They stay as they are; the next start reads them again.
            log.warning("old notes stay for now: error=%s", error)

    def of(self, paths: set[str]) -> Batch:
        """Statements of the transaction after which no row tells what may arrive at ``paths``."""
        batch: Batch = []
        for path in paths:
            name = os.fsencode(path)
            batch += self._written(f"{self._keys()[0]}{name.hex()}", name)
        if batch:
            batch += self._expired()
        return batch

    def _written(self, key: str, path: bytes) -> Batch:
        calls, left_s = [], 0.0
        for change, seconds in self._late.at(os.fsdecode(path)):
            if seconds > 0:
                base = change.base
                calls.append((change.verb, change.path, change.token, change.new_path, base))
                left_s = max(left_s, seconds)
        if not calls:
            return []
        until = time.monotonic() + left_s
        self._until.pop(key, None)
        self._until[key] = until
        boot = self._volume.contents.boot.decode()
        return [(NOTE, (key, json.dumps({"boot": boot, "until": until, "calls": calls})))]

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
