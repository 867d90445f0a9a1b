"""Holes in the MFS root: blocks of directories that are not here, looked for after a start.

Directories have rows, so a lost block of one is no lost directory: ``find`` names those whose
blocks are missing, and ``vfs.roots`` builds these again from their rows; the nodes above the leaves
of a large file are built again from its hashes. What cannot be built again
is a directory or file that is only linked by its CID: it is named, and answers "not available
offline" until somebody imports it. Works in a thread, on a connection of its own.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from unifs.errors import UnifsError
from unifs.ipfs.cid import DAG_PB, Cid
from unifs.ipfs.dagpb import decode
from unifs.ipfs.unixfs.builder import FileBuilder
from unifs.journal.content import LINKED
from unifs.state.durable import receipt_text, write_durably
from unifs.state.queries import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.ipfs.embedded.blocks import Blocks
    from unifs.ipfs.unixfs.profiles import Profile

#: Directories looked at in one read transaction.
PAGE = 1000
#: A directory with fewer names is one block in every profile: its presence is all to ask.
SHARDED_MIN = 1000
#: Holes that are named; all are mended.
NAMED_MAX = 100

DIRECTORIES = (
    "select ino,cid,content from inode where ino>? and mount=? and gone is null"
    " and (cid is not null and content in (x'',x'05') or substr(content,1,1)=x'04')"
    " order by ino limit ?"
)


@dataclass(slots=True)
class Holes:
    """``directories`` (inodes) can be built from rows; ``linked`` cannot."""

    directories: list[int] = field(default_factory=list)
    linked: list[int] = field(default_factory=list)


def find(database: Path, mount: int, blocks: Blocks) -> Holes:
    """Directories and linked objects of a mount whose blocks are not all here.

    Runs in a thread of the loop, and ends where that gives it up.
    """
    found = Holes()
    after = 0
    with closing(Reader(database)) as connection:
        while True:
            trio.from_thread.check_cancelled()
            rows = connection.all(DIRECTORIES, (after, mount, PAGE))
            if not rows:
                return found
            after = rows[-1][0]
            for ino, column, content in rows:
                is_linked = bool(content) and content[0] == LINKED
                cid = Cid.decode(content[9:] if is_linked else column[8:])
                if is_linked:
                    if not blocks.has(cid):
                        found.linked.append(ino)
                    continue
                count = "select count(*) from (select 1 from dentry where parent=? limit ?)"
                names = connection.one(count, (ino, SHARDED_MIN))[0]
                if not _is_here(cid, blocks, names >= SHARDED_MIN):
                    found.directories.append(ino)


def _is_here(cid: Cid, blocks: Blocks, may_be_sharded: bool) -> bool:
    """Whether the blocks of a directory itself are here; not what it names."""
    if not blocks.has(cid):
        return False
    if not may_be_sharded:
        return True
    waiting = [cid]
    while waiting:
        at = waiting.pop()
        try:
            node = decode(blocks.get(at))
        except UnifsError:
            return False
        # A shard is linked by two hexadecimal digits, a name by these and itself.
        inner = [Cid.decode(link.cid_binary) for link in node.links if len(link.name or b"") == 2]
        waiting += [each for each in inner if each.codec == DAG_PB]
    return True


def rebuild_files(database: Path, profile: Profile, blocks: Blocks) -> int:
    """Build the DAG nodes above the leaves of sealed files again where they are missing; of how
    many files. Runs in a thread of the loop, and ends where that gives it up.
    """
    count = after = 0
    query = (
        "select id,cid,size,leaves from content where id>? and state=2 and cid is not null"
        " and leaves is not null order by id limit ?"
    )
    with closing(Reader(database)) as connection:
        while True:
            trio.from_thread.check_cancelled()
            rows = connection.all(query, (after, PAGE))
            if not rows:
                return count
            after = rows[-1][0]
            for _, column, size, leaves in rows:
                if blocks.has(Cid.decode(column[8:])) or len(leaves) <= 32:
                    continue
                builder = FileBuilder(profile, blocks.put)
                for number, start in enumerate(range(0, size, profile.chunk_bytes)):
                    digest = leaves[number * 32 : number * 32 + 32]
                    builder.leaf_digest(digest, min(profile.chunk_bytes, size - start))
                builder.finish()
                count += 1


def write_receipt(lost_found: Path, built: list[bytes], linked: list[bytes]) -> str:
    """Name the holes in lost+found; the receipt's name. Blocks."""
    now = time.time_ns()
    sentences = [
        f"/mfs{os.fsdecode(path).rstrip('/')}: its blocks were missing; built again from its rows"
        for path in built[:NAMED_MAX]
    ]
    sentences += [
        f"/mfs{os.fsdecode(path)}: it is linked by its CID and its root block is not here"
        for path in linked[:NAMED_MAX]
    ]
    table = {
        "kind": "root",
        "time_ns": now,
        "directories": len(built),
        "linked": len(linked),
        "sentences": sentences,
    }
    path = lost_found / f"receipt-{now}.json"
    write_durably(path, receipt_text(table).encode("ascii"))
    return path.name
