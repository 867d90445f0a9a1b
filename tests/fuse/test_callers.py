"""Who calls: ordinary users, callers in user namespaces, and users who mount for themselves.

Each test runs a script in a mount namespace of its own, where the tree has a path that an ordinary
user may walk. Such a user keeps one capability, to read the checkout wherever it lies.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import REPOSITORY, Daemon, mounted_with_host
from tests.fuse.conftest import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def run(script: str, *arguments: str | Path) -> str:
    """What a script prints, in a mount namespace of its own."""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]
        + [str(each) for each in arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


# --- callers of a tree that lets others in ------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A tree mounted by root with allow_other, and /local/h."""
    with mounted_with_host(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture(params=["mfs", "local/h"], ids=["mfs", "local"])
def place(shared: Daemon, request: pytest.FixtureRequest) -> Path:
    """A directory of a mount that everybody may write to."""
    made = shared.mount / request.param / request.node.name
    made.mkdir()
    made.chmod(0o777)
    return made


#: Makes one of each kind and says the owner that the caller sees.
MAKE = "cd /mnt; : >file; mkdir directory; ln -s x link; mkfifo fifo; stat -c %u:%g ."
ORDINARY = f"""
mount --bind "$1" /mnt
setpriv --reuid 1234 --regid 567 --clear-groups sh -ec "{MAKE}"
"""
KINDS = ("file", "directory", "link", "fifo")


def owners(place: Path) -> set[tuple[int, int]]:
    found = {(place / kind).lstat() for kind in KINDS}
    return {(each.st_uid, each.st_gid) for each in found}


def test_new_files_belong_to_the_caller(place: Path) -> None:
    assert run(ORDINARY, place) == "0:0\n"
    assert owners(place) == {(1234, 567)}


def test_in_a_directory_with_sgid_they_have_its_group(place: Path) -> None:
    os.chown(place, 0, 89)
    place.chmod(0o2777)
    run(ORDINARY, place)
    assert owners(place) == {(1234, 89)}
    assert (place / "directory").stat().st_mode & 0o2000


#: An ordinary user who is root in a user namespace of his own, as in a rootless container.
ROOTLESS = f"""
mount --bind "$1" /mnt
setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups unshare --user --map-root-user sh -ec '
    {MAKE}
    stat -c %u:%g file
    # Root in there owns what is his, and nothing else.
    chown 0:0 file
    ! chown 1:1 file 2>/dev/null
    ! chmod 700 . 2>/dev/null
'
"""


def test_callers_in_a_user_namespace_appear_with_their_host_uid(place: Path) -> None:
    inside = run(ROOTLESS, place).split()
    # The directory's owner has no number in there; the new file is root's.
    assert inside == [f"{NOBODY}:{NOBODY}", "0:0"]
    assert owners(place) == {(NOBODY, NOBODY)}


def test_a_user_namespace_gives_no_right_over_the_tree(place: Path) -> None:
    (place / "secret").write_text("data")
    (place / "secret").chmod(0o600)
    script = f"""
    mount --bind "$1" /mnt
    as="setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups unshare --user --map-root-user"
    ! $as cat /mnt/secret 2>&1
    """
    assert "Permission denied" in run(script, place)


# --- users who mount ----------------------------------------------------------------------------

#: A machine on which users may mount: /dev/fuse is open to all, and $3 is what /etc/fuse.conf says.
USER = f"""
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
echo "$3" >/mnt/fuse.conf
mount --bind /mnt/fuse.conf /etc/fuse.conf
install -d -o {NOBODY} -g {NOBODY} /mnt/home /mnt/home/tree
cd /mnt/home
export HOME=/mnt/home PYTHONPATH="$2"
unset XDG_RUNTIME_DIR UNIFS_HOME
as="setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups
    --inh-caps +dac_read_search --ambient-caps +dac_read_search"
unifs="$as $1 -P -m unifs"
"""


def as_user(script: str, fuse_conf: str = "") -> str:
    return run(USER + script, sys.executable, REPOSITORY, fuse_conf)


def test_a_user_mounts_for_himself_alone() -> None:
    said = as_user("""
    $unifs mount tree
    $as sh -ec 'echo data >tree/mfs/file; cat tree/mfs/file'
    ls tree 2>&1 || true
    # A crash, and the next mount in its place.
    kill -9 $($unifs status --json | sed 's/.*"pid":\\([0-9]*\\).*/\\1/')
    $unifs mount tree 2>/dev/null
    $as cat tree/mfs/file
    $unifs umount tree
    ls -A tree
    """)
    assert said.splitlines() == [
        "data",
        "ls: cannot access 'tree': Permission denied",
        "data",
    ]


def test_others_are_let_in_only_where_root_permits_it() -> None:
    said = as_user('$unifs mount --allow-other tree 2>&1 || echo "code $?"; ls -A tree')
    assert said.splitlines() == [
        "unifs: other users cannot be let in: /etc/fuse.conf has no line user_allow_other"
        " (as root: echo user_allow_other >> /etc/fuse.conf)",
        "  `unifs doctor` looks for the cause",
        "code 5",
    ]
    script = "$unifs mount --allow-other tree; ls tree; $unifs umount tree"
    assert as_user(script, "user_allow_other").split() == ["ipfs", "local", "mfs"]


# --- a rootless container -----------------------------------------------------------------------

CONTAINER = f"""
mount --rbind "$1" /mnt
mount --make-rslave /mnt
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups \\
    unshare --user --map-root-user --mount --propagation slave sh -c 'echo ready; exec sleep 600'
"""


def test_a_rootless_container_sees_the_tree_again(tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    subprocess.run(["mount", "--bind", host, host], check=True)
    subprocess.run(["mount", "--make-shared", host], check=True)
    daemon = Daemon(host, settings="allow_other = true\n")
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", CONTAINER, "sh", host]
    container = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n"
        inside = ["nsenter", "--user", "--mount", "--target", str(container.pid)]

        def seen() -> str:
            command = [*inside, "cat", "/mnt/mnt/mfs/file"]
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout

        for content in ("first", "second"):
            daemon.start()
            until(lambda: "mfs" in _names(daemon.mount), "the tree answers")
            (daemon.root / "file").write_text(content)
            assert seen() == content
            assert daemon.process is not None
            daemon.process.kill()
            daemon.process.wait()
            assert seen() == ""
    finally:
        container.kill()
        container.communicate()
        daemon.close()
        subprocess.run(["umount", "--lazy", host], check=True)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
