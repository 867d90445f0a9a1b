"""History: what the tree was at the end of an epoch, as rows.

The functions here are queries; each takes something to ask them of, so that the loop asks its own
connection and a thread one of its own. ``History`` knows which epochs are shown and under which
names, and who looks at one: retention asks it before it thins.

Nothing here changes a row but ``checkpoint``, ``remove_checkpoint`` and ``set_tracked``.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from unifs.errors import Busy, Exists, InvalidArgument, NotFound, TooLarge
from unifs.state.queries import Reader
from unifs.vfs.epochs import (
    SECOND_NS,
    is_checkpoint_name,
    next_epoch,
    seal_closed,
    seal_file,
    time_of,
)
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from unifs.vfs.tracking import Tracking
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.writer import Writer

    #: Runs a query: SQL and bindings to rows.
    Ask = Callable[[str, Sequence[Any]], list[Any]]

T = TypeVar("T")

CHECKPOINTS_MAX = 1_000
PAGE = 1_000
#: Names of one directory that are in memory at once: 200 MiB.
NAMES_MAX = 1_000_000

LIVE_INODE = (
    "select attributes,content from inode where ino=? and epoch<=? and (gone is null or gone>?)"
)
PAST_INODE = (
    "select epoch,attributes,content from inode_past where ino=? and until>? order by until limit 1"
)
LIVE_NAME = "select ino from dentry where parent=? and name=? and epoch<=?"
PAST_NAME = "select ino from dentry_past where parent=? and name=? and epoch<=? and until>? limit 1"
LIVE_NAMES = (
    "select id,name,ino from dentry where parent=? and id>? and epoch<=? order by id limit ?"
)
PAST_NAMES = (
    "select id,name,ino from dentry_past where parent=? and id>? and epoch<=? and until>?"
    " order by id limit ?"
)
XATTRS = (
    "select name,value from xattr where ino=? and epoch<=? union all"
    " select name,value from xattr_past where ino=? and until>? and epoch<=?"
)
NAME_EPOCH = "insert into checkpoint select ?,epoch,time_ns from epoch where epoch=?"
#: Epochs that are shown.
SHOWN = "from epoch where epoch not in (select epoch from thinned)"


@dataclass(frozen=True, slots=True)
class Form:
    """An inode as it was: its attributes column and its content column."""

    ino: int
    attributes: bytes
    content: bytes

    @property
    def mode(self) -> int:
        """Type and permissions."""
        return int.from_bytes(self.attributes[:4], "little")

    @property
    def links(self) -> int:
        """How many names it had."""
        return int.from_bytes(self.attributes[12:16], "little")

    @property
    def rdev(self) -> int:
        """The device of a special file."""
        return int.from_bytes(self.attributes[48:56], "little")


@dataclass(frozen=True, slots=True)
class Place:
    """A path: the names below a volume's root directory."""

    root: int
    names: tuple[bytes, ...]
    tracking: Tracking


@dataclass(frozen=True, slots=True)
class Shown:
    """An epoch that is shown: its number, when it ended, and the names that users gave it."""

    number: int
    time_ns: int
    names: tuple[str, ...] = ()
    root: bytes | None = None


def form_at(ask: Ask, ino: int, epoch: int) -> Form | None:
    """An inode at the end of an epoch; None where it was not, or its rows are gone."""
    rows = ask(LIVE_INODE, (ino, epoch, epoch))
    if rows:
        return Form(ino, *rows[0])
    rows = ask(PAST_INODE, (ino, epoch))
    if rows and rows[0][0] <= epoch:
        return Form(ino, *rows[0][1:])
    return None


def live_name_at(ask: Ask, parent: int, name: bytes, epoch: int) -> int:
    """What a name in a directory named, where its live row tells; else 0."""
    rows = ask(LIVE_NAME, (parent, name, epoch))
    return int(rows[0][0]) if rows else 0


def name_at(ask: Ask, parent: int, name: bytes, epoch: int) -> int:
    """What a name in a directory named, 0: nothing.

    Where a live row does not tell, all that the directory lost since is looked through.
    """
    live = live_name_at(ask, parent, name, epoch)
    if live:
        return live
    rows = ask(PAST_NAME, (parent, name, epoch, epoch))
    return int(rows[0][0]) if rows else 0


def names_at(ask: Ask, parent: int, epoch: int, after: int, limit: int) -> list[Any]:
    """Rows (id, name, ino) of a directory with a higher id than ``after``, by id."""
    rows = ask(LIVE_NAMES, (parent, after, epoch, limit))
    past = ask(PAST_NAMES, (parent, after, epoch, epoch, limit))
    if not past:
        return rows
    # A row may have become a past one between the two questions.
    found = {row[0]: row for row in (*rows, *past)}
    return [found[row_id] for row_id in sorted(found)][:limit]


def children_at(ask: Ask, directory: int, epoch: int) -> list[tuple[bytes, Form]]:
    """Everything that a directory held; TooLarge where that would not fit into memory."""
    found: list[tuple[bytes, Form]] = []
    after = 0
    while rows := names_at(ask, directory, epoch, after, PAGE):
        forms = ((name, form_at(ask, ino, epoch)) for _, name, ino in rows)
        found += ((name, form) for name, form in forms if form is not None)
        if len(found) > NAMES_MAX:
            raise TooLarge(f"a directory had more than {NAMES_MAX} names")
        after = rows[-1][0]
    return found


def xattrs_at(ask: Ask, ino: int, epoch: int) -> dict[bytes, bytes]:
    """The extended attributes of an inode."""
    return dict(ask(XATTRS, (ino, epoch, ino, epoch, epoch)))


def walk_at(ask: Ask, place: Place, epoch: int) -> Form | None:
    """What was at a path; None where nothing was, or not all of it was kept."""
    hidden = place.tracking.hidden(epoch)
    ino = place.root
    for name in place.names:
        if ino in hidden:
            return None
        ino = name_at(ask, ino, name, epoch)
    return form_at(ask, ino, epoch) if ino and ino not in hidden else None


class History:
    """Which epochs are shown, and who looks at them. Belongs to the event loop's thread."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.database = writer.storage.database
        self._held: Counter[int] = Counter()
        #: Makes an open file's content one that nobody changes any more.
        self.seal: Callable[[TreeInode], Awaitable[None]] = _no_sealer

    # --- asking -----------------------------------------------------------------------------------

    @property
    def ask(self) -> Ask:
        """Queries on the loop's own connection, for what an index finds."""
        return self.database.all

    async def in_thread(self, job: Callable[[Ask], T]) -> T:
        """Queries of which nobody knows how long they take, in a thread.

        Cancelled between two of them.
        """
        path = self.database.path

        def run() -> T:
            with closing(Reader(path)) as connection:

                def ask(sql: str, bindings: Sequence[Any]) -> list[Any]:
                    trio.from_thread.check_cancelled()
                    return connection.all(sql, bindings)

                return job(ask)

        return await trio.to_thread.run_sync(run)

    # --- epochs -----------------------------------------------------------------------------------

    def shown(self, after: int = -1, limit: int = -1) -> list[Shown]:
        """Epochs that are shown, the oldest first, with a higher number than ``after``."""
        names: dict[int, list[str]] = {}
        for name, number in self.checkpoints():
            names.setdefault(number, []).append(name)
        query = f"select epoch,time_ns,root {SHOWN} and epoch>? order by epoch limit ?"
        return [
            Shown(number, time_ns, tuple(names.get(number, ())), root)
            for number, time_ns, root in self.database.all(query, (after, limit))
        ]

    def checkpoints(self) -> list[Any]:
        """(name, epoch) of all checkpoints, by name."""
        return self.database.all("select name,epoch from checkpoint order by name")

    def _checkpoint(self, name: str) -> Any:
        # No name has bytes that are no text, and SQLite takes none.
        known = name.encode(errors="replace").decode()
        return self.database.one("select epoch from checkpoint where name=?", (known,))

    def is_shown(self, number: int) -> bool:
        return self.database.one(f"select 1 {SHOWN} and epoch=?", (number,)) is not None

    def resolve(self, text: str) -> int:
        """The epoch that a number, a checkpoint's name or a time (UTC) names.

        NotFound where it is not, or no longer, kept; InvalidArgument where it is none of these.
        """
        row = self._checkpoint(text)
        if row is not None:
            return int(row[0])
        if text.isascii() and text.isdigit() and len(text) < 19:
            if not self.is_shown(int(text)):
                raise NotFound(f"epoch {text} is not kept: `unifs ctl journal history` lists those")
            return int(text)
        time_ns = time_of(text)
        if time_ns is None:
            raise NotFound(
                f"{text!r} is no epoch: give a number or a checkpoint's name"
                " (`unifs ctl journal history` lists them) or a time like 2026-11-21T18:02:08Z"
            )
        if time_ns > time.time_ns():
            raise NotFound(f"{text} lies in the future")
        # What ended within the second is shown with it.
        row = self.database.one(f"select max(epoch) {SHOWN} and time_ns<?", (time_ns + SECOND_NS,))
        if row[0] is None:
            raise NotFound(f"nothing is kept that is as old as {text}")
        return int(row[0])

    # --- holding ----------------------------------------------------------------------------------

    def in_use(self) -> set[int]:
        """Epochs that somebody looks at; they are not thinned."""
        return set(self._held)

    def hold(self, number: int) -> None:
        """Keep an epoch as long as something of it is open."""
        self._held[number] += 1

    def let_go(self, number: int) -> None:
        self._held[number] -= 1
        if not self._held[number]:
            del self._held[number]

    @asynccontextmanager
    async def holding(self, *numbers: int) -> AsyncIterator[None]:
        """Keep epochs meanwhile."""
        for number in numbers:
            self.hold(number)
        try:
            yield
        finally:
            for number in numbers:
                self.let_go(number)

    # --- ending one -------------------------------------------------------------------------------

    async def end_epoch(self) -> int:
        """An epoch ends now, with all that is closed and all that is written; its number.

        One that ended before and after which nothing changed is taken instead. A file that is being
        written meanwhile is in it as it was at some moment of this call.
        """
        for inode in list(self.writer.open.values()):
            if not inode.is_gone and inode.overlay is not None and inode.overlay.buffer is None:
                await seal_file(self.writer, self.seal, inode)
        return await complete(self._end_epoch)

    def _end_epoch(self) -> int:
        writer = self.writer
        for inode in [*writer.pending.values(), *writer.open.values()]:
            if inode.is_dirty() and not inode.is_gone:
                writer.commit(inode)
        seq = writer.log.seq
        last = self.database.one(f"select max(epoch),max(seq) {SHOWN}")
        is_new = last[0] is None or last[1] < seq or bool(writer.touched)
        return next_epoch(writer, seq) if is_new else int(last[0])

    # --- checkpoints ------------------------------------------------------------------------------

    async def checkpoint(self, name: str) -> int:
        """Name the present; it is kept until the name is removed. Exists, InvalidArgument.

        What it shows is on the disk before it has its name: a checkpoint that could not be made is
        an epoch as others are.
        """
        check_checkpoint_name(name)
        self._check_new(name)
        flusher = self.writer.storage.flusher
        await seal_closed(self.writer, self.seal)
        number = await self.end_epoch()
        async with self.holding(number):
            await seal_closed(self.writer, self.seal)
            await flusher.flush()
            await complete(self._name, name, number)
        await flusher.flush()
        return number

    def _check_new(self, name: str) -> None:
        if self._checkpoint(name) is not None:
            raise Exists(f"there is a checkpoint called {name} already")
        if len(self.checkpoints()) >= CHECKPOINTS_MAX:
            raise TooLarge(f"there are {CHECKPOINTS_MAX} checkpoints; remove one first")

    def _name(self, name: str, number: int) -> None:
        self._check_new(name)
        self.writer.tree.commit([(NAME_EPOCH, (name, number))])

    async def remove_checkpoint(self, name: str) -> int:
        """Its epoch is kept no longer than others; which it was. NotFound."""
        row = self._checkpoint(name)
        if row is None:
            raise NotFound(f"there is no checkpoint called {name!r}")
        statement = ("delete from checkpoint where name=?", (name,))
        await complete(self.writer.tree.commit, [statement])
        return int(row[0])

    async def check_checkpoints(self, ino: int, path: str) -> None:
        """Busy where a checkpoint shows an inode; ``path`` is what the sentence calls it."""
        hidden = self.writer.tree.tracking.hidden
        known = [(name, number) for name, number in self.checkpoints() if ino not in hidden(number)]
        names = await self.in_thread(
            lambda ask: [name for name, number in known if form_at(ask, ino, number) is not None]
        )
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            shown = f"{', '.join(names[:3])}{more}"
            noun = "checkpoints" if len(names) > 1 else "checkpoint"
            raise Busy(f"{path} is in the {noun} {shown}: with --yes it is lost there too")

    # --- tracking ---------------------------------------------------------------------------------

    async def set_tracked(self, ino: int, is_tracked: bool) -> None:
        """Keep a past of a directory and what is below it from the next epoch on, or none."""
        tree = self.writer.tree
        if (ino not in tree.tracking.untracked) == is_tracked:
            return
        until = None
        if is_tracked:
            # What changed until now left no row: the first whole epoch is the next one.
            until = await self.end_epoch() + 1
        statement = "insert or replace into untracked values(?,?)"
        await complete(tree.commit, [(statement, (ino, until))])
        tree.tracking.set_until(ino, until)


async def _no_sealer(inode: TreeInode) -> None:
    """Nothing seals: contents are as their writers closed them."""


def check_checkpoint_name(name: str) -> None:
    """InvalidArgument where that cannot be the name of a checkpoint."""
    if not is_checkpoint_name(name):
        raise InvalidArgument(
            f"{name!r} cannot be a checkpoint's name: letters, digits and . _ + - make one"
        )
    if name.isdigit() or time_of(name) is not None or name == "now":
        raise InvalidArgument(f"{name!r} names an epoch already: it is a number or a time")
