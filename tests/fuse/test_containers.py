"""A tree bound into containers: it is seen again after a crash and a remount, and by whom.

The containers are a mount namespace of util-linux, and those of crun, runc, podman and Docker where
they can be started here; a root file system is put together from this machine's own programs, so
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
    made = Path(tempfile.mkdtemp())
    yield made

    def is_gone() -> bool:
        # What podman leaves behind to clean up writes there when its container is gone.
        shutil.rmtree(made, ignore_errors=True)
        return not made.exists()

    until(is_gone, "what podman kept is removed")


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


#: A user with subordinate ids, in namespaces that end with him: podman leaves a process behind.
USER = 4000
ROOTLESS = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("--propagation", "slave", "sh", "-ec"),
    f"""
mkdir "$0/etc" "$0/home"
cp -a /etc/passwd /etc/group /etc/alternatives /etc/containers "$0/etc/"
echo "unifs-test:x:{USER}:{USER}::$0/home:/bin/sh" >> "$0/etc/passwd"
echo "unifs-test:400000:65536" | tee "$0/etc/subuid" > "$0/etc/subgid"
mount --bind "$0/etc" /etc
mount -t tmpfs tmpfs /run
mkdir /run/unifs-test
chown -R {USER}:{USER} "$0/home" "$0/root" /run/unifs-test
umount /sys/fs/cgroup/unified 2>/dev/null || true
cd /
exec setpriv --reuid {USER} --regid {USER} --clear-groups \\
    env HOME="$0/home" XDG_RUNTIME_DIR=/run/unifs-test sh -c "$1" sh "$@"
""",
)
#: Starts a container and looks into it once for each line that it reads.
LOOKS = """
shift
"$@" > "$HOME/log" 2>&1 || { cat "$HOME/log"; exit 1; }
echo
while read -r name; do
    podman --cgroup-manager=cgroupfs --storage-driver=vfs exec "$name" cat /host/mnt/mfs/file 2>&1
    echo
done
"""


def test_podman_of_a_user_sees_the_tree_again(short: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user here")
    for program in ("podman", "newuidmap"):
        if shutil.which(program) is None:
            pytest.skip(f"lane containers: {program} is not installed")
    short.chmod(0o755)
    host = Host(short / "host")
    binds = [f"--volume={each}:{each}:ro" for each in PROGRAMS if os.path.isdir(each)]
    run = ["podman", "--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]
    run += ["run", "--detach", "--name=test", "--network=none", "--cgroups=disabled"]
    run += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", *binds]
    run += [f"--volume={host.directory}:/host:rslave", "--rootfs", str(root_directory(short))]
    words = [*ROOTLESS, str(short), LOOKS, *run, "sleep", "600"]
    pipe = subprocess.PIPE
    user = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    assert user.stdin is not None
    assert user.stdout is not None
    asked, answers = user.stdin, user.stdout

    def heard() -> str:
        return "".join(iter(answers.readline, "\n")) if user.poll() is None else answers.read()

    def look() -> str:
        asked.write("test\n")
        asked.flush()
        said = answers.readline().strip()
        if said == "data":
            return said
        assert os.strerror(errno.ENOTCONN) in said + heard(), said
        return str(errno.ENOTCONN)

    try:
        if said := answers.readline().strip():
            pytest.skip(f"lane containers: no container can be started here: {said} {heard()}")
        host.start()
        assert survives(host, look) == "data"
    finally:
        user.kill()
        user.communicate()
        host.close()


# --- Docker -------------------------------------------------------------------------------------


#: The engine writes to /etc, /opt and /run, whatever it is told: those are its own.
ENGINE = (
    *("unshare", "--mount", "--propagation", "slave", "sh", "-ec"),
    'mkdir "$0/etc"; cp -a /etc/passwd /etc/group /etc/alternatives "$0/etc/"\n'
    'mount --bind "$0/etc" /etc; for d in /opt /run; do mount -t tmpfs tmpfs $d; done; exec "$@"',
)


@pytest.fixture
def docker(short: Path) -> Iterator[list[str]]:
    """An engine of its own, without networks; the words with which it is told."""
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        pytest.skip("lane containers: dockerd or docker is not installed")
    socket = f"unix://{short}/socket"
    command = [
        *ENGINE,
        str(short),
        "dockerd",
        f"--host={socket}",
        f"--pidfile={short}/pid",
        "--bridge=none",
    ]
    command += [f"--data-root={short}/data", f"--exec-root={short}/exec", "--storage-driver=vfs"]
    command += ["--iptables=false", "--ip-forward=false", "--ip-masq=false"]
    log = short / "log"
    words = ["docker", f"--host={socket}"]

    def answers() -> bool:
        if engine.poll() is not None:
            reason = " ".join(log.read_text(errors="replace").split())[-500:]
            pytest.skip(f"lane containers: no Docker engine can be started here: {reason}")
        return subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0

    with log.open("wb") as output:
        engine = subprocess.Popen(command, stdout=output, stderr=output, cwd=short)
    try:
        until(answers, "the engine answers")
        yield words
    finally:
        engine.terminate()
        engine.wait(PATIENCE_S)


@pytest.mark.parametrize("propagation", HEARD_AGAIN)
def test_docker_sees_the_tree_again(
    host: Host, tmp_path: Path, docker: list[str], propagation: str
) -> None:
    host.start()
    image = f"unifs-test-{os.getpid()}"
    archive = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", root_directory(tmp_path), "-cf", archive, "."], check=True)
    subprocess.run([*docker, "import", archive, image], stdout=subprocess.DEVNULL, check=True)
    container = Container(docker, tmp_path / "log")
    binds = [f"--volume={each}:{each}:ro" for each in PROGRAMS if os.path.isdir(each)]
    bind = f"type=bind,source={host.directory},target=/host,bind-propagation={propagation}"
    try:
        container.start(
            *("run", "--detach", "--name", container.name, "--network=none", "--mount", bind),
            *(*binds, image, "sleep", "600"),
        )
        assert survives(host, container.look) == HEARD_AGAIN[propagation]
    finally:
        container.close("rm", "--force")
