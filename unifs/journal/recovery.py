"""Recovery: from what a crash left to a tree in which everything acknowledged is there.

Runs at every start, before anything else reads the tree; ``Recovery.run`` returns a receipt where
it had something to do. It replays nothing onto SQLite (transactions are whole or absent); it
decides which *bytes* can be trusted.

After a crash of the daemon alone (same boot id) the page cache is intact: closed records are
trusted. After a crash of the machine (other boot id) a record may be durable while its bytes are
not. Then:

* a small content of a record after ``sealed_seq`` must hash to its digest;
* a large one must be sealed, or its proof must hold; else it goes back to the form that its last
  fsync made durable;
* an inode whose present content fails goes back to its last good content in the journal's order;
  if it has none and it displaced another inode by a rename, that one gets its name back; what is
  left of the bytes goes to lost+found. The receipt names each.

Crash windows, each tested by its number (tests/crash):

1. segment bytes appended, transaction not committed: the section is garbage, collected later
2. container written, transaction not committed: a file that no row names is deleted
3. transaction committed, process killed: everything is there
4. transaction in a durable WAL, segment bytes lost: hash fails, last good content
5. transaction in a durable WAL, container bytes lost: proof or durable form, else last good content
6. rename durable, bytes of its source lost: the displaced inode returns
7. rows without a name, not yet removed: removed
8. directory times newer than their rows: taken from the journal
9. content rows whose references were not counted down: counted anew
10. container files whose rows are gone, not yet deleted: deleted
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from unifs.errors import Corrupt, UnifsError
from unifs.ipfs.embedded.segments import Place
from unifs.journal.extents import HOLE, ExtentMap
from unifs.journal.log import Log, Op, unpack_pair, unpack_rename
from unifs.journal.proof import holds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.ipfs.embedded.segments import Segments
    from unifs.state.database import Database
    from unifs.state.directory import StateDirectory

log = logging.getLogger(__name__)

_SMALL_KIND, _LARGE_KIND = 1, 2

#: The second byte of the packed attributes holds the type bits of the mode: 4 is a directory.
SUBDIRECTORIES = (
    "select count(*) from dentry d join inode i on i.ino=d.ino"
    " where d.parent=? and substr(hex(substr(i.attributes,2,1)),1,1)='4'"
)


@dataclass(slots=True)
class Receipt:
    """What recovery found and did. Lists hold one sentence each."""

    time_ns: int
    is_other_boot: bool
    records_checked: int = 0
    reverted: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    removed_files: int = 0
    removed_rows: int = 0

    def has_losses(self) -> bool:
        return bool(self.reverted or self.returned)


class Recovery:
    """One run over a state directory."""

    def __init__(self, database: Database, segments: Segments, state: StateDirectory) -> None:
        self._database = database
        self._segments = segments
        self._state = state
        self._sealed_seq: int = database.get_meta("sealed_seq", 0)
        self._receipt = Receipt(time.time_ns(), self._boot() != state.boot_id)
        #: ino -> last content that can be trusted.
        self._good: dict[int, bytes] = {}
        #: ino -> (content that cannot be trusted), present ones only.
        self._bad: dict[int, bytes] = {}
        #: ino -> (directory, name, displaced inode) of its last rename over somebody.
        self._displaced: dict[int, tuple[int, bytes, int]] = {}

    def _boot(self) -> str:
        return str(self._database.get_meta("boot", self._state.boot_id))

    def run(self) -> Receipt | None:
        """Make the tree right; the receipt, or None after a clean stop."""
        database = self._database
        was_clean = bool(database.get_meta("is_clean", 1))
        if not was_clean and self._receipt.is_other_boot:
            database.check()
        database.begin()
        try:
            if not was_clean:
                self._recover()
            database.set_meta("boot", self._state.boot_id)
            database.set_meta("is_clean", 0)
            database.commit()
        except BaseException:
            database.rollback()
            raise
        if was_clean:
            return None
        self._remove_unnamed_files()
        self._write_receipt()
        return self._receipt

    def _recover(self) -> None:
        if self._receipt.is_other_boot:
            self._check_records()
            for ino, content in self._bad.items():
                self._put_right(ino, content)
        self._directory_times()
        self._remove_nameless()
        self._count_references()

    # --- trust ------------------------------------------------------------------------------------

    def _check_records(self) -> None:
        """Walk the records whose bytes may be missing (windows 4, 5, 6)."""
        last: dict[int, bytes] = {}
        for record in Log(self._database).records(self._sealed_seq):
            self._receipt.records_checked += 1
            if record.op is Op.CONTENT:
                old, new = unpack_pair(record.data)
                if record.ino not in self._good and record.ino not in last:
                    # What the first of these records replaced was sealed, or is empty, or was made
                    # by a CREATE after sealed_seq; then it is checked like any other.
                    self._good[record.ino] = old if self._is_good(old) else b""
                last[record.ino] = new
                if self._is_good(new):
                    self._good[record.ino] = new
            elif record.op is Op.CREATE:
                self._good.setdefault(record.ino, b"")
            elif record.op is Op.RENAME:
                renamed = unpack_rename(record.data)
                if renamed.displaced:
                    place = (renamed.new_parent, renamed.new_name, renamed.displaced)
                    self._displaced[record.ino] = place
        for ino in self._good:
            row = self._database.one("select content from inode where ino=?", (ino,))
            if row is not None and not self._is_good(row[0]):
                self._bad[ino] = row[0]

    def _is_good(self, content: bytes) -> bool:
        """Whether a content's bytes are those that were closed."""
        if not content or content[0] > _LARGE_KIND:
            return True
        if content[0] == _SMALL_KIND:
            place, digest = _small(content)
            try:
                return hashlib.sha256(self._segments.read(place)).digest() == digest
            except UnifsError:
                return False
        return self._is_large_good(int.from_bytes(content[1:9], "little"))

    def _is_large_good(self, content_id: int) -> bool:
        query = "select state,extents,proof,durable_size,durable_extents from content where id=?"
        row = self._database.one(query, (content_id,))
        if row is None:
            return False
        state, extents, proof, durable_size, durable_extents = row
        if state == 2:
            return True
        if proof is not None and self._holds(proof, ExtentMap.unpack(extents)):
            return True
        if durable_size is None:
            return False
        self._database.execute(
            "update content set size=?,extents=?,proof=null where id=?",
            (durable_size, durable_extents, content_id),
        )
        for (ino,) in self._database.all(
            "select ino from inode where content=?", (b"\2" + content_id.to_bytes(8, "little"),)
        ):
            self._set_size(ino, durable_size)
            if extents != durable_extents:
                self._note(self._receipt.reverted, ino, "went back to what its last fsync covered")
        return True

    def _holds(self, proof: bytes, extents: ExtentMap) -> bool:
        try:
            return holds(proof, lambda start, end: b"".join(self._read(extents, start, end)))
        except OSError:
            return False

    def _read(self, extents: ExtentMap, start: int, end: int) -> Iterator[bytes]:
        for container, first, last in extents.pieces(start, end):
            if container == HOLE:
                yield bytes(last - first)
                continue
            with open(self._path(container), "rb") as file:
                yield os.pread(file.fileno(), last - first, first)

    def _path(self, container: int) -> str:
        return str(self._state.data / f"{container:016x}")

    # --- putting right ----------------------------------------------------------------------------

    def _put_right(self, ino: int, content: bytes) -> None:
        self._save(ino, content)
        good = self._good[ino]
        if not good and ino in self._displaced and self._return_displaced(ino):
            return
        self._database.execute("update inode set content=? where ino=?", (good, ino))
        self._set_size(ino, self._size(good))
        self._note(self._receipt.reverted, ino, f"went back to {self._size(good)} bytes")

    def _return_displaced(self, ino: int) -> bool:
        """The inode that this one displaced by a rename gets its name back (window 6)."""
        parent, name, displaced = self._displaced[ino]
        row = self._database.one("select attributes from inode where ino=?", (displaced,))
        if row is None:
            return False
        attributes = bytearray(row[0])
        attributes[12:16] = (1).to_bytes(4, "little")
        execute = self._database.execute
        execute(
            "update dentry set ino=? where parent=? and name=? and ino=?",
            (displaced, parent, name, ino),
        )
        execute(
            "update inode set gone=null,parent=?,attributes=? where ino=?",
            (parent, bytes(attributes), displaced),
        )
        execute("delete from inode where ino=?", (ino,))
        self._note(
            self._receipt.returned, displaced, "got its name back from an unsynced successor"
        )
        return True

    def _size(self, content: bytes) -> int:
        if not content or content[0] > _LARGE_KIND:
            return 0
        if content[0] == _SMALL_KIND:
            return _small(content)[0].length
        content_id = int.from_bytes(content[1:9], "little")
        return int(self._database.one("select size from content where id=?", (content_id,))[0])

    def _set_size(self, ino: int, size: int) -> None:
        row = self._database.one("select attributes from inode where ino=?", (ino,))
        attributes = bytearray(row[0])
        attributes[16:24] = size.to_bytes(8, "little")
        self._database.execute(
            "update inode set attributes=? where ino=?", (bytes(attributes), ino)
        )

    def _save(self, ino: int, content: bytes) -> None:
        """What is left of a content's bytes goes to lost+found."""
        target = self._state.lost_found / f"{self._receipt.time_ns}-{ino}"
        try:
            if content[0] == _SMALL_KIND:
                data = self._segments.read(_small(content)[0])
                target.write_bytes(data)
            else:
                self._save_large(int.from_bytes(content[1:9], "little"), str(target))
        except (OSError, UnifsError) as error:
            self._note(self._receipt.saved, ino, f"nothing of its bytes could be read: {error}")
            return
        self._note(self._receipt.saved, ino, f"what was left of its bytes is in {target.name}")

    def _save_large(self, content_id: int, target: str) -> None:
        row = self._database.one("select size,extents from content where id=?", (content_id,))
        if row is None:
            raise Corrupt(f"content {content_id} has no row")
        extents = ExtentMap.unpack(row[1])
        with open(target, "wb") as file:
            for container, start, end in extents.pieces(0, row[0]):
                if container == HOLE:
                    continue
                with open(self._path(container), "rb") as source:
                    offset = start
                    while offset < end:
                        part = os.pread(source.fileno(), min(1 << 20, end - offset), offset)
                        if not part:
                            break
                        os.pwrite(file.fileno(), part, offset)
                        offset += len(part)
            file.truncate(row[0])

    def _note(self, sentences: list[str], ino: int, what: str) -> None:
        names = self._database.all("select parent,name from dentry where ino=?", (ino,))
        named = ", ".join(f"{parent}/{os.fsdecode(name)}" for parent, name in names) or "no name"
        sentences.append(f"inode {ino} ({named}): {what}")

    # --- what every crash leaves ------------------------------------------------------------------

    def _directory_times(self) -> None:
        """Times and link counts of directories are written lazily: take them from the journal."""
        newest: dict[int, int] = {}
        for record in Log(self._database).records(self._database.get_meta("times_seq", 0)):
            if record.op in (Op.CREATE, Op.UNLINK, Op.RMDIR, Op.LINK, Op.RENAME):
                newest[record.parent] = record.time_ns
            if record.op is Op.RENAME:
                newest[unpack_rename(record.data).new_parent] = record.time_ns
        for ino, time_ns in newest.items():
            row = self._database.one("select attributes from inode where ino=?", (ino,))
            if row is None:
                continue
            attributes = bytearray(row[0])
            links = 2 + self._database.one(SUBDIRECTORIES, (ino,))[0]
            attributes[12:16] = links.to_bytes(4, "little")
            for at in (32, 40):
                known = int.from_bytes(attributes[at : at + 8], "little")
                attributes[at : at + 8] = max(known, time_ns).to_bytes(8, "little")
            self._database.execute(
                "update inode set attributes=? where ino=?", (bytes(attributes), ino)
            )

    def _remove_nameless(self) -> None:
        """Rows that were born and lost their last name in one epoch are nobody's history."""
        execute = self._database.execute
        where = "gone is not null and gone<=epoch"
        execute(f"delete from xattr where ino in (select ino from inode where {where})")
        execute(f"delete from inode where {where}")
        self._receipt.removed_rows = self._database.one("select changes()")[0]

    def _count_references(self) -> None:
        """How often each large content is named, from the rows that name them."""
        counts: dict[int, int] = {}
        for table in ("inode", "inode_past"):
            query = f"select content from {table} where substr(content,1,1)=x'02'"
            for (content,) in self._database.rows(query):
                content_id = int.from_bytes(content[1:9], "little")
                counts[content_id] = counts.get(content_id, 0) + 1
        execute = self._database.execute
        for (content_id,) in self._database.all("select id from content"):
            if content_id in counts:
                statement = "update content set refs=? where id=?"
                execute(statement, (counts[content_id], content_id))
            else:
                execute("delete from content where id=?", (content_id,))
                execute("delete from holding where content=?", (content_id,))

    def _remove_unnamed_files(self) -> None:
        """Files of data/ that no content names (windows 2 and 10)."""
        named = {row[0] for row in self._database.all("select distinct container from holding")}
        for path in self._state.data.iterdir():
            if int(path.name, 16) not in named:
                path.unlink()
                self._receipt.removed_files += 1

    def _write_receipt(self) -> None:
        receipt = self._receipt
        text = json.dumps(asdict(receipt), indent=1, ensure_ascii=True)
        path = self._state.lost_found / f"receipt-{receipt.time_ns}.json"
        path.write_text(text + "\n", encoding="ascii")
        level = logging.WARNING if receipt.has_losses() else logging.INFO
        log.log(
            level,
            "recovered: other_boot=%s reverted=%d returned=%d receipt=%s",
            receipt.is_other_boot,
            len(receipt.reverted),
            len(receipt.returned),
            path.name,
        )


def _small(content: bytes) -> tuple[Place, bytes]:
    segment = int.from_bytes(content[1:5], "little")
    offset = int.from_bytes(content[5:13], "little")
    length = int.from_bytes(content[13:17], "little")
    return Place(segment, offset, length), content[17:49]
