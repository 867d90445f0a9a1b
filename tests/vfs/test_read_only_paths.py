"""What is refused because nothing can be changed there: the path, the reason, where one may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vfs.nodeworld import NodeSystem
from tests.vfs.test_paths import files
from unifs.errors import JournalFailed, ReadOnly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MOUNTS = r": only mounts lie here; write below one of them$"
HASHES = r": what lies in /ipfs is named by its hash and never changes; write below /mfs$"
SETTINGS = r": mfs is read-only by its settings$"


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[NodeSystem]:
    async with NodeSystem(tmp_path) as made:
        await made.write("file", b"bytes")
        await made.symlink(b"file", "link")
        await made.mkdir("dir")
        yield made


async def test_at_the_root_are_only_mounts(fs: NodeSystem) -> None:
    answer = files(fs)
    with pytest.raises(ReadOnly, match=f"^/x{MOUNTS}"):
        await answer.mkdir("/x", parents=False)
    with pytest.raises(ReadOnly, match=f"^/x{MOUNTS}"):
        await answer.mkdir("/x/y", parents=True)
    with pytest.raises(ReadOnly, match=f"^/mfs{MOUNTS}"):
        await answer.move("/mfs", "/x")
    for source in ("/mfs/file", "/mfs/link", "/mfs/dir"):
        with pytest.raises(ReadOnly, match=f"^/x{MOUNTS}"):
            await answer.copy(source, "/x")


async def test_what_is_named_by_its_hash_does_not_change(fs: NodeSystem) -> None:
    with pytest.raises(ReadOnly, match=f"^/ipfs/x{HASHES}"):
        await files(fs).mkdir("/ipfs/x", parents=False)
    cid = await fs.add(b"bytes")
    with pytest.raises(ReadOnly, match=f"^/ipfs/{cid}{HASHES}"):
        await files(fs).remove(f"/ipfs/{cid}", recursive=False)


async def test_settings_are_the_reason_where_they_are(fs: NodeSystem) -> None:
    fs.mfs.refuses_changes = True
    answer = files(fs)
    with pytest.raises(ReadOnly, match=f"^/mfs/new{SETTINGS}"):
        await answer.mkdir("/mfs/new", parents=False)
    with pytest.raises(ReadOnly, match=f"^/mfs/file{SETTINGS}"):
        await answer.move("/mfs/file", "/mfs/new")
    with pytest.raises(ReadOnly, match=f"^/mfs/file{SETTINGS}"):
        await answer.remove("/mfs/file", recursive=False)
    for source in ("/mfs/file", "/mfs/link", "/mfs/dir"):
        with pytest.raises(ReadOnly, match=f"^/mfs/new{SETTINGS}"):
            await answer.copy(source, "/mfs/new")


async def test_a_journal_that_failed_is_no_read_only_place(fs: NodeSystem) -> None:
    fs.storage.database.fail("the disk")
    with pytest.raises(JournalFailed, match=r"^the journal failed: the disk$"):
        await files(fs).mkdir("/mfs/new", parents=False)
    fs.storage.database.failed = None
