"""Every operation through the command line, the socket and the real embedded node."""

from __future__ import annotations

import gc
import io
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from unifs.control import commands, ops
from unifs.control.daemon_protocol import JournalRecord
from unifs.telemetry import Access

if TYPE_CHECKING:
    from pathlib import Path

    from tests.control.conftest import Shell

HELLO = b"hello unifs\n"
#: The raw block of the word "missing", which nothing here adds.
MISSING = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


async def add(shell: Shell, path: Path | str, *options: str) -> str:
    (added,) = await shell.json("ctl", "add", str(path), *options)
    return str(added["cid"])


async def test_a_file_goes_in_and_comes_out_the_same(shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "hello.txt"
    source.write_bytes(HELLO)
    cid = await add(shell, source)
    code, out, _ = await shell.run("ctl", "cat", cid)
    assert (code, out) == (0, HELLO)
    code, out, _ = await shell.run("ctl", "cat", f"/ipfs/{cid}", "-o", "6", "-l", "5")
    assert out == b"unifs"
    assert (await shell.text("ctl", "cat", cid, "--output", "copy")) == ""
    assert (tmp_path / "copy").read_bytes() == HELLO
    (found,) = await shell.json("ctl", "stat", cid)
    assert (found["kind"], found["size_bytes"], found["cid"]) == ("file", len(HELLO), cid)
    text = await shell.text("ctl", "add", "hello.txt")
    assert f"cid          {cid}" in text
    assert "size         12 B" in text
    assert await shell.text("ctl", "add", "hello.txt", "--field", "cid") == f"{cid}\n"
    assert await shell.text("ctl", "pins", "ls", "--field", "cid") == f"{cid}\n"
    assert await shell.text("ctl", "stat", cid, "--field", "size_bytes") == "12\n"


def _opened() -> list[str]:
    return [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]


async def test_an_archive_that_is_refused_is_closed_at_once(shell: Shell, tmp_path: Path) -> None:
    """Closed by the event loop, later, a file of the mounted tree would freeze it for ever."""
    (tmp_path / "a").write_bytes(b"a" * 3_000_000)
    gc.disable()
    try:
        code, _, _ = await shell.run("ctl", "dag", "import", "a")
        opened = _opened()
    finally:
        gc.enable()
    assert code == 6
    assert str(tmp_path / "a") not in opened


async def test_stat_tells_the_cid_of_other_profiles(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2_000_000))
    (tmp_path / "d").mkdir()
    cid = await add(shell, "a")
    assert (await shell.json("ctl", "stat", cid))[0]["as_cid"] is None
    for profile in ("unixfs-v1-2025", "unixfs-v0-2015", "kubo-v1"):
        (found,) = await shell.json("ctl", "stat", cid, "--as", profile)
        assert found["as_cid"] == await add(shell, "a", "--only-hash", "--profile", profile)
        assert (found["cid"], found["as_cid"] == cid) == (cid, profile == "unixfs-v1-2025")
        code, _, err = await shell.run("ctl", "stat", await add(shell, "d"), "--as", profile)
        assert (code, f"`unifs ctl add --only-hash --profile {profile} DIR" in err) == (7, True)
    assert (await shell.run("ctl", "stat", cid, "--as", "v7"))[0] == 2


async def test_only_hash_stores_nothing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    cid = await add(shell, "a", "--only-hash")
    code, out, err = await shell.run("ctl", "cat", cid)
    assert (code, out) == (3, b"")
    assert err.startswith("unifs: ")
    assert "unifs ctl dag import" in err
    assert cid == await add(shell, "a")


async def test_a_path_is_looked_at_in_a_thread_since_it_may_be_in_the_tree_itself(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    loop = threading.get_ident()
    looked: list[int] = []
    access = os.access

    def noting(*arguments: Any, **more: Any) -> bool:
        looked.append(threading.get_ident())
        return access(*arguments, **more)

    monkeypatch.setattr(os, "access", noting)
    await add(shell, "a")
    assert looked
    assert loop not in looked


async def test_a_file_that_is_another_one_for_the_daemon_is_sent_to_it(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(HELLO * 1000)
    (tmp_path / "d").mkdir()
    expected = await add(shell, "a")
    monkeypatch.setattr(commands, "os", _ElsewhereOs)
    assert await add(shell, "a") == expected
    shutil.copyfile("/proc/filesystems", "copy")
    copied = await add(shell, "copy")
    assert await add(shell, "/proc/filesystems") == copied, "which says that it is empty"
    code, _, err = await shell.run("ctl", "add", "d")
    assert (code, "another file for the daemon" in err) == (4, True)


async def test_a_fifo_is_read_by_the_command_and_not_by_the_daemon(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    expected = await add(shell, "a")
    os.mkfifo("fifo")
    with monkeypatch.context() as patched:
        patched.setattr(commands, "os", _ElsewhereOs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, (tmp_path / "fifo").write_bytes, HELLO)
            assert await add(shell, "fifo") == expected
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        code, _, err = await shell.run("ctl", "add", "socket")
    assert (code, "neither a file nor a directory" in err) == (7, True)


class _ElsewhereOs:
    """The ``os`` of a caller in another mount namespace: its inode numbers are different."""

    path = os.path

    @staticmethod
    def stat(path: str) -> SimpleNamespace:
        real = os.stat(path)
        return SimpleNamespace(
            st_dev=real.st_dev, st_ino=-1, st_mode=real.st_mode, st_size=real.st_size
        )


async def test_stdin_is_one_file(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    expected = await add(shell, "a")
    with (tmp_path / "a").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert await add(shell, "-") == expected


async def test_the_profile_decides_the_cid(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    old = await add(shell, "a", "--profile", "unixfs-v0-2015")
    assert old.startswith("Qm")
    assert (await add(shell, "a")).startswith("bafk")


async def test_a_directory_is_added_listed_and_written_out(shell: Shell, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "b").write_bytes(HELLO * 100)
    (top / "link").symlink_to("sub/b")
    strange = os.fsdecode(b"caf\xe9\n")
    (top / strange).write_bytes(b"x")
    (added,) = await shell.json("ctl", "add", "top")
    assert (added["name"], added["directories"]) == ("top", 2)
    cid = added["cid"]
    links = await shell.json("ctl", "ls", cid)
    kinds = {each["name"]: each["kind"] for each in links}
    assert kinds == {"caf%E9%0A": "file", "link": "symlink", "sub": "directory"}
    listed = await shell.text("ctl", "ls", cid)
    assert listed.splitlines()[0].split() == ["CID", "KIND", "SIZE", "NAME"]
    assert "caf\\xe9\\n" in listed
    await shell.text("ctl", "get", cid, "--output", "out")
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == HELLO * 100
    assert (tmp_path / "out" / strange).read_bytes() == b"x"
    assert os.readlink(tmp_path / "out" / "link") == "sub/b"
    code, _, err = await shell.run("ctl", "get", cid, "--output", "out")
    assert (code, err.splitlines()[0]) == (5, "unifs: out exists")
    code, out, _ = await shell.run("ctl", "get", f"{cid}/sub", "--output", "-")
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getnames() == ["sub", "sub/b"]
    code, _, err = await shell.run("ctl", "cat", cid)
    assert (code, "is a directory" in err) == (5, True)


async def test_a_path_of_the_tree_means_its_cid(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    cid = await add(shell, "a", "--no-pin")
    files = shell.world.files
    files.tree |= {"/mfs/a": HELLO, "/mfs/late": b"", "/local/none": b""}
    files.cids["/mfs/a"] = cid
    assert await shell.text("ctl", "cat", "/mfs/a") == HELLO.decode()
    (found,) = await shell.json("ctl", "stat", "/mfs/a")
    (pinned,) = await shell.json("ctl", "pins", "add", "/mfs/a")
    (gone,) = await shell.json("ctl", "pins", "rm", "/mfs/a")
    (block,) = await shell.json("ctl", "block", "stat", f"/ipfs/{cid}")
    assert {found["cid"], pinned["cid"], gone["cid"], block["cid"]} == {cid}
    assert await shell.text("ctl", "block", "get", "/mfs/a") == HELLO.decode()
    for stdout in ("-", "/dev/stdout"):
        assert await shell.text("ctl", "cat", cid, "--output", stdout) == HELLO.decode()
    assert await shell.run("ctl", "dag", "export", "/mfs/a") == await shell.run(
        "ctl", "dag", "export", cid
    )
    await shell.text("ctl", "get", "/mfs/a", "--output", "copy")
    assert (tmp_path / "copy").read_bytes() == HELLO
    # What lies in /mfs has one always: soon.
    for path, code in (("/mfs/late", 3), ("/local/none", 7), ("/mfs/missing", 4), ("/", 4)):
        assert (await shell.run("ctl", "cat", path))[0] == code


async def test_pins_are_added_listed_named_and_removed(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    cid = await add(shell, "a", "--no-pin")
    assert await shell.json("ctl", "pins", "ls") == []
    (pin,) = await shell.json("ctl", "pins", "add", cid, "--name", "greeting")
    assert (pin["cid"], pin["mode"], pin["name"]) == (cid, "recursive", "greeting")
    (listed,) = await shell.json("ctl", "pins", "ls", "-n", "greeting")
    assert listed["cid"] == cid
    (verdict,) = await shell.json("ctl", "pins", "verify")
    assert verdict["is_whole"]
    code, _, err = await shell.run("ctl", "pins", "add", cid, "--mode", "direct")
    assert (code, "pinned recursively already" in err) == (5, True)
    await shell.text("ctl", "pins", "rm", cid)
    code, _, err = await shell.run("ctl", "pins", "rm", cid)
    assert (code, err.splitlines()[0]) == (4, f"unifs: {cid} is not pinned")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ctl", "pins", "add", "zzz"], 2),
        (["ctl", "cat", "/ipfs/"], 2),
        (["ctl", "cat", "/ipns/k51"], 7),
        (["ctl", "cat", MISSING], 3),
        (["ctl", "block", "get", "nonsense"], 2),
        (["ctl", "add", "missing"], 4),
        (["ctl", "add"], 2),
        (["ctl", "add", "a", "--profile", "v9"], 2),
        (["ctl", "cat", MISSING, "-o", "-1"], 2),
        (["ctl", "journal", "list", "-n", "0"], 2),
        (["ctl", "sync", "--timeout", "nan"], 2),
        (["ctl", "sync", "--timeout", "1e999"], 2),
        (["ctl", "verify", "--after", "9" * 30], 2),
        (["ctl", "files", "stat", "/mfs/missing"], 4),
        (["ctl", "nothing"], 2),
        (["ctl", "pins", "ad"], 2),
        (["nothing"], 2),
    ],
)
async def test_what_is_wrong_has_its_exit_code_and_one_sentence(
    shell: Shell, arguments: list[str], code: int
) -> None:
    found, out, err = await shell.run(*arguments)
    assert (found, out) == (code, b"")
    lines = err.splitlines()
    assert lines[0].startswith("unifs: ")
    assert len(lines) <= 2
    assert "Traceback" not in err


async def test_what_is_wrong_is_named(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    (tmp_path / "d").mkdir()
    cid = await add(shell, "a")
    for words, code, said in (
        (["add", "a", "-w", "--name", "b/c"], 2, "'b/c' cannot be a name"),
        (["add", "a", "-w", "--name", "é" * 200], 2, "longer than 255 bytes"),
        (["add", "a", "--no-pin", "--pin-name", "x"], 2, "nothing is to be pinned"),
        (["dag", "import", "a", "--no-pin-roots", "--pin-name", "x"], 2, "nothing is to be pinned"),
        (["dag", "import", "a"], 6, "make or fetch the archive again"),
        (["dag", "import", "d"], 5, f"{tmp_path}/d: Is a directory"),
        (["get", cid, "-o", "none/a"], 4, "there is no directory none"),
        (["cat", cid, "--output", "none/a"], 4, "there is no directory none"),
        (["cat", cid, "--output", "d"], 5, "d is a directory"),
    ):
        found, _, err = await shell.run("ctl", *words)
        assert (found, said in err) == (code, True), err


async def test_blocks_and_archives(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    cid = await add(shell, "a")
    (found,) = await shell.json("ctl", "block", "stat", cid)
    assert found == {"status": "success", "cid": cid, "size_bytes": len(HELLO)}
    _, out, _ = await shell.run("ctl", "block", "get", cid)
    assert out == HELLO
    await shell.text("ctl", "dag", "export", cid, "--output", "a.car")
    await shell.text("ctl", "pins", "rm", cid)
    (imported,) = await shell.json("ctl", "dag", "import", "a.car", "--pin-name", "back")
    assert (imported["roots"], imported["pinned"], imported["blocks"]) == ([cid], [cid], 1)
    (pin,) = await shell.json("ctl", "pins", "ls")
    assert pin["name"] == "back"
    (tmp_path / "cut.car").write_bytes((tmp_path / "a.car").read_bytes()[:-3])
    code, _, err = await shell.run("ctl", "dag", "import", "cut.car")
    assert (code, err.startswith("unifs: ")) == (6, True)


async def test_the_repository_is_counted_collected_and_verified(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(HELLO)
    await add(shell, "a", "--no-pin")
    (stat,) = await shell.json("ctl", "repo", "stat")
    assert stat["blocks"] == 1
    (verified,) = await shell.json("ctl", "repo", "verify")
    assert (verified["event"], verified["blocks"], verified["damaged"]) == ("verified", 1, 0)
    (collected,) = await shell.json("ctl", "repo", "gc")
    assert collected["status"] == "success"
    assert "removed blocks" in await shell.text("ctl", "repo", "gc")


async def test_files_of_the_tree(shell: Shell) -> None:
    tree = shell.world.files.tree
    tree["/mfs/a"] = HELLO
    await shell.text("ctl", "files", "mkdir", "-p", "/mfs/d")
    await shell.text("ctl", "files", "cp", "/mfs/a", "/mfs/d/b")
    await shell.text("ctl", "files", "mv", "/mfs/a", "/mfs/c")
    assert set(tree) == {"/mfs", "/mfs/c", "/mfs/d", "/mfs/d/b"}
    names = [each["name"] for each in await shell.json("ctl", "files", "ls")]
    assert names == ["c", "d"]
    (stat,) = await shell.json("ctl", "files", "stat", "/mfs/c")
    assert (stat["kind"], stat["size_bytes"]) == ("file", 12)
    code, _, err = await shell.run("ctl", "files", "rm", "/mfs/d")
    assert (code, err.splitlines()[0]) == (5, "unifs: /mfs/d is not empty")
    await shell.text("ctl", "files", "rm", "-r", "/mfs/d")
    assert set(tree) == {"/mfs", "/mfs/c"}
    strange = os.fsdecode(b"/mfs/caf\xe9")
    await shell.text("ctl", "files", "mkdir", strange)
    assert strange in tree
    code, _, err = await shell.run("ctl", "files", "mkdir", strange)
    assert (code, err.splitlines()[0]) == (5, "unifs: /mfs/caf\\xe9 exists")


async def test_mounts_are_listed_added_and_removed(shell: Shell, tmp_path: Path) -> None:
    await shell.text("ctl", "mounts", "add", "local/here", ".")
    listed = {each["name"]: each["source"] for each in await shell.json("ctl", "mounts", "list")}
    assert listed == {"mfs": "", "local/here": str(tmp_path)}
    shell.world.mounts.unsynced.add("local/here")
    code, _, err = await shell.run("ctl", "mounts", "remove", "local/here")
    assert (code, "unifs ctl journal sync" in err) == (5, True)
    await shell.text("ctl", "mounts", "remove", "local/here", "--force")
    assert len(await shell.json("ctl", "mounts", "list")) == 1


async def test_the_journal_is_counted_listed_and_synced(shell: Shell) -> None:
    shell.world.journal.records = [
        JournalRecord(
            sequence=number,
            time_s=0.0,
            operation="content",
            state="sealed",
            size_bytes=number,
            path=f"/mfs/{number}",
        )
        for number in range(5)
    ]
    (status,) = await shell.json("ctl", "journal", "status")
    assert (status["sealed"], status["closed"]) == (5, 0)
    newest = await shell.json("ctl", "journal", "list", "-n", "2", "--only", "sealed")
    assert [each["sequence"] for each in newest] == [4, 3]
    assert len(await shell.json("ctl", "journal", "list", "/mfs/3")) == 1
    code, _, err = await shell.run("ctl", "journal", "sync", "--timeout-s", "1")
    assert (code, err.splitlines()[0]) == (3, "unifs: not synced after 1 s")
    await shell.text("ctl", "journal", "sync", "/mfs")
    assert {each.state for each in shell.world.journal.records} == {"synced"}


async def test_status_explain_id_and_version(shell: Shell) -> None:
    text = await shell.text("status")
    assert "uptime         62 min" in text or "uptime" in text
    assert "50.0 MiB" in text
    assert text == await shell.text("ctl", "status")
    explained = await shell.text("explain", "/mfs/a")
    assert re.search(r"\nbytes from +segments of the state directory\n", explained)
    assert shell.world.explained == ["/mfs/a"]
    (identity,) = await shell.json("ctl", "id")
    assert (identity["kind"], identity["peer_id"]) == ("embedded", None)
    (version,) = await shell.json("ctl", "version")
    assert version["profile"] == "unixfs-v1-2025"


async def test_the_access_log_is_followed_until_its_reader_leaves(shell: Shell) -> None:
    from unifs.control.client import Client

    log = shell.world.access_log
    client = Client(shell.world.settings.socket_path)
    access = Access(1_000_000_000, "read", 7, b"\xff", 0, 10, 1, 0, 5, 12_500)
    lines: list[dict[str, Any]] = []

    def follow() -> None:
        events = client.events("log.access", {"errors": True})
        lines.append(next(events))
        events.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, follow)
        with trio.fail_after(120):
            while not log.is_read:  # noqa: ASYNC110 (a thread's request brings it about)
                await trio.sleep(0.001)
            log.record(access._replace(errno=0))
            log.record(access)
            while log.is_read:  # noqa: ASYNC110 (a closed connection brings it about)
                await trio.sleep(0.001)
    assert lines[0]["error"] == "EIO"
    assert (lines[0]["name"], lines[0]["elapsed_us"]) == ("\udcff", 12.5)


def test_each_word_leads_to_the_module_that_declares_it() -> None:
    registry = ops.operations()
    assert {each.words[0] for each in registry} == set(ops.MODULES)
    for each in registry:
        assert each.function.__module__ == f"unifs.control.ops.{ops.MODULES[each.words[0]]}"
        assert each.mutates == (each.scope == "write") or each.scope == "admin"
