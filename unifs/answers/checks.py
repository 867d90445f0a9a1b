"""``unifs ctl fsck``, ``ctl journal verify`` and ``ctl journal receipts``.

The checks are those of ``unifs.fsck``; they run in a thread that hands over what it finds. What
only a running node can tell, whether the blocks of each directory say what its rows say, is asked
here.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from unifs.control.checks_protocol import Checked, Receipt, Wrong
from unifs.errors import UnifsError
from unifs.state.queries import Reader
from unifs.vfs.roots import RowView, unpack_link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from unifs.answers.verifying import FileVerifier
    from unifs.control.checks_protocol import FileDamage, Verified, Verifying
    from unifs.ipfs.node import Node
    from unifs.vfs.roots import MfsRoots
    from unifs.vfs.storage import Storage

#: Receipts with sentences of their own, by what stands in them.
KINDS = {"root": "missing blocks", "notes": "changes not made"}
#: Receipts that are told; the newest.
RECEIPTS_MAX = 1_000
#: Directories that are listed in one query.
PAGE = 256


class ChecksAnswer:
    """The consistency of one state directory, for control operations."""

    def __init__(
        self, storage: Storage, roots: MfsRoots, node: Node, verifier: FileVerifier
    ) -> None:
        self._storage = storage
        self._verifier = verifier
        self._roots = roots
        self._node = node
        #: One at a time: each reads everything.
        self._lock = trio.Lock()

    async def fsck(self, is_thorough: bool) -> tuple[list[Wrong], Checked]:
        """Every inconsistency that holds between two commits."""
        found = await self._examine(is_thorough)
        return found, await self._checked(len(found), 0)

    async def agree(self) -> tuple[list[Wrong], Checked]:
        """Journal, tree and contents by fsck with hashes; CIDs of directories by their blocks."""
        found = await self._examine(True)
        wrong, directories = await self._directories_agree()
        found += wrong
        return found, await self._checked(len(found), directories)

    async def _examine(self, is_thorough: bool) -> list[Wrong]:
        await self._storage.flusher.flush()
        path = self._storage.state.path

        def work() -> list[Wrong]:
            # Not before it is asked for: mounting need not wait for a tenth of all modules.
            from unifs.fsck.online import examine_beside

            return [
                Wrong(code=finding.code, message=finding.sentence)
                for finding in examine_beside(path, is_thorough, trio.from_thread.check_cancelled)
            ]

        async with self._lock:
            return await trio.to_thread.run_sync(work)

    async def _directories_agree(self) -> tuple[list[Wrong], int]:
        """Each directory's blocks, as the last root has them, against its rows; how many."""
        await self._roots.build()
        found: list[Wrong] = []
        after = count = 0
        query = (
            "select ino,cid from inode where ino>? and mount=? and gone is null and cid is not null"
            " and content=x'' order by ino limit ?"
        )
        bindings = (self._roots.volume.mount_id, PAGE)
        while rows := self._storage.database.all(query, (after, *bindings)):
            after = rows[-1][0]
            for ino, column in rows:
                if ino in self._roots.changed():
                    continue
                count += 1
                problem = await self._compare(ino, column)
                if problem and self._is_still(ino, column):
                    path = os.fsdecode(self._roots.volume.tree.path(ino) or b"?")
                    message = f"/mfs{path.rstrip('/')}: {problem}"
                    found.append(Wrong(code="DIRECTORY_CID", message=message))
        return found, count

    def _is_still(self, ino: int, column: bytes) -> bool:
        row = self._storage.database.one("select cid from inode where ino=?", (ino,))
        return row is not None and row[0] == column and ino not in self._roots.changed()

    async def _compare(self, ino: int, column: bytes) -> str:
        cid = unpack_link(column).cid
        blocks: dict[bytes, str] = {}
        try:
            async for page in self._node.ls(str(cid)):
                blocks.update((entry.name, str(entry.cid)) for entry in page)
        except UnifsError as error:
            return f"its CID {cid} cannot be listed: {error}"
        rows = await trio.to_thread.run_sync(partial(self._rows, ino))
        if rows.keys() != blocks.keys():
            names = sorted(rows.keys() ^ blocks.keys())[:3]
            return f"its CID {cid} has other names: {', '.join(map(os.fsdecode, names))} …"
        wrong = [
            name for name, known in rows.items() if known is not None and known != blocks[name]
        ]
        if wrong:
            return f"its CID {cid} has another {os.fsdecode(wrong[0])}"
        return ""

    def _rows(self, ino: int) -> dict[bytes, str | None]:
        """Name to CID, None where the rows do not tell it."""
        found: dict[bytes, str | None] = {}
        with closing(RowView(self._storage, self._roots.volume.root, {})) as view:
            for child in view.children(ino):
                if child.kind == "special":
                    continue
                link = view.directory_link(child.ino) if child.kind == "directory" else None
                cid = link.cid if link is not None else child.cid
                if child.kind == "file" and cid is None:
                    # Not sealed: the next root has it.
                    continue
                found[child.name] = None if cid is None else str(cid)
        return found

    def verify(
        self, path: str | None, rate_bytes: float | None, after: int
    ) -> AsyncIterator[FileDamage | Verifying | Verified]:
        """Read every file from the disk and hash it."""
        return self._verifier.verify(path, rate_bytes, after)

    async def _checked(self, found: int, directories: int) -> Checked:
        work = partial(_count, self._storage.state.database)
        inodes, names, records, contents = await trio.to_thread.run_sync(work)
        return Checked(
            inodes=inodes,
            names=names,
            records=records,
            contents=contents,
            directories=directories,
            found=found,
        )

    async def receipts(self) -> Sequence[Receipt]:
        """The receipts in lost+found, the newest first."""
        return await trio.to_thread.run_sync(read_receipts, self._storage.state.lost_found)


def _count(database: Path) -> list[int]:
    with closing(Reader(database)) as connection:
        tables = ("inode", "dentry", "journal", "content")
        return [connection.one(f"select count(*) from {table}")[0] for table in tables]


def read_receipts(lost_found: Path) -> list[Receipt]:
    """Blocks."""
    names = [name for name in os.listdir(lost_found) if name.startswith("receipt-")]
    found: list[Receipt] = []
    for name in sorted(names, reverse=True)[:RECEIPTS_MAX]:
        try:
            table = json.loads((lost_found / name).read_bytes())
            found.append(_receipt(name, table))
        except (OSError, ValueError, KeyError, TypeError) as error:
            sentence = f"it cannot be read: {error}"
            found.append(
                Receipt(name=name, kind="unreadable", time_s=0.0, reverted=0, sentences=[sentence])
            )
    return found


def _receipt(name: str, table: dict[str, Any]) -> Receipt:
    if table.get("kind") == "fsck":
        sentences = [f"{each['code']}: {each['sentence']}" for each in table["found"]]
        sentences += table["kept"]
        return Receipt(
            name=name,
            kind="fsck",
            time_s=table["time_ns"] / 1e9,
            reverted=0,
            sentences=sentences,
        )
    if table.get("kind") in KINDS:
        return Receipt(
            name=name,
            kind=KINDS[table["kind"]],
            time_s=table["time_ns"] / 1e9,
            reverted=0,
            sentences=[str(sentence) for sentence in table["sentences"]],
        )
    lists = ("reverted", "returned", "saved", "damaged")
    sentences = [str(sentence) for each in lists for sentence in table.get(each, [])]
    if table.get("kept"):
        sentences.append(str(table["kept"]))
    return Receipt(
        name=name,
        kind="power cut" if table["is_other_boot"] else "kill",
        time_s=table["time_ns"] / 1e9,
        reverted=len(table.get("reverted", [])) + len(table.get("returned", [])),
        sentences=sentences,
    )
