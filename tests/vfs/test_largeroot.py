"""A directory so large that a worker process builds it: the same CID as one that is built here."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from tests.vfs.nodeworld import NodeSystem
from unifs.ipfs.embedded import large_directory
from unifs.ipfs.unixfs.directory import list_directory
from unifs.vfs import roots
from unifs.vfs.roots import RowView

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from unifs.ipfs.cid import Cid

#: What the journal keeps as a content of its own.
LARGE_BYTES = 200_000


async def fill(system: NodeSystem) -> None:
    """Every kind of entry, and names that only bytes can be."""
    await system.mkdir("d")
    for number in range(40):
        await system.write(f"d/file {number}", b"%d" % number * number)
    await system.write(b"d/\xff\xfe 'x' \n", b"odd")
    await system.write("d/large", b"L" * LARGE_BYTES)
    await system.write("d/empty", b"")
    await system.mkdir("d/below")
    await system.write("d/below/file", b"below")
    await system.symlink(b"file 1", "d/symlink")
    await system.mknod("d/fifo", stat.S_IFIFO | 0o644)
    await system.link(await system.add(b"linked" * 1000, wrap=None), "d-linked")
    await system.rename("d-linked", "d/linked")


async def built(system: NodeSystem) -> Cid:
    await system.settle()
    root = system.roots.current()
    assert root is not None
    return root


async def test_a_large_directory_has_the_same_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NodeSystem(tmp_path / "one") as system:
        await fill(system)
        expected = await built(system)
        entry = next(iter(list_directory(expected, system.storage.blocks.get)))
        names = [each.name for each in list_directory(entry.cid, system.storage.blocks.get)]
        assert len(names) == 46
        assert {b"large", b"empty", b"below", b"symlink", b"linked"} < set(names)
        assert b"fifo" not in names
    monkeypatch.setattr(large_directory, "PROCESS_ENTRIES_MIN", 20)
    async with NodeSystem(tmp_path / "two") as system:
        await fill(system)
        assert await built(system) == expected
        assert system.has(expected)


async def test_no_name_is_missed_whose_bytes_become_few_while_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NodeSystem(tmp_path) as system:
        await fill(system)
        await system.settle()
        ino = (await system.stat("d")).ino
        database = system.storage.database
        names = database.all("select name from dentry where parent=?", (ino,))
        small = "select content from inode where substr(content,1,1)=x'01' limit 1"
        change = "update inode set content=? where ino in (select ino from dentry where name=?)"
        view = RowView(system.storage, system.mfs.root, {})
        ask = view._connection.one

        def one(sql: str, bindings: tuple[object, ...] = ()) -> object:
            row = ask(sql, bindings)
            if sql == roots.LEAVES:
                # Whoever fills the directory closes what was large, and what was empty.
                content = database.one(small)[0]
                batch = [(change, (content, name)) for name in (b"large", b"empty")]
                database.execute_batch(batch)
            return row

        monkeypatch.setattr(view._connection, "one", one)
        found = []
        for child in view.many_children(ino):
            words = child.split(" ")[::2] if isinstance(child, str) else [child.name.hex()]
            found += [(bytes.fromhex(word),) for word in words]
        view.close()
        assert len(found) == 47
        assert sorted(found) == sorted(names)
