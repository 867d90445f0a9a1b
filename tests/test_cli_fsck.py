"""``unifs fsck``: exit codes, what a person and what a program is told."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.fsck.world import FILES, State, make
from unifs.cli import run
from unifs.state.directory import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setattr("unifs.state.directory.boot_id", lambda: "boot-1")
    made = State(tmp_path / "state")
    make(made.path)
    return made


def test_the_exit_codes_are_those_of_other_fscks(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["fsck", "--state", str(state.path)]
    assert run(where) == 0
    assert capsys.readouterr().out == "clean\n"
    state.attributes("solo", 12, 9)
    assert run(where) == 4
    out = capsys.readouterr().out
    assert out.startswith("LINK_COUNT          /mfs/solo has 1 names and says 9\n")
    assert "unifs fsck --repair" in out
    assert run([*where, "--repair"]) == 1
    assert "1 found, all mended" in capsys.readouterr().out
    assert run([*where, "--repair"]) == 0
    assert run(where) == 0
    assert state.files() == FILES


def test_a_directory_in_use_and_one_that_is_none_cannot_be_checked(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = StateDirectory(state.path, "/mnt")
    try:
        assert run(["fsck", "--state", str(state.path), "--json"]) == 8
    finally:
        held.close()
    answer = json.loads(capsys.readouterr().out)
    assert answer["error_code"] == "STATE_IN_USE"
    assert f"pid {os.getpid()}" in answer["error"]
    assert run(["fsck", "--state", str(tmp_path / "nowhere"), "--repair"]) == 8
    assert not (tmp_path / "nowhere").exists()


def test_a_program_is_told_everything(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    state.run("delete from dentry where ino=?", state.ino("solo"))
    assert run(["fsck", "--state", str(state.path), "--repair", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "repaired"
    assert answer["found"][0]["code"] == "INODE_NO_NAME"
    assert answer["left"] == []
    assert any("lost+found/inode-" in sentence for sentence in answer["kept"])
    assert (state.path / "lost+found" / answer["receipt"]).is_file()


def test_what_a_kill_left_is_recovered_by_a_repair(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    state.run("update meta set value=0 where key='is_clean'")
    assert run(["fsck", "--state", str(state.path)]) == 0
    assert "not stopped cleanly" in capsys.readouterr().out
    assert run(["fsck", "--state", str(state.path), "--repair"]) == 0
    assert "recovered" in capsys.readouterr().out
    assert run(["fsck", "--state", str(state.path)]) == 0
    assert capsys.readouterr().out == "clean\n"


def test_a_database_that_is_none_cannot_be_checked(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    (state.path / "tree.db").write_bytes(b"no database at all" * 100)
    assert run(["fsck", "--state", str(state.path)]) == 8
    assert run(["fsck", "--state", str(state.path), "--repair"]) == 8
    assert "tree.db" in capsys.readouterr().err
