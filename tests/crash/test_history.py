"""The judge judged: an untouched tree passes, and each planted fault is named."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.crash.calls import Directory
from tests.crash.check import check, observe
from tests.crash.history import KILL, POWER_CUT, Crash, History, Recorder
from tests.crash.scenarios import closed_not_synced, moved_after_replacing
from tests.crash.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    (tmp_path / "tree").mkdir()
    previous = os.umask(0)
    yield Directory(str(tmp_path / "tree"), Recorder(tmp_path / "manifest"))
    os.umask(previous)


def violations(tmp_path: Path, crash: Crash = KILL) -> list[str]:
    history = History.load(tmp_path / "manifest")
    assert history.acknowledged > 0
    return check(history, observe(str(tmp_path / "tree")), crash).violations


@pytest.mark.parametrize("seed", range(5))
def test_an_untouched_tree_passes(directory: Directory, tmp_path: Path, seed: int) -> None:
    Workload(directory, seed).run(300)
    assert violations(tmp_path) == []
    assert violations(tmp_path, POWER_CUT) == []


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, Callable[[Path], object]] = {
    "a closed file is gone": lambda tree: (tree / "new4096").unlink(),
    "a closed file is empty": lambda tree: write(tree / "new4096", b""),
    "a closed file is cut": lambda tree: os.truncate(tree / "new70000", 65536),
    "a tail is zeros": lambda tree: write(
        tree / "new4096", (tree / "new4096").read_bytes()[:4000] + bytes(96)
    ),
    "two files are mixed": lambda tree: swap(tree / "new100", tree / "new4096"),
    "a removed name is back": lambda tree: write(tree / "atomic100.tmp", b"old"),
    "a rename happened twice": lambda tree: shutil.copy2(
        tree / "atomic4096", tree / "atomic4096.tmp"
    ),
    "a stranger appears": lambda tree: write(tree / "stranger", b""),
    "a mode is lost": lambda tree: (tree / "new100").chmod(0o600),
    "a file has become a directory": lambda tree: become_directory(tree / "new100"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found(directory: Directory, tmp_path: Path, fault: str) -> None:
    closed_not_synced(directory, 0)
    assert violations(tmp_path) == []
    FAULTS[fault](tmp_path / "tree")
    assert len(violations(tmp_path)) >= 1


def test_after_a_power_cut_closed_files_may_be_old_or_given_up_but_not_empty(
    directory: Directory, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    fd = directory.create("kept")
    directory.write_all(fd, 100)
    directory.fsync(fd)
    directory.close(fd)
    old = (tree / "kept").read_bytes()
    closed_not_synced(directory, 0)
    fd = directory.open("kept", os.O_TRUNC)
    directory.write_all(fd, 200)
    directory.close(fd)
    directory.fsync_directory("")
    history = History.load(tmp_path / "manifest")
    write(tree / "kept", old)
    (tree / "new100").unlink()
    verdict = check(history, observe(str(tree)), POWER_CUT)
    assert verdict.violations == []
    assert verdict.given_up == ["new100"]
    write(tree / "kept", b"")
    words = check(history, observe(str(tree)), POWER_CUT).violations
    assert [word.split()[0] for word in words] == ["'kept'", "'kept'"]


def test_a_rename_under_way_may_not_lose_both_names(directory: Directory, tmp_path: Path) -> None:
    fd = directory.create("a")
    directory.write_all(fd, 100)
    directory.close(fd)
    directory.recorder.intent("rename", path="a", new="b")
    tree = tmp_path / "tree"
    assert violations(tmp_path) == []
    os.rename(tree / "a", tree / "b")
    assert violations(tmp_path) == []
    shutil.copy2(tree / "b", tree / "a")
    assert any("exists 2 times" in word for word in violations(tmp_path))
    os.unlink(tree / "a")
    os.unlink(tree / "b")
    assert any("is lost" in word for word in violations(tmp_path))


def test_a_moved_successor_gives_its_place_to_what_it_replaced(
    directory: Directory, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    moved_after_replacing(directory, 0)
    assert violations(tmp_path, POWER_CUT) == []
    history = History.load(tmp_path / "manifest")
    old = history.timeline["saved4096free"][0][1]
    assert old is not None
    write(tree / "moved4096free", bytes(old.data))
    assert violations(tmp_path, POWER_CUT) == []
    write(tree / "moved4096free", bytes(old.data[:-1]))
    assert any("moved4096free" in word for word in violations(tmp_path, POWER_CUT))


def test_a_cut_that_was_not_acknowledged_is_done_or_not_done(
    directory: Directory, tmp_path: Path
) -> None:
    fd = directory.create("a")
    directory.write_all(fd, 100)
    directory.close(fd)
    directory.recorder.intent("truncate", path="a", size=10)
    assert violations(tmp_path) == []
    os.truncate(tmp_path / "tree" / "a", 10)
    assert violations(tmp_path) == []
    os.truncate(tmp_path / "tree" / "a", 11)
    assert any("holds" in word for word in violations(tmp_path))
