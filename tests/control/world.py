"""A daemon for the tests: the real embedded node, and a tree, mounts and a journal in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import trio

import unifs
from tests.control.checks_world import MemoryChecks, MemoryConflicts
from tests.ipfs.embedded.stores import Store
from unifs import config
from unifs.control.daemon_protocol import (
    BackendInfo,
    BackendTest,
    CredentialInfo,
    CredentialTest,
    Explanation,
    FileEntry,
    FileStat,
    JournalRecord,
    JournalStatus,
    MountInfo,
    Refreshed,
    Secret,
    StatusReport,
)
from unifs.control.history_protocol import CheckpointInfo, EpochInfo, Restored, Tracked
from unifs.errors import DeadlineExceeded, Exists, NotEmpty, NotFound, Unsynced
from unifs.ipfs.embedded.node import EmbeddedNode
from unifs.ipfs.embedded.pins import Pins
from unifs.telemetry import AccessLog, Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.control.daemon_protocol import ChangeState, Until


class MemoryFiles:
    """A tree of paths: bytes for a file, None for a directory."""

    def __init__(self) -> None:
        self.tree: dict[str, bytes | None] = {"/mfs": None}
        self.cids: dict[str, str] = {}

    def _kind(self, path: str) -> Literal["file", "directory"]:
        if path not in self.tree:
            raise NotFound(f"{path} does not exist")
        return "directory" if self.tree[path] is None else "file"

    async def ls(self, path: str) -> AsyncIterator[FileEntry]:
        self._kind(path)
        for each, content in sorted(self.tree.items()):
            parent, _, name = each.rpartition("/")
            if parent == path:
                size = len(content or b"")
                yield FileEntry(kind=self._kind(each), size_bytes=size, mtime_s=0.0, name=name)

    async def stat(self, path: str) -> FileStat:
        return FileStat(
            path=path,
            kind=self._kind(path),
            size_bytes=len(self.tree[path] or b""),
            mode="0644",
            uid=0,
            gid=0,
            links=1,
            mtime_s=1.0,
            cid=self.cids.get(path),
            state="sealed",
        )

    async def mkdir(self, path: str, parents: bool) -> None:
        if path in self.tree and not parents:
            raise Exists(f"{path} exists")
        self.tree[path] = None

    async def copy(self, source: str, destination: str) -> str:
        self._kind(source)
        if destination in self.tree:
            raise Exists(f"{destination} exists")
        self.tree[destination] = self.tree[source]
        return destination

    async def move(self, source: str, destination: str) -> str:
        made = await self.copy(source, destination)
        del self.tree[source]
        return made

    async def remove(self, path: str, recursive: bool) -> None:
        self._kind(path)
        below = [each for each in self.tree if each.startswith(f"{path}/")]
        if below and not recursive:
            raise NotEmpty(f"{path} is not empty")
        for each in [path, *below]:
            del self.tree[each]


class MemoryMounts:
    def __init__(self) -> None:
        self.mounts = {"mfs": _mount("mfs", "mfs", "")}
        self.unsynced: set[str] = set()

    async def list(self) -> list[MountInfo]:
        return list(self.mounts.values())

    async def add(self, name: str, directory: str) -> MountInfo:
        if name in self.mounts:
            raise Exists(f"{name} is mounted")
        self.mounts[name] = _mount(name, "local", directory)
        return self.mounts[name]

    async def remove(self, name: str, force: bool) -> None:
        if name not in self.mounts:
            raise NotFound(f"there is no mount {name}")
        if name in self.unsynced and not force:
            raise Unsynced(f"{name} has 1 change that has not reached its backend")
        del self.mounts[name]


def _mount(name: str, kind: str, source: str) -> MountInfo:
    return MountInfo(name=name, kind=kind, source=source, is_read_only=False, durability="local")


class MemoryJournal:
    def __init__(self) -> None:
        self.records: list[JournalRecord] = []

    async def status(self, path: str | None) -> JournalStatus:
        found = [each for each in self.records if path is None or each.path.startswith(path)]
        states = [each.state for each in found]
        return JournalStatus(closed=states.count("closed"), sealed=states.count("sealed"))

    async def list(
        self, path: str | None, state: ChangeState | None, limit: int
    ) -> AsyncIterator[JournalRecord]:
        shown = 0
        for each in reversed(self.records):
            if (path is None or each.path.startswith(path)) and state in (None, each.state):
                yield each
                shown += 1
                if shown == limit:
                    return

    async def sync(self, path: str | None, until: Until, timeout_s: float | None) -> JournalStatus:
        if timeout_s is not None:
            raise DeadlineExceeded(f"not {until} after {timeout_s:g} s")
        self.records = [msgspec.structs.replace(each, state=until) for each in self.records]
        return await self.status(path)

    async def retry(self, path: str | None) -> int:
        return 0

    async def drop(self, path: str | None, is_meant: bool) -> list[JournalRecord]:
        dropped = [each for each in self.records if each.state == "quarantined"]
        if is_meant:
            self.records = [each for each in self.records if each.state != "quarantined"]
        return dropped


class MemoryBackends:
    def __init__(self) -> None:
        self.backends: dict[str, BackendInfo] = {}
        self.told: dict[str, dict[str, object]] = {}

    async def list(self) -> list[BackendInfo]:
        return list(self.backends.values())

    async def add(self, name: str, settings: dict[str, object]) -> BackendInfo:
        config.parse_remote(name, settings)
        self.told[name] = settings
        self.backends[name] = BackendInfo(
            name=name,
            kind=str(settings["kind"]),
            source=str(settings.get("endpoint", "")),
            is_read_only=False,
            is_removable=True,
        )
        return self.backends[name]

    async def remove(self, name: str, force: bool) -> None:
        del self.backends[name]

    async def test(self, name: str) -> BackendTest:
        if name not in self.backends:
            raise NotFound(f"there is no backend {name}")
        return BackendTest(
            name=name,
            source=self.backends[name].source,
            elapsed_ms=1.5,
            is_conditional=True,
            objects=["photos"],
        )

    async def refresh(self, path: str, recursive: bool) -> Refreshed:
        return Refreshed(path=path, asked=1 + recursive)


class MemoryCredentials:
    def __init__(self) -> None:
        self.secrets: dict[str, Secret] = {}

    async def list(self) -> list[CredentialInfo]:
        return [self._info(name) for name in self.secrets]

    def _info(self, name: str) -> CredentialInfo:
        secret = self.secrets[name]
        return CredentialInfo(
            name=name,
            kind="s3" if secret.access_key else "key",
            access_key=secret.access_key,
            has_session_token=bool(secret.session_token),
            added_s=1.0,
        )

    async def add(self, name: str, secret: Secret, replace: bool) -> CredentialInfo:
        if name in self.secrets and not replace:
            raise Exists(f"there are credentials called {name!r} already")
        self.secrets[name] = secret
        return self._info(name)

    async def remove(self, name: str) -> None:
        del self.secrets[name]

    async def test(self, name: str, endpoint: str, region: str) -> CredentialTest:
        return CredentialTest(name=name, endpoint=endpoint, buckets=["photos"])


class MemoryHistory:
    """Epochs that are given; what is asked for is remembered."""

    def __init__(self) -> None:
        self.points = {"first": 1}
        self.asked: list[tuple[str, ...]] = []

    async def epochs(self) -> AsyncIterator[EpochInfo]:
        yield EpochInfo(epoch=1, time_s=1.0, names=list(self.points))

    async def checkpoint(self, name: str) -> CheckpointInfo:
        self.points[name] = len(self.points) + 1
        return CheckpointInfo(name=name, epoch=self.points[name], time_s=1.0)

    async def checkpoints(self) -> list[CheckpointInfo]:
        return [
            CheckpointInfo(name=name, epoch=epoch, time_s=1.0)
            for name, epoch in self.points.items()
        ]

    async def tracked(self) -> list[Tracked]:
        return [Tracked(path="/mfs", is_tracked=True)]

    async def rollback(self, path: str, epoch: str) -> Restored:
        self.asked.append((path, epoch))
        return Restored(
            path=path,
            epoch=1,
            before=2,
            made=0,
            changed=1,
            removed=0,
            unchanged=0,
            skipped=["/cache"],
        )


class World:
    """What operations see of a daemon."""

    def __init__(self, directory: Path) -> None:
        state = directory / "state"
        self.settings = config.load(state=state, environment={"HOME": str(directory)})
        self.metrics = Metrics()
        self.access_log = AccessLog()
        self.store = Store(state, limit_bytes=16 << 20)
        self.pins = Pins(state / "pins.db")
        self.node = EmbeddedNode(self.store.blocks, self.pins, owner=self.store.owner)
        self.files = MemoryFiles()
        self.mounts = MemoryMounts()
        self.journal = MemoryJournal()
        self.backends = MemoryBackends()
        self.credentials = MemoryCredentials()
        self.history = MemoryHistory()
        self.checks = MemoryChecks()
        self.conflicts = MemoryConflicts()
        self.explained: list[str] = []

    def close(self) -> None:
        self.pins.close()
        self.store.close()

    async def explain(self, path: str) -> Explanation:
        self.explained.append(path)
        return Explanation(
            path=path,
            mount="mfs",
            kind="mfs",
            version="bafy",
            cid=None,
            state="sealed",
            bytes_from="segments of the state directory",
            fsync="waits for this machine's disk",
            notes=["nothing to note"],
        )

    async def status(self) -> StatusReport:
        await trio.lowlevel.checkpoint()
        return StatusReport(
            version=unifs.__version__,
            mount_point="/mnt",
            state_directory=str(self.settings.state_directory),
            pid=1,
            uptime_s=3700.0,
            profile=self.settings.profile,
            is_read_only=False,
            resident_bytes=50 << 20,
            stored_bytes=1536,
            storage_limit_bytes=None,
            unsynced=0,
            unsynced_bytes=0,
            mounts=await self.mounts.list(),
        )
