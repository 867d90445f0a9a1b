"""The calls of writeback: each step as one change for the mount, and what its outcome means.

``Calls`` prepares a step (seals content, notes the attempt durably before anything is sent), and
settles its outcome with the tree. It decides what a refusal of the backend means: a conflict, an
object or a directory that somebody removed, something that the backend cannot keep. What may pass
goes to the caller, who tries again. What became of an attempt that is not to be repeated finds
``writeback_resolving``.
"""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from unifs.errors import (
    DeadlineExceeded,
    NotADirectory,
    NotFound,
    RateLimited,
    TryAgain,
    UnifsError,
    Unsupported,
)
from unifs.journal.writeback_order import NOWHERE, Attempt, Step
from unifs.journal.writeback_resolving import TAKEN, UNTOLD, Resolving
from unifs.journal.writeback_sending import STALL_S, Watched
from unifs.types import Change, Node
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.journal.writeback_late import Late
    from unifs.journal.writeback_order import Known, Wanted
    from unifs.journal.writeback_tree import LocalTree, Upload
    from unifs.mounts.base import ContentReader, Mount

Outcome = Node | UnifsError | None


@dataclass(slots=True, eq=False)
class Call:
    """A step in the form that the mount takes."""

    ino: int
    step: Step
    change: Change
    upload: Upload | None = None
    #: It was sent before, and nobody knows what became of that.
    is_repeated: bool = False
    #: It was ended because nobody wants it any more, before the backend had all bytes.
    is_stopped: bool = False

    @property
    def is_attempt(self) -> bool:
        """Whether it brings something to a new place: its attempt is in the rows."""
        return self.step.verb in ("put", "make", "rename")


class Calls:
    """Makes calls of steps and settles their outcomes."""

    def __init__(self, local: LocalTree, mount: Mount, late: Late) -> None:
        self.local = local
        self.mount = mount
        self._late = late
        self._watched: dict[int, Watched] = {}
        self._resolving = Resolving(local, mount, self._late, self._send_put)

    # --- preparing --------------------------------------------------------------------------------

    async def prepare(self, ino: int, seq: Callable[[], int], step: Step) -> Call | None:
        """The call for a step; None where looking again is all that is to be done.

        ``seq`` tells the newest record of the inode, asked for when its bytes are fixed.
        """
        if step.verb == "resolve":
            await self._resolving.resolve(ino)
            return None
        if step.verb == "put":
            return await self._prepare_put(ino, seq, step)
        known = self.local.known(ino) or NOWHERE
        is_attempt = step.verb in ("make", "rename") and known.attempt is not None
        token = self.local.token(seq(), step.verb)
        if is_attempt and known.attempt:
            token = known.attempt.token
        change = Change(step.verb, step.path, token, new_path=step.new_path, base=step.base)
        self._check_late(ino, change)
        if step.verb == "make":
            node = self.local.node(ino)
            if not self.mount.supports("make"):
                await self._unsupported(ino, step)
                return None
            await self._begin(ino, Attempt("make", step.path, token))
            change = Change("make", step.path, token, node=node)
        elif step.verb == "rename":
            if not await self._is_free(ino, step, token):
                return None
            await self._begin(ino, Attempt("rename", step.new_path, token, step.base))
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
        is_repeated = attempt is not None
        if attempt is None:
            token = self.local.token(seq(), "put")
            attempt = Attempt("put", step.path, token, step.base, upload.key.hex())
            self._check_late(ino, Change("put", step.path, attempt.token, base=step.base))
            await complete(self.local.begin, ino, attempt, upload.blob)
        elif (attempt.path, attempt.key) != (step.path, upload.key.hex()):
            return None
        change = Change("put", attempt.path, attempt.token, base=attempt.base)
        return Call(ino, step, change, upload, is_repeated)

    async def _begin(self, ino: int, attempt: Attempt) -> None:
        """Note the attempt, if it is the first of its kind, or the last one was refused."""
        known = self.local.known(ino) or NOWHERE
        if known.attempt is None or known.attempt.is_refused:
            await complete(self.local.begin, ino, attempt, b"")

    def _check_late(self, ino: int, change: Change) -> None:
        """TryAgain while another call may still arrive where this one goes."""
        is_tree = change.verb == "remove" and change.base is None
        if change.verb == "rename":
            wanted = self.local.wanted(ino)
            is_tree = wanted is not None and wanted.is_directory
        left_s = self._late.wait_s(change, is_tree, self.mount.is_conditional)
        if left_s > 0:
            raise TryAgain("a request that was cut off may still arrive", within_s=left_s)

    def load(self, ino: int) -> None:
        """Of an inode that an earlier daemon left due: what it may have sent may arrive now."""
        known = self.local.known(ino) or NOWHERE
        attempt = known.attempt
        if attempt is not None and attempt.is_refused:
            # That was its answer.
            return
        if attempt is not None and attempt.verb == "rename":
            paths = (known.path or "", attempt.path)
            self._late.lost(Change("rename", paths[0], attempt.token, paths[1]))
        elif attempt is not None:
            self._late.lost(Change(attempt.verb, attempt.path, attempt.token, base=attempt.base))
        elif known.path is not None:
            wanted = self.local.wanted(ino)
            if wanted is None:
                self._late.lost(Change("remove", known.path, "", base=known.version))
            elif self._may_have_told(known, wanted):
                self._late.lost(Change("set_attributes", known.path, ""))

    def _may_have_told(self, known: Known, wanted: Wanted) -> bool:
        """Whether an earlier daemon may have sent attributes; with its bytes a put sent them."""
        is_changed = known.told is not None and known.told != wanted.told
        has_bytes = not wanted.is_file or wanted.key in (None, known.synced)
        return is_changed and has_bytes and self.mount.supports("set_attributes")

    async def _is_free(self, ino: int, step: Step, token: str) -> bool:
        """Whether a rename hits nothing but what it is meant to replace, or what it brought there.

        Between this look and the rename somebody may still put something there: no backend's
        rename is conditional.
        """
        wanted = self.local.wanted(ino)
        is_directory = wanted is not None and wanted.is_directory
        if is_directory and await self._resolving.is_replaced(ino, step.path):
            return False
        try:
            there = await self.mount.stat(step.new_path)
        except (NotFound, NotADirectory):
            return True
        if step.base is not None and there.version == step.base:
            return True
        if not is_directory and await self._resolving.is_replaced(ino, step.path):
            return False
        await self._look_again(step.new_path, there)
        self._check_attempts(ino, step.new_path)
        known = self.local.known(ino) or NOWHERE
        if known.attempt is not None:
            # Perhaps it is ours and the answer was lost.
            try:
                await self.mount.stat(step.path)
            except (NotFound, NotADirectory):
                return True
        # Or the half of it is done: a copy is there, and what it is a copy of. The other half may
        # have been refused, and be permitted now.
        if await self.mount.has_begun(step.new_path, token):
            return True
        if known.attempt is not None:
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
        """One outcome for each; DeadlineExceeded where nothing moved for ``STALL_S``.

        Attempts survive a power cut before anything is sent: else the backend would have what
        nobody knows of, and a file that is removed now would come back.
        """
        if any(call.is_attempt for call in calls):
            try:
                await self.local.flush(sys.maxsize)
            except UnifsError as error:
                return [TryAgain(f"the attempt is not durable here: {error}") for _ in calls]
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
        except BaseException:
            # Nobody knows what of it was sent.
            for call in calls:
                self._late.lost(call.change)
            raise
        finally:
            for ino in watched:
                del self._watched[ino]
        if scope.cancelled_caught:
            stalled = DeadlineExceeded(f"no byte moved for {STALL_S:g} s")
            outcomes = [stalled for _ in calls]
        for call, outcome in zip(calls, outcomes, strict=True):
            call.is_stopped = call.ino in watched and watched[call.ino].is_stopped
            is_heard = call.is_stopped or isinstance(outcome, RateLimited)
            if isinstance(outcome, UnifsError) and outcome.is_transient and not is_heard:
                self._late.lost(call.change)
                if call.step.verb == "set_attributes":
                    self.local.note_late(call.change.path)
        return outcomes

    async def _send_put(self, ino: int, attempt: Attempt, upload: Upload) -> Outcome:
        """The put of an open attempt again, for its outcome alone."""
        change = Change("put", attempt.path, attempt.token, base=attempt.base)
        return (await self.send([Call(ino, Step("put", attempt.path), change, upload)]))[0]

    async def settle(self, call: Call, outcome: Outcome) -> None:
        """Tell the tree what came of a call; raises what may pass or can never succeed."""
        if isinstance(outcome, UnifsError):
            if call.is_stopped and outcome.is_transient:
                return
            if outcome.is_transient:
                raise outcome
            await self._refused(call, outcome)
            return
        local, step = self.local, call.step
        if step.verb == "put" and outcome is not None:
            left_s = self._late.match_s(call.change, outcome.version)
            if left_s > 0:
                # The same bytes as before the last change: what is late would take them for those.
                raise TryAgain("a request that was cut off may still arrive", within_s=left_s)
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
        if step.verb == "rename" and await self._resolving.is_halfway(call.change, error):
            await complete(local.refused, ino)
        elif call.is_attempt and not (call.is_repeated and isinstance(error, UNTOLD)):
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
            await self._taken(call)
        elif isinstance(error, Unsupported) and step.verb in ("make", "set_attributes"):
            await self._unsupported(ino, step)
        else:
            raise error

    async def _missing(self, call: Call) -> None:
        """Something is gone at the backend: the object itself, or a directory above its place.

        A directory is gone, too, where a file has its name.
        """
        local, step = self.local, call.step
        if step.verb in ("rename", "set_attributes"):
            try:
                await self.mount.stat(step.path)
            except (NotFound, NotADirectory):
                await complete(local.vanished, call.ino)
                return
        path = step.new_path or step.path
        while "/" in path:
            path = path.rpartition("/")[0]
            if await self._resolving.kind(path) != stat.S_IFDIR:
                above = local.at(path)
                if above:
                    await complete(local.vanished, above)
                    return

    async def _taken(self, call: Call) -> None:
        local, ino = self.local, call.ino
        path = call.step.new_path or call.step.path
        try:
            there = await self.mount.stat(path)
        except (NotFound, NotADirectory):
            known = local.known(ino) or NOWHERE
            if known.path == path:
                await complete(local.vanished, ino)
            elif other := local.at(path):
                await complete(local.vanished, other)
            else:
                # What is in the way stands above: a file where its directory was.
                await self._missing(call)
            return
        wanted = local.wanted(ino)
        if wanted is None:
            return
        if call.step.verb == "rename" and await self._resolving.is_replaced(ino, call.step.path):
            return
        await self._look_again(path, there)
        known = local.known(ino) or NOWHERE
        if known.path == path and known.version is not None and known.version == there.version:
            # Nobody changed it: what was refused was refused for an answer gone wrong.
            raise TryAgain("it is being changed by somebody")
        self._check_attempts(ino, path)
        mine = local.node(ino)
        is_same = stat.S_IFMT(there.mode) == stat.S_IFMT(wanted.mode)
        is_mine = wanted.is_directory or (stat.S_ISLNK(mine.mode) and _same(mine, there))
        if is_same and is_mine and known.path is None:
            await complete(local.stored, ino, path, there, None)
            return
        await complete(local.conflict, ino, path, there)

    def _check_attempts(self, ino: int, path: str) -> None:
        """TryAgain while what stands at ``path`` may be what another inode has sent there."""
        if any(other != ino for other in self.local.attempting(path)):
            raise TryAgain("an upload that was cut off may have arrived there")

    async def _look_again(self, path: str, there: Node) -> None:
        """TryAgain unless the backend says the same once more: one answer may be wrong."""
        try:
            is_same = (await self.mount.stat(path)).version == there.version
        except (NotFound, NotADirectory):
            is_same = False
        if not is_same:
            raise TryAgain("it is being changed by somebody")

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


def _same(mine: Node, there: Node) -> bool:
    return mine.target == there.target
