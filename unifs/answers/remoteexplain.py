"""``unifs explain`` for a path below a mount with a backend."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from unifs.answers.files import state_text
from unifs.config_mounts import S3Settings
from unifs.control.daemon_protocol import Explanation
from unifs.control.render import moment
from unifs.journal.content import REMOTE
from unifs.mounts.s3.names import Places
from unifs.mounts.s3.options import S3Options

if TYPE_CHECKING:
    from unifs.answers.remotejournal import RemoteJournal
    from unifs.remotes import Remote
    from unifs.vfs.remoterows import RemoteInode

FSYNC_LOCAL = (
    "returns when the file's bytes and its record are on this machine's disk; the backend gets"
    " them later: `unifs ctl journal sync PATH` waits for that"
)
FSYNC_BACKEND = (
    "returns when the backend has confirmed the change, and fails when no byte has moved for 60"
    " seconds; what was written is on this machine's disk even then"
)
FSYNC_NONE = "has nothing to do: this cannot be changed here"
CONDITIONAL = (
    "changes are conditional: the backend refuses them where somebody else was faster, and then the"
    " policy is {}"
)
UNCONDITIONAL = (
    "this backend ignores conditions: unifs looks before it writes, and a change that somebody"
    " else makes between the look and the write (one request's time) is overwritten"
)
RENAMES_UNCONDITIONAL = (
    "renames are not conditional: unifs looks at the new place before it moves an object there, and"
    " what somebody else stores between the look and the copy (one request's time) is overwritten"
)
UNSYNCED_MAX = 20


def explain_remote(
    path: str, inode: RemoteInode, remote: Remote, journal: RemoteJournal, cid: str | None
) -> Explanation:
    """What holds for one path of a mount with a backend."""
    volume = remote.volume
    is_read_only = volume.refuses_changes or volume.is_read_only()
    fsync = FSYNC_BACKEND if volume.waits_for_backend else FSYNC_LOCAL
    return Explanation(
        path=path,
        mount=remote.name,
        kind=remote.kind,
        version=inode.version or None,
        cid=cid,
        state=state_text(inode),
        bytes_from=_bytes_from(inode, remote),
        fsync=FSYNC_NONE if is_read_only else fsync,
        unsynced=journal.unsynced_of(
            remote, None if inode.ino == volume.root else inode.ino, UNSYNCED_MAX
        ),
        notes=_notes(inode, remote),
    )


def _bytes_from(inode: RemoteInode, remote: Remote) -> str:
    if stat.S_ISDIR(inode.attributes.st_mode):
        return "the backend's listing, kept in the tree"
    if inode.overlay is not None:
        return "an overlay: what its writers have changed, over the last committed content"
    if not inode.stored:
        return "nowhere: it is empty"
    if inode.stored[0] == REMOTE:
        return f"the cache, else {_place(inode, remote)} in exactly this version"
    if stat.S_ISREG(inode.attributes.st_mode):
        return "this machine: they were written here and move to the cache once they are synced"
    return "the tree"


def _place(inode: RemoteInode, remote: Remote) -> str:
    path, settings = inode.path, remote.settings
    if path is None:
        return "nowhere"
    if isinstance(settings, S3Settings):
        places = Places(S3Options(bucket=settings.bucket, prefix=settings.prefix))
        if not places.is_top(path):
            is_directory = stat.S_ISDIR(inode.attributes.st_mode)
            bucket, key = places.prefix_at(path) if is_directory else places.object_at(path)
            return f"bucket {bucket}, key {key}"
    return settings.place(path)


def _notes(inode: RemoteInode, remote: Remote) -> list[str]:
    settings, volume = remote.settings, remote.volume
    notes: list[str] = []
    if inode.path is None:
        notes.append("the backend does not have it yet")
    else:
        notes.append(f"at the backend: {_place(inode, remote)}")
    if remote.problem:
        since = moment(remote.mount.health.problem_since_s)
        notes.append(f"the backend does not work since {since}: {remote.problem}")
    if inode.checked_ns and volume.is_fresh(inode.checked_ns):
        age_s = max(0.0, (volume.now_ns() - inode.checked_ns) / 1e9)
        notes.append(f"asked {age_s:.0f} s ago; believed for {settings.fresh_s:g} s")
    if volume.refuses_changes:
        notes.append("read-only by the settings; what was changed before still goes out")
    elif not volume.is_read_only():
        is_safe = remote.mount.is_conditional
        notes.append(CONDITIONAL.format(settings.conflicts) if is_safe else UNCONDITIONAL)
        if is_safe and not remote.mount.is_rename_conditional:
            notes.append(RENAMES_UNCONDITIONAL)
    return notes
