"""Attempts of unknown outcome that are not to be repeated: what became of them.

Writeback wants something else of the inode by now, so first it must be known what the backend has.
A look is not enough while the call may still arrive (``writeback_late``): a small put is sent
again, which makes it known at once; else the look is repeated until nothing can arrive any more.

Called by ``writeback_calls``; belongs to the event loop's thread.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from unifs.errors import (
    Conflict,
    Exists,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    PermissionDenied,
    TryAgain,
    UnifsError,
)
from unifs.journal.writeback_order import NOWHERE
from unifs.types import Change, Node
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.journal.writeback_late import Late
    from unifs.journal.writeback_order import Attempt, Known
    from unifs.journal.writeback_tree import LocalTree, Upload
    from unifs.mounts.base import Mount
    from unifs.types import Version

    Put = Callable[[int, Attempt, Upload], Awaitable[Node | UnifsError | None]]

#: Refusals because of what stands there.
TAKEN = (Conflict, Exists, IsADirectory, NotADirectory, NotEmpty)
#: Refusals that tell nothing of what stands there: an earlier try may have arrived all the same.
UNTOLD = (PermissionDenied, NoSpace)
#: An older content up to this size is rather sent again than waited for.
AGAIN_BYTES_MAX = 8 << 20


class Resolving:
    """Finds out what became of attempts."""

    def __init__(self, local: LocalTree, mount: Mount, late: Late, put: Put) -> None:
        """``put`` sends the put of an attempt again; its outcome."""
        self._local = local
        self._mount = mount
        self._late = late
        self._put = put

    async def resolve(self, ino: int) -> None:
        """End the attempt of an inode one way or the other; TryAgain while that is not known."""
        known = self._local.known(ino) or NOWHERE
        attempt = known.attempt
        assert attempt is not None
        if attempt.verb == "rename":
            await self._resolve_rename(ino, known.path or "", attempt)
            return
        try:
            there = await self._mount.stat(attempt.path)
        except (NotFound, NotADirectory):
            await self._absent(ino, attempt)
            return
        if attempt.verb == "make":
            await self._made(ino, known, there)
        else:
            await self._resolve_put(ino, attempt, there.version)

    async def _made(self, ino: int, known: Known, there: Node) -> None:
        assert known.attempt is not None
        path = known.attempt.path
        # One that another inode has made since is that one's, and refuses what is late.
        is_others = self._local.at(path) not in (0, ino)
        if known.path is None and not is_others and not stat.S_ISREG(there.mode):
            await complete(self._local.stored, ino, path, there, None)
        else:
            await complete(self._local.end, ino)

    async def _absent(self, ino: int, attempt: Attempt) -> None:
        """An attempt of which nothing is to be seen did not reach the backend, or is late.

        Where a version would have been replaced, the backend refuses what is late. Else it would
        bring back what was removed, so it is looked for again.
        """
        local = self._local
        is_refused = attempt.base is not None and self._mount.is_conditional
        if is_refused or self._late.left_s(attempt) <= 0:
            await complete(local.end, ino)
        elif local.wanted(ino) is None:
            raise self._later(attempt)
        elif local.heir(attempt.path) == ino:
            await self._again(ino, attempt)
        else:
            await complete(local.disown, ino)

    async def _resolve_put(self, ino: int, attempt: Attempt, version: Version | None) -> None:
        if attempt.base is None or version != attempt.base:
            # Something new stands there. If it is ours, the mount recognises the token; if it is
            # not, it is not ``base`` either, and nothing is overwritten.
            await self._again(ino, attempt, is_there=True)
        elif self._late.left_s(attempt) <= 0:
            await complete(self._local.end, ino)
        elif self._local.wanted(ino) is None:
            raise self._later(attempt)
        else:
            await self._again(ino, attempt)

    async def _again(self, ino: int, attempt: Attempt, *, is_there: bool = False) -> None:
        upload = await self._local.attempted(ino)
        if upload is None:
            await complete(self._local.end, ino)
            return
        if not is_there and upload.reader.size_bytes > AGAIN_BYTES_MAX:
            raise self._later(attempt)
        outcome = await self._put(ino, attempt, upload)
        if isinstance(outcome, Node):
            await complete(self._local.stored, ino, attempt.path, outcome, upload)
        elif isinstance(outcome, UnifsError) and (
            outcome.is_transient or isinstance(outcome, UNTOLD)
        ):
            raise outcome
        else:
            await complete(self._local.end, ino)

    async def _resolve_rename(self, ino: int, path: str, attempt: Attempt) -> None:
        new_path = attempt.path
        try:
            await self._mount.stat(path)
        except (NotFound, NotADirectory):
            try:
                await self._mount.stat(new_path)
            except (NotFound, NotADirectory):
                await complete(self._local.end, ino)
                return
            if await self._mount.has_begun(new_path, attempt.token):
                await self._finish(path, attempt)
            await complete(self._local.moved, ino, path, new_path)
            return
        if await self._mount.has_begun(new_path, attempt.token):
            # Half of it is done. To finish it leaves nothing behind; what is wanted now comes next.
            if attempt.is_refused:
                attempt = replace(attempt, is_refused=False)
                await complete(self._local.begin, ino, attempt, b"")
            change, refusal = await self._finish(path, attempt)
            if refusal is None:
                await complete(self._local.moved, ino, path, new_path)
                return
            if await self.is_halfway(change, refusal):
                await complete(self._local.refused, ino)
                raise refusal
        elif self._late.left_s(attempt) > 0:
            raise self._later(attempt)
        await complete(self._local.end, ino)

    async def _finish(self, path: str, attempt: Attempt) -> tuple[Change, UnifsError | None]:
        """A rename of which something is done, to its end; why it was refused."""
        change = Change("rename", path, attempt.token, attempt.path, base=attempt.base)
        (outcome,) = await self._mount.commit([(change, None)])
        if isinstance(outcome, UnifsError) and outcome.is_transient:
            self._late.lost(change)
            raise outcome
        return change, outcome if isinstance(outcome, UnifsError) else None

    async def is_halfway(self, change: Change, refusal: UnifsError) -> bool:
        """Whether a rename was refused that can go on from what is done of it, once it may."""
        if isinstance(refusal, (*TAKEN, NotFound)):
            return False
        try:
            return await self._mount.has_begun(change.new_path, change.token)
        except UnifsError as error:
            if error.is_transient:
                raise
            # It may not even look.
            return True

    def _later(self, attempt: Attempt) -> TryAgain:
        left_s = self._late.left_s(attempt)
        return TryAgain("an upload that was cut off may still arrive", within_s=left_s)

    # --- what stands there ------------------------------------------------------------------------

    async def kind(self, path: str) -> int:
        """What the backend has there, as ``stat.S_IFMT``; 0 for nothing."""
        try:
            return stat.S_IFMT((await self._mount.stat(path)).mode)
        except (NotFound, NotADirectory):
            return 0

    async def is_replaced(self, ino: int, path: str) -> bool:
        """Whether what is to be renamed from ``path`` has vanished: another kind stands there.

        To rename that would carry somebody else's object off, and bring nothing of ours.
        """
        wanted = self._local.wanted(ino)
        if wanted is None or await self.kind(path) in (0, stat.S_IFMT(wanted.mode)):
            return False
        await complete(self._local.vanished, ino)
        return True
