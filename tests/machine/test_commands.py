"""The commands that settle a tree on a machine, and what doctor says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from unifs import cli
from unifs.machine import findings, mounthelper, units
from unifs.machine.program import program

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without systemd whose files of that kind lie below tmp_path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "UNIFS_HOME", "UNIFS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(units, "BOOTED", tmp_path / "booted")
    monkeypatch.setattr(units, "SYSTEM_UNITS", tmp_path / "system")
    monkeypatch.setattr(mounthelper, "PATH", tmp_path / "mount.fuse.unifs")
    (tmp_path / "tree").mkdir()
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str | Path) -> tuple[int, str, str]:
        code = cli.run([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def started_by(unit: Path) -> str:
    (line,) = [each for each in unit.read_text().splitlines() if each.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=")


@pytest.mark.fuse
@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="/dev/fuse cannot be opened")
def test_a_service_mounts_as_the_command_would_now(
    machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = machine / ".config/unifs/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("")
    monkeypatch.chdir(machine)
    code, said, _ = run("install-service", "--user", "--read-only", "tree")
    assert code == 0
    unit = machine / ".config/systemd/user" / units.unit_name(str(machine / "tree"))
    assert said.startswith(f"wrote {unit}\n")
    assert started_by(unit) == (
        f"{program()} mount --foreground --state {machine}/.local/state/unifs"
        f" --config {config} --read-only -- {machine}/tree"
    )
    code, _, _ = run("install-service", "--system", "--state", "s", "tree")
    unit = machine / "system" / unit.name
    assert f"--state {machine}/s --config" in started_by(unit)
    assert run("uninstall-service", "--system", "tree") == (0, f"removed {unit}\n", "")
    code, _, err = run("uninstall-service", "--system", "tree")
    assert (code, f"there is no {unit}" in err) == (4, True)


def test_what_a_service_cannot_mount_is_said_before_anything_is_written(
    machine: Path, run: Run
) -> None:
    code, _, err = run("install-service", machine / "absent")
    assert (code, f"{machine}/absent is no directory: make it first" in err) == (2, True)
    code, _, err = run("install-service", machine / "tree", "--config", machine / "none.toml")
    assert (code, "there is no settings file" in err) == (2, True)
    assert not (machine / "system").exists()


def test_the_mount_helper_is_installed_and_removed(machine: Path, run: Run) -> None:
    path = machine / "mount.fuse.unifs"
    assert run("install-mount-helper") == (0, f"wrote {path}\n", "")
    assert f"exec '{program()}' mount-helper" in path.read_text()
    assert run("install-mount-helper", "--remove") == (0, f"removed {path}\n", "")
    code, _, err = run("install-mount-helper", "--remove")
    assert (code, "there is no" in err) == (4, True)


def test_doctor_tells_whether_systemd_runs(machine: Path) -> None:
    assert "does not run here" in findings.systemd().message
    (machine / "booted").mkdir()
    assert "`unifs install-service DIR`" in findings.systemd().message


def test_doctor_finds_what_starts_a_program_that_is_gone(machine: Path) -> None:
    assert findings.installed() == []
    gone = str(machine / "venv/bin/unifs")
    command = (gone, "mount", "--", "/srv/ipfs")
    unit = units.Unit("/srv/ipfs", command, "/srv/state", is_system=True)
    units.install(unit, is_now=False)
    mounthelper.install(gone, mounthelper.PATH)
    service, helper = findings.installed()
    assert (service.is_ok, helper.is_ok) == (False, False)
    assert f"starts {gone}, which is not there" in service.message
    assert "unifs install-mount-helper" in helper.remedy
    Path(gone).parent.mkdir(parents=True)
    Path(gone).symlink_to("/bin/sh")
    assert all(each.is_ok for each in findings.installed())
