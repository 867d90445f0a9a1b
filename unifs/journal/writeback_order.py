"""What writeback does next for an inode, and what has to happen before.

Writeback does not replay records: it compares where and what an inode is in the tree with where and
what the backend holds, and names the one call that brings the two closer. So ten saves are one
upload, what was created and removed again is nothing, and nothing removed comes back. The order of
the calls follows from the same comparison:

* a directory exists at its place before anything is put into it, and moves before its children do;
* a name that another object still holds at the backend is left by that object first; a file that
  is gone from the tree is replaced in one call;
* a directory is removed after everything below it is gone, and neither removed nor moved while
  something may still arrive in it;
* nothing is done below a directory whose rename was sent and not answered: who knows where it is;
* where objects wait for each other in a ring (an exchange), one of them steps aside.

Pure: it asks ``Objects`` and changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from unifs.types import Version

#: An object that steps aside stands under this name, followed by what no other place has.
ASIDE = ".unifs-moving-"
#: Such a name, or that of an earlier version: there the inode's number followed.
_ASIDE = re.compile(re.escape(ASIDE) + "([0-9a-f]{16}|[0-9]+)")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call whose outcome is not known: it may have reached the backend.

    ``key`` is the content key of what a put carries, in hexadecimal. ``is_refused``: a rename that
    the backend did a part of, and refused to go on with; it is taken up again with its token.
    """

    verb: str
    path: str
    token: str
    base: Version | None = None
    key: str = ""
    is_refused: bool = False

    def pack(self) -> str:
        told = asdict(self)
        if not self.is_refused:
            # An earlier version, which does not know the word, reads all others.
            del told["is_refused"]
        return json.dumps(told)

    @classmethod
    def unpack(cls, text: str) -> Attempt:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Known:
    """What the backend holds of an object, as far as is known."""

    path: str | None = None
    version: Version | None = None
    synced: bytes | None = None
    told: bytes | None = None
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an inode is in the tree. ``key`` is None where its bytes are the backend's own."""

    parent: int
    name: bytes
    mode: int
    key: bytes | None
    told: bytes

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Step:
    """One call: put, make, remove, rename, set_attributes, or resolve for an open attempt.

    ``displaced`` is the inode whose object a put or a rename replaces at ``new_path`` or ``path``.
    """

    verb: str
    path: str
    new_path: str = ""
    base: Version | None = None
    displaced: int = 0


@dataclass(frozen=True, slots=True)
class Blocked:
    """Another inode's object has to move, appear or vanish first."""

    by: int


class Objects(Protocol):
    """The tree and what is known of the backend."""

    root: int

    def known(self, ino: int) -> Known | None: ...

    def wanted(self, ino: int) -> Wanted | None:
        """None: no name is left."""
        ...

    def at(self, path: str) -> int:
        """The inode whose object the backend holds there, 0 for none."""
        ...

    def below(self, path: str, limit: int) -> list[int]: ...

    def late(self, path: str) -> int:
        """An inode of which something may still arrive below a directory, 0 for none."""
        ...

    def moving(self, path: str) -> int:
        """The inode whose rename, not known to have ended, takes ``path`` along; 0 for none."""
        ...

    def aside(self, path: str) -> str:
        """Where the object at ``path`` can be put for a while: a place that nobody ever had."""
        ...

    def heir(self, path: str) -> int:
        """The inode that the tree has where the backend has ``path``, 0 for none."""
        ...

    def can(self, capability: str) -> bool: ...


NOWHERE = Known()


class Order:
    """Plans over ``objects``."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def next_step(self, ino: int) -> Step | Blocked | None:
        """The next call for an inode; None where the backend has what the tree has."""
        if ino == self._objects.root:
            return None
        known = self._objects.known(ino) or NOWHERE
        wanted = self._objects.wanted(ino)
        moving = self._objects.moving(known.path) if known.path is not None else 0
        if moving not in (0, ino):
            return Blocked(moving)
        if wanted is None:
            return self._removal(ino, known)
        place = self._place(wanted)
        attempt = known.attempt
        if isinstance(place, Blocked):
            # Its directory may be waiting for what becomes of the attempt.
            return place if attempt is None else self._resolution(ino, attempt)
        if attempt is not None and not _is_same(attempt, wanted, place, known):
            return self._resolution(ino, attempt)
        if known.path is None:
            return self._arrival(ino, known, wanted, place)
        if known.path != place:
            return self._move(ino, known, wanted, place)
        if wanted.is_file and wanted.key is not None and wanted.key != known.synced:
            return Step("put", place, base=known.version)
        if known.told != wanted.told and self._objects.can("set_attributes"):
            return Step("set_attributes", place)
        return None

    def _removal(self, ino: int, known: Known) -> Step | Blocked | None:
        if known.attempt is not None:
            return self._resolution(ino, known.attempt)
        if known.path is None:
            return None
        # Children whose paths lie below must leave first, whether they moved or are gone too.
        for child in self._objects.below(known.path, 1):
            return Blocked(child)
        late = self._objects.late(known.path)
        if late:
            return Blocked(late)
        if known.version is not None:
            heir = self._objects.heir(known.path)
            if heir and self._takes_over(heir, known.path):
                return Blocked(heir)
        return Step("remove", known.path, base=known.version)

    def _resolution(self, ino: int, attempt: Attempt) -> Step | Blocked:
        moving = self._objects.moving(attempt.path)
        return Blocked(moving) if moving not in (0, ino) else Step("resolve", attempt.path)

    def _takes_over(self, heir: int, path: str) -> bool:
        """Whether another file is about to replace what stands at ``path``, in one call."""
        step = self.next_step(heir)
        if not isinstance(step, Step) or not step.displaced:
            return False
        return path in (step.path, step.new_path)

    def _place(self, wanted: Wanted) -> str | Blocked:
        """Where the backend is to hold it, once its directory is where it belongs."""
        objects = self._objects
        name = os.fsdecode(wanted.name)
        if wanted.parent == objects.root:
            return name
        above = objects.known(wanted.parent)
        if above is None or above.path is None or not self.is_settled(wanted.parent):
            return Blocked(wanted.parent)
        return f"{above.path}/{name}"

    def is_settled(self, ino: int) -> bool:
        """Whether the backend holds a directory, and all above it, where the tree has them."""
        objects = self._objects
        if ino == objects.root:
            return True
        known, wanted = objects.known(ino), objects.wanted(ino)
        if known is None or known.path is None or wanted is None or known.attempt is not None:
            return False
        place = self._place(wanted)
        return known.path == place

    def _arrival(self, ino: int, known: Known, wanted: Wanted, place: str) -> Step | Blocked | None:
        if not wanted.is_file and not wanted.is_directory and known.synced == wanted.key:
            # The backend has no such thing; it lives in the tree.
            return None
        there = self._objects.at(place)
        if not there or there == ino:
            return Step("put" if wanted.is_file else "make", place)
        if wanted.is_file:
            replaced = self._replaceable(there)
            if replaced is not None:
                return Step("put", place, base=replaced.version, displaced=there)
        return Blocked(there)

    def _move(self, ino: int, known: Known, wanted: Wanted, place: str) -> Step | Blocked:
        assert known.path is not None
        late = self._objects.late(known.path) if wanted.is_directory else 0
        if late:
            return Blocked(late)
        there = self._objects.at(place)
        replaced = None
        if there and there != ino:
            replaced = self._replaceable(there) if wanted.is_file else None
            if replaced is None:
                return Blocked(there)
        base = replaced.version if replaced is not None else None
        displaced = there if replaced is not None else 0
        if self._objects.can("rename"):
            return Step("rename", known.path, place, base, displaced)
        # The copy at the old path becomes an object of its own that nobody names.
        return Step("put" if wanted.is_file else "make", place, "", base, displaced)

    def _replaceable(self, ino: int) -> Known | None:
        """What is known of a file that is gone from the tree and still at the backend."""
        objects = self._objects
        known = objects.known(ino)
        if known is None or known.attempt is not None or objects.wanted(ino) is not None:
            return None
        if known.version is None or objects.below(known.path or "", 1):
            return None
        return known

    # --- rings ------------------------------------------------------------------------------------

    def ring(self, ino: int, due: Collection[int]) -> list[int]:
        """The inodes that wait for each other, where ``ino`` is one of them; else nothing."""
        chain = [ino]
        while len(chain) <= len(due) + 1:
            step = self.next_step(chain[-1])
            if not isinstance(step, Blocked):
                return []
            if step.by == ino:
                return chain
            if step.by in chain:
                return []
            chain.append(step.by)
        return []

    def aside(self, ring: list[int]) -> tuple[int, Step] | None:
        """The move that opens a ring: (inode, step); None where nobody can move."""
        if not self._objects.can("rename"):
            return None
        for ino in sorted(ring):
            known = self._objects.known(ino)
            if known is None or known.path is None or known.attempt is not None:
                continue
            if self._objects.wanted(ino) is None or _is_aside(known.path):
                continue
            return ino, Step("rename", known.path, self._objects.aside(known.path))
        return None


def _is_aside(path: str) -> bool:
    return _ASIDE.fullmatch(path.rpartition("/")[2]) is not None


def _is_same(attempt: Attempt, wanted: Wanted, place: str, known: Known) -> bool:
    """Whether trying again is the same call as the attempt was."""
    if attempt.verb == "rename":
        return attempt.path == place and known.path != place
    if attempt.path != place or attempt.verb != ("put" if wanted.is_file else "make"):
        return False
    return attempt.verb == "make" or wanted.key is None or attempt.key == wanted.key.hex()


def is_within(one: str, other: str) -> bool:
    """Whether two paths are the same or one lies below the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
