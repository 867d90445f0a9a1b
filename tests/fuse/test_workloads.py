"""What people do with a directory, with the real programs: the same on a local disk and on /mfs.

The local run proves the test. The test's process runs no code of the daemon, which is a process of
its own, so nothing here can wait for itself.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

#: What git, tar and others inherit: nothing of the user's settings.
QUIET = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "LC_ALL": "C"}
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
PROGRAM_LIMIT_S = 120


@pytest.fixture(params=["local", pytest.param("mfs", marks=pytest.mark.fuse)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory: on the local disk, then in /mfs."""
    if request.param == "local":
        directory = tmp_path / "place"
    else:
        directory = request.getfixturevalue("daemon").root / request.node.name
    directory.mkdir()
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source tree on the local disk: directories, modes, links, names and sizes of all kinds."""
    root = tmp_path / "source"
    noise = random.Random(5)
    for number in range(60):
        directory = root / f"package {number % 6}" / f"module{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}.py").write_bytes(noise.randbytes(noise.choice([0, 90, 5000])))
    (root / "large.bin").write_bytes(noise.randbytes(3_000_001))
    (root / "ümläut").write_text("ü")
    (root / os.fsdecode(b"not-utf8-\xff")).write_text("x")
    script = root / "run.sh"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o755)
    (root / "link").symlink_to("run.sh")
    os.link(script, root / "hard")
    os.utime(root / "large.bin", ns=(10**18, 10**18 + 123_456_789))
    os.setxattr(root / "large.bin", "user.note", b"kept")
    return root


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program; its output if it succeeds, an assertion with its words if not."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **QUIET},
        capture_output=True,
        timeout=PROGRAM_LIMIT_S,
        check=False,
    )
    words = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{command}: {words[-2000:]}"
    return done.stdout.decode(errors="surrogateescape")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_tree(first: Path, second: Path) -> None:
    """Compare two trees: names, kinds, permissions, targets, bytes."""
    for left, right in ((first, second), (second, first)):
        for path in left.rglob("*"):
            other = right / path.relative_to(left)
            ours, theirs = path.lstat(), other.lstat()
            assert ours.st_mode == theirs.st_mode, path
            if path.is_symlink():
                assert path.readlink() == other.readlink()
            elif path.is_file():
                assert ours.st_size == theirs.st_size, path
                assert digest(path) == digest(other), path


def test_cp_archives_a_tree(place: Path, source: Path) -> None:
    run("cp", "-a", source, place / "copy")
    same_tree(source, place / "copy")
    assert (place / "copy/large.bin").stat().st_mtime_ns == 10**18 + 123_456_789
    assert (place / "copy/run.sh").stat().st_nlink == 2
    assert os.getxattr(place / "copy/large.bin", "user.note") == b"kept"


def test_tar_goes_there_and_back(place: Path, source: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tree.tar"
    run("tar", "cf", archive, "-C", source, ".")
    (place / "out").mkdir()
    run("tar", "xpf", archive, "-C", place / "out")
    same_tree(source, place / "out")
    run("tar", "cf", place / "again.tar", "-C", place / "out", ".")
    with tarfile.open(archive) as first, tarfile.open(place / "again.tar") as second:
        assert sorted(first.getnames()) == sorted(second.getnames())
    run("tar", "df", archive, "-C", place / "out")


def test_rsync_copies_everything_and_then_nothing(place: Path, source: Path) -> None:
    target = place / "mirror"
    run("rsync", "-aHAX", f"{source}/", f"{target}/")
    same_tree(source, target)
    assert run("rsync", "-aHAXi", "--checksum", f"{source}/", f"{target}/") == ""
    (source / "ümläut").write_text("changed")
    (source / "package 0/module0/file0.py").unlink()
    run("rsync", "-aHAX", "--delete", "--inplace", f"{source}/", f"{target}/")
    same_tree(source, target)


def test_git_clones_commits_collects_and_checks(place: Path, tmp_path: Path, source: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(source, origin, symlinks=True)
    run("git", "init", "-q", "-b", "main", origin)
    run("git", "add", "-A", cwd=origin)
    run("git", *IDENTITY, "commit", "-qm", "one", cwd=origin)
    clone = place / "clone"
    run("git", "clone", "-q", "--no-hardlinks", origin, clone)
    for number in range(5):
        (clone / f"new{number}").write_text("text\n" * number)
        run("git", "add", "-A", cwd=clone)
        run("git", *IDENTITY, "commit", "-qm", f"change {number}", cwd=clone)
    run("git", "checkout", "-q", "-b", "side", "HEAD~3", cwd=clone)
    run("git", "checkout", "-q", "main", cwd=clone)
    run("git", *IDENTITY, "gc", "-q", "--prune=now", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert len(run("git", "log", "--oneline", cwd=clone).splitlines()) == 6


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_with_two_writers(place: Path, journal: str) -> None:
    path = place / f"{journal}.db"
    with sqlite3.connect(path) as setup:
        assert setup.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        setup.execute("create table t (writer integer, n integer)")
    setup.close()
    errors: list[Exception] = []

    def writer(number: int) -> None:
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            for n in range(40):
                connection.execute("begin immediate")
                connection.execute("insert into t values (?, ?)", (number, n))
                connection.execute("commit")
        except sqlite3.Error as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check = sqlite3.connect(path)
    assert check.execute("pragma integrity_check").fetchone() == ("ok",)
    assert check.execute("select count(*), sum(n) from t").fetchone() == (80, 1560)
    check.close()


def test_an_atomic_save_is_never_seen_missing_or_half(place: Path) -> None:
    path, size_bytes = place / "document", 20_000
    path.write_bytes(b"0" * size_bytes)
    is_done, seen = threading.Event(), []

    def reader() -> None:
        while not is_done.is_set():
            try:
                content = path.read_bytes()
            except OSError as error:
                seen.append(str(error))
                return
            if len(content) != size_bytes or len(set(content)) != 1:
                seen.append(f"{len(content)} bytes of {set(content)}")
                return

    readers = [threading.Thread(target=reader) for _ in range(3)]
    for thread in readers:
        thread.start()
    for number in range(150):
        temporary = place / f".document.{number}"
        temporary.write_bytes(b"%d" % (number % 10) * size_bytes)
        os.replace(temporary, path)
    is_done.set()
    for thread in readers:
        thread.join()
    assert seen == []
    assert os.listdir(place) == ["document"]


def test_vim_saves_in_place_with_a_backup(place: Path) -> None:
    if shutil.which("vim") is None:
        pytest.skip("vim is not installed")
    path = place / "notes.txt"
    path.write_text("first\n")
    path.chmod(0o640)
    editor = [
        "vim",
        "-u",
        "NONE",
        "-i",
        "NONE",
        "-es",
        "-N",
        "--cmd",
        "set backup backupdir=. backupskip=",
    ]
    run(*editor, "-c", "normal Gosecond", "-c", "wq", "notes.txt", cwd=place)
    assert path.read_text() == "first\nsecond\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (place / "notes.txt~").read_text() == "first\n"


def test_a_shared_mapping_reaches_the_file(place: Path) -> None:
    path = place / "mapped"
    path.write_bytes(bytes(300_000))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    mapping[0:5] = b"start"
    mapping[199_998:200_003] = b"pages"
    mapping.flush()
    with path.open("rb") as file:
        assert file.read(5) == b"start"
    mapping[299_995:300_000] = b"later"
    mapping.close()
    content = path.read_bytes()
    assert content[199_998:200_003] == b"pages"
    assert content[-5:] == b"later"
    assert len(content) == 300_000


def test_appends_of_several_processes_are_all_there(place: Path) -> None:
    path = place / "log"
    path.touch()
    line = "import os,sys\nfd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND)\n"
    line += "for i in range(200): os.write(fd,b'%s %04d\\n'%(sys.argv[2].encode(),i))\n"
    writers = [subprocess.Popen([sys.executable, "-c", line, path, name]) for name in "abcd"]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    lines = path.read_text().splitlines()
    expected = [f"{name} {number:04d}" for name in "abcd" for number in range(200)]
    assert sorted(lines) == expected
    for name in "abcd":
        own = [line for line in lines if line[0] == name]
        assert own == sorted(own)


def test_hard_links_are_one_file(place: Path) -> None:
    first, second = place / "first", place / "second"
    first.write_text("one")
    os.link(first, second)
    assert first.stat().st_ino == second.stat().st_ino
    assert first.stat().st_nlink == 2
    with second.open("a") as file:
        file.write(" two")
    assert first.read_text() == "one two"
    first.unlink()
    assert second.read_text() == "one two"
    assert second.stat().st_nlink == 1


def test_symlinks_are_followed_and_kept(place: Path) -> None:
    (place / "directory").mkdir()
    (place / "directory/file").write_text("text")
    (place / "short").symlink_to("directory")
    (place / "dangling").symlink_to("nowhere")
    (place / "long").symlink_to("x" * 4000)
    assert (place / "short/file").read_text() == "text"
    assert not (place / "dangling").exists()
    assert os.readlink(place / "long") == "x" * 4000
    assert (place / "short").lstat().st_size == len("directory")
    with pytest.raises(FileNotFoundError):
        (place / "dangling").read_text()


def test_sparse_files_read_as_zeros(place: Path) -> None:
    path = place / "sparse"
    with path.open("wb") as file:
        file.write(b"head")
        file.seek(5_000_000_000)
        file.write(b"tail")
    assert path.stat().st_size == 5_000_000_004
    assert path.stat().st_blocks * 512 < 100_000_000
    with path.open("rb") as file:
        assert file.read(8) == b"head\0\0\0\0"
        file.seek(2_500_000_000)
        assert file.read(4096) == bytes(4096)
        file.seek(4_999_999_998)
        assert file.read() == b"\0\0tail"
    os.truncate(path, 10)
    os.truncate(path, 20)
    assert path.read_bytes() == b"head" + bytes(16)


def test_what_is_told_of_a_file_that_is_being_written_has_its_blocks(place: Path) -> None:
    """The kernel keeps it when the file is closed: `cp -a`, rsync and tar set times before that."""
    for path, size in ((place / "small", 3000), (place / "large", 3_000_000)):
        with path.open("wb", buffering=0) as file:
            file.write(os.urandom(size))
            os.utime(file.fileno(), ns=(1, 1))
            assert path.stat().st_blocks * 512 >= size
            file.write(os.urandom(size))
            listed = {each.name: each.stat() for each in os.scandir(place)}
            assert listed[path.name].st_blocks * 512 >= 2 * size
        assert path.stat().st_blocks * 512 >= 2 * size


def test_tar_with_holes_reads_what_cp_has_just_copied(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    subprocess.run(["cp", "-a", tmp_path / "file", place / "copy"], check=True)
    subprocess.run(["tar", "-C", place, "-cSf", tmp_path / "tar", "copy"], check=True)
    subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "tar"], check=True)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_program_is_compiled_and_runs(place: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (place / "answer.c").write_text("int answer(void) { return 42; }\n")
    main = '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); }\n'
    (place / "main.c").write_text(main)
    for name in ("answer", "main"):
        run("gcc", "-c", f"{name}.c", "-o", f"{name}.o", cwd=place)
    run("gcc", "main.o", "answer.o", "-o", "program", cwd=place)
    assert run(place / "program") == "42\n"


def test_a_virtual_environment_is_made_and_works(place: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", place / "env")
    python = place / "env/bin/python"
    assert run(python, "-c", "import sys; print(sys.prefix)").strip() == str(place / "env")
    package = next((place / "env/lib").glob("python3*")) / "site-packages/made.py"
    package.write_text("value = 7\n")
    assert run(python, "-c", "import made; print(made.value)") == "7\n"
    assert run(python, "-c", "import made; print(made.__cached__)").startswith(str(place))


def test_dd_writes_syncs_and_reads_back(place: Path, tmp_path: Path) -> None:
    original = tmp_path / "noise"
    original.write_bytes(random.Random(9).randbytes(4_000_000))
    run("dd", f"if={original}", f"of={place}/copy", "bs=64k", "conv=fsync", "status=none")
    assert digest(place / "copy") == digest(original)
    patch = ["dd", "if=/dev/zero", f"of={place}/copy", "bs=1000", "seek=1234", "count=3"]
    run(*patch, "conv=notrunc,fdatasync", "status=none")
    content = bytearray(original.read_bytes())
    content[1_234_000:1_237_000] = bytes(3000)
    assert (place / "copy").read_bytes() == bytes(content)
    run("dd", f"if={place}/copy", f"of={tmp_path}/back", "bs=1M", "iflag=direct", "status=none")
    assert (tmp_path / "back").read_bytes() == bytes(content)


def test_find_du_and_rm_agree(place: Path, source: Path) -> None:
    run("cp", "-a", source, place / "tree")
    listed = run("find", place / "tree", "-type", "f").splitlines()
    expected = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(listed) == len(expected)
    apparent = int(run("du", "--apparent-size", "-sb", place / "tree").split()[0])
    assert apparent >= 3_000_001
    run("rm", "-r", place / "tree")
    assert os.listdir(place) == []


def test_a_removed_open_file_stays_readable_and_writable(place: Path) -> None:
    path = place / "file"
    with path.open("w+b") as file:
        file.write(b"before")
        file.flush()
        path.unlink()
        assert os.listdir(place) == []
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_many_names_are_each_listed_once(place: Path) -> None:
    names = {f"name-{number:04d}" for number in range(2500)}
    for name in names:
        (place / name).touch()
    assert sorted(os.listdir(place)) == sorted(names)
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if number % 2:
                os.unlink(entry.path)
    left = os.listdir(place)
    assert len(left) == len(set(left)) == 1250
