"""Trust: which contents can be believed after a power cut, and what is left of the others.

Used by recovery and by repairs. It looks, copies and links; it changes neither rows nor the bytes
it judges.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from unifs.errors import Corrupt, NotFound, UnifsError
from unifs.journal.content import (
    LARGE,
    REMOTE,
    SEALED,
    SMALL,
    large_id,
    remote_size,
    small_content,
)
from unifs.journal.extents import HOLE, ExtentMap
from unifs.journal.overlay import write_all
from unifs.journal.proof import holds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unifs.ipfs.embedded.segments import Segments
    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory

_COPY_BYTES = 1 << 20
#: What is left of a content and is not more than this is copied into one file: 10 ms.
COPIED_MAX = 4 << 20
#: Containers that no other content names.
OWN = (
    "select container from holding h where content=? and not exists"
    " (select 1 from holding o where o.container=h.container and o.content<>?)"
)
log = logging.getLogger(__name__)


class Verdict(Enum):
    """What a power cut left of a content."""

    WHOLE = 1
    #: Only the form that the last fsync made durable.
    DURABLE = 2
    LOST = 3


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a large content."""

    size: int
    extents: bytes


class Trust:
    """Judges contents by their columns; each once."""

    def __init__(self, database: Database, segments: Segments, state: StateDirectory) -> None:
        self._database = database
        self._segments = segments
        self._state = state
        self._verdicts: dict[bytes, Verdict] = {}
        #: What the disk did not let us read, a sentence each: kept, since it may be what somebody
        #: has synced, and a reader of it hears of it.
        self.unreadable: list[str] = []

    def verdict(self, blob: bytes) -> Verdict:
        """Whether the bytes that this content column names are those that were closed."""
        if not blob or blob[0] > LARGE:
            return Verdict.WHOLE
        known = self._verdicts.get(blob)
        if known is None:
            known = self._small(blob) if blob[0] == SMALL else self._large(large_id(blob))
            self._verdicts[blob] = known
        return known

    def _small(self, blob: bytes) -> Verdict:
        content = small_content(blob)
        try:
            data = self._segments.read(content.place())
        except (NotFound, Corrupt):
            return Verdict.LOST
        except UnifsError as error:
            self.unreadable.append(f"segment {content.segment} at {content.offset}: {error}")
            return Verdict.WHOLE
        is_same = hashlib.sha256(data).digest() == content.digest
        return Verdict.WHOLE if is_same else Verdict.LOST

    def _large(self, content_id: int) -> Verdict:
        query = "select state,extents,proof,durable_size from content where id=?"
        row = self._database.one(query, (content_id,))
        if row is None:
            return Verdict.LOST
        state, extents, proof, durable_size = row
        if state == SEALED or not extents:
            return Verdict.WHOLE
        if proof is not None and self._holds(proof, ExtentMap.unpack(extents), content_id):
            return Verdict.WHOLE
        return Verdict.LOST if durable_size is None else Verdict.DURABLE

    def _holds(self, proof: bytes, extents: ExtentMap, content_id: int) -> bool:
        try:
            return holds(proof, lambda start, end: b"".join(self._read(extents, start, end)))
        except FileNotFoundError:
            return False
        except OSError as error:
            self.unreadable.append(f"content {content_id}: {error}")
            return True

    def _read(self, extents: ExtentMap, start: int, end: int) -> Iterator[bytes]:
        for container, first, last in extents.pieces(start, end):
            if container == HOLE:
                yield bytes(last - first)
                continue
            with open(self.path(container), "rb") as file:
                yield os.pread(file.fileno(), last - first, first)

    def durable_form(self, content_id: int) -> Form | None:
        """The form that the last fsync made durable, None where it is the present one."""
        query = "select size,extents,durable_size,durable_extents from content where id=?"
        size, extents, durable_size, durable_extents = self._database.one(query, (content_id,))
        if (size, extents) == (durable_size, durable_extents):
            return None
        return Form(durable_size, durable_extents)

    def size(self, blob: bytes) -> int:
        """How many bytes a content has; 0 where the column names none."""
        if blob and blob[0] == REMOTE:
            return remote_size(blob)
        if not blob or blob[0] > LARGE:
            return 0
        if blob[0] == SMALL:
            return small_content(blob).length
        row = self._database.one("select size from content where id=?", (large_id(blob),))
        return 0 if row is None else int(row[0])

    def path(self, container: int) -> str:
        """The file of a container."""
        return str(self._state.data / f"{container:016x}")

    # --- what is left -----------------------------------------------------------------------------

    def save(self, blob: bytes, target: Path) -> list[Path]:
        """Keep what can be read of a content as ``target``, or in several files with its name.

        Their names become durable with the receipt. Up to ``COPIED_MAX`` bytes are copied, durably.
        More is linked, so that a mount after a power cut does not wait for gigabytes: each file
        has its bytes at their offset; what another content has too stays there. UnifsError or
        OSError where there is nothing to read or no place for it.
        """
        if blob[0] == SMALL:
            data = self._segments.read(small_content(blob).place())
            with open(target, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return [target]
        content_id = large_id(blob)
        row = self._database.one("select size,extents from content where id=?", (content_id,))
        if row is None:
            raise Corrupt(f"content {content_id} has no row")
        extents = ExtentMap.unpack(row[1])
        present = [held for held in set(extents.containers) if os.path.exists(self.path(held))]
        if not present:
            raise Corrupt("none of its files is there")
        if extents.held_bytes() > COPIED_MAX:
            own = {row[0] for row in self._database.all(OWN, (content_id, content_id))}
            linked = self._link(sorted(own.intersection(present)), target)
            if linked is not None:
                return linked
        with open(target, "wb") as file:
            for container, start, end in extents.pieces(0, row[0]):
                if container in present:
                    self._copy(container, file.fileno(), start, end)
            file.truncate(row[0])
            os.fsync(file.fileno())
        return [target]

    def _link(self, containers: list[int], target: Path) -> list[Path] | None:
        """None where the file system has no hard links."""
        if not containers:
            raise Corrupt("all that is left of it belongs to other contents too")
        targets = [target.with_name(f"{target.name}.{number}") for number in range(len(containers))]
        if len(containers) == 1:
            targets = [target]
        try:
            for container, name in zip(containers, targets, strict=True):
                os.link(self.path(container), name)
        except OSError as error:
            log.warning("no hard link into lost+found, copying: error=%s", error)
            for name in targets:
                name.unlink(missing_ok=True)
            return None
        return targets

    def _copy(self, container: int, target: int, start: int, end: int) -> None:
        with open(self.path(container), "rb") as source:
            offset = start
            while offset < end:
                part = os.pread(source.fileno(), min(_COPY_BYTES, end - offset), offset)
                if not part:
                    return
                write_all(target, memoryview(part), offset)
                offset += len(part)
