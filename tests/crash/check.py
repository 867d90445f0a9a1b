"""Compares a tree after a crash with the states that a History allows."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from tests.crash.history import ANYTHING, Crash, History, Inode, Seen, Verdict, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LABEL = "user.crash"


def observe(root: str) -> dict[str, Seen]:
    """Return every name below ``root``, read whole. What cannot be read carries the error."""
    found: dict[str, Seen] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        for name in os.listdir(os.path.join(root, directory)):
            path = f"{directory}/{name}" if directory else name
            found[path] = seen = look(os.path.join(root, path))
            if seen.kind == "dir":
                pending.append(path)
    return found


def look(path: str) -> Seen:
    """Return what one name is."""
    try:
        status = os.lstat(path)
    except OSError as error:
        return Seen("unreadable", 0, 0, 0, f"lstat: {error.strerror}")
    mode, nlink, ino = stat.S_IMODE(status.st_mode), status.st_nlink, status.st_ino
    if stat.S_ISLNK(status.st_mode):
        return Seen("link", mode, nlink, ino, target=os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return Seen("dir", mode, nlink, ino, label=_label(path))
    try:
        with open(path, "rb", buffering=0) as file:
            content = digest(file.readall())
    except OSError as error:
        content = f"unreadable: {error.strerror}"
    if not content.startswith((f"{status.st_size}:", "unreadable")):
        content = f"lstat says {status.st_size} bytes, read gives {content}"
    return Seen("file", mode, nlink, ino, content, label=_label(path))


def _label(path: str) -> str:
    try:
        return os.getxattr(path, LABEL).decode()
    except OSError:
        return ""


def check(history: History, seen: dict[str, Seen], crash: Crash) -> Verdict:
    """Return everything in ``seen`` that ``crash`` may not have left of ``history``."""
    return _Check(history, seen, crash).run()


class _Check:
    def __init__(self, history: History, seen: dict[str, Seen], crash: Crash) -> None:
        self.history, self.seen, self.crash = history, seen, crash
        needs_sync = crash.metadata_needs_sync
        self.since = history.synced_step if needs_sync else history.acknowledged_step
        self.verdict = Verdict(violations=[f"error: {word}" for word in history.unexpected])

    def run(self) -> Verdict:
        for path, timeline in self.history.timeline.items():
            self._path(path, timeline)
        for path in self.seen.keys() - self.history.timeline.keys():
            self._say(path, f"was never made, but is {self.seen[path]}")
        for inode in self.history.inodes:
            if inode.kind == "file":
                self._inode(inode)
        self._links()
        return self.verdict

    def _say(self, path: str, sentence: str) -> None:
        self.verdict.violations.append(f"{path!r} {sentence}")

    def _values(self, timeline: list[tuple[int, Inode | None]]) -> list[int]:
        """Return the indexes of the entries that may hold now; -1 is "not yet made"."""
        later = [index for index, (step, _) in enumerate(timeline) if step > self.since]
        first = later[0] if later else len(timeline)
        return [first - 1, *later]

    def _path(self, path: str, timeline: list[tuple[int, Inode | None]]) -> None:
        now = self.seen.get(path)
        reasons, values = [], self._values(timeline)
        for index in values:
            reason = self._entry(now, timeline, index)
            if not reason:
                self._note_given_up(path, now, timeline, values)
                return
            reasons.append(reason)
        self._say(path, "; ".join(dict.fromkeys(reasons)))

    def _note_given_up(
        self,
        path: str,
        now: Seen | None,
        timeline: list[tuple[int, Inode | None]],
        values: list[int],
    ) -> None:
        inodes = [timeline[index][1] if index >= 0 else None for index in values]
        was_closed = all(inode and inode.was_closed() for inode in inodes)
        if was_closed and all(self._entry_now(now, inode) for inode in inodes):
            self.verdict.given_up.append(path)

    def _entry(self, now: Seen | None, timeline: list[tuple[int, Inode | None]], index: int) -> str:
        """Return why ``now`` is not the entry at ``index``, or "" if it may be."""
        inode = timeline[index][1] if index >= 0 else None
        reason = self._entry_now(now, inode)
        if not reason or inode is None or inode.kind != "file":
            return reason
        if inode.base(self.crash.level) is None and index >= 0:
            before = index - 1
            while before >= 0 and timeline[before][1] is inode:
                before -= 1
            if not self._entry(now, timeline, before) or self._is_emptied(now, timeline, before):
                return ""
            if self._is_new(timeline, before) and self._is_displaced(
                now, inode, timeline[index][0]
            ):
                return ""
        return reason

    def _is_displaced(self, now: Seen | None, inode: Inode, step: int) -> bool:
        """A file that took another's name and was moved on since: the other stands in for it.

        Its old content is that of the file it replaced last, wherever the new one went.
        """
        taken = [
            (taken_at, timeline, index - 1)
            for path in inode.names
            for timeline in (self.history.timeline[path],)
            for index, (taken_at, entry) in enumerate(timeline)
            if entry is inode and taken_at < step and not self._is_new(timeline, index - 1)
            if timeline[index - 1][1] is not inode
        ]
        if not taken:
            return False
        _, timeline, before = max(taken, key=lambda one: one[0])
        return now is not None and not self._entry(now, timeline, before)

    @staticmethod
    def _is_new(timeline: list[tuple[int, Inode | None]], before: int) -> bool:
        return before < 0 or timeline[before][1] is None

    def _is_emptied(
        self, now: Seen | None, timeline: list[tuple[int, Inode | None]], before: int
    ) -> bool:
        """A new file whose bytes a power cut took may stay as an empty name, given up."""
        is_new = self._is_new(timeline, before)
        is_empty = now is not None and now.kind == "file" and now.content == digest(b"")
        return self.crash.metadata_needs_sync and is_new and is_empty

    def _entry_now(self, now: Seen | None, inode: Inode | None) -> str:
        if inode is None:
            return f"should be gone, is {now}" if now else ""
        if now is None:
            return f"should be a {inode.kind}, is gone"
        if now.kind != inode.kind:
            return f"should be a {inode.kind}, is {now}"
        if inode.kind == "link":
            return "" if now.target == inode.target else f"points to {now.target!r}"
        if now.mode not in self._since(inode.modes):
            return f"has mode {now.mode:o}, not one of {self._since(inode.modes)}"
        if now.label not in self._since(inode.labels):
            return f"has label {now.label!r}, not one of {self._since(inode.labels)}"
        if inode.kind == "file" and not self._fits(now, inode):
            allowed = sorted(inode.allowed(self.crash.level))
            return f"holds {now.content}, not one of {allowed[:6]}"
        return ""

    def _since(self, values: Sequence[tuple[int, object]]) -> list[object]:
        later = [value for step, value in values if step > self.since]
        first = [value for step, value in values if step <= self.since][-1:]
        return [*first, *later]

    def _fits(self, now: Seen, inode: Inode) -> bool:
        if now.content in inode.allowed(self.crash.level):
            return True
        base = inode.base(self.crash.level)
        is_newest = base == len(inode.versions) - 1
        return self.crash.unsynced == ANYTHING and not is_newest

    def _inode(self, inode: Inode) -> None:
        """A file that always had a name must be found under one, and only once."""
        if inode.base(self.crash.level) is None:
            return
        paths = [path for path in inode.names if self._may_name(path, inode)]
        homes = [self.seen[path] for path in paths if path in self.seen]
        homes = [now for now in homes if now.kind == "file" and self._fits(now, inode)]
        if not homes and not inode.was_nameless:
            self._say(min(inode.names), f"is lost: its bytes are under none of {paths}")
        newest = inode.versions[-1].content
        twins = {now.ino for now in homes if now.content == newest}
        if len(twins) > 1 and not newest.startswith("0:"):
            self._say(paths[0], f"exists {len(twins)} times, under {paths}")

    def _may_name(self, path: str, inode: Inode) -> bool:
        timeline = self.history.timeline[path]
        return any(index >= 0 and timeline[index][1] is inode for index in self._values(timeline))

    def _links(self) -> None:
        counts: dict[int, list[str]] = {}
        for path, now in self.seen.items():
            if now.kind == "file":
                counts.setdefault(now.ino, []).append(path)
        for paths in counts.values():
            if self.seen[paths[0]].nlink != len(paths):
                self._say(paths[0], f"has nlink {self.seen[paths[0]].nlink}, names {paths}")


def snapshot_differences(before: dict[str, Seen], now: dict[str, Seen]) -> Iterable[str]:
    """Return what differs between two observations that should be the same."""
    for path in before.keys() | now.keys():
        if before.get(path) != now.get(path):
            yield f"{path!r} was {before.get(path)}, is {now.get(path)}"
