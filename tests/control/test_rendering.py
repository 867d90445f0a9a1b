"""Tables, sizes, times and archives as people meet them."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from unifs.control import locate, render, transfer
from unifs.control.locate import Mounted, Target, mounted
from unifs.errors import Corrupt, Exists, IsADirectory, NoDaemon, NotFound
from unifs.vfs.epochs import SECOND_NS, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("field", "given", "text"),
    [
        ("size_bytes", 0, "0 B"),
        ("size_bytes", 1023, "1023 B"),
        ("size_bytes", 1536, "1.5 KiB"),
        ("size_bytes", 1 << 60, "1024.0 PiB"),
        ("size_bytes", None, "-"),
        ("uptime_s", 0.35, "350 ms"),
        ("uptime_s", 12.4, "12 s"),
        ("uptime_s", 3700, "61 min"),
        ("uptime_s", 10_000, "2 h 46 min"),
        ("uptime_s", 400_000, "4 days"),
        ("is_read_only", True, "yes"),
        ("is_read_only", False, "no"),
        ("names", ["a", "b\n"], "a, b\\n"),
        ("names", [], "-"),
        ("name", "caf\udce9\t\x1b[31m é", "caf\\xe9\\t\\x1b[31m é"),
        ("elapsed_us", 12.55, "12.6"),
        ("count", 3, "3"),
    ],
)
def test_values_are_words(field: str, given: object, text: str) -> None:
    assert render.value(field, given) == text


@pytest.mark.parametrize("field", ["mtime_s", "added_s", "next_try_s", "oldest_unsynced_s"])
def test_moments_are_as_arguments_take_them(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the reader is."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        shown = render.value(field, 1_795_368_605.7)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert shown == "2026-11-22T17:30:05Z"
    assert time_of(shown) == 1_795_368_605 * SECOND_NS


def test_headings_have_no_units() -> None:
    assert render.heading("size_bytes") == "size"
    assert render.heading("is_read_only") == "read only"
    assert render.heading("mtime_s") == "modified"


def test_a_long_table_comes_in_parts_with_one_heading() -> None:
    out = io.StringIO()
    count = render.rows(("number",), ({"number": n} for n in range(2500)), out)
    lines = out.getvalue().splitlines()
    assert (count, len(lines)) == (2500, 2501)
    assert lines.count("NUMBER") == 1


def test_an_empty_cell_has_its_place() -> None:
    out = io.StringIO()
    render.rows(("name", "source", "kind"), [{"name": "ipfs", "source": "", "kind": None}], out)
    assert out.getvalue() == "NAME  SOURCE  KIND\nipfs  -       -\n"


def test_an_empty_table_is_empty() -> None:
    out = io.StringIO()
    assert render.rows(("number",), [], out) == 0
    assert out.getvalue() == ""


def test_a_terminal_gets_a_drawn_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    rows = [{"cid": "bafy", "size_bytes": 2048, "name": "[bold]a[/bold]"}]
    render.rows(("cid", "size_bytes", "name"), rows, out)
    assert "2.0 KiB" in out.getvalue()
    assert "[bold]a[/bold]" in out.getvalue()


def archive(*members: tuple[str, bytes, bytes | str]) -> Iterator[bytes]:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as writing:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o640
            if isinstance(content, str):
                member.linkname = content
                writing.addfile(member)
            else:
                member.size = len(content)
                writing.addfile(member, io.BytesIO(content))
    packed = data.getvalue()
    for start in range(0, len(packed), 1000):
        yield packed[start : start + 1000]


FILE, DIRECTORY, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE


def test_an_archive_is_unpacked_under_a_new_name(tmp_path: Path) -> None:
    chunks = archive(("a", DIRECTORY, b""), ("a/b", FILE, b"x" * 5000), ("a/c", LINK, "/etc"))
    assert transfer.unpack(chunks, tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "b").read_bytes() == b"x" * 5000
    assert (tmp_path / "out" / "b").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out" / "c").readlink().as_posix() == "/etc"
    with pytest.raises(Exists):
        transfer.unpack(archive(("a", FILE, b"y")), tmp_path / "out" / "b")


@pytest.mark.parametrize(
    "members",
    [
        [("a", DIRECTORY, b""), ("a/../evil", FILE, b"x")],
        [("a", DIRECTORY, b""), ("/evil", FILE, b"x")],
        [("a", DIRECTORY, b""), ("b/evil", FILE, b"x")],
        [("a", LINK, "/tmp"), ("a/evil", FILE, b"x")],
        [("a", DIRECTORY, b""), ("a/l", LINK, ".."), ("a/l/evil", FILE, b"x")],
        [("a", DIRECTORY, b""), ("a/dev", tarfile.CHRTYPE, b"")],
        [("a", DIRECTORY, b""), ("a/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [],
    ],
)
def test_an_archive_cannot_write_elsewhere(
    tmp_path: Path, members: list[tuple[str, bytes, bytes | str]]
) -> None:
    with pytest.raises(Corrupt):
        transfer.unpack(archive(*members), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tree_that_comes_in_part_leaves_nothing(tmp_path: Path) -> None:
    members = [("a", DIRECTORY, b""), ("a/b", FILE, b"x"), ("a/c", FILE, b"y" * 90_000)]

    def interrupted() -> Iterator[bytes]:
        yield from list(archive(*members))[:50]
        assert list(tmp_path.iterdir()), "it is under way"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.unpack(interrupted(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise Corrupt("no more")

    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(Corrupt):
        transfer.write_out(failing(), target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
    for directory in (tmp_path, type(tmp_path)()):
        with pytest.raises(IsADirectory):
            transfer.write_out(failing(), directory)


def test_what_bytes_are_written_to_stays_what_it_is(tmp_path: Path) -> None:
    """Root's `--output /dev/null` would leave a file there."""
    private, link, fifo = (tmp_path / name for name in ("private", "link", "fifo"))
    private.write_text("before")
    private.chmod(0o600)
    link.symlink_to("private")
    transfer.write_out([b"after"], link)
    assert (link.is_symlink(), private.read_text()) == (True, "after")
    assert private.stat().st_mode & 0o777 == 0o600
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    transfer.write_out([b"by", b"tes"], fifo)
    assert os.read(reading, 10) == b"bytes"
    os.close(reading)
    assert fifo.is_fifo()
    (tmp_path / "nowhere").symlink_to("none/file")
    with pytest.raises(NotFound, match="there is no directory"):
        transfer.write_out([b"x"], tmp_path / "nowhere")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "fifo",
        "link",
        "nowhere",
        "private",
    ]


MOUNTINFO = rb"""22 1 0:21 / / rw - ext4 /dev/vda rw
40 22 0:50 / /mnt/a\040b rw,nosuid - fuse.unifs unifs:/state/a\040b rw
41 22 0:51 / /mnt/old rw - fuse.unifs unifs rw
42 22 0:52 / /mnt/other rw - fuse.sshfs host:/ rw
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mounted]:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    found = mounted(path)
    monkeypatch.setattr(locate, "mounted", lambda: found)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("UNIFS_HOME", "/default")
    return found


def test_mounted_trees_tell_their_state_directory(table: list[Mounted]) -> None:
    assert [(str(each.mount_point), str(each.state)) for each in table] == [
        ("/mnt/a b", "/state/a b"),
        ("/mnt/old", "None"),
    ]
    assert locate.source_of(table[0].mount_point) == "unifs:/mnt/a b"


def test_a_daemon_is_meant_by_its_mount_point_or_a_path_below(
    table: list[Mounted], tmp_path: Path
) -> None:
    first, old = table
    assert str(Target(None, first.mount_point).state_directory()) == "/state/a b"
    assert str(Target(None, old.mount_point).state_directory()) == "/default"
    target = Target(None, None)
    assert target.tree_path("/mnt/a b/mfs/../mfs/x") == "/mfs/x"
    assert str(target.state_directory()) == "/state/a b"
    assert Target(None, None).tree_path("/mnt/old") == "/"
    assert Target(None, None).tree_path("/mfs/x") == "/mfs/x"
    with pytest.raises(NoDaemon, match="no unifs is mounted at"):
        Target(None, tmp_path).state_directory()
