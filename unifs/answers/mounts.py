"""``unifs ctl mounts``: the mount table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.control.daemon_protocol import MountInfo
from unifs.errors import Unsynced

if TYPE_CHECKING:
    from unifs.answers.journal import JournalAnswer
    from unifs.mounttable import MountTable, TableEntry
    from unifs.remotes import Remote, Remotes


class MountsAnswer:
    """The mount table, for control operations."""

    def __init__(self, table: MountTable, journal: JournalAnswer, remotes: Remotes) -> None:
        self._table = table
        self._journal = journal
        self._remotes = remotes

    async def list(self) -> list[MountInfo]:
        """All mounts, by name."""
        return [self._info(entry) for entry in self._table.list()]

    def _info(self, entry: TableEntry) -> MountInfo:
        waiting = self._journal.waiting(entry.name)
        remote = next((each for each in self._remotes if each.name == entry.name), None)
        return MountInfo(
            name=entry.name,
            kind=entry.kind,
            source=entry.source,
            is_read_only=not entry.is_writable,
            durability=DURABILITY[entry.kind] if remote is None else _durability(remote),
            unsynced=waiting.count,
            unsynced_bytes=waiting.size_bytes,
            problem=None if remote is None else remote.problem or None,
        )

    async def add(self, name: str, directory: str) -> MountInfo:
        """``local/NAME`` shows the host's ``directory``, now and after a restart."""
        return self._info(await self._table.add(name, directory))

    async def remove(self, name: str, force: bool) -> None:
        """Unsynced if changes have not reached the backend and not ``force``."""
        if any(remote.name == name for remote in self._remotes):
            await self._remotes.remove(name, force)
            return
        waiting = self._journal.waiting(name)
        if waiting.count and not force:
            raise Unsynced(f"{waiting.count} changes in {name} have not reached their backend")
        await self._table.remove(name)


def _durability(remote: Remote) -> str:
    return "the backend" if remote.settings.durability == "backend" else DURABILITY["mfs"]


#: What fsync waits for in a mount of each kind.
DURABILITY = {
    "mfs": "this machine's disk",
    "ipfs": "nothing: it cannot be changed",
    "local": "the host file system's fsync",
}
