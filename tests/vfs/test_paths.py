"""Operations by path, as `unifs ctl files` asks for them: what bars the way is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vfs.historyworld import Told
from tests.vfs.nodeworld import NodeSystem
from unifs.errors import Exists, NotADirectory
from unifs.vfs.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


async def test_directories_above_are_made_but_not_through_a_file(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path) as fs:
        paths = Paths(fs.vfs, Told())
        await paths.mkdir("/mfs/a/b", parents=True)
        await paths.mkdir("/mfs/a/b", parents=True)
        await fs.write("a/file", b"")
        for below in ("c", "c/d"):
            with pytest.raises(NotADirectory, match="^/mfs/a/file is not a directory$"):
                await paths.mkdir(f"/mfs/a/file/{below}", parents=True)
        with pytest.raises(Exists):
            await paths.mkdir("/mfs/a/file", parents=True)
        assert sorted(await fs.listdir("a")) == [b"b", b"file"]
