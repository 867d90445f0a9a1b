"""Large directories are built in a worker process, so that the event loop keeps the GIL.

Used by ``import_tree`` and ``mfs_root``. What crosses the process boundary are lists of bytes and
integers: pickling 100,000 of these takes 8 ms with the GIL held, 100,000 entry objects 300 ms.
Files of one raw leaf, the most of a tree, may come as ``LeafText``, which SQLite makes without the
GIL. The caller's composition root bounds how long idle workers stay (``trio_parallel``'s default
context).
"""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, Final

from unifs.ipfs.cid import Cid
from unifs.ipfs.unixfs.directory import build_directory
from unifs.ipfs.unixfs.node import DirEntry, Link
from unifs.ipfs.unixfs.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.ipfs.unixfs.profiles import Profile

    #: Files of one raw leaf, two words in hex each, separated by spaces: the name; length (4 bytes,
    #: little-endian) and sha2-256.
    LeafText = str

#: A directory of 10,000 entries takes 33 ms to build: from there on in a worker process.
PROCESS_ENTRIES_MIN: Final = 10_000
WORKER_NICE: Final = 10

_Packed = tuple[list[bytes], list[bytes], list[int]]
_Built = tuple[bytes, int, list[tuple[bytes, bytes]]]


async def build_in_process(
    entries: list[DirEntry], profile: Profile, leaves: list[LeafText] | None = None
) -> tuple[Link, list[tuple[bytes, bytes]]]:
    """A directory's link and its blocks as (CID, bytes). Cancelling kills the worker process.

    ``entries`` is empty afterwards: 100,000 of them are 28 MiB. ``leaves`` are further entries; one
    of ``entries`` wins over one of the same name there. ``profile`` must be one of ``PROFILES``:
    only its name crosses.
    """
    import trio
    import trio_parallel  # 20 ms to import, needed for large directories only

    packed: _Packed = await trio.to_thread.run_sync(_pack, entries)
    built: _Built = await trio_parallel.run_sync(
        _build, packed, leaves or [], profile.name, kill_on_cancel=True
    )
    root, tsize, blocks = built
    return Link(Cid.decode(root), tsize), blocks


def _pack(entries: list[DirEntry]) -> _Packed:
    packed = (
        [entry.name for entry in entries],
        [entry.cid.binary for entry in entries],
        [entry.tsize for entry in entries],
    )
    entries.clear()
    return packed


def _build(packed: _Packed, leaves: list[LeafText], profile_name: str) -> _Built:
    # Whoever fills the directory meanwhile has both cores busy; nobody waits for its root.
    os.setpriority(os.PRIO_PROCESS, 0, WORKER_NICE)
    made: list[tuple[bytes, bytes]] = []
    entries = (
        DirEntry(name, Cid.decode(binary), tsize)
        for name, binary, tsize in zip(*packed, strict=True)
    )
    if leaves:
        by_name = {entry.name: entry for entry in chain(_leaves(leaves), entries)}
        entries = (entry for entry in by_name.values())
    link = build_directory(
        entries,
        PROFILES[profile_name],
        lambda cid, block: made.append((cid.binary, bytes(block))),
    )
    return link.cid.binary, link.tsize, made


def _leaves(texts: list[LeafText]) -> Iterator[DirEntry]:
    for text in texts:
        words = iter(text.split(" "))
        for name, leaf in zip(words, words, strict=True):
            binary = bytes.fromhex(leaf)
            tsize = int.from_bytes(binary[:4], "little")
            yield DirEntry(bytes.fromhex(name), Cid.raw(binary[4:]), tsize)
