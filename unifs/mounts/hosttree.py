"""A host directory through system calls that block: what ``LocalMount`` runs in its threads.

A path is walked one component at a time with O_NOFOLLOW, so no symlink on the host leads out of the
directory. What is done at the end of the way, to one name in one directory, stands in
``hostobject``.

Locks: ``_changing``, held by a thread while it commits one change. Errors: unifs.errors and
OSError.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unifs.errors import Conflict, Exists, InvalidArgument, IsADirectory, NotFound, Stale
from unifs.mounts.hostcalls import (
    RENAME_NOREPLACE,
    dirents,
    getdents,
    renameat2,
    set_owner,
    set_times,
)
from unifs.mounts.hostobject import (
    TEMPORARY_PREFIX,
    Upload,
    is_made,
    keep_token,
    make_at,
    node_of,
    opened_at,
    remove_file,
    replace_file,
    settle_removal,
    status_at,
    sync_directory,
    temporary_name,
    token_at,
    unlink_if_there,
    version_of,
)
from unifs.types import Entry, Node, Page, SetAttributes, Version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: One getdents64 and so one page: about 800 entries.
PAGE_BYTES: Final = 32 << 10

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OBJECT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class HostTree:
    """The tree below ``directory``; paths as in the mount protocol."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._changing = threading.Lock()

    # --- reading --------------------------------------------------------------------------------

    def stat(self, path: str) -> Node:
        with self._open(path, _OBJECT) as fd:
            return node_of(os.fstat(fd), fd, b"")

    def scan(self, path: str, after: str | None) -> Page:
        with self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) as fd:
            if after is not None:
                os.lseek(fd, _cookie(after), os.SEEK_SET)
            buffer = ctypes.create_string_buffer(PAGE_BYTES)
            count = getdents(fd, buffer)
            entries: list[Entry] = []
            cookie = 0
            for name, cookie in dirents(ctypes.string_at(buffer, count)):  # noqa: B007 – the last one
                if name in (b".", b"..") or name.startswith(TEMPORARY_PREFIX):
                    continue
                status = status_at(fd, name)
                if status is not None:
                    entries.append(Entry(name, node_of(status, fd, name)))
            return Page(tuple(entries), str(cookie) if count else None)

    def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        with self._open(path, _OBJECT) as place:
            status = os.fstat(place)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectory(path)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument("not a regular file")
            if version_of(status) != version:
                raise Stale(path)
            fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(fd, size, offset)
            finally:
                os.close(fd)
            if version_of(os.fstat(place)) != version:
                raise Stale(path)
            return data

    # --- files ----------------------------------------------------------------------------------

    def begin(self, path: str, token: str) -> Upload:
        """A new upload; the caller closes it."""
        directory, name = self._open_parent(path)
        temporary = temporary_name(token)
        try:
            unlink_if_there(directory, temporary)
            fd = os.open(temporary, _NEW, 0o644, dir_fd=directory)
        except BaseException:
            os.close(directory)
            raise
        upload = Upload(directory, name, temporary, fd)
        try:
            keep_token(fd, token)
        except BaseException:
            upload.close()
            raise
        return upload

    def finish(self, upload: Upload, base: Version | None, token: str) -> Node:
        """Put the upload in its place, if that still holds ``base``, and make it durable."""
        directory, name = upload.directory, upload.name
        os.fsync(upload.fd)
        with self._changing:
            there = status_at(directory, name)
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise IsADirectory(os.fsdecode(name))
            if there is not None and token_at(directory, name) == token:
                return node_of(there, directory, name)
            if (None if there is None else version_of(there)) != base:
                raise Conflict(os.fsdecode(name))
            try:
                if there is None:
                    renameat2(directory, upload.temporary, directory, name, RENAME_NOREPLACE)
                else:
                    replace_file(upload, there)
            except (FileExistsError, FileNotFoundError):
                raise Conflict(os.fsdecode(name)) from None
            placed = os.fstat(upload.fd)
        sync_directory(directory)
        return node_of(placed, directory, name)

    def remove(self, path: str, base: Version | None, token: str) -> None:
        try:
            directory, name = self._open_parent(path)
        except FileNotFoundError:
            return
        try:
            with self._changing:
                settle_removal(directory, name, base, temporary_name(token))
                there = status_at(directory, name)
                if there is None:
                    return
                is_directory = stat.S_ISDIR(there.st_mode)
                if (None if is_directory else version_of(there)) != base:
                    raise Conflict(path)
                if is_directory:
                    os.rmdir(name, dir_fd=directory)
                else:
                    remove_file(directory, name, there, temporary_name(token))
            sync_directory(directory)
        finally:
            os.close(directory)

    # --- the rest -------------------------------------------------------------------------------

    def make(self, path: str, node: Node, token: str) -> Node:
        directory, name = self._open_parent(path)
        temporary = temporary_name(token)
        try:
            unlink_if_there(directory, temporary)
            make_at(directory, temporary, node)
            with opened_at(directory, temporary) as fd:
                keep_token(fd, token)
                if node.has_permissions and not stat.S_ISLNK(node.mode):
                    os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(node.mode))
            with self._changing:
                try:
                    renameat2(directory, temporary, directory, name, RENAME_NOREPLACE)
                except FileExistsError:
                    unlink_if_there(directory, temporary)
                    if not is_made(directory, name, node, token):
                        raise Exists(path) from None
            sync_directory(directory)
            with opened_at(directory, name) as fd:
                return node_of(os.fstat(fd), fd, b"")
        finally:
            os.close(directory)

    def rename(self, path: str, new_path: str, token: str) -> None:
        target, new_name = self._open_parent(new_path)
        try:
            source, name = self._open_parent(path)
        except BaseException:
            os.close(target)
            raise
        try:
            with self._changing:
                if status_at(source, name) is None:
                    if token_at(target, new_name) == token:
                        return
                    raise NotFound(path)
                with opened_at(source, name) as fd:
                    keep_token(fd, token)
                os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
            sync_directory(target)
            sync_directory(source)
        finally:
            os.close(source)
            os.close(target)

    def set_attributes(self, path: str, changes: SetAttributes) -> None:
        with self._open(path, _OBJECT) as fd:
            place = f"/proc/self/fd/{fd}"
            if changes.uid is not None or changes.gid is not None:
                set_owner(place, changes)
            if changes.mode is not None:
                os.chmod(place, stat.S_IMODE(changes.mode))
            set_times(place, changes)

    # --- the way to an object -------------------------------------------------------------------

    @contextmanager
    def _open(self, path: str, flags: int) -> Iterator[int]:
        if path:
            directory, name = self._open_parent(path)
            try:
                fd = os.open(name, flags, dir_fd=directory)
            finally:
                os.close(directory)
        else:
            fd = os.open(self._directory, flags & ~os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_parent(self, path: str) -> tuple[int, bytes]:
        names = os.fsencode(path).split(b"/")
        if any(name in (b"", b".", b"..") or b"\0" in name for name in names):
            raise InvalidArgument(f"not a path: {path!r}")
        fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in names[:-1]:
            above = fd
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        return fd, names[-1]


def _cookie(after: str) -> int:
    if not after.isdecimal():
        raise InvalidArgument("that is no cursor of a scan")
    return int(after)
