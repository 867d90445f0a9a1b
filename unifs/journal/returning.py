"""Returning: what becomes of inodes whose present bytes a power cut has taken.

Used by recovery only, inside its transaction. Each such inode walks back through its records,
newest first, to the content before, at most to the one that an fsync covered; where it took a name
by a rename and no fsync ever covered its bytes, the displaced inode gets the name back, or, where
the two were exchanged and both have names, its content. Names stay as they are but for that. Every
change of a content is a record of its own in the journal.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from unifs.errors import UnifsError
from unifs.journal.content import large_id
from unifs.journal.extents import ExtentMap
from unifs.journal.log import Log, Op, Record, Renamed, pack_pair, unpack_pair, unpack_rename
from unifs.journal.trust import Trust, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.state.database import Database

CHAIN = (
    "select seq,time_ns,op,ino,parent,data from journal where op in (1,2,6,10)"
    " and ino in (select value from json_each(?)) order by seq desc"
)
NAMES = "select ino,parent,name from dentry where ino in (select value from json_each(?))"


class Returning:
    """Puts lost inodes right, one after another."""

    def __init__(self, database: Database, trust: Trust, lost_found: Path, stamp: str) -> None:
        self._database = database
        self._trust = trust
        self._lost_found = lost_found
        self._stamp = stamp
        self._log = Log(database)
        self._lost: dict[int, bytes] = {}
        #: ino -> its records, newest first.
        self._chains: dict[int, list[Record]] = {}
        self._names: dict[int, list[tuple[int, bytes]]] = {}
        #: One sentence each, for the receipt.
        self.reverted: list[str] = []
        self.returned: list[str] = []
        self.saved: list[str] = []

    def run(self, suspects: dict[int, bytes]) -> None:
        """Look at the present contents of ``suspects`` (by inode) and put right what is lost."""
        verdicts = {ino: self._trust.verdict(blob) for ino, blob in suspects.items()}
        for ino, verdict in verdicts.items():
            if verdict is Verdict.DURABLE:
                self._to_durable_form(ino, suspects[ino])
        self._lost = {ino: suspects[ino] for ino in suspects if verdicts[ino] is Verdict.LOST}
        if self._lost:
            self._load()
        # The newest first: who took a name last gives it back first.
        for ino in sorted(self._lost, key=self._newest, reverse=True):
            if ino in self._lost and self._names.get(ino):
                self._put_right(ino)

    def _newest(self, ino: int) -> int:
        renames = [record.seq for record in self._chains.get(ino, ()) if record.op is Op.RENAME]
        return max(renames, default=0)

    def _load(self) -> None:
        execute = self._database.all
        # A displaced inode may be lost itself; it is among the suspects then.
        self._load_chains(set(self._lost))
        wanted = set(self._lost)
        for chain in self._chains.values():
            wanted.update(_renamed(record).displaced for record in chain if record.op is Op.RENAME)
        self._load_chains(wanted - set(self._lost))
        for ino, parent, name in execute(NAMES, (json.dumps([*wanted]),)):
            self._names.setdefault(ino, []).append((parent, name))

    def _load_chains(self, inos: set[int]) -> None:
        for seq, time_ns, op, ino, parent, data in self._database.all(
            CHAIN, (json.dumps([*inos]),)
        ):
            record = Record(seq, time_ns, Op(op), ino, parent, data)
            self._chains.setdefault(ino, []).append(record)

    # --- one inode --------------------------------------------------------------------------------

    def _put_right(self, ino: int) -> None:
        """Back to the newest good content, but not behind what an fsync covered.

        Where no fsync covered anything, the inode that a rename displaced is better than an older
        content, which may be half of a file; and any content is better than an empty one.
        """
        blob = self._lost.pop(ino)
        self._save(ino, blob)
        has_taken = False
        good = b""
        is_pruned = True
        for record in self._chains.get(ino, ()):
            if record.op is Op.CREATE:
                is_pruned = False
                break
            if record.op is Op.RENAME:
                has_taken = has_taken or self._has_displaced(record)
                continue
            is_synced = record.op is Op.SYNC
            content = record.data if is_synced else unpack_pair(record.data)[0]
            if self._trust.verdict(content) is Verdict.LOST:
                continue
            good = good or content
            if is_synced or (good and not has_taken):
                self._accept(ino, blob, good)
                return
        # What was there before the oldest record that is left has been durable for long.
        if has_taken and not (good and is_pruned):
            for place in list(self._names[ino]):
                good = self._return_displaced(ino, place) or good
        if self._names[ino]:
            self._accept(ino, blob, good)
            return
        if good:
            self._save(ino, good)
        self._remove(ino)

    def _accept(self, ino: int, lost: bytes, good: bytes) -> None:
        """The inode's content is ``good`` from now on."""
        self._database.execute("update inode set content=? where ino=?", (good, ino))
        parent = self._names[ino][0][0]
        data = pack_pair(lost, good)
        self._database.execute(*self._log.row(Op.CONTENT, ino, parent, data))
        if self._trust.verdict(good) is Verdict.DURABLE:
            self._to_durable_form(ino, good)
        self._set_size(ino, self._trust.size(good))
        self._note(self.reverted, ino, f"went back to {self._trust.size(good)} bytes")

    def _to_durable_form(self, ino: int, blob: bytes) -> None:
        content_id = large_id(blob)
        form = self._trust.durable_form(content_id)
        if form is None:
            return
        execute = self._database.execute
        execute(
            "update content set size=?,extents=?,proof=null where id=?",
            (form.size, form.extents, content_id),
        )
        execute("delete from holding where content=?", (content_id,))
        for container in set(ExtentMap.unpack(form.extents).containers):
            execute("insert into holding values(?,?)", (content_id, container))
        self._set_size(ino, form.size)
        self._note(self.reverted, ino, "went back to what its last fsync covered")

    # --- names ------------------------------------------------------------------------------------

    def _has_displaced(self, record: Record) -> bool:
        """Whether a rename took the name of an inode that is still known."""
        displaced = _renamed(record).displaced
        query = "select 1 from inode where ino=?"
        return bool(displaced) and self._database.one(query, (displaced,)) is not None

    def _return_displaced(self, ino: int, place: tuple[int, bytes]) -> bytes:
        """The inode from which this name was taken by a rename, if there is one, gets it back.

        Where the two were exchanged and that one has a name, both keep theirs; what is returned is
        the content that stood under this name before.
        """
        known = place
        for record in self._chains[ino]:
            if record.op is not Op.RENAME:
                continue
            renamed = _renamed(record)
            if (renamed.new_parent, renamed.new_name) != known:
                continue
            if self._has_displaced(record):
                if renamed.is_exchange and self._names.get(renamed.displaced):
                    return self._content_at(renamed.displaced, record.seq)
                self._give_back(ino, place, renamed.displaced)
                return b""
            # The name came from there; what it had replaced before moves with it.
            known = (record.parent, renamed.name)
        return b""

    def _content_at(self, ino: int, seq: int) -> bytes:
        """The newest good content that an inode had at a record or before."""
        row = self._database.one("select content from inode where ino=?", (ino,))
        contents = [self._lost.get(ino, row[0])]
        for record in self._chains.get(ino, ()):
            if record.op is Op.CONTENT:
                before = unpack_pair(record.data)[0]
                contents = [before] if record.seq > seq else [*contents, before]
        good = (blob for blob in contents if self._trust.verdict(blob) is not Verdict.LOST)
        return next(good, b"")

    def _give_back(self, ino: int, place: tuple[int, bytes], displaced: int) -> None:
        statement = "update dentry set ino=? where parent=? and name=?"
        self._database.execute(statement, (displaced, *place))
        self._names[ino].remove(place)
        self._names.setdefault(displaced, []).append(place)
        self._renamed_rows(ino)
        self._renamed_rows(displaced)
        sentence = "got its name back from an unsynced successor"
        self._note(self.returned, displaced, sentence)
        if displaced in self._lost:
            self._put_right(displaced)

    def _renamed_rows(self, ino: int) -> None:
        """Link count, directory and links of an inode as its names say."""
        execute = self._database.execute
        names = self._names[ino]
        attributes = bytearray(self._attributes(ino))
        attributes[12:16] = len(names).to_bytes(4, "little")
        parent = names[0][0] if len(names) == 1 else 0
        execute(
            "update inode set parent=?,attributes=?,gone=null where ino=?",
            (parent, bytes(attributes), ino),
        )
        execute("delete from link where ino=?", (ino,))
        if len(names) > 1:
            for place in names:
                execute("insert into link values(?,?,?)", (ino, *place))

    def _remove(self, ino: int) -> None:
        execute = self._database.execute
        execute("delete from xattr where ino=?", (ino,))
        execute("delete from inode where ino=?", (ino,))

    def _attributes(self, ino: int) -> bytes:
        return bytes(self._database.one("select attributes from inode where ino=?", (ino,))[0])

    def _set_size(self, ino: int, size: int) -> None:
        attributes = bytearray(self._attributes(ino))
        attributes[16:24] = size.to_bytes(8, "little")
        # Its holes are counted again when it is written next.
        attributes[48:56] = bytes(8)
        statement = "update inode set attributes=? where ino=?"
        self._database.execute(statement, (bytes(attributes), ino))

    # --- the receipt ------------------------------------------------------------------------------

    def _save(self, ino: int, blob: bytes) -> None:
        """What is left of a content's bytes goes to lost+found."""
        target = self._lost_found / f"{self._stamp}-{ino}"
        if target.exists() or target.with_name(f"{target.name}.0").exists():
            target = self._lost_found / f"{self._stamp}-{ino}-before"
        try:
            kept = self._trust.save(blob, target)
        except (OSError, UnifsError) as error:
            self._note(self.saved, ino, f"nothing of its bytes could be read: {error}")
            return
        names = ", ".join(path.name for path in kept)
        self._note(self.saved, ino, f"what was left of its bytes is in {names}")

    def _note(self, sentences: list[str], ino: int, what: str) -> None:
        names = self._names.get(ino)
        if names is None:
            names = self._database.all("select parent,name from dentry where ino=?", (ino,))
        named = ", ".join(f"{parent}/{os.fsdecode(name)}" for parent, name in names) or "no name"
        sentences.append(f"inode {ino} ({named}): {what}")


def _renamed(record: Record) -> Renamed:
    return unpack_rename(record.data)
