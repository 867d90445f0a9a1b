"""Extents that are lost are found again in the files: no byte becomes a zero by a repair."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.fsck.world import FILES, State
from tests.vfs.harness import BOOT
from tests.vfs.nodeworld import NodeSystem
from unifs.fsck.offline import REPAIRED, examine

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(range(1, 251)) * 16_000
#: What stands in the column instead, as SQL.
DAMAGES = (
    "'text'",
    "x''",
    "substr(extents,1,length(extents)-5)",
    "cast(extents||x'01' as blob)",
    "substr(extents,1,length(extents)-24)",
)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in ("d/large", "d/e/huge", "d/e/open")
        for damage in DAMAGES
        # Of what is only closed these may be holes.
        if name != "d/e/open" or damage not in (DAMAGES[1], DAMAGES[4])
    ],
)
def test_the_extents_of_a_file(state: State, name: str, damage: str) -> None:
    state.run(f"update content set extents={damage} where id=?", state.content_id(name))
    assert state.examine(repair=True).exit_code == REPAIRED
    assert not state.examine(verify=True).found
    assert state.files() == FILES


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_the_extents_over_several_files(tmp_path: Path, is_sealed: bool) -> None:
    async with NodeSystem(tmp_path) as fs:
        await fs.write("file", LARGE)
        await fs.seal()
        async with fs.open("file", os.O_RDWR) as file:
            await file.write(1_500_000, b"patch")
        if is_sealed:
            await fs.seal()
        await fs.storage.flusher.flush()
        fs.tick()
        await fs.stop()
        query = "select count(*) from holding where content=(select max(id) from content)"
        assert State(tmp_path).one(query) == 2
        State(tmp_path).run("update content set extents=x'00'")
        with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
            assert examine(tmp_path, repair=True).exit_code == REPAIRED
        await fs.start()
        new = LARGE[:1_500_000] + b"patch" + LARGE[1_500_005:]
        if is_sealed:
            assert await fs.read("file") == new
            return
        # Of what is closed only, nobody knows which bytes of a page were written.
        assert b"file" not in await fs.listdir("")
        kept = sorted(fs.storage.state.lost_found.glob("*-000000000000000?"))
        assert kept[0].read_bytes() == LARGE
        assert kept[1].read_bytes()[1_500_000:1_500_005] == b"patch"


def test_what_is_in_no_file_is_missed_and_not_zeros(state: State) -> None:
    number = state.content_id("d/e/huge")
    with open(state.container("d/e/huge"), "r+b") as file:
        os.pwrite(file.fileno(), b"rot", 70_000)
    state.run("update content set extents=x'00' where id=?", number)
    assert state.examine(repair=True).exit_code == REPAIRED
    files = state.files()
    assert isinstance(files.pop("d/e/huge"), Exception)
    assert files.items() <= FILES.items()
