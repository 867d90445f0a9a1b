"""The past of the tree, for control operations."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.answers.files import KIND_NAMES
from unifs.control.history_protocol import (
    CheckpointInfo,
    Difference,
    EpochInfo,
    PathVersion,
    Restored,
    Tracked,
)
from unifs.errors import Exists, InvalidArgument, NotADirectory, NotFound, Unsupported
from unifs.ipfs.cid import Cid
from unifs.vfs.history import Place, children_at, walk_at, xattrs_at
from unifs.vfs.historyrows import cid_at, differences
from unifs.vfs.rollback import Rollback
from unifs.vfs.tree import ATTRIBUTES
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from unifs.control.daemon_protocol import FileKind
    from unifs.vfs.history import Ask, Form, History
    from unifs.vfs.historyview import HistoryView
    from unifs.vfs.paths import Paths
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Invalidator

#: (epoch, what it was, what differs from before)
Version = tuple[int, "Form | None", list[str]]
#: A directory to compare: its path, its inode in both epochs (0: it was not there).
Pair = tuple[bytes, int, int]
Found = tuple[Difference, Pair | None]


class HistoryAnswer:
    """Looks at epochs and brings them back. Belongs to the event loop's thread."""

    def __init__(
        self, paths: Paths, history: History, view: HistoryView, invalidator: Invalidator
    ) -> None:
        self._paths = paths
        self._history = history
        self._view = view
        self._invalidator = invalidator
        #: Two rollbacks at once would undo each other half.
        self._changing = trio.Lock()

    def _place(self, path: str) -> tuple[TreeVolume, list[bytes]]:
        """The volume of a path and the names below its root."""
        names = self._paths.split(path)
        volume = self._view.volumes.get(os.fsdecode(names[0])) if names else None
        if volume is None:
            known = ", ".join(f"/{name}" for name in self._view.volumes)
            raise Unsupported(f"{path}: a past is kept of {known or 'nothing'} only")
        return volume, names[1:]

    def _past(self, volume: TreeVolume, names: Sequence[bytes]) -> Place:
        return Place(volume.root, tuple(names), volume.tree.tracking)

    async def _resolve(self, *texts: str) -> list[int]:
        """All at once: what is resolved could be thinned before another one is."""
        now = await self._history.end_epoch() if "now" in texts else 0
        return [now if text == "now" else self._history.resolve(text) for text in texts]

    # --- looking ----------------------------------------------------------------------------------

    async def epochs(self) -> AsyncIterator[EpochInfo]:
        """The oldest first."""
        for shown in self._history.shown():
            yield EpochInfo(
                epoch=shown.number,
                time_s=shown.time_ns / 1e9,
                names=list(shown.names),
                cid=str(Cid.decode(shown.root)) if shown.root else None,
            )

    async def versions(self, path: str) -> AsyncIterator[PathVersion]:
        """The oldest first; the last is the present. NotFound where it was in no epoch."""
        volume, names = self._place(path)
        await self._history.end_epoch()
        times = {shown.number: shown.time_ns for shown in self._history.shown()}
        job = partial(_versions, self._past(volume, names), list(times))
        async with self._history.holding(*times):
            found = await self._history.in_thread(job)
            if not found:
                raise NotFound(f"{path} was in no epoch that is kept")
            for number, form, changed in found:
                yield self._version(number, times[number], form, changed)

    def _version(
        self, number: int, time_ns: int, form: Form | None, changed: list[str]
    ) -> PathVersion:
        version = PathVersion(epoch=number, time_s=time_ns / 1e9, changed=changed)
        if form is None:
            return version
        mode, uid, gid, _, size, _, mtime_ns, _, _ = ATTRIBUTES.unpack(form.attributes)
        cid = cid_at(self._history.writer.storage, form)
        version.kind, version.size_bytes = _kind(form), size
        version.mode = f"{stat.S_IMODE(mode):04o}"
        version.uid, version.gid, version.mtime_s = uid, gid, mtime_ns / 1e9
        version.cid = None if cid is None else str(cid)
        return version

    async def diff(self, first: str, second: str, path: str) -> AsyncIterator[Difference]:
        """Directory by directory. NotFound where the path was in neither epoch."""
        volume, names = self._place(path)
        a, b = await self._resolve(first, second)
        async with self._history.holding(a, b):
            ask_both = partial(_both, self._past(volume, names), a, b)
            before, after, also = await self._history.in_thread(ask_both)
            if before is None and after is None:
                raise NotFound(f"{path} was neither in {first} nor in {second}")
            top = "/" + "/".join(map(os.fsdecode, self._paths.split(path)))
            pairs: list[Pair] = []
            found = [_compared(os.fsencode(top), before, after, also)]
            while True:
                for difference, below in found:
                    if difference.what:
                        yield difference
                    if below is not None:
                        pairs.append(below)
                if not pairs:
                    return
                tracking = volume.tree.tracking
                hidden = tracking.hidden(a) | tracking.hidden(b)
                job = partial(_directory_differences, pairs.pop(), a, b, hidden)
                found = await self._history.in_thread(job)

    # --- bringing back ----------------------------------------------------------------------------

    async def undelete(self, path: str, epoch: str | None, to: str | None) -> Restored:
        """Bring a path back under its name or another; Exists where something is there."""
        volume, names = self._place(path)
        target = path if to is None else self._sibling(path, to)
        place, target_names = self._place(target)
        if place is not volume or not names or not target_names:
            raise InvalidArgument(f"{path} cannot be brought back as {target}")
        self._check_writable(volume)
        async with self._changing:
            before = await self._history.end_epoch()
            number = before if epoch == "now" else await self._last(volume, names, path, epoch)
            async with self._history.holding(number, before):
                form = await self._form(volume, names, number, path)
                if await self._live(volume, target_names) is not None:
                    raise Exists(f"{target} is there: give another name with --to")
                run = Rollback(self._history, volume, self._invalidator, number)
                parent = await run.parent_of(target_names[:-1])
                await run.bring_back_beside(parent, target_names[-1], form, os.fsencode(target))
        return _restored(target, number, before, run)

    @staticmethod
    def _sibling(path: str, to: str) -> str:
        """``--to``: an absolute path, or a name beside the old one."""
        if to.startswith("/"):
            return to
        if not to or "/" in to or to in (".", ".."):
            raise InvalidArgument(f"{to!r} is neither a name nor an absolute path of the tree")
        return f"{path.rstrip('/').rpartition('/')[0]}/{to}"

    async def _last(
        self, volume: TreeVolume, names: list[bytes], path: str, epoch: str | None
    ) -> int:
        """The given epoch, or the last one in which a path was."""
        if epoch is not None:
            return self._history.resolve(epoch)
        numbers = [shown.number for shown in self._history.shown()]
        place = self._past(volume, names)
        # Whoever holds the one that is found does so before anything else happens.
        async with self._history.holding(*numbers):
            found = await self._history.in_thread(partial(_last_with, place, numbers))
        if found is None:
            raise NotFound(f"{path} was in no epoch that is kept")
        return found

    async def rollback(self, path: str, epoch: str) -> Restored:
        """Make a path and all below it what it was."""
        volume, names = self._place(path)
        self._check_writable(volume)
        async with self._changing:
            (number,) = await self._resolve(epoch)
            async with self._history.holding(number):
                form = await self._form(volume, names, number, path)
                run = Rollback(self._history, volume, self._invalidator, number)
                top = await self._live(volume, names)
                if top is not None:
                    await run.check_free(top)
                before = await self._history.end_epoch()
                async with self._history.holding(before):
                    if not names:
                        await run.bring_back_root(form)
                    else:
                        parent = await run.parent_of(names[:-1])
                        raw = os.fsencode(path)
                        await run.bring_back(parent, names[-1], form, raw)
        return _restored(path, number, before, run)

    def _check_writable(self, *volumes: TreeVolume) -> None:
        for volume in volumes:
            if volume.refuses_changes:
                raise volume.refused()

    async def _form(self, volume: TreeVolume, names: list[bytes], number: int, path: str) -> Form:
        await self._check_tracked(volume, names, path)
        place = self._past(volume, names)
        form = await self._history.in_thread(lambda ask: walk_at(ask, place, number))
        if form is None:
            raise NotFound(f"{path} was not there in epoch {number}")
        return form

    async def _live(self, volume: TreeVolume, names: Sequence[bytes]) -> TreeInode | None:
        """What is at a path now; None where nothing is."""
        found = await self._walk(volume, names)
        return found[-1] if len(found) > len(names) else None

    async def _walk(self, volume: TreeVolume, names: Sequence[bytes]) -> list[TreeInode]:
        """What is there now on the way to a path, the mount's root first."""
        inode: TreeInode = volume.inodes.get(volume.root)  # type: ignore[assignment]
        found = [inode]
        for name in names:
            if not stat.S_ISDIR(found[-1].attributes.st_mode):
                break
            below = await complete(volume.find, found[-1], name)
            if below is None:
                break
            found.append(below)
        return found

    # --- checkpoints and tracking -----------------------------------------------------------------

    async def checkpoint(self, name: str) -> CheckpointInfo:
        """Name the present. Exists, InvalidArgument, ReadOnly."""
        self._check_writable(*self._view.volumes.values())
        await self._history.checkpoint(name)
        self._view.renamed(name)
        return next(each for each in await self.checkpoints() if each.name == name)

    async def checkpoints(self) -> list[CheckpointInfo]:
        """By name."""
        times = {shown.number: shown.time_ns for shown in self._history.shown()}
        return [
            CheckpointInfo(name=name, epoch=number, time_s=times.get(number, 0) / 1e9)
            for name, number in self._history.checkpoints()
        ]

    async def remove_checkpoint(self, name: str) -> CheckpointInfo:
        """The name goes; NotFound where there is none."""
        self._check_writable(*self._view.volumes.values())
        known = {each.name: each for each in await self.checkpoints()}
        await self._history.remove_checkpoint(name)
        self._view.renamed(name)
        return known[name]

    async def track(self, path: str, is_tracked: bool, is_sure: bool = False) -> Tracked:
        """Keep a past of a directory, or none; Busy where checkpoints would lose theirs."""
        volume, names = self._place(path)
        self._check_writable(volume)
        inode = await self._live(volume, names)
        if inode is None:
            raise NotFound(f"{path} does not exist")
        if not stat.S_ISDIR(inode.attributes.st_mode):
            raise NotADirectory(f"{path} is not a directory: what is tracked are directories")
        if names:
            await self._check_tracked(volume, names[:-1], path)
        if not is_tracked and not is_sure:
            await self._history.check_checkpoints(inode.ino, path)
        await self._history.set_tracked(inode.ino, is_tracked)
        return Tracked(path=path, is_tracked=is_tracked)

    async def _check_tracked(self, volume: TreeVolume, names: list[bytes], path: str) -> None:
        """InvalidArgument where a path lies in a directory that is not tracked now."""
        for depth, above in enumerate(await self._walk(volume, names)):
            if above.ino in volume.tree.tracking.untracked:
                where = "/".join(["", volume.name, *map(os.fsdecode, names[:depth])])
                if where == path.rstrip("/"):
                    raise InvalidArgument(f"{path} is not tracked")
                raise InvalidArgument(f"{path} lies in {where}, which is not tracked")

    async def tracked(self) -> list[Tracked]:
        """Mounts whose past is kept, and the directories in them whose past is not."""
        found = [Tracked(path=f"/{name}", is_tracked=True) for name in self._view.volumes]
        tree = self._history.writer.tree
        for ino in sorted(tree.tracking.untracked):
            row, path = tree.inode_row(ino), tree.path(ino)
            if row is None or path is None:
                continue
            for name, volume in self._view.volumes.items():
                if volume.mount_id == row[0]:
                    text = f"/{name}{os.fsdecode(path)}".rstrip("/")
                    found = [each for each in found if each.path != text]
                    found.append(Tracked(path=text, is_tracked=False))
        return sorted(found, key=lambda each: each.path)


def _kind(form: Form) -> FileKind:
    return KIND_NAMES[stat.S_IFMT(form.mode)]


def _restored(path: str, number: int, before: int, run: Rollback) -> Restored:
    outcome = run.outcome
    return Restored(
        path=path,
        epoch=number,
        before=before,
        made=outcome.made,
        changed=outcome.changed,
        removed=outcome.removed,
        unchanged=outcome.unchanged,
        skipped=outcome.skipped,
    )


# --- in a thread ---------------------------------------------------------------------------------


def _last_with(place: Place, epochs: list[int], ask: Ask) -> int | None:
    for epoch in reversed(epochs):
        if walk_at(ask, place, epoch) is not None:
            return epoch
    return None


def _versions(place: Place, epochs: list[int], ask: Ask) -> list[Version]:
    found: list[Version] = []
    last: Form | None = None
    attributes: dict[bytes, bytes] = {}
    for epoch in epochs:
        form = walk_at(ask, place, epoch)
        known = xattrs_at(ask, form.ino, epoch) if form is not None else {}
        changed: list[str] = []
        if form is None:
            changed = ["removed"] if last is not None else []
        elif last is None:
            changed = ["made"]
        else:
            changed = differences(last, form)
            if known != attributes:
                changed.append("attributes")
        if changed:
            found.append((epoch, form, changed))
        last, attributes = form, known
    return found


def _both(place: Place, a: int, b: int, ask: Ask) -> tuple[Form | None, Form | None, list[str]]:
    before, after = walk_at(ask, place, a), walk_at(ask, place, b)
    return before, after, _attributes(before, a, after, b, ask)


def _attributes(before: Form | None, a: int, after: Form | None, b: int, ask: Ask) -> list[str]:
    """The word for it where extended attributes differ."""
    if before is None or after is None:
        return []
    is_same = xattrs_at(ask, before.ino, a) == xattrs_at(ask, after.ino, b)
    return [] if is_same else ["attributes"]


def _compared(path: bytes, before: Form | None, after: Form | None, also: list[str]) -> Found:
    """What differs at one path; nothing may. And the pair of directories below it, if any."""
    form = after or before
    assert form is not None
    text, kind = os.fsdecode(path), _kind(form)
    if before is None or after is None:
        change = Difference(change="added", kind=kind, what=["made"], path=text)
        if after is None:
            change = Difference(change="removed", kind=kind, what=["removed"], path=text)
        return change, None
    what = [word for word in differences(before, after) if word != "names"] + also
    is_pair = stat.S_ISDIR(before.mode) and stat.S_ISDIR(after.mode)
    pair = (path, before.ino, after.ino) if is_pair else None
    return Difference(change="changed", kind=kind, what=what, path=text), pair


def _directory_differences(
    pair: Pair, a: int, b: int, hidden: frozenset[int], ask: Ask
) -> list[Found]:
    """What differs in one directory, by name; the directories in it, to be compared next."""
    path, first, second = pair
    before, after = dict(children_at(ask, first, a)), dict(children_at(ask, second, b))
    found: list[Found] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if any(form is not None and form.ino in hidden for form in (old, new)):
            continue
        also = _attributes(old, a, new, b, ask)
        compared = _compared(path + b"/" + name, old, new, also)
        if compared[0].what or compared[1] is not None:
            found.append(compared)
    return found
