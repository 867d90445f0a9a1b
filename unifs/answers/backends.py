"""``unifs ctl backends`` and ``unifs ctl refresh``: mounts with a backend."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import trio

from unifs.answers.s3check import check
from unifs.backends import credentials_of, s3_options
from unifs.config_mounts import S3Settings
from unifs.control.daemon_protocol import BackendInfo, BackendTest, Refreshed
from unifs.errors import InvalidArgument, Unsupported
from unifs.vfs.remoterows import UNLISTED, RemoteInode, bounds
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.answers.journal import JournalAnswer
    from unifs.remotes import Remote, Remotes
    from unifs.state.credentials import CredentialStore
    from unifs.vfs.paths import Paths
    from unifs.vfs.remotevolume import RemoteVolume

NAMES_MAX = 20
NAMES = "select count(*) from dentry where parent=?"
#: Rows that are doubted in one piece: some 3 ms.
STEP_ROWS = 500
SOME = "select ino,path from remote where mount=? and path>? and path<? order by path limit ?"
DOUBT = (
    "update remote set checked_ns=0,listed_ns=0,listing=0,cursor=null"
    " where mount=? and path>? and path<=?"
)


class BackendsAnswer:
    """Backends, for control operations."""

    def __init__(
        self, remotes: Remotes, journal: JournalAnswer, paths: Paths, store: CredentialStore
    ) -> None:
        self._remotes = remotes
        self._journal = journal
        self._paths = paths
        self._store = store

    async def list(self) -> list[BackendInfo]:
        """All that are shown, then those that are not and why."""
        shown = [self._info(remote) for remote in self._remotes]
        hidden = [
            BackendInfo(
                name=name,
                kind="",
                source="",
                is_read_only=True,
                is_removable=False,
                problem=f"not shown: {why}",
            )
            for name, why in sorted(self._remotes.problems.items())
        ]
        return shown + hidden

    def _info(self, remote: Remote) -> BackendInfo:
        volume = remote.volume
        return BackendInfo(
            name=remote.name,
            kind=remote.kind,
            source=remote.settings.source(),
            is_read_only=volume.refuses_changes or volume.is_read_only(),
            is_removable=remote.is_removable,
            unsynced=volume.status.count(),
            unsynced_bytes=volume.unsynced.size_bytes,
            quarantined=volume.writeback.statistics()["quarantined"],
            problem=remote.problem or None,
        )

    async def add(self, name: str, settings: dict[str, object]) -> BackendInfo:
        """Shown now and after a restart. ConfigInvalid, Exists, Unsynced.

        NotFound, InvalidArgument where it names credentials that are not there, or are none.
        """
        credentials = settings.get("credentials")
        if isinstance(credentials, str) and credentials and self._store.get(credentials).is_key:
            raise InvalidArgument(f"{credentials!r} is an encryption key and no identity")
        return self._info(await self._remotes.add(name, settings))

    async def remove(self, name: str, force: bool) -> None:
        """Unsynced if changes have not reached it and not ``force``; Busy while files are open."""
        await self._remotes.remove(name, force)

    async def test(self, name: str) -> BackendTest:
        """Ask it for something, changing nothing; raises what is wrong, in one sentence."""
        remote = self._remotes.get(name)
        began = time.monotonic()
        if isinstance(remote.settings, S3Settings) and remote.mount.mount.kind == "s3":
            options = await trio.to_thread.run_sync(s3_options, remote.settings, self._store)
            await check(options, await credentials_of(remote.settings, self._store).current())
        page = await remote.mount.scan("", None)
        elapsed_ms = (time.monotonic() - began) * 1e3
        return BackendTest(
            name=name,
            source=remote.settings.source(),
            elapsed_ms=round(elapsed_ms, 1),
            is_conditional=remote.mount.is_conditional,
            objects=[os.fsdecode(entry.name) for entry in page.entries[:NAMES_MAX]],
        )

    async def refresh(self, path: str, recursive: bool) -> Refreshed:
        """Ask the backend again: an object itself, a directory with its names."""
        inode = await self._paths.find(path)
        remote = self._remotes.of(inode.volume)
        if remote is None or not isinstance(inode, RemoteInode):
            raise Unsupported(f"{path} has no backend that could be asked")
        volume, asked = remote.volume, 0
        if inode.ino != volume.root:
            await volume.merge.refresh(inode)
            asked += 1
        if stat.S_ISDIR(inode.attributes.st_mode):
            if recursive:
                await _doubt(volume, inode)
            inode.listing, inode.cursor = UNLISTED, None
            await complete(volume.tree.commit, [volume.remotes.store(inode)])
            await volume.merge.scan(inode)
            asked += volume.tree.database.one(NAMES, (inode.ino,))[0]
        return Refreshed(path=path, asked=asked)


async def _doubt(volume: RemoteVolume, inode: RemoteInode) -> None:
    """Nothing that is known below a directory is believed any more. Others are served meanwhile."""
    low, high = bounds(inode.path or "")
    after: bytes | None = low
    while after is not None:
        after = await complete(_doubt_some, volume, after, high)
        await trio.lowlevel.checkpoint()


def _doubt_some(volume: RemoteVolume, low: bytes, high: bytes) -> bytes | None:
    """Doubt the first rows with a path between; the last of them, None when there was none."""
    rows = volume.tree.database.all(SOME, (volume.mount_id, low, high, STEP_ROWS))
    if not rows:
        return None
    last = bytes(rows[-1][1])
    volume.tree.commit([(DOUBT, (volume.mount_id, low, last))])
    for ino, _ in rows:
        hot = volume.inodes.hot.get(ino)
        if isinstance(hot, RemoteInode):
            hot.checked_ns = hot.listed_ns = 0
            hot.listing, hot.cursor = UNLISTED, None
            volume.tell_inode(ino)
    return last
