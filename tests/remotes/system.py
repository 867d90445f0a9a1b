"""A whole daemon without a kernel, whose remote mounts are backends in memory.

``DaemonSystem`` is ``tests.vfs.harness.FileSystem`` around ``unifs.daemon.Daemon``: the same calls
by path, through the vfs, on the mount called ``s3`` (``at`` chooses another). Everything that the
composition root starts runs, but the FUSE session; ``shell`` runs the command line against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import trio

from tests.mounts.remote import RemoteMount
from tests.vfs.harness import FileSystem, _drop
from unifs import config
from unifs.control.ops import operations
from unifs.control.server import serve
from unifs.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.config_mounts import RemoteBase
    from unifs.mounts.base import Mount
    from unifs.vfs.remotevolume import RemoteVolume

S3: dict[str, Any] = {"kind": "s3", "endpoint": "http://127.0.0.1:1", "anonymous": True}
#: Changes go out at once.
JOURNAL: dict[str, Any] = {"writeback_delay_s": 0.05}


class DaemonSystem(FileSystem):
    """A daemon; ``mounts`` and ``journal`` are the tables of its settings."""

    volume: RemoteVolume

    def __init__(self, path: Path, **mounts: dict[str, Any]) -> None:
        super().__init__(path / "state", upkeep=True)
        self.directory = path
        self.mounts = mounts
        self.journal = JOURNAL
        self.at = "s3"
        #: The backends by mount; what is put here before the start is used.
        self.backends: dict[str, Mount] = {}
        self.told: dict[str, RemoteBase] = {}

    def make(self, name: str, settings: RemoteBase, /) -> Mount:
        self.told[name] = settings
        return self.backends.setdefault(name, RemoteMount())

    def remote(self, name: str = "s3") -> RemoteMount:
        backend = self.backends[name]
        assert isinstance(backend, RemoteMount)
        return backend

    async def start(self, boot: str | None = None) -> None:
        self.boot = boot or self.boot
        table = {"mounts": self.mounts, "journal": self.journal, "log_level": "debug"}
        settings = config.load(
            self.path, overrides=table, environment={"HOME": str(self.directory)}
        )
        with mock.patch("unifs.state.directory.boot_id", return_value=self.boot):
            self.daemon = Daemon(settings, str(self.directory / "mnt"), self.make)
        self.storage, self.vfs = self.daemon.storage, self.daemon.vfs
        self.writer, self.upkeep = self.daemon.writer, self.daemon.upkeep
        self.choose(self.at)
        self._ended = trio.Event()
        await self._nursery.start(self._session)

    def choose(self, name: str) -> None:
        """The mount on which calls by path work from now on."""
        self.at = name
        found = [each.volume for each in self.daemon.remotes if each.name == name]
        if found:
            self.volume = found[0]

    async def _session(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        daemon = self.daemon
        try:
            with trio.CancelScope() as self._scope:
                async with daemon.storage.serve(), trio.open_nursery() as nursery:
                    for task in daemon._tasks().values():
                        nursery.start_soon(task)
                    async with (
                        daemon.node.serve(),
                        daemon.cache.serve(),
                        daemon.remotes.serve(),
                        serve(operations(), daemon, daemon.settings.socket_path),
                    ):
                        task_status.started()
                        await trio.sleep_forever()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        await self.upkeep.finish()
        await self._end_session()
        self.daemon.close(is_clean=True)

    async def kill(self, *, start: bool = True, boot: str | None = None) -> None:
        await self._end_session()
        self.daemon.pins.close()
        _drop(self.storage)
        if start:
            await self.start(boot)

    async def freeze(self) -> None:
        """The backend answers nothing more; what it has is known here, so that names resolve."""
        await self.listdir()
        self.remote(self.at).freeze()

    async def until_given_up(self, count: int) -> None:
        """So many changes of the mount are quarantined."""
        with trio.fail_after(120):
            given_up = 0
            while given_up < count:
                await trio.sleep(0.01)
                given_up = (await self.daemon.journal.status(f"/{self.at}")).quarantined

    async def sync(self, path: str | None = None) -> Any:
        with trio.fail_after(120):
            return await self.daemon.journal.sync(path, "synced", None)
