"""The composition root: from settings to a served tree, everything in one nursery.

``run`` is what the mount command's child process calls. Order of opening: state directory (lock,
database, recovery), node, volumes, control socket, FUSE session; closing is the reverse, so that
the state is closed clean only after the kernel can send nothing more. No other module knows all
parts.
"""

from __future__ import annotations

import logging
import resource
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import pyfuse3
import trio
import trio_parallel

from unifs import backends
from unifs.answers.backends import BackendsAnswer
from unifs.answers.checks import ChecksAnswer
from unifs.answers.conflicts import ConflictsAnswer
from unifs.answers.credentials import CredentialsAnswer
from unifs.answers.explain import Explainer
from unifs.answers.files import FilesAnswer
from unifs.answers.gauges import watch, watch_remotes
from unifs.answers.history import HistoryAnswer
from unifs.answers.journal import JournalAnswer
from unifs.answers.mounts import MountsAnswer
from unifs.answers.remotejournal import RemoteJournal
from unifs.answers.s3 import S3Answer
from unifs.answers.verifying import FileVerifier
from unifs.cache.disk import DiskLimits, DiskTier
from unifs.cache.reads import ReadCache, ReadLimits
from unifs.config import IpfsMount as IpfsSettings
from unifs.config import LocalMount, state_socket_path
from unifs.config import MfsMount as MfsSettings
from unifs.control.locate import source_of
from unifs.control.ops import operations
from unifs.control.server import serve
from unifs.driver.earlysignals import EarlySignals
from unifs.driver.notify import Notifications
from unifs.driver.session import Session, SessionOptions
from unifs.driver.waits import Deadlines
from unifs.errors import UnifsError
from unifs.ipfs.embedded.archives import is_complete
from unifs.ipfs.embedded.node import EmbeddedNode
from unifs.ipfs.embedded.pins import Pins
from unifs.mounts.ipfs import IpfsMount
from unifs.mounttable import MountTable, TableEntry
from unifs.remotes import Parts, Remotes
from unifs.state.credentials import CredentialStore
from unifs.state.directory import RESERVE_BYTES
from unifs.telemetry import TASK_BUGS, AccessLog, Metrics
from unifs.versionviews import VersionViews
from unifs.vfs.history import History
from unifs.vfs.historyview import HistoryView
from unifs.vfs.ipfsvolume import IpfsVolume
from unifs.vfs.keeper import Keeper
from unifs.vfs.mfsvolume import MfsVolume
from unifs.vfs.paths import Paths
from unifs.vfs.reserved import Reserved
from unifs.vfs.retention import Limits, Retention
from unifs.vfs.roots import MfsRoots
from unifs.vfs.sealing import Sealer
from unifs.vfs.storage import Storage
from unifs.vfs.treevolume import TreeLoader
from unifs.vfs.upkeep import Upkeep
from unifs.vfs.vfs import Vfs
from unifs.vfs.viewvolume import ViewVolume
from unifs.vfs.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from unifs.config import Settings
    from unifs.control.daemon_protocol import Explanation, StatusReport
    from unifs.remotes import Make
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.treevolume import TreeVolume

#: Worker processes that nobody needs end after this; they count as our memory.
WORKER_IDLE_S = 10.0

#: Before a background task that failed begins again.
TASK_PAUSE_S = 1.0

log = logging.getLogger(__name__)


class Part(Protocol):
    """What has connections or tasks of its own."""

    def serve(self) -> AbstractAsyncContextManager[None]: ...


class Daemon:
    """Everything that one mounted tree consists of."""

    def __init__(self, settings: Settings, mount_point: str, make: Make | None = None) -> None:
        """``make`` makes mounts of remote kinds: ``backends.make`` unless a test has its own."""
        self.settings = settings
        self.mount_point = mount_point
        self.metrics = Metrics()
        self.access_log = AccessLog()
        self.notifications = Notifications()
        #: The kernel has asked something: who uses the tree may have begun to change it.
        self.has_answered = False
        self.storage = Storage(settings.state_directory, mount_point, settings.profile)
        try:
            self._build(make)
        except BaseException:
            self._close_storage(is_clean=False)
            raise

    def _build(self, make: Make | None) -> None:
        settings = self.settings
        self.vfs = Vfs(
            settings.state_directory, factory=pyfuse3.EntryAttributes, reserve=RESERVE_BYTES
        )
        self.reserved = Reserved(self.vfs.namespace, self.vfs.inodes)
        self.writer = Writer(self.storage, self.vfs.inodes)
        self.upkeep = Upkeep(self.writer)
        self.trees = TreeLoader(self.writer, self.vfs.factory)
        self.sealer = Sealer(self.writer, self.storage.blocks, self.storage.profile)
        self.keeper = Keeper(self.writer)
        self.pins = Pins(settings.state_directory / "pins.db")
        self.node = EmbeddedNode(
            self.storage.blocks,
            self.pins,
            profile=self.storage.profile,
            limit_bytes=settings.storage.limit_bytes or None,
            owner=self.keeper,
            tree_roots=self.keeper.roots,
        )
        self.node.collector.watermark_percent = settings.storage.watermark_percent
        cache = settings.cache
        self.cache = ReadCache(
            DiskTier(
                self.storage.state.cache, DiskLimits(cache.disk_bytes, cache.disk_free_bytes_min)
            ),
            ReadLimits(memory_bytes_max=cache.memory_bytes),
        )
        self.ipfs = IpfsMount(self.node)
        self.table = MountTable(self.vfs, self.storage, self.notifications, self.mount_point)
        self._volumes: list[RemoteVolume] = []
        self._add_volumes()
        self._add_remotes(make)
        self._answer()
        self.session = Session(
            self.vfs, self._options(), self.metrics, self.access_log, self.notifications
        )
        self.session.waits.on_fast_loop = self._ask_loop
        self.session.waits.on_idle = self._while_idle
        self.session.waits.on_leave = self._settle
        self.session.waits.on_return = self._hold

    def _while_idle(self) -> None:
        """Called when the kernel has no request for us."""
        self.storage.flusher.loop_is_idle()
        self.storage.overlays.hash_ahead()

    def _settle(self) -> None:
        """Called before the request loop lets other tasks run."""
        self.storage.database.held.is_allowed = False
        self.storage.database.settle()

    def _hold(self) -> None:
        """Called when requests come: until ``_settle`` nobody else runs."""
        self.storage.database.held.is_allowed = True

    def _ask_loop(self, is_idle: Callable[[], bool]) -> None:
        self.storage.flusher.is_loop_idle = is_idle

    def _options(self) -> SessionOptions:
        settings = self.settings
        return SessionOptions(
            allow_other=settings.allow_other,
            read_only=settings.read_only,
            noexec=settings.noexec,
            deadlines=Deadlines(
                lookup_s=settings.deadlines.lookup_s, read_s=settings.deadlines.read_s
            ),
            per_mount_max=settings.deadlines.suspended_max,
            remote_mounts=len(list(self.remotes)),
            source=source_of(settings.state_directory).replace(",", "\\,"),
            staging=settings.state_directory / "mounting",
        )

    def _add_volumes(self) -> None:
        mfs = self.trees.add("mfs", "mfs", MfsVolume)
        assert isinstance(mfs, MfsVolume)
        self.roots = MfsRoots(mfs, self.sealer, self.storage.blocks)
        mfs.connect(self.sealer, self.roots, self.node)
        self.retention = Retention(self.writer, self._limits(), self.roots.built_seq)
        mfs_settings = self.settings.mounts["mfs"]
        assert isinstance(mfs_settings, MfsSettings)
        mfs.timeout_s = mfs_settings.attribute_timeout_s
        mfs.refuses_changes = self.settings.read_only or mfs_settings.read_only
        self._add_past({"mfs": mfs} if mfs_settings.enabled else {})
        if mfs_settings.enabled:
            entry = TableEntry("mfs", "mfs", "", not mfs.refuses_changes, False)
            self.table.add_fixed(entry, mfs.root)
        ipfs = self.settings.mounts.get("ipfs")
        if isinstance(ipfs, IpfsSettings) and ipfs.enabled:
            volume = self.trees.add("ipfs", "ipfs", IpfsVolume)
            assert isinstance(volume, IpfsVolume)
            volume.connect(self.ipfs, self.cache, ipfs.attribute_timeout_s)
            volume.invalidator = self.notifications.for_mount("ipfs")
            self._volumes.append(volume)
            self.table.add_fixed(TableEntry("ipfs", "ipfs", "", False, False), volume.root)
        local = self.settings.mounts.get("local")
        if isinstance(local, LocalMount) and local.enabled:
            is_writable = not (self.settings.read_only or local.read_only)
            for problem in self.table.add_local(
                local.directories, local.attribute_timeout_s, is_writable
            ):
                log.warning("not shown: %s", problem)
        for each in self.trees.volumes.values():
            each.unsynced.max_bytes = self.settings.journal.dirty_bytes_max

    def _limits(self) -> Limits:
        history = self.settings.history
        return Limits(history.everything_s, history.hours, history.days)

    def _add_past(self, shown: dict[str, TreeVolume]) -> None:
        """What the volumes that are shown were."""
        self.past = History(self.writer)
        self.past.seal = self.sealer.seal
        self.past_view = HistoryView(
            self.past, self.reserved, shown, self.notifications.for_mount("history")
        )
        self.retention.in_use = self.past.in_use
        self.retention.on_thinned = self.past_view.thinned

    def _add_remotes(self, make: Make | None) -> None:
        settings = self.settings
        self.credential_store = CredentialStore(settings.state_directory)
        self.remotes = Remotes(
            Parts(
                self.trees,
                self.table,
                self.cache,
                self.notifications,
                settings.journal,
                make or partial(backends.make, store=self.credential_store),
                settings.read_only,
                self.sealer.seal,
            )
        )
        self.remotes.add_configured(settings.mounts)
        views = VersionViews(self.remotes)
        versions = ViewVolume(".unifs/versions", views, self.cache, self.reserved)
        self.reserved.add(b"versions", versions.root)

    def _answer(self) -> None:
        """What control operations see of this daemon."""
        paths = Paths(self.vfs, self.notifications.for_mount("mfs"))
        is_here = partial(is_complete, self.storage.blocks)
        self.files = FilesAnswer(paths, self.node, is_here, self.sealer.seal)
        self.history = HistoryAnswer(
            paths, self.past, self.past_view, self.notifications.for_mount("mfs")
        )
        remote_journal = RemoteJournal(self.remotes, self.writer)
        self.journal = JournalAnswer(
            self.writer, self.sealer, self.roots, paths, self.trees.volumes, remote_journal
        )
        verifier = FileVerifier(self.storage, paths, self.trees.volumes)
        self.journal.verifier = verifier
        self.checks = ChecksAnswer(self.storage, self.roots, self.node, verifier)
        self.conflicts = ConflictsAnswer(self.storage, paths, self.trees.volumes)
        self.mounts = MountsAnswer(self.table, self.journal, self.remotes)
        self.backends = BackendsAnswer(self.remotes, self.journal, paths, self.credential_store)
        self.credentials = CredentialsAnswer(self.credential_store, self.remotes)
        self.s3 = S3Answer(self.remotes, paths)
        self._explainer = Explainer(paths, self.writer, self.journal, self.mounts, self.remotes)

        watch(self.metrics, self.vfs, self.storage, self.cache, self.journal)
        watch_remotes(self.metrics, self.remotes)

    async def explain(self, path: str) -> Explanation:
        """What holds for one path of the tree."""
        return await self._explainer.explain(path)

    async def status(self) -> StatusReport:
        """The daemon in a few lines."""
        return await self._explainer.status(self.settings, self.mount_point, self.node)

    def _tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What runs behind the tree as long as it is mounted."""
        return {
            "upkeep": self.upkeep.run,
            "sealer": self.sealer.run,
            "roots": self.roots.run,
            "retention": self.retention.run,
            "keeper": partial(self.keeper.run, self.node),
        }

    async def _keep_running(self, name: str, task: Callable[[], Awaitable[None]]) -> None:
        """A bug in a background task is logged and counted; it ends neither mount nor task."""
        while True:
            try:
                await task()
            except Exception:
                # Only a bug comes here: what may fail is handled in the task.
                log.exception("task failed and begins again: task=%s", name)
                self.metrics.counter(TASK_BUGS, name).value += 1
            await trio.sleep(TASK_PAUSE_S)

    async def serve(self, ready: Callable[[], None], signals: EarlySignals) -> None:
        """Serve until unmounted; not at all where ``signals`` has one by now."""

        def answered() -> None:
            self.has_answered = True
            ready()

        async with self.storage.serve():
            async with trio.open_nursery() as nursery:
                self.sealer.find_closed()
                for name, task in self._tasks().items():
                    nursery.start_soon(self._keep_running, name, task)
                trio_parallel.configure_default_context(idle_timeout=WORKER_IDLE_S)
                socket = self.settings.socket_path
                link = state_socket_path(self.settings.state_directory)
                async with AsyncExitStack() as stack:
                    parts: list[Part] = [
                        self.node,
                        self.cache,
                        self.ipfs,
                        *self._volumes,
                        self.remotes,
                    ]
                    for part in parts:
                        await stack.enter_async_context(part.serve())
                    await stack.enter_async_context(
                        serve(operations(), self, socket, link if link != socket else None)
                    )
                    if not signals.number:
                        await self.session.serve(self.mount_point, answered, signals.has_come)
                    self.sealer.is_stopping = True
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await self.upkeep.finish()

    def close(self, is_clean: bool) -> None:
        """Close the state directory."""
        self.pins.close()
        self._close_storage(is_clean)

    def _close_storage(self, is_clean: bool) -> None:
        """A start that came to nothing and changed nothing leaves what it found: a clean state."""
        self.storage.close(is_clean or (not self.has_answered and self.storage.is_as_opened()))


def run(settings: Settings, mount_point: str, ready: Callable[[], None]) -> int:
    """Serve the tree at ``mount_point`` until it is unmounted; the exit code.

    ``ready`` is called once the tree answers. Failures before that are raised as UnifsError.
    """
    _leave_no_dump()
    with EarlySignals() as signals:
        has_answered = _run(settings, mount_point, ready, signals)
    if not has_answered:
        signals.pass_on()
    return 0


def _run(
    settings: Settings, mount_point: str, ready: Callable[[], None], signals: EarlySignals
) -> bool:
    """Whether the tree was there to be used."""
    daemon = Daemon(settings, mount_point)
    is_clean = False
    try:
        trio.run(daemon.serve, ready, signals)
        is_clean = True
    except BaseExceptionGroup as group:
        # Each part that was open has a nursery around the failure.
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
        if not isinstance(failure, UnifsError):
            raise
        raise failure from group
    finally:
        daemon.close(is_clean)
    return daemon.has_answered


def _leave_no_dump() -> None:
    """A core dump would hold the secrets of backends: whoever wants one raises the limit again."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
