"""What operations ask of the running daemon, and what they are answered with.

The composition root provides a ``Daemon``; operations and the server see nothing else of it. The
structs are answers as they go out, so a name here is a name in the JSON, the tables and the docs:
renaming one breaks scripts. Paths are paths of the mounted tree (``/mfs/a``), as ``str`` with
surrogateescape; times are seconds since the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from unifs.config import Settings
    from unifs.control.checks_protocol import Checks
    from unifs.control.conflicts_protocol import Conflicts
    from unifs.control.history_protocol import History
    from unifs.control.s3_protocol import S3
    from unifs.ipfs.node import Node
    from unifs.telemetry import AccessLog, Metrics

FileKind = Literal["file", "directory", "symlink", "fifo", "socket", "block", "character"]
#: How far a change has come; see docs/promises.md.
ChangeState = Literal["open", "closed", "sealed", "synced", "verified", "quarantined"]


#: How far a change shall come before somebody goes on.
Until = Literal["sealed", "synced", "verified"]


class Answer(msgspec.Struct, kw_only=True):
    """The base of what operations answer."""


class FileEntry(Answer):
    """One name in a directory of the tree."""

    kind: FileKind
    size_bytes: int
    mtime_s: float
    name: str


class FileStat(Answer):
    """One object of the tree. ``cid`` and ``state`` are null where there is none to tell yet."""

    path: str
    kind: FileKind
    size_bytes: int
    mode: str
    uid: int
    gid: int
    links: int
    mtime_s: float
    target: str | None = None
    cid: str | None = None
    state: ChangeState | None = None


class MountInfo(Answer):
    """One mount. ``source`` is the backend, or the host directory of a /local mount.

    ``unsynced`` counts changes: of /mfs those that a power cut could take, elsewhere objects that
    the backend does not have as they are here.
    """

    name: str
    kind: str
    source: str
    is_read_only: bool
    durability: str
    unsynced: int = 0
    unsynced_bytes: int = 0
    #: Why its backend does not work now; null where it does.
    problem: str | None = None


class JournalStatus(Answer):
    """How many changes are how far; ``oldest_unsynced_s`` is when the oldest was made.

    ``sent_bytes``: of large files on their way, what their backends have stored of them already.
    """

    open: int = 0
    closed: int = 0
    sealed: int = 0
    synced: int = 0
    verified: int = 0
    quarantined: int = 0
    unsynced_bytes: int = 0
    sent_bytes: int = 0
    oldest_unsynced_s: float | None = None


class JournalRecord(Answer):
    """One change. ``reason`` says why the backend does not have it yet; ``next_try_s`` is when it
    is tried again, null where it is on its way, given up, or need not be tried.
    """

    sequence: int
    time_s: float
    operation: str
    state: ChangeState
    size_bytes: int | None
    path: str
    reason: str | None = None
    tries: int = 0
    next_try_s: float | None = None


class Explanation(Answer):
    """What holds for one path. The sentences are for people; the rest is for programs."""

    path: str
    mount: str
    kind: str
    version: str | None
    cid: str | None
    state: ChangeState | None
    #: Where a read gets its bytes from, in a sentence.
    bytes_from: str
    #: What fsync() waits for here, in a sentence.
    fsync: str
    #: What the disk, or the backend, does not have yet; empty where everything is there.
    unsynced: list[str] = []
    #: Whatever else somebody who asks should know.
    notes: list[str] = []


class StatusReport(Answer):
    """The daemon in a few lines. ``unsynced`` and its bytes are those of all mounts together.

    ``warnings`` is empty when all is well.
    """

    version: str
    mount_point: str
    state_directory: str
    pid: int
    uptime_s: float
    profile: str
    is_read_only: bool
    resident_bytes: int
    stored_bytes: int
    storage_limit_bytes: int | None
    unsynced: int
    unsynced_bytes: int
    mounts: list[MountInfo]
    warnings: list[str] = []


class BackendInfo(Answer):
    """One mount with a backend. ``source`` is the service, and its bucket where there is one."""

    name: str
    kind: str
    source: str
    is_read_only: bool
    #: Whether it was added at run time, and can be removed so.
    is_removable: bool
    unsynced: int = 0
    unsynced_bytes: int = 0
    quarantined: int = 0
    #: Why it does not work now, or is not shown; null where all is well.
    problem: str | None = None


class BackendTest(Answer):
    """What a backend that works has answered. ``objects`` are the first names at its root."""

    name: str
    source: str
    elapsed_ms: float
    #: Whether changes are refused by the backend itself where somebody else was faster.
    is_conditional: bool
    objects: list[str] = []


class CredentialInfo(Answer):
    """One entry of the credentials store, without what is secret in it."""

    name: str
    kind: Literal["s3", "key"]
    access_key: str
    has_session_token: bool
    added_s: float


class CredentialTest(Answer):
    """What a service that knows an identity has answered: the buckets that it lists, or the one
    that it was asked for.
    """

    name: str
    endpoint: str
    buckets: list[str]


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller hands over to be kept."""

    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""

    def __repr__(self) -> str:
        return "Secret(…)"


class Refreshed(Answer):
    """What the backend was asked about again."""

    path: str
    asked: int


class Files(Protocol):
    """Operations on the tree, through the same vfs as a user's calls."""

    def ls(self, path: str) -> AsyncIterator[FileEntry]:
        """A directory's names, or a file itself."""
        ...

    async def stat(self, path: str) -> FileStat: ...

    async def mkdir(self, path: str, parents: bool) -> None:
        """Exists if it is there and not ``parents``."""
        ...

    async def copy(self, source: str, destination: str) -> str:
        """Copy a file or directory; from /ipfs by linking, whatever its size. Exists if taken.

        The path of the copy: in ``destination`` where that is a directory.
        """
        ...

    async def move(self, source: str, destination: str) -> str:
        """Rename; the new path: in ``destination`` where that is a directory."""
        ...

    async def remove(self, path: str, recursive: bool) -> None:
        """NotEmpty for a directory with names in it and not ``recursive``."""
        ...


class Mounts(Protocol):
    """The mount table."""

    async def list(self) -> list[MountInfo]: ...

    async def add(self, name: str, directory: str) -> MountInfo:
        """``local/NAME`` shows the host's ``directory``, until the daemon ends."""
        ...

    async def remove(self, name: str, force: bool) -> None:
        """Unsynced if changes have not reached the backend and not ``force``."""
        ...


class Journal(Protocol):
    """Changes and how far they are. ``path`` None: all of them."""

    async def status(self, path: str | None) -> JournalStatus: ...

    def list(
        self, path: str | None, state: ChangeState | None, limit: int
    ) -> AsyncIterator[JournalRecord]:
        """The newest first, at most ``limit``."""
        ...

    async def sync(self, path: str | None, until: Until, timeout_s: float | None) -> JournalStatus:
        """Bring changes on their way and wait; DeadlineExceeded after ``timeout_s``."""
        ...

    async def retry(self, path: str | None) -> int:
        """Try quarantined changes again; how many."""
        ...

    async def drop(self, path: str | None, is_meant: bool) -> Sequence[JournalRecord]:
        """Give quarantined changes up: what the backend has takes their place. Which they are;
        nothing happens unless ``is_meant``.
        """
        ...


class Backends(Protocol):
    """Mounts with a backend."""

    async def list(self) -> list[BackendInfo]: ...

    async def add(self, name: str, settings: dict[str, object]) -> BackendInfo:
        """Shown now and after a restart. ConfigInvalid, Exists."""
        ...

    async def remove(self, name: str, force: bool) -> None:
        """Unsynced if changes have not reached it and not ``force``; Busy while files are open."""
        ...

    async def test(self, name: str) -> BackendTest:
        """Read something of it; raises what is wrong, in one sentence."""
        ...

    async def refresh(self, path: str, recursive: bool) -> Refreshed:
        """Ask the backend again."""
        ...


class Credentials(Protocol):
    """The credentials store. No answer and no error has a secret in it."""

    async def list(self) -> list[CredentialInfo]: ...

    async def add(self, name: str, secret: Secret, replace: bool) -> CredentialInfo:
        """Exists if it is there and not ``replace``."""
        ...

    async def remove(self, name: str) -> None: ...

    async def test(self, name: str, endpoint: str, region: str, ca_file: str) -> CredentialTest:
        """Ask a service whether it takes them; raises what is wrong, in one sentence.

        What is "" is taken from a backend that uses them. InvalidArgument where backends of
        several services do and no endpoint is given.
        """
        ...


class Daemon(Protocol):
    """The running unifs, as operations see it."""

    settings: Settings
    metrics: Metrics
    access_log: AccessLog

    @property
    def node(self) -> Node: ...

    @property
    def files(self) -> Files: ...

    @property
    def mounts(self) -> Mounts: ...

    @property
    def journal(self) -> Journal: ...

    @property
    def backends(self) -> Backends: ...

    @property
    def checks(self) -> Checks: ...

    @property
    def conflicts(self) -> Conflicts: ...

    @property
    def credentials(self) -> Credentials: ...

    @property
    def s3(self) -> S3: ...

    @property
    def history(self) -> History: ...

    async def explain(self, path: str) -> Explanation: ...

    async def status(self) -> StatusReport: ...
