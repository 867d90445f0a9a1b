"""Changes: how far they are on their way, and what of the past is kept."""

from typing import Annotated

from msgspec import Meta

from unifs.control.checks_protocol import Checked, Receipt, Wrong
from unifs.control.daemon_protocol import (
    Answer,
    ChangeState,
    Daemon,
    JournalRecord,
    JournalStatus,
    Until,
)
from unifs.control.history_protocol import EpochInfo, Tracked
from unifs.control.registry import Emit, Param, operation
from unifs.errors import Inconsistent

MaybePath = Annotated[
    str | None, Param("only at and below this path of the tree", place="tree", argument=True)
]

UntilParam = Annotated[
    Until,
    Param(
        "sealed: safe from power loss here; synced: confirmed by the backend; verified: read back"
        " from there"
    ),
]
TimeoutParam = Annotated[float | None, Param("give up after so many seconds", short="--timeout")]


@operation("journal.status")
async def status(daemon: Daemon, path: MaybePath = None) -> JournalStatus:
    """Count changes by how far they are."""
    return await daemon.journal.status(path)


@operation("journal.list")
async def list_(
    daemon: Daemon,
    emit: Emit[JournalRecord],
    path: MaybePath = None,
    only: Annotated[ChangeState | None, Param("changes that are this far")] = None,
    limit: Annotated[int, Meta(ge=1, le=100_000), Param("at most so many", short="-n")] = 100,
) -> None:
    """List changes, the newest first."""
    async for record in daemon.journal.list(path, only, limit):
        await emit(record)


class Retried(Answer):
    """Changes that are tried again."""

    retried: int


@operation("journal.retry", mutates=True)
async def retry(daemon: Daemon, path: MaybePath = None) -> Retried:
    """Try changes that were given up once more."""
    return Retried(retried=await daemon.journal.retry(path))


@operation("journal.drop", mutates=True)
async def drop(
    daemon: Daemon,
    emit: Emit[JournalRecord],
    path: MaybePath = None,
    yes: Annotated[bool, Param("lose them; without it they are only listed")] = False,
) -> None:
    """Let go of changes that were given up: what the backend has takes their place.

    Lists what is lost, without `--yes` what would be. Changes that are still tried are not touched.
    """
    for record in await daemon.journal.drop(path, yes):
        await emit(record)


@operation("journal.sync", mutates=True)
async def sync(
    daemon: Daemon,
    path: MaybePath = None,
    until: UntilParam = "synced",
    timeout_s: TimeoutParam = None,
) -> JournalStatus:
    """Bring changes to their backend and wait until they are there."""
    return await daemon.journal.sync(path, until, timeout_s)


@operation("journal.history")
async def history(daemon: Daemon, emit: Emit[EpochInfo]) -> None:
    """List the epochs that are kept, the oldest first.

    Each can be looked at below /.unifs/history/mfs, by its number or its names.
    """
    async for epoch in daemon.history.epochs():
        await emit(epoch)


Directory = Annotated[str, Param("a directory of /mfs", place="tree")]


@operation("journal.track", mutates=True)
async def track(daemon: Daemon, path: Directory) -> Tracked:
    """Keep the past of a directory and what is below it again."""
    return await daemon.history.track(path, True)


@operation("journal.untrack", mutates=True)
async def untrack(
    daemon: Daemon,
    path: Directory,
    yes: Annotated[bool, Param("take it out of checkpoints too; else that is refused")] = False,
) -> Tracked:
    """Keep no past of a directory and what is below it: caches, builds.

    It is not shown in the past any more, what was kept of it until now included, and a rollback of
    what is above leaves it as it is.
    """
    return await daemon.history.track(path, False, yes)


@operation("journal.tracked")
async def tracked(daemon: Daemon, emit: Emit[Tracked]) -> None:
    """List what is tracked, and what in it is not."""
    for each in await daemon.history.tracked():
        await emit(each)


@operation("sync", mutates=True)
async def sync_now(
    daemon: Daemon,
    path: MaybePath = None,
    until: UntilParam = "synced",
    timeout_s: TimeoutParam = None,
) -> JournalStatus:
    """Wait until the backends have everything, or everything at and below a path.

    Ends with 0 where they have, with 3 where the time is over, with what the backend said where it
    refuses, and with 6 where what is read back is not what was written.
    """
    return await daemon.journal.sync(path, until, timeout_s)


@operation("journal.verify")
async def verify(daemon: Daemon, emit: Emit[Wrong | Checked]) -> None:
    """Prove that journal, tree, contents and CIDs agree.

    Rows and records are compared with each other, contents with their hashes, and the blocks of
    every directory of /mfs with its rows. Ends with INCONSISTENT (6) where they do not agree.
    """
    found, checked = await daemon.checks.agree()
    for wrong in found:
        await emit(wrong)
    await emit(checked)
    if found:
        do = "thing does" if len(found) == 1 else "things do"
        raise Inconsistent(f"{len(found)} {do} not agree")


@operation("journal.receipts")
async def receipts(daemon: Daemon, emit: Emit[Receipt]) -> None:
    """Show what recoveries after crashes, and repairs, did; the newest first."""
    for receipt in await daemon.checks.receipts():
        await emit(receipt)
