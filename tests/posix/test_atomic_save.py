"""An atomic save under the eyes of readers: never absent, never torn, each reader's file whole.

The readers are processes that open, stat, list and read one name as fast as they can while a writer
replaces it; they say how often they looked, so that a run in which nobody looked proves nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.posix.calls import rename2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.posix.conftest import Place

SIZE_BYTES = 20_000
SAVES = 60
#: An fsync takes milliseconds, more on a busy disk.
SAVES_DURABLE = 20
#: How many looks a reader has to manage while the saves go on.
LOOKS_MIN = 30

READER = """
import os, select, sys
path, how = sys.argv[1:]
size, looks = int(sys.stdin.readline()), 0
print("ready", flush=True)
def read():
    descriptor = os.open(path, os.O_RDONLY)
    assert os.fstat(descriptor).st_size == size
    first = os.read(descriptor, 5000)
    rest = os.read(descriptor, size)
    os.close(descriptor)
    content = first + rest
    assert len(content) == size and len(set(content)) == 1, (len(content), set(content))
def stat():
    assert os.stat(path).st_size == size
def listing():
    assert os.path.basename(path) in os.listdir(os.path.dirname(path))
def access():
    assert os.access(path, os.R_OK)
look = {"read": read, "stat": stat, "list": listing, "access": access}[how]
while looks < %d or not select.select([sys.stdin], [], [], 0)[0]:
    look()
    looks += 1
print(looks)
"""


def plainly(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)


def with_fsync(temporary: Path, path: Path) -> None:
    descriptor = os.open(temporary, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, path)


def by_exchange(temporary: Path, path: Path) -> None:
    rename2(str(temporary), str(path), 2)
    temporary.unlink()


def with_a_backup(temporary: Path, path: Path) -> None:
    backup = path.with_name("document~")
    backup.unlink(missing_ok=True)
    os.link(path, backup)
    os.replace(temporary, path)


def from_another_directory(temporary: Path, path: Path) -> None:
    other = path.parent / "drafts" / "draft"
    os.rename(temporary, other)
    os.replace(other, path)


WAYS = (plainly, with_fsync, by_exchange, with_a_backup, from_another_directory)


@pytest.mark.parametrize("save", WAYS, ids=lambda way: way.__name__)
def test_an_atomic_save_is_never_seen_missing_or_torn(place: Place, save: object) -> None:
    assert callable(save)
    directory = place.path / place.directory()
    (directory / "drafts").mkdir()
    path, temporary = directory / "document", directory / ".document.new"
    path.write_bytes(b"0" * SIZE_BYTES)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER % LOOKS_MIN, path, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for how in ("read", "stat", "list", "access")
    ]
    for reader in readers:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(f"{SIZE_BYTES}\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "ready\n"
    saves = SAVES_DURABLE if save is with_fsync else SAVES
    for number in range(saves):
        temporary.write_bytes(b"%d" % (number % 10) * SIZE_BYTES)
        save(temporary, path)
    for reader in readers:
        out, words = reader.communicate("stop\n", timeout=60)
        assert reader.returncode == 0, words
        assert int(out) >= LOOKS_MIN
    assert path.read_bytes() == b"%d" % ((saves - 1) % 10) * SIZE_BYTES
    assert not temporary.exists()
