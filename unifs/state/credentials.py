"""The credentials store: secrets by name, in one file of the state directory that only its owner
can read.

The daemon owns one. Operations add, list and remove entries; mounts read them. A secret leaves this
module only as the value that a mount signs with: it has no ``repr``, stands in no error and in no
answer. The file is written whole to a new one of mode 0600 and renamed, so a crash leaves the old
or the new; one that others can read is refused, not repaired: somebody may have read it.

``load`` and ``_store`` block and run in threads, except once at the start.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import (
    Exists,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StateUnusable,
    TooLarge,
)

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "credentials.json"
VERSION: Final = 1
ENTRIES_MAX: Final = 1000
#: Session tokens of chained roles are some 2 KiB.
SECRET_BYTES_MAX: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Entry:
    """One identity, or one key of one's own (then ``access_key`` is empty)."""

    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    added_s: float = 0.0

    @property
    def is_key(self) -> bool:
        """Whether it is an encryption key and no identity."""
        return not self.access_key


class CredentialStore:
    """Entries by name."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._entries: dict[str, Entry] = {}
        #: Why the file cannot be used; "" where it can, or where there is none.
        self.problem = ""
        self._lock = trio.Lock()
        try:
            self._entries = _load(self.path)
        except (PermissionDenied, StateUnusable) as error:
            # Mounts that need it say so; the others come up.
            self.problem = str(error)

    def names(self) -> list[str]:
        """All entries, by name."""
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """NotFound if there is none; PermissionDenied where the file cannot be used."""
        if self.problem:
            raise PermissionDenied(self.problem)
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(
                f"there are no credentials called {name!r}: `unifs ctl credentials add {name}`"
            )
        return entry

    async def add(self, name: str, entry: Entry, replace: bool) -> None:
        """Keep an entry; durable when this returns. Exists if it is there and not ``replace``."""
        _check(name, entry)
        async with self._lock:
            if name in self._entries and not replace:
                raise Exists(f"there are credentials called {name!r} already")
            if len(self._entries) >= ENTRIES_MAX:
                raise TooLarge(f"the credentials store holds {ENTRIES_MAX} entries")
            await self._keep({**self._entries, name: entry})

    async def remove(self, name: str) -> None:
        """Forget an entry; NotFound if there is none."""
        async with self._lock:
            self.get(name)
            await self._keep({key: each for key, each in self._entries.items() if key != name})

    async def _keep(self, entries: dict[str, Entry]) -> None:
        if self.problem:
            raise PermissionDenied(self.problem)
        await trio.to_thread.run_sync(_store, self.path, entries)
        self._entries = entries


def _check(name: str, entry: Entry) -> None:
    if not 0 < len(name) <= 100 or not name.isprintable() or "/" in name:
        raise InvalidArgument(f"{name!r} cannot be a name of credentials", field="name")
    for what in ("access_key", "secret_key", "session_token"):
        value: str = getattr(entry, what)
        if len(value) > SECRET_BYTES_MAX or not value.isascii() or not value.isprintable():
            raise InvalidArgument(f"the {what} is not printable ASCII without line ends")
        if value != value.strip():
            raise InvalidArgument(f"the {what} begins or ends with a space")
    if re.search(r"[\s,/]", entry.access_key):
        # It stands between these in a signature, and is no secret.
        raise InvalidArgument(f"the access_key {entry.access_key!r} has a space, comma or slash")
    if not entry.secret_key:
        raise InvalidArgument("the secret_key is empty")


def _load(path: Path) -> dict[str, Entry]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise PermissionDenied(
                    f"others can read {path} (mode {mode:04o}): chmod 600 it, and change the"
                    " secrets in it if somebody may have read them"
                )
            table = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # The cause of a parser's error would carry the file's text: its kind is enough.
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise StateUnusable(f"{path} cannot be read: {reason}") from None
    if not isinstance(table, dict) or table.get("version") != VERSION:
        raise StateUnusable(f"{path} was written by another version of unifs")
    return {name: Entry(**each) for name, each in table["entries"].items()}


def _store(path: Path, entries: dict[str, Entry]) -> None:
    table = {
        "version": VERSION,
        "entries": {name: asdict(entry) for name, entry in entries.items()},
    }
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(table, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
