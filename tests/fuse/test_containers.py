"""A tree bound into containers: it is seen again after a crash and a remount, and by whom.

The containers are a mount namespace of util-linux, and those of crun, runc and podman where they
can be started here; a root file system is put together from this machine's own programs, so
nothing is fetched.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.daemon import Daemon
from tests.fuse.conftest import PATIENCE_S, until
from unifs.driver.mountinfo import MNT_DETACH, umount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: What a shell and cat need of this machine, as far as it is there.
PROGRAMS = ("/usr", "/bin", "/lib", "/lib64", "/etc/alternatives")
#: Looks in a container and says the content, or the number of the error.
LOOK = "import sys\ntry: print(open(sys.argv[1]).read())\nexcept OSError as e: print(e.errno)"
HEARD_AGAIN = {"rslave": "data", "rprivate": str(errno.ENOTCONN)}


def lists(directory: Path) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


class Host:
    """A directory that is a shared mount, and the daemon that mounts its tree below it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for change in (["--bind", directory, directory], ["--make-shared", directory]):
            subprocess.run(["mount", *map(str, change)], check=True)
        self.daemon = Daemon(directory, settings="allow_other = true\n")

    def start(self) -> None:
        """Start the daemon, and return when its own tree answers."""
        self.daemon.start()
        # The kernel may still know attributes of a dead tree: only a list asks whoever is there.
        until(lambda: lists(self.daemon.mount), "the tree answers")

    def crash(self) -> None:
        """Kill the daemon and leave its dead mount point, as a crash does."""
        assert self.daemon.process is not None
        self.daemon.process.kill()
        self.daemon.process.wait()

    def close(self) -> None:
        self.daemon.close()
        umount(str(self.directory), MNT_DETACH)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("only root makes containers here")
    made = Host(tmp_path / "host")
    yield made
    made.close()


def survives(host: Host, look: Callable[[], str]) -> str:
    """What a container sees of a file after a crash of the daemon and the next mount."""
    (host.daemon.root / "file").write_text("data")
    assert look() == "data"
    host.crash()
    assert look() == str(errno.ENOTCONN)
    host.start()
    assert (host.daemon.root / "file").read_text() == "data"
    return look()


# --- a mount namespace --------------------------------------------------------------------------

NAMESPACE = """
set -e
mount --rbind "$1" "$2"
mount --make-"$3" "$2"
echo ready
exec sleep 600
"""


@contextmanager
def bound(host: Host, place: Path, propagation: str) -> Iterator[Callable[[], str]]:
    place.mkdir()
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", NAMESPACE, "sh"]
    process = subprocess.Popen(
        [*command, host.directory, place, propagation], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    inside = f"/proc/{process.pid}/root{place}/mnt/mfs/file"
    try:
        yield lambda: said_by(sys.executable, "-c", LOOK, inside)
    finally:
        process.kill()
        process.communicate()


def said_by(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()


@pytest.mark.parametrize("propagation", HEARD_AGAIN)
def test_a_namespace_sees_the_tree_again_only_as_a_slave(
    host: Host, tmp_path: Path, propagation: str
) -> None:
    host.start()
    with bound(host, tmp_path / "inside", propagation) as look:
        assert survives(host, look) == HEARD_AGAIN[propagation]


def test_the_tree_may_be_mounted_after_the_container_has_started(
    host: Host, tmp_path: Path
) -> None:
    with bound(host, tmp_path / "inside", "rslave") as look:
        assert look() == str(errno.ENOENT)
        host.start()
        (host.daemon.root / "file").write_text("data")
        assert look() == "data"
        host.daemon.stop()
        assert look() == str(errno.ENOENT)


# --- containers ---------------------------------------------------------------------------------


def root_directory(base: Path) -> Path:
    """An empty root with a place for each directory of the machine that is bound into it."""
    root = base / "root"
    for name in (*PROGRAMS, "/host", "/proc", "/dev", "/sys", "/tmp", "/run", "/etc"):
        (root / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


def bundle(base: Path, host: Host, propagation: str) -> Path:
    """A bundle of the OCI runtime specification: the host's directory is /host in it."""
    binds: list[dict[str, Any]] = [
        {"destination": each, "type": "bind", "source": each, "options": ["rbind", "ro"]}
        for each in PROGRAMS
        if os.path.isdir(each)
    ]
    shared = {"destination": "/host", "type": "bind", "source": str(host.directory)}
    binds.append({**shared, "options": ["rbind", propagation]})
    binds.append({"destination": "/proc", "type": "proc", "source": "proc"})
    config = {
        "ociVersion": "1.0.0",
        "root": {"path": str(root_directory(base))},
        "mounts": binds,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sleep", "600"],
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "capabilities": {},
        },
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}],
            # What podman and Docker write when a volume is a slave; crun's own default is private.
            "rootfsPropagation": "rslave",
        },
    }
    directory = base / "bundle"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


#: crun refuses a machine with both versions of control groups, though it is told to use none: it
#: sees one of them, in a mount namespace that hears what happens outside.
ONE_VERSION = (
    *("unshare", "--mount", "--propagation", "slave", "sh", "-c"),
    'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$0" "$@"',
)


class Container:
    """One container that sleeps; ``words`` is the runtime with its global options."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.words, self.log = [*ONE_VERSION, *words], log
        self.name = f"unifs-test-{os.getpid()}"

    def start(self, *command: str | Path) -> None:
        with self.log.open("wb") as log:
            done = subprocess.run(
                [*self.words, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=PATIENCE_S,
                check=False,
            )
        if done.returncode:
            reason = " ".join(self.log.read_text(errors="replace").split())
            pytest.skip(f"lane containers: no container can be started here: {reason}")

    def look(self) -> str:
        path = "/host/mnt/mfs/file"
        # The interpreter of the tests need not be in the container; cat's words say the error.
        done = subprocess.run(
            [*self.words, "exec", self.name, "cat", path],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        known = {os.strerror(n): str(n) for n in (errno.ENOTCONN, errno.ENOENT)}
        said = done.stderr.strip().rpartition(": ")[2]
        return known.get(said, done.stderr) if done.returncode else done.stdout

    def close(self, *remove: str) -> None:
        subprocess.run(
            [*self.words, *remove, self.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )


#: Each with what makes it need no control groups of its own where it can do without.
RUNTIMES = {"crun": ("--cgroup-manager=disabled",), "runc": ()}


@pytest.mark.parametrize("propagation", HEARD_AGAIN)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_running_container_sees_the_tree_again_only_as_a_slave(
    host: Host, tmp_path: Path, runtime: str, propagation: str
) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"lane containers: {runtime} is not installed")
    host.start()
    options = [*RUNTIMES[runtime], "--root", str(tmp_path / "runtime")]
    container = Container([runtime, *options], tmp_path / "log")
    try:
        container.start(
            "run", "--detach", "--bundle", bundle(tmp_path, host, propagation), container.name
        )
        assert survives(host, container.look) == HEARD_AGAIN[propagation]
    finally:
        container.close("delete", "--force")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path has less than 50 characters, as podman's run directory has to have."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_podman_sees_the_tree_again(host: Host, tmp_path: Path, short: Path) -> None:
    if shutil.which("podman") is None:
        pytest.skip("lane containers: podman is not installed")
    host.start()
    store = ["--root", str(short / "store"), "--runroot", str(short / "run")]
    words = ["podman", *store, "--cgroup-manager=cgroupfs", "--events-backend=file"]
    container = Container(words, tmp_path / "log")
    binds = [f"--volume={each}:{each}:ro" for each in PROGRAMS if os.path.isdir(each)]
    limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    try:
        container.start(
            *("run", "--detach", "--name", container.name, "--network=none"),
            *("--cgroups=disabled", *limits, *binds),
            f"--volume={host.directory}:/host:rslave",
            *("--rootfs", root_directory(tmp_path), "sleep", "600"),
        )
        assert survives(host, container.look) == "data"
    finally:
        container.close("rm", "--force", "--time=0")
