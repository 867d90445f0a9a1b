"""Which control operations change files or what is kept of them: read-only refuses each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.remotes.system import S3, DaemonSystem
from unifs.control.ops import operations
from unifs.errors import PermissionDenied, ReadOnly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: What is refused, and with what it is asked here; an empty table: tests/s3/test_ops.py asks the
#: services (`test_a_mount_that_is_read_only_changes_nothing`).
REFUSED: dict[str, dict[str, Any]] = {
    "files.mkdir": {"path": "/mfs/new"},
    "files.cp": {"source": "/mfs/file", "destination": "/mfs/new"},
    "files.mv": {"source": "/mfs/file", "destination": "/mfs/new"},
    "files.rm": {"path": "/mfs/file"},
    "undelete": {"path": "/mfs/gone"},
    "rollback": {"path": "/mfs/file", "to": "kept"},
    "checkpoint": {"name": "new"},
    "checkpoints.rm": {"name": "kept"},
    "journal.track": {"path": "/mfs/untracked"},
    "journal.untrack": {"path": "/mfs/dir", "yes": True},
    "journal.drop": {"yes": True},
    "conflicts.resolve": {"path": "/s3/both", "keep": "both"},
    "s3.versions.restore": {},
    "s3.bucket.policy.put": {},
    "s3.bucket.policy.rm": {},
    "s3.bucket.versioning.on": {},
    "s3.bucket.versioning.suspend": {},
    "s3.lifecycle.put": {},
    "s3.lifecycle.rm": {},
    "s3.tags.put": {},
    "s3.tags.rm": {},
    "s3.storage-class.set": {},
    "s3.multipart.abort": {},
}
#: What no file and nothing kept of one is changed by.
ALLOWED = {
    # What was written before still goes out.
    "journal.retry",
    "journal.sync",
    "sync",
    # Blocks of the node, which no file is made of until it is linked.
    "add",
    "dag.import",
    "pins.add",
    "pins.rm",
    "repo.gc",
    # What is mounted, and who may.
    "mounts.add",
    "mounts.remove",
    "backends.add",
    "backends.rm",
    "credentials.add",
    "credentials.rm",
}


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[DaemonSystem]:
    """A daemon with something for each operation, read-only since."""
    async with DaemonSystem(tmp_path, s3=S3) as system:
        assert isinstance(system, DaemonSystem)
        daemon = system.daemon
        remote = system.remote()
        remote.change("both", b"base")
        assert await system.read("both") == b"base"
        await system.write("both", b"mine")
        remote.change("both", b"theirs")
        await system.sync()
        remote.fail("put", PermissionDenied("no"))
        await system.write("given-up", b"lost")
        await system.until_given_up(1)
        for name in ("/mfs/dir", "/mfs/untracked", "/mfs/gone"):
            await daemon.files.mkdir(name, False)
        await daemon.files.copy("/s3/both", "/mfs/file")
        await daemon.history.track("/mfs/untracked", False)
        await daemon.history.checkpoint("kept")
        await daemon.files.remove("/mfs/gone", False)
        for volume in daemon.trees.volumes.values():
            volume.refuses_changes = True
        yield system


async def nothing(event: object) -> None:
    """Nobody listens."""


def test_every_operation_that_changes_something_is_one_or_the_other() -> None:
    mutating = {each.name for each in operations() if each.mutates}
    assert mutating == {*REFUSED, *ALLOWED}
    assert not ALLOWED & {*REFUSED}


async def test_read_only_refuses_every_operation_that_changes_files_or_their_past(
    frozen: DaemonSystem,
) -> None:
    known = {each.name: each for each in operations()}
    accepted, reasons = [], set()
    for name, table in REFUSED.items():
        if not table:
            continue
        operation = known[name]
        try:
            await operation.call(frozen.daemon, operation.check(table), emit=nothing)
        except ReadOnly as error:
            reasons.add(str(error).rpartition(": ")[2])
        else:
            accepted.append(name)
    assert accepted == []
    assert reasons == {f"{name} is read-only by its settings" for name in ("mfs", "s3")}
    daemon = frozen.daemon
    assert len(await daemon.journal.drop(None, False)) == 1
    assert [each.name for each in await daemon.history.checkpoints()] == ["kept"]
    assert len(await daemon.conflicts.list(None)) == 1


async def test_where_it_is_not_read_only_each_of_them_works(frozen: DaemonSystem) -> None:
    """So that what is refused above is not refused for another reason."""
    for volume in frozen.daemon.trees.volumes.values():
        volume.refuses_changes = False
    known = {each.name: each for each in operations()}
    for name, table in REFUSED.items():
        if table and name != "files.mv":
            operation = known[name]
            arguments = {**table, "destination": "/mfs/copy"} if name == "files.cp" else table
            await operation.call(frozen.daemon, operation.check(arguments), emit=nothing)


async def test_views_name_their_own_reason(frozen: DaemonSystem) -> None:
    """Not the settings, which nobody can change to write there."""
    for place, reason in (
        ("/.unifs", "only mounts lie here"),
        ("/.unifs/history", "the past cannot be changed"),
        ("/.unifs/history/mfs/kept", "the past cannot be changed"),
        ("/.unifs/versions", "below /.unifs nothing can be changed"),
    ):
        with pytest.raises(ReadOnly, match=f"^{place}/x: {reason}"):
            await frozen.daemon.files.mkdir(f"{place}/x", False)
