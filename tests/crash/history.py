"""What was asked of a directory and what was acknowledged, and which states a crash may leave.

A workload writes one line before each call and one after it (``Recorder``); both survive because
only the server dies. ``History`` replays the lines into timelines: which inode each path named,
which versions each file's content had. ``check.check`` compares a tree with every state that the
promises allow: nothing acknowledged lost, nothing mixed, nothing empty in an old file's place,
nothing back.

Levels of a content version: OPEN (written through a handle that is still open), CLOSED (close has
returned), SYNCED (fsync has returned). A crash keeps what reached its level; what is later may be
there or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

OPEN, CLOSED, SYNCED = 0, 1, 2
PAGE_BYTES = 4096

#: Any content will do: how a plain disk treats bytes that were not synced.
ANYTHING = "anything"
#: Unsynced bytes are one of the versions that existed, whole.
VERSIONS = "versions"


def noise(seed: int, size_bytes: int) -> bytes:
    """Return the bytes that a recorded write has put down."""
    return random.Random(seed).randbytes(size_bytes)


def digest(content: bytes) -> str:
    """Return a short name for a content."""
    return f"{len(content)}:{hashlib.sha256(content).hexdigest()[:20]}"


@dataclass(frozen=True)
class Version:
    """One content of a file, and the highest level that it reached."""

    content: str
    level: int


@dataclass
class Inode:
    """One file, directory or symlink with everything it has been."""

    kind: str
    modes: list[tuple[int, int]]
    target: str = ""
    data: bytearray = field(default_factory=bytearray)
    versions: list[Version] = field(default_factory=list)
    labels: list[tuple[int, str]] = field(default_factory=lambda: [(0, "")])
    names: set[str] = field(default_factory=set)
    #: Whether its last name was taken away, at any step.
    was_nameless: bool = False

    def change(self, level: int) -> None:
        """Record the present data as the newest version."""
        self.versions.append(Version(digest(bytes(self.data)), level))

    def reach(self, level: int) -> None:
        """Raise the newest version to ``level``."""
        newest = self.versions[-1]
        if newest.level < level:
            self.versions[-1] = Version(newest.content, level)

    def base(self, level: int) -> int | None:
        """Return the index of the newest version that reached ``level``."""
        for index in range(len(self.versions) - 1, -1, -1):
            if self.versions[index].level >= level:
                return index
        return None

    def was_closed(self) -> bool:
        """Return whether anything was acknowledged of its content."""
        return self.kind != "file" or self.base(CLOSED) is not None

    def allowed(self, level: int) -> set[str]:
        """Return the contents that may be seen after a crash that keeps ``level``."""
        base = self.base(level)
        closed = self.base(CLOSED)
        found = set()
        for index, version in enumerate(self.versions):
            is_kept = base is not None and index == base
            is_later = base is None or index > base
            is_in_flight = closed is None or index > closed
            if is_kept or (is_later and (version.level >= CLOSED or is_in_flight)):
                found.add(version.content)
        return found


@dataclass(frozen=True)
class Seen:
    """One name of the tree after the crash. ``content`` is a digest, or an error in words."""

    kind: str
    mode: int
    nlink: int
    ino: int
    content: str = ""
    target: str = ""
    label: str = ""


@dataclass(frozen=True)
class Crash:
    """What a kind of crash must keep.

    ``level`` is the level that contents keep; ``unsynced`` says what may stand in for later bytes.
    With ``metadata_needs_sync`` names and attributes count from the last fsync on, else from the
    last acknowledged call.
    """

    level: int
    metadata_needs_sync: bool
    unsynced: str = VERSIONS


KILL = Crash(CLOSED, metadata_needs_sync=False)
POWER_CUT = Crash(SYNCED, metadata_needs_sync=True)
POWER_CUT_PLAIN = Crash(SYNCED, metadata_needs_sync=True, unsynced=ANYTHING)


@dataclass
class Verdict:
    """What a check found: sentences about what was broken, names whose bytes were given up."""

    violations: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)


class History:
    """The timelines of one workload's directory. Paths are relative to it; "" is the directory."""

    def __init__(self) -> None:
        self.step = 0
        self.acknowledged = 0
        self.acknowledged_step = 0
        self.synced_step = 0
        self.synced = 0
        self.unexpected: list[str] = []
        self.handles: dict[int, Inode] = {}
        self.names: dict[str, Inode | None] = {}
        self.timeline: dict[str, list[tuple[int, Inode | None]]] = {}
        self.inodes: list[Inode] = []

    @classmethod
    def load(cls, manifest: Path) -> History:
        """Replay a manifest; the call that was never acknowledged counts as perhaps done."""
        history, pending = cls(), None
        for line in manifest.read_bytes().splitlines():
            event = json.loads(line)
            if "call" in event:
                pending = event
            elif event.get("ok"):
                if pending is None or pending["i"] != event["i"]:
                    raise ValueError(f"an answer without a call: {event}")
                history.apply(pending, is_acknowledged=True)
                pending = None
            elif "unexpected" in event:
                history.unexpected.append(f"{event['unexpected']} from {pending}")
        if pending is not None:
            history.apply(pending, is_acknowledged=False)
        return history

    def apply(self, event: dict[str, Any], *, is_acknowledged: bool) -> None:
        """Add one call to the timelines."""
        self.step += 1
        call = event["call"]
        if not is_acknowledged:
            call = {"osync": "write", "truncate": "cut"}.get(call, call)
        if is_acknowledged or call not in ("close", "fsync", "fsyncdir", "osync"):
            getattr(self, f"_{call}")(event)
        if is_acknowledged:
            self.acknowledged += 1
            self.acknowledged_step = self.step
            if call in ("fsync", "fsyncdir", "osync"):
                self.synced_step = self.step
                self.synced += 1

    # --- one method a call ------------------------------------------------------------------------

    def _point(self, path: str, inode: Inode | None) -> None:
        before = self.names.get(path)
        if before is not None and before is not inode:
            now = [name for name in before.names if self.names.get(name) is before]
            if now == [path]:
                before.was_nameless = True
        self.names[path] = inode
        self.timeline.setdefault(path, []).append((self.step, inode))
        if inode is not None:
            inode.names.add(path)

    def _new(self, path: str, inode: Inode) -> Inode:
        self.inodes.append(inode)
        self._point(path, inode)
        return inode

    def _at(self, path: str) -> Inode:
        inode = self.names[path]
        if inode is None:
            raise ValueError(f"{path!r} has no inode at step {self.step}")
        return inode

    def _create(self, event: dict[str, Any]) -> None:
        inode = self._new(event["path"], Inode("file", [(self.step, event["mode"])]))
        inode.change(OPEN)
        self.handles[event["fd"]] = inode

    def _open(self, event: dict[str, Any]) -> None:
        inode = self._at(event["path"])
        self.handles[event["fd"]] = inode
        if event.get("trunc") and inode.data:
            inode.data.clear()
            inode.change(OPEN)

    def _write(self, event: dict[str, Any], level: int = OPEN) -> None:
        inode = self.handles[event["fd"]]
        offset = len(inode.data) if event["at"] is None else event["at"]
        piece = noise(event["fill"], event["size"])
        if offset > len(inode.data):
            inode.data.extend(bytes(offset - len(inode.data)))
        # The kernel asks for a write that begins inside a page in two requests, the first up to the
        # page's end; the file may be committed between them.
        head = min(-offset % PAGE_BYTES, len(piece))
        if 0 < head < len(piece):
            inode.data[offset : offset + head] = piece[:head]
            inode.change(OPEN)
        inode.data[offset : offset + len(piece)] = piece
        inode.change(level)

    def _osync(self, event: dict[str, Any]) -> None:
        self._write(event, SYNCED)

    def _ftruncate(self, event: dict[str, Any]) -> None:
        self._resize(self.handles[event["fd"]], event["size"])
        self.handles[event["fd"]].change(OPEN)

    def _truncate(self, event: dict[str, Any]) -> None:
        self._cut(event, CLOSED)

    def _cut(self, event: dict[str, Any], level: int = OPEN) -> None:
        inode = self._at(event["path"])
        self._resize(inode, event["size"])
        inode.change(level)

    @staticmethod
    def _resize(inode: Inode, size_bytes: int) -> None:
        del inode.data[size_bytes:]
        inode.data.extend(bytes(size_bytes - len(inode.data)))

    def _close(self, event: dict[str, Any]) -> None:
        self.handles.pop(event["fd"]).reach(CLOSED)

    def _fsync(self, event: dict[str, Any]) -> None:
        self.handles[event["fd"]].reach(SYNCED)

    def _fsyncdir(self, event: dict[str, Any]) -> None:
        """Names only: the step itself is what counts."""

    def _mkdir(self, event: dict[str, Any]) -> None:
        self._new(event["path"], Inode("dir", [(self.step, event["mode"])]))

    def _symlink(self, event: dict[str, Any]) -> None:
        self._new(event["path"], Inode("link", [(self.step, 0o777)], target=event["target"]))

    def _link(self, event: dict[str, Any]) -> None:
        self._point(event["new"], self._at(event["path"]))

    def _unlink(self, event: dict[str, Any]) -> None:
        self._point(event["path"], None)

    _rmdir = _unlink

    def _rename(self, event: dict[str, Any]) -> None:
        old, new = event["path"], event["new"]
        if self.names.get(new) is self._at(old):
            return  # Two links to one file: rename(2) does nothing.
        moved = [name for name in self.names if name == old or name.startswith(old + "/")]
        for name in moved:
            inode = self.names[name]
            if inode is not None:
                self._point(new + name[len(old) :], inode)
                self._point(name, None)

    def _chmod(self, event: dict[str, Any]) -> None:
        self._at(event["path"]).modes.append((self.step, event["mode"]))

    def _setxattr(self, event: dict[str, Any]) -> None:
        self._at(event["path"]).labels.append((self.step, event["label"]))


class Recorder:
    """Writes the manifest of one workload: a line before each call, a line after it.

    The manifest must lie where the crash does not reach. The lines need no fsync: the machine that
    writes them stays up.
    """

    def __init__(self, manifest: Path) -> None:
        self._fd = os.open(manifest, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._next = 0

    def intent(self, call: str, **details: object) -> int:
        """Record a call that is about to be made."""
        self._next += 1
        self._line({"i": self._next, "call": call, **details})
        return self._next

    def acknowledge(self, number: int) -> None:
        """Record that the call returned without an error."""
        self._line({"i": number, "ok": 1})

    def unexpected(self, sentence: str) -> None:
        """Record an error that a healthy server may not give."""
        self._line({"unexpected": sentence})

    def _line(self, event: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(event).encode() + b"\n")
