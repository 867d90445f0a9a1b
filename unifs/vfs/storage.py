"""Everything that lies in the state directory, opened together and in order.

``Storage`` is the composition of lock, database, tree, journal and contents that the vfs works on.
``open_storage`` makes it and runs recovery; ``serve`` runs its threads. It knows no FUSE and no
mount.
"""

from __future__ import annotations

import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from unifs.errors import ConfigInvalid, DiskFailed, NoSpace
from unifs.ipfs.embedded.blocks import Blocks
from unifs.ipfs.embedded.segments import Segments
from unifs.ipfs.unixfs.profiles import PROFILES
from unifs.journal.content import Contents
from unifs.journal.flush import Flusher
from unifs.journal.log import Log
from unifs.journal.overlay import Overlays
from unifs.journal.recovery import Recovery, unnamed_files
from unifs.state.database import SET_META, Database
from unifs.state.directory import StateDirectory, no_room
from unifs.state.queries import reading_failed
from unifs.vfs.tree import Tree
from unifs.vfs.unindexed import is_kept_by_cid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from unifs.errors import UnifsError
    from unifs.ipfs.unixfs.profiles import Profile
    from unifs.journal.recovery import Receipt

log = logging.getLogger(__name__)

DEFAULT_PROFILE = "unixfs-v1-2025"
#: Size, leaves and CID of contents that have another number of leaves by each length of chunks.
SEALED_FORMS = (
    "select size,length(leaves)/32,substr(cid,9) from content where state=2 and size>262144"
    " and typeof(size)='integer' and typeof(leaves)='blob' and typeof(cid)='blob' limit 16"
)
NEWEST_ROOT = "select root from epoch where typeof(root)='blob' order by epoch desc limit 1"
T = TypeVar("T")


class Storage:
    """An open state directory. Belongs to the event loop's thread."""

    def __init__(self, path: Path, mount_point: str = "", profile: str = DEFAULT_PROFILE) -> None:
        self.state = StateDirectory(path, mount_point)
        self._database: Database | None = None
        try:
            self._open(profile)
        except BaseException as error:
            if self._database is not None:
                self._database.close()
            self.state.close()
            if isinstance(error, apsw.FullError | NoSpace):
                raise no_room(path) from error
            if isinstance(error, apsw.Error):
                raise reading_failed(error) from error
            raise

    def _open(self, profile: str) -> None:
        state = self.state
        #: Nothing is left that only recovery would find.
        self.is_tidy = True
        # What a killed daemon had acknowledged has to be committed on a full disk too.
        open_database = partial(Database, state.database)
        self.database = self._database = self._opened(open_database, (NoSpace,))
        self.database.held.make_room = state.give_up_reserve
        self.profile = self._fixed_profile(profile)
        #: No other start, of this state directory or a copy of it or another one, has this name:
        #: numbers of records alone may be those of others at the same backend.
        self.start = secrets.token_hex(8)
        self.segments = Segments(state.segments)
        #: The node's own segments: DAG nodes, added and imported blocks.
        self.nodes = Segments(state.nodes)
        recovery = Recovery(self.database, self.segments, state, self.damages())
        self.receipt: Receipt | None = recovery.run()
        for damage in self.damages():
            log.warning("damaged: what=%s", damage)
        self.log = Log(self.database)
        self.contents = Contents(self.database, self.segments, state, self.profile)
        # A full disk, if it is not broken: users free space once the tree is mounted.
        self.blocks = self._opened(self._open_blocks, (DiskFailed, NoSpace))
        #: Files that no content names, but that hold blocks which a pin may need.
        self.dead_containers: set[int] = set()
        #: Files that may be such ones: the index has to be told first what they hold.
        self.unindexed: set[int] = set()
        self._remove_unnamed()
        self.overlays = Overlays(self.contents.containers)
        self.flusher = Flusher(self.database, self.segments, self.log)
        self.tree = Tree(self.database, state)
        self._rows_changed = self.database.rows_changed

    def _opened(self, opening: Callable[[], T], failures: tuple[type[UnifsError], ...]) -> T:
        """Open it; after one of these failures once more, where giving up the reserve helps."""
        try:
            return opening()
        except failures:
            if not self.state.give_up_reserve():
                raise
            return opening()

    def _open_blocks(self) -> Blocks:
        return Blocks(
            self.state.path / "blocks.db",
            (self.nodes, self.segments),
            open_container=self.contents.containers.shared,
        )

    def damages(self, is_lasting: bool = False) -> list[str]:
        """What is known to be no block in the segments, a sentence each.

        ``is_lasting``: without torn ends, which a killed daemon leaves and nobody was promised.
        """
        return [
            f"{store.directory.name}/{damage}"
            for store in (self.segments, self.nodes)
            for damage in store.damages
            if not (is_lasting and damage.is_torn_tail)
        ]

    def _remove_unnamed(self) -> None:
        """What an earlier daemon did not come to delete; rows that say so are durable by now."""
        if self.receipt is not None and self.receipt.kept:
            return
        index, containers = self.blocks.index, self.contents.containers
        for container in index.containers():
            if container > containers.last_id:
                # Its removal outlived the index's commit; the next one has its number.
                index.forget_container(container)
        unnamed = {int(path.name, 16) for path in unnamed_files(self.database, self.state)}
        self.dead_containers = unnamed & index.containers()
        unknown = unnamed - self.dead_containers
        if unknown and is_kept_by_cid(self.database, self.state):
            self.unindexed = unknown
            return
        for container in unknown:
            containers.path(container).unlink()

    def _fixed_profile(self, wanted: str) -> Profile:
        """How files become CIDs is fixed at the first start: CIDs would change with it."""
        known = fixed = self.database.get_meta("profile")
        if known is None:
            possible = possible_profiles(self.database.all)
            fixed = wanted if wanted in possible else possible[0]
        if fixed != wanted:
            raise ConfigInvalid(
                f"{self.state.path} was made with the profile {fixed}; it cannot become {wanted}"
            )
        if known is None:
            self.database.begin()
            self.database.set_meta("profile", wanted)
            self.database.commit()
        return PROFILES[wanted]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Run the threads that sync, checkpoint and write out."""
        # Rows of mounts that are new were made meanwhile, whole, and no bytes belong to them.
        self._rows_changed = self.database.rows_changed
        self.database.start_checkpoints()
        self.flusher.start()
        self.overlays.start()
        try:
            yield
        finally:
            self.overlays.stop()
            self.flusher.stop()
            self.database.stop_checkpoints()

    def is_as_opened(self) -> bool:
        """Whether no row was changed since, but for what mounts need, and recovery could do all."""
        is_recovered = self.receipt is None or not self.receipt.kept
        return is_recovered and self.database.rows_changed == self._rows_changed

    def close(self, is_clean: bool = True) -> None:
        """Close everything; ``is_clean`` says that all was committed and flushed."""
        if self.database.failed is None:
            if is_clean and self.is_tidy:
                # Sealing lets go of files that readers may still have: the next start removes them.
                self.is_tidy = next(unnamed_files(self.database, self.state), None) is None
            try:
                self._note_end(is_clean)
            except NoSpace as error:
                log.warning("recovery will run at the next start: the end is not noted: %s", error)
        try:
            # Each of the two databases waits for the disk twice.
            with ThreadPoolExecutor(1) as beside:
                index = beside.submit(self.blocks.close)
                try:
                    self._close_contents()
                finally:
                    self.database.close()
            try:
                index.result()
            except NoSpace as error:
                log.warning("the next start reads again where blocks lie: %s", error)
            # What the log took is free now.
            self.state.restore_reserve()
        finally:
            self.state.close()

    def _close_contents(self) -> None:
        self.contents.close()
        for store in (self.nodes, self.segments):
            try:
                store.close()
            except NoSpace as error:
                folder = store.directory.name
                log.warning("the next start reads what the last of %s has: %s", folder, error)

    def _note_end(self, is_clean: bool) -> None:
        batch = [
            (SET_META, (key, value))
            for key, value in (
                ("sealed_seq", self.flusher.sealed_seq),
                ("last_ino", self.tree.last_ino),
                ("is_clean", int(is_clean and self.is_tidy)),
            )
        ]
        self.tree.commit(batch, frees=True)


def possible_profiles(ask: Callable[[str], list[Any]]) -> list[str]:
    """The profiles that what is stored can have: all where there is nothing that tells.

    Sealed contents tell by the number and the CID of their leaves, a root by its CID's version.
    """
    found = dict(PROFILES)
    for size, count, cid in ask(SEALED_FORMS):
        forms = {
            name: profile
            for name, profile in found.items()
            if -(-size // profile.chunk_bytes) == count and _version(cid) == profile.cid_version
        }
        # A row that fits none of them is damaged, and tells nothing.
        found = forms or found
    for (root,) in ask(NEWEST_ROOT):
        version = _version(root)
        found = {name: each for name, each in found.items() if each.cid_version == version} or found
    return list(found)


def _version(cid: bytes) -> int:
    """The version of a binary CID: one of version 0 begins with the code of its hash."""
    return 0 if cid[:2] == b"\x12\x20" else 1
