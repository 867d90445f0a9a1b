"""The model and the machine for a subject that can be killed: what was promised must be there.

``CrashModel`` knows, beside what a file holds now, what it may hold after ``kill -9``: every state
since the last call that promised to keep one. A created file that no such call has covered may be
absent. Whatever else differs is a promise broken.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.model.machine import FileSystemMachine, handles
from tests.model.memory import WRITABLE, Item, Model, Opened

if TYPE_CHECKING:
    from tests.model.process import InProcess


class CrashModel(Model):
    """The model, with what is not promised yet."""

    def __init__(self) -> None:
        super().__init__()
        #: What an item held since it was promised last.
        self.states: dict[Item, list[bytes]] = {}
        #: Created, and nothing promised.
        self.unborn: set[Item] = set()

    def _changes(self, item: Item) -> None:
        if item.kind != "file":
            return
        self.states.setdefault(item, []).append(bytes(item.data))

    def _promised(self, item: Item) -> None:
        self.states.pop(item, None)
        self.unborn.discard(item)

    def _promised_unless_new(self, item: Item) -> None:
        if item not in self.unborn:
            self._promised(item)

    # --- bytes ------------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> Opened:
        known = set(self.paths())
        if path in known and flags & os.O_TRUNC:
            self._changes(self._item(path))
        opened = super().open(path, flags)
        if path not in known:
            self.unborn.add(opened.item)
        return opened

    def pwrite(self, handle: Opened, offset: int, data: bytes) -> int:
        self._changes(handle.item)
        return super().pwrite(handle, offset, data)

    def ftruncate(self, handle: Opened, size: int) -> None:
        self._changes(handle.item)
        super().ftruncate(handle, size)
        self._promised_unless_new(handle.item)

    def truncate(self, path: bytes, size: int) -> None:
        self._changes(self._followed(path))
        super().truncate(path, size)
        self._promised_unless_new(self._followed(path))

    def flush(self, handle: Opened) -> None:
        """A writer's close promises; a reader's does where nobody writes, which is not counted."""
        if handle.flags & WRITABLE:
            self._promised(handle.item)

    def close(self, handle: Opened) -> None:
        self.flush(handle)

    def fsync(self, handle: Opened) -> None:
        self._promised(handle.item)

    # --- names and attributes ---------------------------------------------------------------------

    def listdir(self, path: bytes) -> list[bytes]:
        names = super().listdir(path)
        for item in self._followed(path).entries.values():
            if item in self.unborn:
                self._promised(item)
        return names

    def link(self, old: bytes, new: bytes) -> None:
        super().link(old, new)
        self._promised(self._item(old))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        super().rename(old, new, flags)
        if old != new:
            self._promised(self._item(new))

    def chmod(self, path: bytes, mode: int) -> None:
        super().chmod(path, mode)
        self._promised_unless_new(self._followed(path))

    def utime(self, path: bytes, mtime_ns: int) -> None:
        super().utime(path, mtime_ns)
        self._promised_unless_new(self._followed(path))

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        super().setxattr(path, name, value, flags)
        self._promised(self._followed(path))

    def removexattr(self, path: bytes, name: str) -> None:
        super().removexattr(path, name)
        self._promised(self._followed(path))

    # --- a crash ----------------------------------------------------------------------------------

    def places(self) -> list[tuple[bytes, Item]]:
        """Every name and what it names."""
        return [(path, self._item(path)) for path in self.paths()]

    def lose(self, path: bytes) -> None:
        """A file that nobody was promised is not there."""
        self._take(*self._parent(path))


class CrashMachine(FileSystemMachine):
    """Adds what happens behind a user's back, and ``kill -9``, to the operations of a user."""

    kills_max = 3
    subject: InProcess

    def __init__(self) -> None:
        super().__init__()
        self.model: CrashModel = CrashModel()
        self.kills = 0

    @rule(which=handles)
    def flush(self, which: int) -> None:
        self._on_handle(which, "flush")

    @rule()
    def tick(self) -> None:
        self.subject.tick()

    @rule()
    def seal(self) -> None:
        self.subject.seal()

    @rule()
    def flush_all(self) -> None:
        self.subject.flush_all()

    @rule()
    def check(self) -> None:
        self.subject.check()

    @precondition(lambda self: self.remounts < self.remounts_max)
    @rule()
    def remount(self) -> None:
        self._close_all()
        self.subject.flush_all()
        self.subject.check(at_rest=True)
        super().remount()
        self.subject.check()

    @precondition(lambda self: self.kills < self.kills_max)
    @rule(flushed=st.integers(0, 63))
    def kill(self, flushed: int) -> None:
        """Nobody closes; the handles in ``flushed`` had a descriptor that was closed."""
        self.kills += 1
        for which in range(len(self.handles)):
            if flushed >> which & 1:
                self._on_handle(which, "flush")
        self.handles.clear()
        self.subject.kill()
        self._adopt()
        self.compare_trees()
        self.subject.check()

    def _adopt(self) -> None:
        """The model becomes what is there, where that is one of the states that may be."""
        model = self.model
        for path, item in model.places():
            if item in model.unborn and not self._is_there(path):
                model.lose(path)
            elif item in model.states:
                found = self._content(path)
                allowed = [*model.states[item], bytes(item.data)]
                assert found in allowed, f"{path!r} has {len(found)} bytes that it never had"
                item.data[:] = found
                item.touch()
        model.states.clear()
        model.unborn.clear()

    def _is_there(self, path: bytes) -> bool:
        try:
            self.subject.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def _content(self, path: bytes) -> bytes:
        handle = self.subject.open(path, os.O_RDONLY)
        try:
            return self.subject.pread(handle, 0, 1 << 20)
        finally:
            self.subject.close(handle)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if self.subject is not None:
                self.subject.end()
