"""Which entry of a bounded cache goes next: a segmented LRU that one long scan cannot flush.

Both tiers of the cache use it; it owns the order of entries and their total weight, never what they
weigh against (a limit) nor what eviction means (dropping bytes, unlinking a file).

A new entry starts on probation. A second use moves it to the protected segment, which holds at
most four fifths of the weight; what falls out of it gets another round on probation. Eviction
takes the coldest entry on probation. A sequential reader touches one extent many times in a row
(eight requests of 128 KiB per MiB): the last few keys are remembered, and touching one of them
again is not a second use. Nor is the first use of what was put before anybody asked for it. No
locks: it belongs to the event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")

#: Uses of a key while it is among the last so many keys are one use: sixteen interleaved readers.
RECENT_MAX: Final = 16
#: The protected segment's share of the weight, in percent.
PROTECTED_PERCENT: Final = 80


class SegmentedLru(Generic[K, V]):
    """An ordered map that knows its weight and its coldest entry."""

    __slots__ = (
        "_probation",
        "_protected",
        "_protected_weight",
        "_recent",
        "_unused",
        "_weigh",
        "weight",
    )

    def __init__(self, weigh: Callable[[V], int]) -> None:
        self._weigh = weigh
        self._probation: OrderedDict[K, V] = OrderedDict()
        self._protected: OrderedDict[K, V] = OrderedDict()
        self._protected_weight = 0
        self._recent: dict[K, None] = {}
        self._unused: set[K] = set()
        self.weight = 0

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def __contains__(self, key: K) -> bool:
        return key in self._probation or key in self._protected

    def get(self, key: K) -> V | None:
        """The value, and one use of it."""
        value = self._protected.get(key)
        if value is None:
            value = self._probation.get(key)
            if value is None:
                return None
        if self._unused and key in self._unused:
            self._unused.discard(key)
            self._note_recent(key)
        elif key not in self._recent:
            self._use(key, value)
        return value

    def put(self, key: K, value: V, is_used: bool = True) -> None:
        """Add an entry on probation, or replace a value where it is.

        Unless ``is_used``, nobody has used the entry yet.
        """
        for segment in (self._probation, self._protected):
            old = segment.get(key)
            if old is not None:
                change = self._weigh(value) - self._weigh(old)
                segment[key] = value
                self.weight += change
                if segment is self._protected:
                    self._protected_weight += change
                return
        self._probation[key] = value
        self.weight += self._weigh(value)
        if is_used:
            self._note_recent(key)
        else:
            self._unused.add(key)

    def pop(self, key: K) -> V | None:
        """Remove an entry; None if it is not there."""
        value = self._probation.pop(key, None)
        if value is None:
            value = self._protected.pop(key, None)
            if value is None:
                return None
            self._protected_weight -= self._weigh(value)
        self._unused.discard(key)
        self.weight -= self._weigh(value)
        return value

    def pop_coldest(self) -> tuple[K, V]:
        """Remove the entry that is least likely to be used again. KeyError when empty."""
        segment = self._probation or self._protected
        key, value = segment.popitem(last=False)
        weight = self._weigh(value)
        self._unused.discard(key)
        self.weight -= weight
        if segment is self._protected:
            self._protected_weight -= weight
        return key, value

    def clear(self) -> None:
        """Forget everything."""
        self._probation.clear()
        self._protected.clear()
        self._recent.clear()
        self._unused.clear()
        self.weight = self._protected_weight = 0

    def _use(self, key: K, value: V) -> None:
        self._note_recent(key)
        if key in self._protected:
            self._protected.move_to_end(key)
            return
        del self._probation[key]
        self._protected[key] = value
        self._protected_weight += self._weigh(value)
        while self._protected_weight * 100 > self.weight * PROTECTED_PERCENT:
            if len(self._protected) == 1:
                break
            fallen, fallen_value = self._protected.popitem(last=False)
            self._protected_weight -= self._weigh(fallen_value)
            self._probation[fallen] = fallen_value

    def _note_recent(self, key: K) -> None:
        self._recent[key] = None
        if len(self._recent) > RECENT_MAX:
            del self._recent[next(iter(self._recent))]
