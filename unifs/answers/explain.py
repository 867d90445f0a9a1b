"""``unifs explain`` and ``unifs status``: what holds for a path, and is all well."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import trio

import unifs
from unifs.answers.files import cid_text, state_text
from unifs.answers.remoteexplain import explain_remote
from unifs.control.daemon_protocol import Explanation, StatusReport
from unifs.journal.content import LINKED, LargeContent, SmallContent
from unifs.mounts.observed import FAULTS
from unifs.vfs.epochview import EpochView
from unifs.vfs.historyview import HistoryView
from unifs.vfs.host import HostVolume
from unifs.vfs.ipfsvolume import IpfsVolume
from unifs.vfs.namespace import Namespace
from unifs.vfs.remoterows import RemoteInode
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.viewvolume import ViewInode, ViewVolume
from unifs.waiting import complete

if TYPE_CHECKING:
    from unifs.answers.journal import JournalAnswer
    from unifs.answers.mounts import MountsAnswer
    from unifs.config import Settings
    from unifs.ipfs.node import Node
    from unifs.remotes import Remote, Remotes
    from unifs.vfs.paths import Paths
    from unifs.vfs.storage import Storage
    from unifs.vfs.volume import Inode, Volume
    from unifs.vfs.writer import Writer

FSYNC_MFS = (
    "returns when the file's bytes and its record are on this machine's disk; fsync of the"
    " directory does the same for its names"
)
FSYNC_LOCAL = "is the host file system's fsync"
FSYNC_NONE = "has nothing to do: this cannot be changed"
#: Damaged places that are named one by one.
DAMAGES_MAX = 10
REFUSES_CHANGES = "read-only by its settings: every change is refused (EROFS)"

#: A backend that does not answer must not keep anybody from hearing so.
ANSWER_S = 5.0


class Explainer:
    """Says what holds."""

    def __init__(
        self,
        paths: Paths,
        writer: Writer,
        journal: JournalAnswer,
        mounts: MountsAnswer,
        remotes: Remotes,
    ) -> None:
        self._paths = paths
        self._writer = writer
        self._journal = journal
        self._mounts = mounts
        self._remotes = remotes
        self._started = time.monotonic()

    async def explain(self, path: str) -> Explanation:
        """Which mount, which version, where the bytes come from, what fsync means there."""
        inode = await self._found(path)
        if isinstance(inode, Explanation):
            return inode
        volume = inode.volume
        cid = await cid_text(inode)
        remote = self._remotes.of(volume)
        if remote is not None:
            assert isinstance(inode, RemoteInode)
            return explain_remote(path, inode, remote, self._journal.remotes, cid)
        if isinstance(volume, Namespace):
            return _table_itself(path)
        if isinstance(volume, EpochView | HistoryView):
            return _explain_past(path, cid)
        if isinstance(volume, ViewVolume):
            return _explain_view(path, inode)
        if isinstance(volume, HostVolume):
            return _explain_host(path, inode)
        status = await self._journal.status(path)
        states = (("open", status.open), ("closed", status.closed))
        unsynced = [f"{_changes(count)} {state}" for state, count in states if count]
        is_mfs = volume.name == "mfs"
        notes = _notes(inode)
        if is_mfs and status.sealed:
            notes.append(f"{_changes(status.sealed)} on the disk, not in the CID of /mfs yet")
        return Explanation(
            path=path,
            mount=volume.name,
            kind="mfs" if is_mfs else volume.name,
            version=cid,
            cid=cid,
            state=state_text(inode),
            bytes_from=self._bytes_from(inode),
            fsync=FSYNC_MFS if is_mfs else FSYNC_NONE,
            unsynced=unsynced if is_mfs else [],
            notes=[*notes, *_refusal(volume)],
        )

    async def _found(self, path: str) -> Inode | Explanation:
        """What is at a path; the reason where its backend does not answer."""
        remote = self._remote_at(path)
        try:
            with trio.move_on_after(float("inf") if remote is None else ANSWER_S):
                inode = await self._paths.find(path)
                await complete(inode.volume.getattr, inode)
                return inode
        except FAULTS as error:
            if remote is None:
                raise
            return _unanswered(path, str(error), remote)
        assert remote is not None
        return _unanswered(path, f"no answer within {ANSWER_S:g} s", remote)

    def _remote_at(self, path: str) -> Remote | None:
        name = path.strip("/").partition("/")[0]
        return next((each for each in self._remotes if each.name == name), None)

    async def status(self, settings: Settings, mount_point: str, node: Node) -> StatusReport:
        """The daemon in a few lines."""
        repo = await node.repo_stat()
        mounts = await self._mounts.list()
        quarantined = await self._journal.quarantined()
        warnings = [*state_warnings(self._writer.storage), *self._journal.warnings()]
        for name, why in sorted(self._remotes.problems.items()):
            warnings.append(f"{name} is not shown: {why}")
        warnings += [
            f"{remote.name} does not work: {remote.problem}"
            for remote in self._remotes
            if remote.problem
        ]
        if quarantined:
            warnings.append(
                f"{quarantined} changes were refused by their backend:"
                " `unifs ctl journal list --only quarantined`"
            )
        return StatusReport(
            version=unifs.__version__,
            mount_point=mount_point,
            state_directory=str(settings.state_directory),
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            profile=settings.profile,
            is_read_only=settings.read_only,
            resident_bytes=resident_bytes(),
            stored_bytes=repo.own_bytes + repo.content_bytes,
            storage_limit_bytes=repo.limit_bytes,
            unsynced=sum(each.unsynced for each in mounts),
            unsynced_bytes=sum(each.unsynced_bytes for each in mounts),
            mounts=mounts,
            warnings=warnings,
        )

    def _bytes_from(self, inode: Inode) -> str:
        if isinstance(inode.volume, IpfsVolume):
            return "blocks of the embedded node; hashed before anybody reads them"
        if not isinstance(inode, TreeInode):
            return "this machine"
        if inode.overlay is not None:
            return "an overlay: what its writers have changed, over the last committed content"
        content = self._writer.content_of(inode)
        if isinstance(content, SmallContent):
            return f"segment {content.segment}, bytes from {content.offset}; hashed at first use"
        if isinstance(content, LargeContent):
            files = len(set(content.extents.containers))
            return f"{files} file{'s' * (files != 1)} below data/; leaves are hashed at first use"
        if inode.stored and inode.stored[0] == LINKED:
            return "blocks of the embedded node, by the CID that it was linked from"
        return "the tree"


def _table_itself(path: str) -> Explanation:
    return Explanation(
        path=path,
        mount="",
        kind="namespace",
        version=None,
        cid=None,
        state=None,
        bytes_from="the mount table; nothing can be stored here",
        fsync=FSYNC_NONE,
    )


def _explain_view(path: str, inode: Inode) -> Explanation:
    assert isinstance(inode, ViewInode)
    is_file = stat.S_ISREG(inode.attributes.st_mode)
    return Explanation(
        path=path,
        mount=inode.volume.name,
        kind="view",
        version=inode.version or None,
        cid=None,
        state=None,
        bytes_from="the cache, else the service in exactly this version"
        if is_file
        else "what the service listed in the last seconds",
        fsync=FSYNC_NONE,
        notes=["a view: nothing can be changed here (EROFS)"],
    )


def _explain_past(path: str, cid: str | None) -> Explanation:
    return Explanation(
        path=path,
        mount="history",
        kind="history",
        version=cid,
        cid=cid,
        state=None,
        bytes_from="this machine: what the tree was at the end of an epoch; nothing changes it",
        fsync=FSYNC_NONE,
        notes=["kept as the settings below [history] say, or as long as its checkpoint is there"],
    )


def _unanswered(path: str, reason: str, remote: Remote) -> Explanation:
    return Explanation(
        path=path,
        mount=remote.name,
        kind=remote.kind,
        version=None,
        cid=None,
        state=None,
        bytes_from="the backend, which does not answer",
        fsync="cannot be said: it is not known whether this exists",
        notes=[f"the backend does not work: {reason}"],
    )


def _explain_host(path: str, inode: Inode) -> Explanation:
    attributes = inode.attributes
    late = "changes made outside are seen within the configured time"
    return Explanation(
        path=path,
        mount=inode.volume.name,
        kind="local",
        version=f"{attributes.st_ino}:{attributes.st_ctime_ns}:{attributes.st_size}",
        cid=None,
        state=None,
        bytes_from="the host file itself",
        fsync=FSYNC_LOCAL,
        notes=[late, *_refusal(inode.volume)],
    )


def _changes(count: int) -> str:
    return f"{count} change{'s are' if count > 1 else ' is'}"


def _notes(inode: Inode) -> list[str]:
    notes = ["its content is not announced to other IPFS nodes: no network is configured"]
    if inode.volume.name == "mfs":
        notes.append("owner, mode, times, xattrs and hard links are kept here, not in the CID")
    return notes


def _refusal(volume: Volume) -> list[str]:
    return [REFUSES_CHANGES] if volume.refuses_changes else []


def resident_bytes() -> int:
    """This process's resident set."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def state_warnings(storage: Storage) -> list[str]:
    """What is wrong with the state directory, a sentence each."""
    warnings = []
    if storage.database.failed is not None:
        warnings.append(str(storage.database.failed))
    if not storage.state.has_reserve:
        warnings.append("the disk is full: the reserve for deletes is in use")
    elif storage.state.is_full():
        warnings.append("the disk is full: nothing but deletes can be done, which works")
    if storage.receipt is not None and storage.receipt.has_losses():
        receipt = storage.receipt
        files = len(receipt.reverted) + len(receipt.returned)
        warnings.append(
            f"at the start {files} file{'s' * (files != 1)} went back to an earlier content:"
            f" lost+found/receipt-{receipt.time_ns}.json names them"
        )
    held = storage.database.held
    if held.refused:
        changes = len(held.refused)
        warnings.append(
            f"at the start {changes} acknowledged change{'s' * (changes != 1)} could not be made as"
            f" a whole: lost+found/{held.receipt} has them, `unifs fsck --repair` mends the rest"
        )
    damages = storage.damages(is_lasting=True)
    if len(damages) > DAMAGES_MAX:
        rest = f"and {len(damages) - DAMAGES_MAX} more: `unifs ctl repo verify` names all"
        damages = [*damages[:DAMAGES_MAX], rest]
    return [*warnings, *(f"damaged: {damage}" for damage in damages)]
