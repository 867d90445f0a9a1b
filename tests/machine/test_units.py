"""systemd units: their text, checked by systemd itself, and what installing refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from unifs.errors import Busy, Exists, MountFailed, NotFound, Unsupported
from unifs.machine import program, units

if TYPE_CHECKING:
    from pathlib import Path

#: Every character that a unit file, a specifier or a shell could take for something else.
HARD = "/srv/a b%h$HOME\"'\\x-é;#~"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose units lie below tmp_path, on a machine that systemd has not booted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(units, "BOOTED", tmp_path / "booted")
    monkeypatch.setattr(units, "SYSTEM_UNITS", tmp_path / "system")
    return tmp_path


@pytest.fixture
def systemctl(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it is asked; it fails for words in the file "fails"."""
    units.BOOTED.mkdir()
    asked = home / "asked"
    script = home / "bin" / "systemctl"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{asked}\n'
        f'for word; do if grep -qx -- "$word" {home}/fails; then echo "no $word" >&2; exit 1; fi\n'
        "done\n"
    )
    script.chmod(0o755)
    (home / "fails").touch()
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return asked


def unit(is_system: bool = False, place: str = "/srv/ipfs") -> units.Unit:
    command = ("/bin/true", "mount", "--foreground", "--state", f"{place}.state", "--", place)
    return units.Unit(place, command, f"{place}.state", is_system)


@pytest.mark.parametrize("is_system", [False, True], ids=["user", "system"])
@pytest.mark.parametrize("place", ["/srv/ipfs", HARD])
def test_systemd_understands_the_unit(tmp_path: Path, is_system: bool, place: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    made = unit(is_system, place)
    path = tmp_path / made.name
    path.write_text(made.text())
    scope = "--system" if is_system else "--user"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", scope, str(path)],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    # It complains about whatever else this machine has installed, too.
    ours = [line for line in done.stderr.splitlines() if "unifs" in line or made.name in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["/srv/ipfs", "/", "/.a/b-c", "//srv//x/", HARD, "/a\udcff"])
def test_names_are_escaped_as_systemd_does(path: str) -> None:
    if shutil.which("systemd-escape") is None:
        pytest.skip("systemd-escape is not installed")
    done = subprocess.run(
        ["systemd-escape", "--path", os.fsencode(path)], stdout=subprocess.PIPE, check=True
    )
    assert units.unit_name(path) == f"unifs-{done.stdout.decode().strip()}.service"


def test_a_unit_says_what_keeps_a_mirror_job_safe() -> None:
    lines = unit().text().splitlines()
    assert "Type=notify" in lines
    assert "Restart=on-failure" in lines
    # Run after a crash as well, either would unmount the dead tree.
    assert not [line for line in lines if line.startswith(("ExecStop=", "ExecStopPost="))]
    # A mount namespace of its own would hide the tree.
    hiding = ("PrivateTmp", "PrivateMounts", "Protect", "ReadOnlyPaths", "NoNewPrivileges")
    assert not [line for line in lines if line.startswith(hiding)]


def test_a_unit_of_the_machine_waits_for_the_disks_it_needs() -> None:
    text = unit(is_system=True).text()
    assert "RequiresMountsFor=/srv\n" in text
    assert "WantedBy=multi-user.target" in text
    assert "RequiresMountsFor" not in unit().text()


def test_installing_writes_enables_and_starts(home: Path, systemctl: Path) -> None:
    told = units.install(unit(), is_now=True)
    path = home / "config/systemd/user/unifs-srv-ipfs.service"
    assert told[0] == f"wrote {path}"
    assert path.read_text() == unit().text()
    name = path.name
    asked = [f"--user daemon-reload\n--user enable {name}\n--user restart {name}\n"]
    assert systemctl.read_text() == "".join(asked)
    units.install(unit(), is_now=False)
    assert systemctl.read_text().endswith(f"--user enable {name}\n")


def test_a_system_unit_has_no_user_scope(home: Path, systemctl: Path) -> None:
    units.install(unit(is_system=True), is_now=False)
    assert (home / "system/unifs-srv-ipfs.service").exists()
    assert "--user" not in systemctl.read_text()


def test_uninstalling_stops_and_removes(home: Path, systemctl: Path) -> None:
    units.install(unit(), is_now=False)
    systemctl.unlink()
    assert units.uninstall("/srv/ipfs", is_system=False)[0].startswith("removed ")
    name = "unifs-srv-ipfs.service"
    assert systemctl.read_text() == f"--user disable --now {name}\n--user daemon-reload\n"
    assert not (home / "config/systemd/user" / name).exists()
    with pytest.raises(NotFound, match=name):
        units.uninstall("/srv/ipfs", is_system=False)


def test_without_systemd_the_unit_is_written_and_the_command_named(home: Path) -> None:
    told = units.install(unit(), is_now=False)
    enabling = "`systemctl --user enable unifs-srv-ipfs.service` lets it start where it does"
    assert told[1] == f"systemd does not run here: {enabling}"
    assert units.uninstall("/srv/ipfs", is_system=False)
    with pytest.raises(Unsupported, match="systemd does not run here"):
        units.install(unit(), is_now=True)
    assert not unit().path.exists()


def test_somebody_elses_unit_is_left_alone(home: Path) -> None:
    unit().path.parent.mkdir(parents=True)
    unit().path.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(Exists, match="was not written by unifs"):
        units.install(unit(), is_now=False)
    with pytest.raises(Exists, match="was not written by unifs"):
        units.uninstall("/srv/ipfs", is_system=False)
    assert "ExecStart=/bin/true" in unit().path.read_text()


def test_what_systemctl_says_is_told(home: Path, systemctl: Path) -> None:
    (home / "fails").write_text("restart\n")
    with pytest.raises(MountFailed, match=r"systemctl restart unifs-srv-ipfs.service: no restart"):
        units.install(unit(), is_now=True)


def test_a_tree_mounted_by_hand_is_not_taken_over(
    home: Path, systemctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "mounted_at", lambda place: object())
    monkeypatch.setattr(units, "is_dead", lambda place: False)
    units.install(unit(), is_now=True)
    (home / "fails").write_text("is-active\n")
    with pytest.raises(Busy, match=r"`unifs umount /srv/ipfs` first"):
        units.install(unit(), is_now=True)


def test_the_program_needs_no_path_and_no_environment(tmp_path: Path) -> None:
    done = subprocess.run(
        [program.program(), "--version"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.startswith("unifs ")) == (0, True), done.stderr


def test_an_installed_command_is_taken_where_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.unifs, "__file__", str(tmp_path / "lib/unifs/__init__.py"))
    monkeypatch.setattr(program.sysconfig, "get_path", lambda name: str(tmp_path / "bin"))
    with pytest.raises(NotFound, match="there is no command unifs"):
        program.program()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/unifs"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    assert program.program() == str(command)
