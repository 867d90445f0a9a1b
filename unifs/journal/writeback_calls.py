"""The calls of writeback: each step as one change for the mount, and what its outcome means.

``Calls`` prepares a step (seals content, notes the attempt durably before anything is sent), and
settles its outcome with the tree. It decides what a refusal of the backend means: a conflict, an
object or a directory that somebody removed, something that the backend cannot keep. What may pass
goes to the caller, who tries again.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from unifs.errors import (
    Conflict,
    DeadlineExceeded,
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    UnifsError,
    Unsupported,
)
from unifs.journal.writeback_order import NOWHERE, Attempt, Objects, Step
from unifs.types import Change, Node, SetAttributes
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.mounts.base import ContentReader, Mount
    from unifs.types import Version

#: A call ends when no byte has moved for so long.
STALL_S = 60.0

TAKEN = (Conflict, Exists, IsADirectory, NotADirectory, NotEmpty)

Outcome = Node | UnifsError | None


@dataclass(slots=True, eq=False)
class Upload:
    """Immutable bytes on their way. ``mark`` says how far the inode was written at that moment."""

    reader: ContentReader
    blob: bytes
    key: bytes
    mark: int = 0


class LocalTree(Objects, Protocol):
    """What writeback needs of the tree; every change is one transaction."""

    async def upload(self, ino: int) -> Upload | None:
        """The inode's bytes, durable here; None where they are changing."""
        ...

    async def attempted(self, ino: int) -> Upload | None:
        """The bytes of the open attempt, None where there is none."""
        ...

    def node(self, ino: int) -> Node: ...

    def attributes(self, ino: int) -> SetAttributes: ...

    def begin(self, ino: int, attempt: Attempt, blob: bytes) -> None:
        """From now on the backend may have it."""
        ...

    def end(self, ino: int) -> None:
        """The attempt did not reach the backend."""
        ...

    def stored(self, ino: int, path: str, node: Node, upload: Upload | None) -> None:
        """The backend has it there; what stood there before is gone."""
        ...

    def moved(self, ino: int, path: str, new_path: str) -> None: ...

    def removed(self, ino: int, is_foreign: bool) -> None:
        """The backend has nothing of it any more, or keeps what is somebody else's."""
        ...

    def told(self, ino: int) -> None: ...

    def kept_here(self, ino: int) -> None:
        """The backend cannot keep such an object: it lives in the tree."""
        ...

    def vanished(self, ino: int) -> None:
        """Somebody removed it from the backend."""
        ...

    def conflict(self, ino: int, path: str, node: Node) -> None:
        """Somebody else's object stands at ``path``."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """A step in the form that the mount takes."""

    ino: int
    step: Step
    change: Change
    upload: Upload | None = None


class Calls:
    """Makes calls of steps and settles their outcomes."""

    def __init__(self, local: LocalTree, mount: Mount) -> None:
        self.local = local
        self.mount = mount

    # --- preparing --------------------------------------------------------------------------------

    async def prepare(self, ino: int, seq: Callable[[], int], step: Step) -> Call | None:
        """The call for a step; None where looking again is all that is to be done.

        ``seq`` tells the newest record of the inode, asked for when its bytes are fixed.
        """
        if step.verb == "resolve":
            await self._resolve(ino)
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

    async def send(self, calls: list[Call]) -> list[Outcome]:
        """One outcome for each; DeadlineExceeded where nothing moved for ``STALL_S``."""
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + STALL_S
            pairs = [
                (call.change, Watched(call.upload.reader, scope) if call.upload else None)
                for call in calls
            ]
            return await self.mount.commit(pairs)
        stalled = DeadlineExceeded(f"no byte moved for {STALL_S:g} s")
        return [stalled for _ in calls]

    async def settle(self, call: Call, outcome: Outcome) -> None:
        """Tell the tree what came of a call; raises what may pass or can never succeed."""
        if isinstance(outcome, UnifsError):
            if outcome.is_transient:
                raise outcome
            await self._refused(call, outcome)
            return
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
            await complete(self.local.end, ino)
            return
        if attempt.verb == "make":
            if known.path is None and not stat.S_ISREG(there.mode):
                await complete(self.local.stored, ino, attempt.path, there, None)
            else:
                await complete(self.local.end, ino)
            return
        await self._resolve_put(ino, attempt, there.version)

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


class Watched:
    """A reader that moves the deadline of its call with every piece."""

    def __init__(self, reader: ContentReader, scope: trio.CancelScope) -> None:
        self._reader = reader
        self._scope = scope
        self.size_bytes = reader.size_bytes

    async def read(self, offset: int, size: int) -> bytes:
        self._scope.deadline = math.inf
        try:
            return await self._reader.read(offset, size)
        finally:
            self._scope.deadline = trio.current_time() + STALL_S


def _same(mine: Node, there: Node) -> bool:
    return mine.target == there.target
