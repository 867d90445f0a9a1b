"""Who writes blocks at the moment, so that a collection never takes what nobody has pinned yet.

A put tells, *before* it looks whether the block is here already, which block it is about to rely on
and where the next section would go. A collection asks for a ``Cutoff`` when it begins: everything
written or found present since the cutoff's time stays, whatever the marks say. That time is when
the oldest import still running began, and at least the grace ago.

Used by ``blocks`` and ``collect``, from any thread, one lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What was written without an import around it (``block put``) has this long to be linked.
GRACE_S: Final = 60.0
#: Found-present blocks remembered; 30 MB. Beyond it a collection waits until the imports end.
TOUCHED_MAX: Final = 200_000
_SAMPLE_S: Final = 0.5
_SAMPLES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Cutoff:
    """What a collection that began at some time must leave alone."""

    since_s: float
    #: (segment, offset) of the node's own segments.
    position: tuple[int, int]

    def protects(self, segment: int, offset: int) -> bool:
        """Whether the section whose data lie there was written since the cutoff."""
        return (segment, offset) >= self.position


class Writers:
    """The puts and imports of one blockstore."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, grace_s: float = GRACE_S
    ) -> None:
        self.grace_s = grace_s
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[int, float] = {}
        self._next_session = 0
        #: (time, segment, offset) of some writes, ascending: everything before a sample is older.
        self._samples: deque[tuple[float, int, int]] = deque()
        #: multihash → when a put last came for it, in order of time.
        self._touched: dict[bytes, float] = {}
        #: When the latest block was touched that ``_touched`` had no room for.
        self._lost_s = float("-inf")

    @contextmanager
    def session(self, position: tuple[int, int]) -> Iterator[None]:
        """An import: what it puts is safe until the block ends, however long it takes."""
        now = self._clock()
        with self._lock:
            number = self._next_session
            self._next_session += 1
            self._sessions[number] = now
            self._samples.append((now, *position))
        try:
            yield
        finally:
            with self._lock:
                del self._sessions[number]

    def before_put(self, multihash: bytes, position: tuple[int, int]) -> None:
        """Somebody relies on this block from now on; if it is written, not before ``position``."""
        now = self._clock()
        with self._lock:
            samples = self._samples
            if not samples or now - samples[-1][0] >= _SAMPLE_S:
                samples.append((now, *position))
            if len(samples) > _SAMPLES_MAX:
                # Fewer samples put the line earlier: more is protected, never less.
                self._samples = deque(list(samples)[::2])
            self._touched.pop(multihash, None)
            self._touched[multihash] = now
            if len(self._touched) > TOUCHED_MAX:
                self._prune(self._since(now, self.grace_s))

    def wrote(self, multihash: bytes) -> None:
        """The block was appended: its place protects it from now on."""
        with self._lock:
            self._touched.pop(multihash, None)

    def _prune(self, since: float) -> None:
        while self._touched:
            multihash, touched = next(iter(self._touched.items()))
            if touched >= since:
                if len(self._touched) <= TOUCHED_MAX:
                    return
                self._lost_s = touched
            del self._touched[multihash]

    def _since(self, now: float, grace_s: float) -> float:
        return min(now - grace_s, *self._sessions.values(), now)

    def cutoff(self, position: tuple[int, int], grace_s: float | None = None) -> Cutoff | None:
        """The line that a collection beginning now must respect.

        ``position`` is where the next section goes. ``grace_s`` 0 protects imports only. None: it
        must wait, more was touched by running imports than is remembered.
        """
        now = self._clock()
        with self._lock:
            since = self._since(now, self.grace_s if grace_s is None else grace_s)
            if since <= self._lost_s:
                return None
            if since >= now:
                return Cutoff(now, position)
            self._prune(self._since(now, self.grace_s))
            line = position
            for sampled, segment, offset in reversed(self._samples):
                line = min(line, (segment, offset))
                if sampled <= since:
                    break
            return Cutoff(since, line)

    def is_touched(self, multihash: bytes, cutoff: Cutoff) -> bool:
        """Whether a put came for this block since the cutoff."""
        with self._lock:
            return self._touched.get(multihash, float("-inf")) >= cutoff.since_s
