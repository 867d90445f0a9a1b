"""Remote mounts: from what the user asked for to trees that are served, at the start and at run
time.

Owned by the daemon. It makes volumes, hangs them into the mount table, runs them in its nursery and
takes them away. A backend that fails, is down or is told nonsense stops no other mount: the reason
is kept (``Remote.problem``, ``problems``) and its tree answers with it.

What was added at run time is remembered in the state directory; so is which backend the rows of a
mount are of. Where the settings name another one now, its rows are forgotten first, and if some of
them still have changes for the earlier one, the mount is not shown until that is decided: bytes
must not go to a place that they were not meant for.
"""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from unifs.config import parse_remote
from unifs.config_mounts import REMOTE_KINDS, RemoteBase
from unifs.errors import Busy, Exists, NotFound, UnifsError, Unsupported, Unsynced
from unifs.journal.writeback_due import WritebackLimits
from unifs.mounts.observed import Observed
from unifs.mounttable import TableEntry
from unifs.vfs.remoteforget import forget_all, forget_now, waiting_of
from unifs.vfs.remotevolume import RemoteVolume
from unifs.vfs.treeinode import TreeInode
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from unifs.cache.reads import ReadCache
    from unifs.config import JournalSettings, MountSettings
    from unifs.driver.notify import Notifications
    from unifs.mounts.base import Mount
    from unifs.mounttable import MountTable
    from unifs.vfs.treevolume import TreeLoader

log = logging.getLogger(__name__)

#: In ``meta``: what was added at run time, and what the rows of each mount are of.
ADDED_KEY: Final = "backends"
SOURCES_KEY: Final = "backend_sources"
#: Changes on their way at once, of one mount: the rest of its requests is for readers.
WRITEBACK_MAX: Final = 32
#: How long the start waits for mounts that take their time to begin.
START_S: Final = 2.0
#: Before a mount that failed as a whole begins again.
PAUSE_S: Final = 1.0
PAUSE_MAX_S: Final = 60.0


class Make(Protocol):
    """Makes the mount of one kind of settings."""

    def __call__(self, name: str, settings: RemoteBase, /) -> Mount: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What remote mounts need of the daemon."""

    trees: TreeLoader
    table: MountTable
    cache: ReadCache
    notifications: Notifications
    journal: JournalSettings
    make: Make
    #: The whole tree is read-only.
    is_read_only: bool = False
    #: Hashes a large content now.
    seal: Callable[[TreeInode], Awaitable[None]] | None = None


@dataclass(eq=False, slots=True)
class Remote:
    """One remote mount that is shown."""

    name: str
    settings: RemoteBase
    mount: Observed
    volume: RemoteVolume
    is_removable: bool
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    started: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def kind(self) -> str:
        """The word in the settings."""
        return str(type(self.settings).__struct_config__.tag)

    @property
    def problem(self) -> str:
        """Why its backend does not work now, "" where it does."""
        return self.mount.health.problem


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the user asked for."""

    name: str
    settings: RemoteBase
    is_removable: bool


class Remotes:
    """All remote mounts of one daemon. Belongs to the event loop's thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._remotes: dict[str, Remote] = {}
        #: Mounts that are not shown, and why.
        self.problems: dict[str, str] = {}
        self._nursery: trio.Nursery | None = None
        self._changing = trio.Lock()

    def __iter__(self) -> Iterator[Remote]:
        return iter([self._remotes[name] for name in sorted(self._remotes)])

    def get(self, name: str) -> Remote:
        """NotFound if there is none."""
        remote = self._remotes.get(name)
        if remote is None:
            why = self.problems.get(name)
            more = f": {why}" if why else "; `unifs ctl backends ls` lists them"
            raise NotFound(f"there is no backend {name}{more}")
        return remote

    def of(self, volume: object) -> Remote | None:
        """The remote mount of a volume."""
        return next((each for each in self if each.volume is volume), None)

    # --- at the start -----------------------------------------------------------------------------

    def add_configured(self, mounts: Mapping[str, MountSettings]) -> None:
        """Those of the settings, then those that were added at run time."""
        for name, settings in mounts.items():
            if isinstance(settings, RemoteBase) and settings.enabled:
                self._try(name, settings, is_removable=False)
        for name, table in self._added().items():
            if name in mounts:
                self.problems.setdefault(
                    name, "it was added at run time and stands in the settings"
                )
                continue
            try:
                settings_then = parse_remote(name, table)
            except UnifsError as error:
                self._refuse(name, error)
            else:
                self._try(name, settings_then, is_removable=True)
        self._look_for_forgotten()

    def _try(self, name: str, settings: RemoteBase, is_removable: bool) -> None:
        volume = None
        try:
            volume, is_new = self._claim(name, settings)
            if is_new:
                forget_now(volume)
            self._own(name, settings)
            mount = self._parts.make(name, settings)
            self._show(volume, _Asked(name, settings, is_removable), mount)
        except UnifsError as error:
            self._refuse(name, error)
            if volume is not None:
                del self._parts.trees.volumes[volume.mount_id]

    def _refuse(self, name: str, error: UnifsError) -> None:
        self.problems[name] = str(error)
        log.error("not shown: mount=%s reason=%s", name, error)

    def _look_for_forgotten(self) -> None:
        """A mount that was taken out of the settings may have changes that wait for ever."""
        trees = self._parts.trees
        rows = trees.writer.tree.database.all("select id,name,kind from mount")
        for number, name, kind in rows:
            if kind not in REMOTE_KINDS or name in self._remotes or name in self.problems:
                continue
            waiting = waiting_of(RemoteVolume(name, number, trees.writer, trees.factory))
            if waiting:
                self.problems[name] = (
                    f"it is not in the settings any more, and {waiting} changes in it have not"
                    f" reached {self._sources().get(name, 'its backend')}"
                )
                log.error("not shown: mount=%s reason=%s", name, self.problems[name])

    # --- one mount --------------------------------------------------------------------------------

    def _claim(self, name: str, settings: RemoteBase) -> tuple[RemoteVolume, bool]:
        """The volume of a mount, and whether its rows are of another backend.

        Unsynced if there are changes for that other one.
        """
        volume = self._parts.trees.add(name, _kind(settings), RemoteVolume)
        assert isinstance(volume, RemoteVolume)
        before = self._sources().get(name)
        if before is None or before == settings.source():
            return volume, False
        waiting = waiting_of(volume)
        if waiting and before:
            del self._parts.trees.volumes[volume.mount_id]
            raise Unsynced(
                f"{waiting} changes in {name} are meant for {before} and not for"
                f" {settings.source()}: name {before} again until they are there, or call the new"
                " one by another name"
            )
        return volume, True

    def _own(self, name: str, settings: RemoteBase) -> None:
        """Remember what the rows are of from now on."""
        sources = self._sources()
        if sources.get(name) != settings.source():
            self._keep(SOURCES_KEY, {**sources, name: settings.source()})

    def _show(self, volume: RemoteVolume, asked: _Asked, mount: Mount) -> Remote:
        name, settings = asked.name, asked.settings
        parts, journal = self._parts, self._parts.journal
        observed = Observed(name, mount)
        limits = WritebackLimits(
            journal.writeback_delay_s,
            journal.writeback_age_max_s,
            min(WRITEBACK_MAX, settings.parallel_max),
        )
        volume.connect(observed, parts.cache, settings.fresh_s, limits, settings.conflicts)
        volume.unsynced.max_bytes = journal.dirty_bytes_max
        volume.invalidator = parts.notifications.for_mount(name)
        volume.refuses_changes = settings.read_only or parts.is_read_only
        volume.moved_bytes = lambda: observed.health.sent_bytes
        volume.seal = parts.seal
        volume.waits_for_backend = settings.durability == "backend"
        is_writable = not (volume.refuses_changes or volume.is_read_only())
        source = settings.source()
        entry = TableEntry(name, _kind(settings), source, is_writable, asked.is_removable)
        parts.table.add_remote(entry, volume.root)
        remote = Remote(name, settings, observed, volume, asked.is_removable)
        self._remotes[name] = remote
        self.problems.pop(name, None)
        return remote

    # --- at run time ------------------------------------------------------------------------------

    async def add(self, name: str, table: Mapping[str, object]) -> Remote:
        """Show one more, now and at every start. Exists, ConfigInvalid, Unsynced."""
        settings = parse_remote(name, table)
        async with self._changing:
            if name in self._remotes:
                raise Exists(f"there is a backend {name} already")
            self._parts.table.check_free(name)
            volume, is_new = await complete(self._claim, name, settings)
            try:
                if is_new:
                    await forget_all(volume)
                await complete(self._own, name, settings)
                # SDKs are imported and their files read.
                mount = await trio.to_thread.run_sync(self._parts.make, name, settings)
                remote = self._show(volume, _Asked(name, settings, True), mount)
            except BaseException:
                self._parts.trees.volumes.pop(volume.mount_id, None)
                raise
            await complete(self._keep, ADDED_KEY, {**self._added(), name: dict(table)})
            if self._nursery is not None:
                self._nursery.start_soon(self._serve, remote)
                with trio.move_on_after(START_S):
                    await remote.started.wait()
        return remote

    async def remove(self, name: str, force: bool) -> None:
        """Take one away that was added at run time, with its rows; its backend is as it was.

        Busy while files of it are open; Unsynced if changes would be lost and not ``force``.
        """
        async with self._changing:
            remote = self.get(name)
            if not remote.is_removable:
                raise Unsupported(f"{name} stands in the settings file; remove it there")
            volume = remote.volume
            await self._settle(volume)
            waiting = volume.status.count()
            if waiting and not force:
                raise Unsynced(
                    f"{waiting} changes in {name} have not reached their backend;"
                    " `--force` gives them up"
                )
            # No checkpoint until nobody can find it any more.
            self._parts.table.remove_remote(name)
            del self._remotes[name]
            with trio.CancelScope(shield=True):
                added = {key: each for key, each in self._added().items() if key != name}
                await complete(self._keep, ADDED_KEY, added)
                # "": begun to forget. A start in the middle of it goes on.
                await complete(self._keep, SOURCES_KEY, {**self._sources(), name: ""})
                remote.scope.cancel()
                if self._nursery is not None:
                    await remote.ended.wait()
                del self._parts.trees.volumes[volume.mount_id]
                self._parts.notifications.remove(name)
                await forget_all(volume)

    async def _settle(self, volume: RemoteVolume) -> None:
        """Commit what is not committed; Busy where somebody may still write."""
        writer = volume.writer
        for inode in [*writer.pending.values(), *writer.open.values()]:
            if inode.volume is volume and inode.is_dirty():
                await complete(writer.commit, inode)
        opened = [
            each
            for each in writer.inodes.hot.values()
            if each.volume is volume and isinstance(each, TreeInode) and each.opens
        ]
        if opened:
            raise Busy(f"{len(opened)} files below {volume.name} are open")

    # --- what is remembered -----------------------------------------------------------------------

    def _added(self) -> dict[str, dict[str, object]]:
        return self._table(ADDED_KEY)

    def _sources(self) -> dict[str, str]:
        return self._table(SOURCES_KEY)

    def _table(self, key: str) -> dict[str, Any]:
        return self._parts.trees.writer.tree.database.get_table(key)

    def _keep(self, key: str, table: Mapping[str, object]) -> None:
        statement = "insert or replace into meta values(?,?)"
        self._parts.trees.writer.tree.commit([(statement, (key, json.dumps(table)))])

    # --- life -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Connections, writeback and scans of all remote mounts run inside this context."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for remote in self:
                nursery.start_soon(self._serve, remote)
            with trio.move_on_after(START_S):
                for remote in self:
                    await remote.started.wait()
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def _serve(self, remote: Remote) -> None:
        """Keep one mount running; what fails in it is its own failure."""
        pause_s = PAUSE_S
        try:
            with remote.scope:
                while True:
                    try:
                        async with remote.mount.serve(), remote.volume.serve():
                            remote.mount.health.answered()
                            remote.started.set()
                            pause_s = PAUSE_S
                            await trio.sleep_forever()
                    except Exception as error:
                        # Whatever it is, it ends this mount's turn and no other mount's life.
                        self._failed(remote, error)
                    remote.started.set()
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_MAX_S)
        finally:
            remote.ended.set()

    def _failed(self, remote: Remote, error: Exception) -> None:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, UnifsError):
            remote.mount.health.failed(error)
            return
        log.error("mount failed and begins again: mount=%s", remote.name, exc_info=error)
        remote.mount.health.failed(UnifsError(f"a bug: {type(error).__name__}"))


def _kind(settings: RemoteBase) -> str:
    return str(type(settings).__struct_config__.tag)
