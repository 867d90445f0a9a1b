"""What mount(8) hands over, option by option, and the program that it calls."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from unifs.errors import Exists, InvalidArgument, NotFound, Unsupported
from unifs.machine import mounthelper
from unifs.machine.mounthelper import Asked, parse

STATE = Path("/srv/state")


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["/srv/state", "/m"], Asked("/m", state=STATE)),
        (["/srv/state", "/m", "-o", "rw"], Asked("/m", state=STATE)),
        (["unifs:/srv/state", "/m"], Asked("/m", state=STATE)),
        (["unifs", "/m", "-o", "rw,state=/srv/state"], Asked("/m", state=STATE)),
        (["none", "/m"], Asked("/m")),
        (
            ["none", "/m", "-o", "ro,allow_other,noexec"],
            Asked("/m", {"read_only": True, "allow_other": True, "noexec": True}),
        ),
        (
            ["none", "/m", "-o", r"config=/etc/a\,b.toml,ro"],
            Asked("/m", {"read_only": True}, config=Path("/etc/a,b.toml")),
        ),
        # As mount(8) calls it, with what it knows of fstab.
        (
            ["none", "/m", "-v", "-o", "rw,noexec,nosuid,nodev,user=ann", "-t", "fuse.unifs"],
            Asked("/m", {"noexec": True}),
        ),
        (
            ["none", "/m", "-o", "x-systemd.automount,x-systemd.idle-timeout=1min,_netdev,nofail"],
            Asked("/m"),
        ),
        (["none", "/m", "-o", "defaults,noauto,users,comment=backup"], Asked("/m")),
        (["none", "/m", "-f", "-n"], Asked("/m", is_fake=True)),
        (["none", "/m", "-s", "-o", "whatever"], Asked("/m")),
    ],
)
def test_understood(words: list[str], asked: Asked) -> None:
    assert parse(words) == asked


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/m"], "a state directory and a mount point are needed"),
        (["a", "b", "c"], "a state directory and a mount point are needed"),
        (["relative", "/m"], "'relative' is no source: give a state directory"),
        (["none", "/m", "-o", "state=relative"], "state=relative has to be an absolute path"),
        (["none", "/m", "-o", "allow_othr"], "unknown mount option 'allow_othr'; did you mean"),
        (["none", "/m", "-o", "uid=5"], "unknown mount option 'uid=5'; there are allow_other"),
        (["/a", "/m", "-o", "state=/b"], "the source says /a, state= says /b"),
        (["none", "/m", "--sideways"], "--sideways is no option of mount"),
    ],
)
def test_mistakes_are_named(words: list[str], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(sentence)):
        parse(words)


@pytest.mark.parametrize("option", sorted(mounthelper.REFUSED))
def test_what_cannot_be_had_is_refused_not_ignored(option: str) -> None:
    with pytest.raises(Unsupported, match=f"the option {option} is not offered: "):
        parse(["none", "/m", "-o", f"rw,{option}"])


def test_a_file_called_unifs_here_is_not_taken_for_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mount(8) makes a path of a source that is the name of something in its directory."""
    here = tmp_path / "unifs"
    here.mkdir()
    words = [str(here), "/mnt", "-o", "rw"]
    assert parse(words).state == here
    monkeypatch.chdir(tmp_path)
    assert parse(words).state is None
    assert parse([f"unifs:{here}", "/mnt"]).state == here
    (here / "tree.db").touch()
    assert parse(words).state == here


def test_another_mount_namespace_is_refused() -> None:
    with pytest.raises(Unsupported, match="nsenter"):
        parse(["none", "/m", "-N", "/proc/1/ns/mnt"])


def test_exit_codes_are_those_of_mount(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert mounthelper.mount(["none", "/m", "-o", "foo"]) == 1
    assert mounthelper.mount(["none", "/m", "-o", "sync"]) == 32
    assert mounthelper.mount([str(tmp_path / "state"), str(tmp_path / "absent")]) == 32
    assert mounthelper.mount(["none", "/m", "-f"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert (
        said[2] == f"mount.fuse.unifs: {tmp_path}/absent does not exist: make the directory first"
    )
    assert all(line.startswith("mount.fuse.unifs: ") for line in said)


def test_the_program_is_written_run_and_removed(tmp_path: Path) -> None:
    program = tmp_path / "it's unifs"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    path = tmp_path / "sbin" / "mount.fuse.unifs"
    path.parent.mkdir()
    assert mounthelper.install(str(program), path) == [f"wrote {path}"]
    done = subprocess.run([path, "a b", "/m", "-o", "ro"], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"mount-helper\n--\na b\n/m\n-o\nro\n"
    mounthelper.install(str(program), path)
    assert mounthelper.remove(path) == [f"removed {path}"]
    assert list(path.parent.iterdir()) == []
    with pytest.raises(NotFound, match="there is no "):
        mounthelper.remove(path)


def test_somebody_elses_program_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "mount.fuse.unifs"
    theirs.write_text("#!/bin/sh\n")
    with pytest.raises(Exists, match="was not written by unifs"):
        mounthelper.install("/bin/true", theirs)
    with pytest.raises(Exists, match="was not written by unifs"):
        mounthelper.remove(theirs)
    assert list(tmp_path.iterdir()) == [theirs]
