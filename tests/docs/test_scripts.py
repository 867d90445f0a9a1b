"""The scripts that a newcomer and CI run: what they say, what they leave alone, what they clean up.

They are run from this checkout, whose environment is set up already: the tests run in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Stands in for a machine without the rights, or without the means, to install a package.
POOR_MACHINE = """
root=$1; source "$root/scripts/setup.sh"
id() { echo 1000; }
have() { case $1 in %s) true;; *) false;; esac; }
require_commands sh:dash rsync:rsync mkfs.xfs:xfsprogs
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in an environment that holds PATH and what is given, and nothing else."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"]} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_unifs_runs_from_anywhere_and_imports_from_nowhere_else(tmp_path: Path) -> None:
    # Neither the directory that the user stands in nor a PYTHONPATH may shadow a module.
    (tmp_path / "trio.py").write_text("raise SystemExit('shadowed')")
    link = tmp_path / "a link to unifs"
    link.symlink_to(ROOT / "scripts/unifs")
    result = run(link, "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path), HOME="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("unifs ")
    assert result.stderr == ""


def test_missing_packages_are_named_with_the_command(tmp_path: Path) -> None:
    script = POOR_MACHINE % "sh|apt-get"
    result = run("bash", "-c", script, "bash", ROOT, cwd=tmp_path)
    assert result.returncode == 1
    assert "this machine lacks: rsync xfsprogs" in result.stderr
    assert "sudo apt-get install rsync xfsprogs" in result.stderr
    assert result.stdout == ""


def test_missing_packages_are_named_without_apt(tmp_path: Path) -> None:
    script = POOR_MACHINE % "sh"
    result = run("bash", "-c", script, "bash", ROOT, cwd=tmp_path)
    assert result.returncode == 1
    assert "lacks what Debian calls: rsync xfsprogs" in result.stderr


def test_a_changed_lock_is_noticed(tmp_path: Path) -> None:
    script = """
    root=$1; source "$root/scripts/setup.sh"
    venv=$root/.venv
    is_installed requirements.lock || exit 3
    root=$2
    is_installed requirements.lock && exit 4
    exit 0
    """
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / ".venv/locks").mkdir()
    lock = (ROOT / "requirements.lock").read_text()
    (tmp_path / ".venv/locks/requirements.lock").write_text(lock)
    (tmp_path / "requirements.lock").write_text(lock)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "requirements.lock").write_text(lock + "#")
    result = run("bash", "-c", script, "bash", tmp_path, changed, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.root
def test_what_tests_leave_behind_is_named_and_fails(tmp_path: Path) -> None:
    (tmp_path / "test_leaves.py").write_text(
        "import subprocess\n"
        "def test_leaves(tmp_path):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', str(tmp_path)], check=True)\n"
        "    subprocess.Popen(['sleep', '300'], start_new_session=True,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode = 0\n"
    )
    result = run(ROOT / "scripts/test", "-q", tmp_path / "test_leaves.py", cwd=tmp_path)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert "left behind: mount /tmp/ut." in result.stdout
    assert "left behind: process" in result.stdout
    assert result.returncode == 1
    kept = result.stderr.rsplit(" ", 1)[1].strip()
    assert kept.startswith("/tmp/ut.")
    assert kept not in Path("/proc/self/mountinfo").read_text()
    run("rm", "-rf", "--one-file-system", kept, cwd=tmp_path)


def test_what_a_test_may_lack_is_set_up_by_the_test_script() -> None:
    """A skip is for a machine that refuses; what can be installed is, so CI skips nothing."""
    script = (ROOT / "scripts" / "test").read_text()
    installed = set(re.findall(r"(\S+):\S+", script))
    lacking = re.compile(r'which\("([^"]+)"\) is None')
    found = {
        (program, path.name)
        for path in (ROOT / "tests").rglob("*.py")
        for program in lacking.findall(path.read_text())
    }
    assert {program for program, _ in found} >= {"vim", "gcc", "fusermount3"}
    # Debian's package of Docker starts a server: its tests run where somebody has it.
    assert sorted(each for each in found if each[0] not in installed | {"docker", "dockerd"}) == []
