"""The calls of writeback: each step as one change for the mount, and what its outcome means.

``Calls`` prepares a step (seals content, notes the attempt durably before anything is sent), and
settles its outcome with the tree. It decides what a refusal of the backend means: a conflict, an
object or a directory that somebody removed, something that the backend cannot keep. What may pass
goes to the caller, who tries again.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from unifs.errors import (
    Conflict,
    DeadlineExceeded,
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    RateLimited,
    TryAgain,
    UnifsError,
    Unsupported,
)
from unifs.journal.writeback_order import NOWHERE, Attempt, Step
from unifs.journal.writeback_sending import STALL_S, Late, Watched
from unifs.types import Change, Node
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.journal.writeback_tree import LocalTree, Upload
    from unifs.mounts.base import ContentReader, Mount
    from unifs.types import Version

TAKEN = (Conflict, Exists, IsADirectory, NotADirectory, NotEmpty)

Outcome = Node | UnifsError | None


@dataclass(slots=True, eq=False)
class Call:
    """A step in the form that the mount takes."""

    ino: int
    step: Step
    change: Change
    upload: Upload | None = None
    #: It was ended because nobody wants it any more, before the backend had all bytes.
    is_stopped: bool = False

    @property
    def is_storing(self) -> bool:
        """Whether it brings something new to the backend."""
        return self.step.verb in ("put", "make")


class Calls:
    """Makes calls of steps and settles their outcomes."""

    def __init__(self, local: LocalTree, mount: Mount) -> None:
        self.local = local
        self.mount = mount
        self._late = Late()
        self._watched: dict[int, Watched] = {}

    # --- preparing --------------------------------------------------------------------------------

    async def prepare(self, ino: int, seq: Callable[[], int], step: Step) -> Call | None:
        """The call for a step; None where looking again is all that is to be done.

        ``seq`` tells the newest record of the inode, asked for when its bytes are fixed.
        """
        if step.verb == "resolve":
            await self._resolve(ino)
            self._late.ended(ino)
            return None
        if step.verb == "put":
            return await self._prepare_put(ino, seq, step)
        token = f"{seq()}.{step.verb}"
        change = Change(step.verb, step.path, token, base=step.base)
        if step.verb == "make":
            node = self.local.node(ino)
            if not self.mount.supports("make"):
                await self._unsupported(ino, step)
                return None
            token = await self._begin(ino, Attempt("make", step.path, token))
            change = Change("make", step.path, token, node=node)
        elif step.verb == "rename":
            if not await self._is_free(ino, step):
                return None
            token = await self._begin(ino, Attempt("rename", step.new_path, token, step.base))
            change = Change("rename", step.path, token, new_path=step.new_path, base=step.base)
        elif step.verb == "set_attributes":
            attributes = self.local.attributes(ino)
            change = Change("set_attributes", step.path, token, attributes=attributes)
        return Call(ino, step, change)

    async def _prepare_put(self, ino: int, seq: Callable[[], int], step: Step) -> Call | None:
        upload = await self.local.upload(ino)
        if upload is None:
            return None
        known = self.local.known(ino) or NOWHERE
        attempt = known.attempt
        if attempt is None:
            attempt = Attempt("put", step.path, f"{seq()}.put", step.base, upload.key.hex())
            await complete(self.local.begin, ino, attempt, upload.blob)
            self._late.begun(ino)
        elif (attempt.path, attempt.key) != (step.path, upload.key.hex()):
            return None
        change = Change("put", attempt.path, attempt.token, base=attempt.base)
        return Call(ino, step, change, upload)

    async def _begin(self, ino: int, attempt: Attempt) -> str:
        """Note the attempt; the token is that of the first, where this one repeats it."""
        known = self.local.known(ino) or NOWHERE
        if known.attempt is not None:
            return known.attempt.token
        await complete(self.local.begin, ino, attempt, b"")
        self._late.begun(ino)
        return attempt.token

    async def _is_free(self, ino: int, step: Step) -> bool:
        """Whether a rename hits nothing but what it is meant to replace.

        Between this look and the rename somebody may still put something there: no backend's
        rename is conditional.
        """
        try:
            there = await self.mount.stat(step.new_path)
        except NotFound:
            return True
        if step.base is not None and there.version == step.base:
            return True
        known = self.local.known(ino) or NOWHERE
        if known.attempt is not None:
            # Perhaps it is ours and the answer was lost.
            try:
                await self.mount.stat(step.path)
            except NotFound:
                return True
            # Or the half of it is done: a copy is there, and what it is a copy of.
            if await self.mount.has_begun(step.new_path, known.attempt.token):
                return True
            await complete(self.local.end, ino)
        await complete(self.local.conflict, ino, step.new_path, there)
        return False

    # --- calling ----------------------------------------------------------------------------------

    def stop(self, ino: int) -> None:
        """Nobody wants the upload of this inode any more; its answer is waited for all the same."""
        watched = self._watched.get(ino)
        if watched is not None:
            watched.is_pointless = True

    async def send(self, calls: list[Call]) -> list[Outcome]:
        """One outcome for each; DeadlineExceeded where nothing moved for ``STALL_S``."""
        before = {call.ino: self._late.sent(call.ino) for call in calls if call.is_storing}
        outcomes: list[Outcome] = []
        watched: dict[int, Watched] = {}
        try:
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time() + STALL_S
                pairs: list[tuple[Change, ContentReader | None]] = []
                for call in calls:
                    if call.upload is not None:
                        watched[call.ino] = Watched(call.upload.reader, scope)
                    pairs.append((call.change, watched.get(call.ino)))
                self._watched |= watched
                outcomes = await self.mount.commit(pairs)
        finally:
            for ino in watched:
                del self._watched[ino]
        if scope.cancelled_caught:
            stalled = DeadlineExceeded(f"no byte moved for {STALL_S:g} s")
            outcomes = [stalled for _ in calls]
        for call, outcome in zip(calls, outcomes, strict=True):
            if call.is_storing:
                self._late.sent(call.ino)
                call.is_stopped = call.ino in watched and watched[call.ino].is_stopped
                if call.is_stopped or isinstance(outcome, RateLimited):
                    self._late.not_sent(call.ino, before[call.ino])
        return outcomes

    async def settle(self, call: Call, outcome: Outcome) -> None:
        """Tell the tree what came of a call; raises what may pass or can never succeed."""
        if isinstance(outcome, UnifsError):
            if call.is_stopped and outcome.is_transient:
                return
            if outcome.is_transient:
                raise outcome
            self._late.ended(call.ino)
            await self._refused(call, outcome)
            return
        self._late.ended(call.ino)
        local, step = self.local, call.step
        match step.verb:
            case "put" | "make":
                node = outcome if outcome is not None else await self.mount.stat(step.path)
                await complete(local.stored, call.ino, step.path, node, call.upload)
            case "remove":
                await complete(local.removed, call.ino, False)
            case "rename":
                await complete(local.moved, call.ino, step.path, step.new_path)
            case _:
                await complete(local.told, call.ino)

    # --- refusals ---------------------------------------------------------------------------------

    async def _refused(self, call: Call, error: UnifsError) -> None:
        local, step, ino = self.local, call.step, call.ino
        if step.verb in ("put", "make", "rename"):
            await complete(local.end, ino)
        if step.verb == "remove":
            if isinstance(error, NotFound | NotADirectory):
                await complete(local.removed, ino, False)
            elif isinstance(error, TAKEN):
                await complete(local.removed, ino, True)
            else:
                raise error
        elif isinstance(error, NotFound):
            await self._missing(call)
        elif isinstance(error, TAKEN):
            await self._taken(ino, step.new_path or step.path, error)
        elif isinstance(error, Unsupported) and step.verb in ("make", "set_attributes"):
            await self._unsupported(ino, step)
        else:
            raise error

    async def _missing(self, call: Call) -> None:
        """Something is gone at the backend: the object itself, or the directory it belongs in."""
        local, step = self.local, call.step
        if step.verb in ("rename", "set_attributes"):
            try:
                await self.mount.stat(step.path)
            except NotFound:
                await complete(local.vanished, call.ino)
                return
        path = step.new_path or step.path
        while "/" in path:
            path = path.rpartition("/")[0]
            try:
                await self.mount.stat(path)
            except (NotFound, NotADirectory):
                above = local.at(path)
                if above:
                    await complete(local.vanished, above)
                    return

    async def _taken(self, ino: int, path: str, error: UnifsError) -> None:
        local = self.local
        try:
            there = await self.mount.stat(path)
        except (NotFound, NotADirectory):
            known = local.known(ino) or NOWHERE
            if known.path == path:
                await complete(local.vanished, ino)
            elif other := local.at(path):
                await complete(local.vanished, other)
            return
        wanted = local.wanted(ino)
        if wanted is None:
            return
        if any(other != ino for other in local.attempting(path)):
            raise TryAgain("an upload that was cut off may have arrived there")
        mine = local.node(ino)
        is_same = stat.S_IFMT(there.mode) == stat.S_IFMT(wanted.mode)
        if is_same and (wanted.is_directory or (stat.S_ISLNK(mine.mode) and _same(mine, there))):
            known = local.known(ino) or NOWHERE
            if known.path is None:
                await complete(local.stored, ino, path, there, None)
                return
        await complete(local.conflict, ino, path, there)

    async def _unsupported(self, ino: int, step: Step) -> None:
        local = self.local
        if step.verb == "set_attributes":
            await complete(local.told, ino)
            return
        node = local.node(ino)
        if stat.S_ISDIR(node.mode):
            # Such a backend has directories only in the paths of its objects.
            await complete(local.stored, ino, step.path, node, None)
        else:
            await complete(local.kept_here, ino)

    # --- attempts of unknown outcome --------------------------------------------------------------

    async def _resolve(self, ino: int) -> None:
        """Find out whether an attempt reached the backend, now that it is not to be repeated."""
        known = self.local.known(ino) or NOWHERE
        attempt = known.attempt
        assert attempt is not None
        if attempt.verb == "rename":
            await self._resolve_rename(ino, known.path or "", attempt)
            return
        try:
            there = await self.mount.stat(attempt.path)
        except (NotFound, NotADirectory):
            await self._absent(ino, attempt)
            return
        if attempt.verb == "make":
            if known.path is None and not stat.S_ISREG(there.mode):
                await complete(self.local.stored, ino, attempt.path, there, None)
            else:
                await complete(self.local.end, ino)
            return
        await self._resolve_put(ino, attempt, there.version)

    async def _absent(self, ino: int, attempt: Attempt) -> None:
        """An attempt of which nothing is to be seen did not reach the backend, or is late.

        Where the same name is put next, or a version would have been replaced, the backend refuses
        what is late. Else it would bring back what was removed, so it is looked for again.
        """
        local = self.local
        left_s = self._late.left_s(ino)
        is_refused = attempt.base is not None and self.mount.is_conditional
        if left_s <= 0 or is_refused or local.heir(attempt.path) == ino:
            await complete(local.end, ino)
        elif local.wanted(ino) is not None:
            await complete(local.disown, ino)
        else:
            raise TryAgain("an upload that was cut off may still arrive", within_s=left_s)

    async def _resolve_put(self, ino: int, attempt: Attempt, version: Version | None) -> None:
        upload = await self.local.attempted(ino)
        if upload is None or (attempt.base is not None and version == attempt.base):
            await complete(self.local.end, ino)
            return
        # Something new stands there. If it is ours, the mount recognises the token; if it is not,
        # it is not ``base`` either, and nothing is overwritten.
        change = Change("put", attempt.path, attempt.token, base=attempt.base)
        call = Call(ino, Step("put", attempt.path), change, upload)
        outcome = (await self.send([call]))[0]
        if isinstance(outcome, Node):
            await complete(self.local.stored, ino, attempt.path, outcome, upload)
        elif isinstance(outcome, UnifsError) and outcome.is_transient:
            raise outcome
        else:
            await complete(self.local.end, ino)

    async def _resolve_rename(self, ino: int, path: str, attempt: Attempt) -> None:
        new_path = attempt.path
        try:
            await self.mount.stat(path)
        except (NotFound, NotADirectory):
            try:
                await self.mount.stat(new_path)
            except (NotFound, NotADirectory):
                await complete(self.local.end, ino)
                return
            await complete(self.local.moved, ino, path, new_path)
            return
        if await self.mount.has_begun(new_path, attempt.token):
            # Half of it is done. To finish it leaves nothing behind; what is wanted now comes next.
            try:
                await self.mount.rename(path, new_path, attempt.token)
            except UnifsError as error:
                if error.is_transient:
                    raise
            else:
                await complete(self.local.moved, ino, path, new_path)
                return
        await complete(self.local.end, ino)


def _same(mine: Node, there: Node) -> bool:
    return mine.target == there.target
