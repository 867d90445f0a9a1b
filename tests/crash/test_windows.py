"""A real daemon dies at each crash window that ``kill -9`` can fall into; nothing promised is lost.

Windows 4, 5, 6 and 12 are power cuts: ``tests/crash/test_power.py`` and
``tests/journal/test_powercut.py`` cut there.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon, DaemonFailed
from tests.crash.dying import POINTS, REACHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    #: What a user sees: bytes of a file, None for a directory.
    Tree = dict[str, bytes | None]

pytestmark = pytest.mark.fuse

SMALL, LARGE = 3_000, 150_000
PATIENCE_S = 30.0
#: Which arrival at a window is the last.
ARRIVAL = 3
#: What is not needed any more is let go by upkeep's tick in a quiet moment: two ticks.
TICKS_S = 0.6


def mortal(base: Path, point: str, number: int) -> Daemon:
    """A daemon that dies at its ``number``-th arrival at a point."""
    daemon = Daemon(base)
    mount = ["mount", "--foreground", "--state", str(daemon.state), str(daemon.mount)]
    daemon.command = [sys.executable, "-m", "tests.crash.dying", point, str(number), *mount]
    return daemon


def steps(
    root: Path, seed: int, pause_s: float
) -> Iterator[tuple[Callable[[], object], Callable[[Tree], object]]]:
    """System calls, each with what it does to the tree when it is acknowledged."""
    for turn in range(1_000):
        here = f"{turn % 3}"
        again = bytes([turn % 255 + 1]) * LARGE
        yield (
            lambda again=again: (root / "again").write_bytes(again),
            lambda tree, again=again: tree.update({"again": again}),
        )
        if pause_s:
            yield lambda: settle(root / "again", pause_s), lambda tree: None
        for name, size in ((f"s{here}", SMALL), (f"l{here}", LARGE)):
            data = bytes([turn % 255 + 1, seed]) * (size // 2)
            path = root / name
            yield (
                lambda path=path, data=data: save(path, data),
                lambda tree, name=name, data=data: tree.update({name: data}),
            )
        yield (
            lambda here=here: os.rename(root / f"l{here}", root / f"r{here}"),
            lambda tree, here=here: tree.update({f"r{here}": tree.pop(f"l{here}")}),
        )
        yield (
            lambda turn=turn: (root / f"d{turn}").mkdir(),
            lambda tree, turn=turn: tree.update({f"d{turn}": None}),
        )
        yield (
            lambda here=here, turn=turn: os.link(root / f"s{here}", root / f"d{turn}" / "x"),
            lambda tree, here=here, turn=turn: tree.update({f"d{turn}/x": tree[f"s{here}"]}),
        )
        yield (
            lambda turn=turn: (root / f"d{turn}" / "x").unlink(),
            lambda tree, turn=turn: tree.pop(f"d{turn}/x"),
        )
        if turn % 2:
            yield (
                lambda turn=turn: (root / f"d{turn}").rmdir(),
                lambda tree, turn=turn: tree.pop(f"d{turn}"),
            )


def save(path: Path, data: bytes) -> None:
    """Beside, synced, then over the name: what was there is there until the new is."""
    draft = path.with_name("draft")
    with draft.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    draft.rename(path)


def settle(path: Path, pause_s: float) -> None:
    """Sealed and durable: what it replaced is wanted no more."""
    os.getxattr(path, "ipfs.cid")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    time.sleep(pause_s)


def seen(root: Path) -> Tree:
    """The tree as it is, without a draft that nobody was promised."""
    found: Tree = {}
    for above, directories, files in os.walk(root):
        prefix = os.path.relpath(above, root)
        for name in (*directories, *files):
            path = os.path.normpath(os.path.join(prefix, name))
            if path != "draft":
                found[path] = None if name in directories else (root / path).read_bytes()
    return found


def work(daemon: Daemon, seed: int, pause_s: float = 0) -> tuple[Tree, Tree]:
    """Work until the daemon is dead: the tree before and after the call that was not answered."""
    tree: Tree = {}
    limit = time.monotonic() + PATIENCE_S
    for call, effect in steps(daemon.root, seed, pause_s):
        before = dict(tree)
        effect(tree)
        try:
            call()
        except OSError:
            return before, tree
        assert time.monotonic() < limit, f"not reached within {PATIENCE_S} s:\n{daemon.tail()}"
    raise AssertionError(f"the workload ended before the window:\n{daemon.tail()}")


@pytest.mark.parametrize("point", [point for point in POINTS if point != "11"])
def test_killed_at_a_window(tmp_path: Path, point: str) -> None:
    # The first commits make the volumes, before the tree answers.
    daemon = mortal(tmp_path, point, 20 if point == "3" else ARRIVAL)
    try:
        daemon.start()
        before, after = work(daemon, 1, TICKS_S if point in ("9", "10") else 0)
        assert daemon.process is not None
        assert daemon.process.wait(PATIENCE_S) == -9
        assert f"{REACHED} {point}\n" in daemon.tail()
        daemon.kill()
        living = Daemon(tmp_path)
        living.start()
        try:
            assert seen(living.root) in (before, after)
            (living.root / "written").write_bytes(b"and it works")
            living.stop()
        finally:
            living.close()
    finally:
        daemon.close()


def test_killed_in_recovery(tmp_path: Path) -> None:
    """Window 11: the daemon that recovers dies too, before it has removed anything."""
    daemon = mortal(tmp_path, "2", 3)
    again = mortal(tmp_path, "11", 1)
    living = Daemon(tmp_path)
    try:
        daemon.start()
        before, after = work(daemon, 1)
        daemon.kill()
        with pytest.raises(DaemonFailed, match=f"{REACHED} 11"):
            again.start()
        again.kill()
        living.start()
        assert seen(living.root) in (before, after)
        living.stop()
    finally:
        for each in (daemon, again, living):
            each.close()
