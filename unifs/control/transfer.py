"""Bytes between the command line and the daemon: files in, files out, and a bar for people.

The commands call it. Nothing half-written is left under its final name.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast

from unifs.errors import Corrupt, Exists, IsADirectory, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PIECE_BYTES: Final = 1 << 20


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A progress bar on stderr, None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(label, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


def pieces(
    file: IO[bytes],
    told: Callable[[int, int | None], None] | None,
    total_bytes: int | None = None,
) -> Iterator[bytes]:
    """A file's bytes, counted; ``total_bytes`` is what they may come to."""
    done = 0
    while piece := file.read(PIECE_BYTES):
        done += len(piece)
        yield piece
        if told is not None:
            told(done, total_bytes)


def write_out(chunks: Iterable[bytes], output: Path | None) -> None:
    """Write bytes to a file, which appears when they are complete, or to stdout.

    A file that is there is replaced, behind a link too, and keeps its permissions; a device or a
    FIFO is written to.
    """
    if output is None:
        _write(chunks, sys.stdout.buffer)
        return
    if output.is_dir():
        raise IsADirectory(f"{output} is a directory")
    mode = output.stat().st_mode if output.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with output.open("wb") as file:
            _write(chunks, file)
        return
    target = Path(os.path.realpath(output)) if output.is_symlink() else output
    _check_parent(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            _write(chunks, file)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write(chunks: Iterable[bytes], file: IO[bytes]) -> None:
    for chunk in chunks:
        file.write(chunk)
    file.flush()


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise NotFound(f"there is no directory {path.parent}")


def unpack(chunks: Iterable[bytes], output: Path | None) -> Path:
    """Unpack the one tree of a tar archive: at ``output``, else under its own name here.

    It appears there when it is whole. Nothing is overwritten and nothing is written elsewhere: each
    member's directory is one that this call has made, each file is made anew. Raises Exists where
    the name is taken.
    """
    with tarfile.open(fileobj=cast("IO[bytes]", _Stream(chunks)), mode="r|") as archive:
        members = iter(archive)
        first = next(members, None)
        if first is None:
            raise Corrupt("the archive is empty")
        top = output or Path(first.name.partition("/")[0])
        _check_free(top)
        part = top.with_name(f".{top.name}.{os.getpid()}.part")
        try:
            _unpack_below(archive, itertools.chain([first], members), part)
            _check_free(top)
            part.rename(top)
        finally:
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
    return top


def _check_free(path: Path) -> None:
    _check_parent(path)
    if os.path.lexists(path):
        raise Exists(f"{path} exists")


def _unpack_below(archive: tarfile.TarFile, members: Iterable[tarfile.TarInfo], top: Path) -> None:
    made: set[Path] = set()
    first = ""
    for member in members:
        names = member.name.split("/")
        if any(name in ("", ".", "..") for name in names):
            raise Corrupt(f"the archive has a member {member.name!r}")
        target = top.joinpath(*names[1:])
        is_inside = target.parent in made and names[0] == first
        if not (is_inside if first else len(names) == 1):
            raise Corrupt(f"the archive has {member.name!r} outside its tree")
        first = names[0]
        _write_member(archive, member, target, made)


def _write_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, made: set[Path]
) -> None:
    if member.isdir():
        target.mkdir()
        made.add(target)
    elif member.issym():
        target.symlink_to(member.linkname)
    elif member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        with target.open("xb") as file:
            while piece := content.read(PIECE_BYTES):
                file.write(piece)
        target.chmod(member.mode & 0o777)
    else:
        raise Corrupt(f"the archive has a member of type {member.type!r}")


class _Stream:
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only at the end."""
        parts = [self._rest]
        have = len(self._rest)
        while have < count:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self._rest = data[count:]
        return data[:count]
