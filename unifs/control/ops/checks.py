"""Is what is stored what was stored: rows, records, contents, bytes."""

import time
from typing import Annotated

from msgspec import Meta

from unifs.control.checks_protocol import Checked, FileDamage, Verified, Verifying, Wrong
from unifs.control.daemon_protocol import Daemon
from unifs.control.ops.progress import INTERVAL_S
from unifs.control.registry import Emit, Param, operation
from unifs.errors import Corrupt, Inconsistent

MaybePath = Annotated[
    str | None, Param("only at and below this path of the tree", place="tree", argument=True)
]


@operation("fsck")
async def fsck(
    daemon: Daemon,
    emit: Emit[Wrong | Checked],
    verify: Annotated[bool, Param("hash every stored content too")] = False,
) -> None:
    """Check rows, records and contents while the tree is mounted; nothing is changed.

    Ends with INCONSISTENT (6) where anything is wrong: unmount, then `unifs fsck --repair`, which
    also checks what can only be known of a tree at rest.
    """
    found, checked = await daemon.checks.fsck(verify)
    for wrong in found:
        await emit(wrong)
    await emit(checked)
    if found:
        are = "thing is" if len(found) == 1 else "things are"
        raise Inconsistent(f"{len(found)} {are} wrong")


@operation("verify")
async def verify(
    daemon: Daemon,
    emit: Emit[Verifying | FileDamage | Verified],
    path: MaybePath = None,
    rate: Annotated[
        float, Meta(ge=0), Param("read at most so many MiB a second; 0: as many as there are")
    ] = 0.0,
    after: Annotated[int, Meta(ge=0), Param("go on after this inode of an earlier run")] = 0,
    progress: Annotated[bool, Param("tell how far it is: where `--after` goes on")] = False,
) -> None:
    """Read every file from the disk again, and name each range that does not match its hash.

    Neither the page cache nor what was verified before is believed. It may be ended at any time
    and go on with `--after`. Ends with CORRUPT (6) where a file is damaged. `repo verify` does the
    same for the blocks of the node.
    """
    told_at = time.monotonic()
    damaged = 0
    rate_bytes = rate * (1 << 20) if rate else None
    async for event in daemon.checks.verify(path, rate_bytes, after):
        if isinstance(event, Verifying):
            if not progress or time.monotonic() - told_at <= INTERVAL_S:
                continue
            told_at = time.monotonic()
        damaged += isinstance(event, FileDamage)
        await emit(event)
    if damaged:
        are = "range of a file is" if damaged == 1 else "ranges of files are"
        raise Corrupt(f"{damaged} {are} damaged")
