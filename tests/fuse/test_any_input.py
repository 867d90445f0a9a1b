"""Whatever an operation is asked, it answers, and never that there is a bug."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.daemon import Daemon, mounted
from unifs.control.client import Client
from unifs.control.ops import operations
from unifs.errors import UnifsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unifs.control.registry import Operation, Parameter

TIMES = 12
#: Longer than anything here takes, a backend that is not there included.
ANSWER_S = 60.0
#: It never ends by itself.
ENDLESS = {"log.access"}
CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"

PATHS = (
    *("", " ", "/", "//", ".", "..", "a", "/mfs", "/mfs/", "/mfs/d", "/mfs/d/a", "/mfs/../mfs"),
    *(
        "/mfs/d/a/x",
        "/mfs/" + "x" * 300,
        "/" + "a/" * 3000,
        "/mfs/\0",
        "\n",
        "/mfs/é",
        "/mfs/\udcff",
    ),
    *("/mfs/%ff", "/mfs/new", "/local", "/local/h", "/local/h/f", "/ipfs", f"/ipfs/{CID}", CID),
    *(f"{CID}/x", "bafybad", "/ipns/k51", "/s3", "/s3/b", "/s3/b/k", "/.unifs", "/mfs/soft"),
    *("/.unifs/history/mfs", "/.unifs/history/mfs/one/d", "/.unifs/versions", "/mfs/lost+found"),
)
WORDS = (
    *PATHS,
    *("now", "one", "0", "1", "-1", "9" * 30, "2026-13-45T99:99:99Z", "2026-11-21T18:00:00Z"),
    *("x" * 5000, "local/x", "local/..", "local/", "s3", "mfs", "http://[", "http://127.0.0.1:1"),
    *("http://127.0.0.1:99999", "http://user:pw@h/", "ftp://x", "a=b", "١", "-", "--yes"),
)
NUMBERS = (0, 1, -1, 7, 1 << 31, (1 << 63) - 1, -(1 << 63), 1 << 63, 1 << 200)
BODIES = (b"", b"a", b"{}", b"[]", b"\xff" * 100, bytes(70_000), b"<xml/>", b'{"Version":1}')


class Asker:
    """A seeded choice of arguments for each operation, and what it is answered."""

    def __init__(self, server: Daemon, hosts: list[str]) -> None:
        self._client = Client(server.state / "control.sock", timeout_s=ANSWER_S)
        self._random = random.Random(11)
        self._hosts = hosts

    def arguments(self, operation: Operation) -> dict[str, Any]:
        given = {
            each.name: self._value(each)
            for each in operation.parameters
            if each.is_required or self._random.random() < 0.4
        }
        if operation.name in ("sync", "journal.sync"):
            given["timeout_s"] = self._random.choice([-1.0, 0.0, 0.01, 0.5])
        return given

    def _value(self, parameter: Parameter) -> Any:
        choose = self._random.choice
        if self._random.random() < 0.05:
            return choose([None, [], {}, "text", 1.5, True])
        if parameter.choices:
            return choose([*parameter.choices, "bogus"])
        if parameter.is_list:
            return choose([[], ["a=b"], ["a"], ["=", ""], ["a=b"] * 60, [choose(WORDS)]])
        if parameter.param.place in ("host", "upload"):
            return choose(self._hosts)
        known = {int: NUMBERS, float: (0.0, -1.0, 0.1, 1e308), bool: (True, False)}
        pool = PATHS if parameter.param.place == "tree" else WORDS
        return choose(known.get(parameter.type, pool))

    def ask(self, operation: Operation, given: dict[str, Any]) -> str:
        """The code of the error that it ends with, if it does."""
        try:
            if operation.takes_upload:
                chunks = [self._random.choice(BODIES)]
                reply = self._client.upload(operation.name, given, chunks)
            else:
                reply = self._client.download(operation.name, given)
            with reply:
                answer = b"".join(reply.chunks())
        except UnifsError as error:
            return error.code
        # A stream that has begun tells its failure as its last event.
        last = answer.rpartition(b'"error_code":"')[2]
        return last.partition(b'"')[0].decode() if last != answer else ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Daemon]:
    host = tmp_path / "host"
    host.mkdir()
    (host / "f").write_text("host")
    settings = f'[mounts.local]\ndirectories = {{h = "{host}"}}\n[mounts.s3]\nanonymous = true\n'
    settings += 'endpoint = "http://127.0.0.1:1"\n'
    with mounted(tmp_path / "base", settings) as made:
        yield made


def test_no_operation_calls_any_input_a_bug(server: Daemon, tmp_path: Path) -> None:
    os.mkdir(server.root / "d")
    (server.root / "d/a").write_bytes(b"a" * 300_000)
    os.symlink("d", server.root / "soft")
    server.ctl("checkpoint", "one")
    # Directories of this machine that an operation may be told to show, and then to remove from.
    hosts = ["", "relative", "/nonexistent", "/nul\0", "/dev/null", str(server.root / "d/a")]
    hosts += [str(tmp_path / "host"), str(server.mount)]
    asker = Asker(server, hosts)
    asked = 0
    for operation in operations():
        for _ in range(TIMES if operation.name not in ENDLESS else 0):
            given = asker.arguments(operation)
            code = asker.ask(operation, given)
            assert code != "INTERNAL", (operation.name, given, server.tail()[-1500:])
            asked += 1
    assert asked > 500
    for words in (("status",), ("fsck",), ("journal", "verify"), ("verify", "/mfs")):
        answer = server.ctl(*words)
        assert "error_code" not in answer, answer
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("parent", ["file", "soft", "fifo"])
def test_nothing_is_put_into_what_is_no_directory(server: Daemon, parent: str) -> None:
    (server.root / "file").write_bytes(b"file")
    (server.root / "d").mkdir()
    os.symlink("d", server.root / "soft")
    os.mkfifo(server.root / "fifo")
    within = f"/mfs/{parent}/x"
    for words in (
        ("files", "mkdir", within),
        ("files", "mkdir", "--parents", f"{within}/y"),
        ("files", "cp", "/mfs/file", within),
        ("files", "cp", f"/ipfs/{CID}", within),
        ("files", "mv", "/mfs/d", within),
        ("files", "rm", within),
    ):
        assert server.ctl(*words)["error_code"] in ("NOT_A_DIRECTORY", "EXISTS"), words
    assert "error_code" not in server.ctl("fsck")


def test_a_path_of_the_tree_itself_freezes_nothing(server: Daemon, tmp_path: Path) -> None:
    """The event loop would wait for its own answer, and every program with it."""
    place = tmp_path / "bound"
    place.mkdir()
    subprocess.run(["mount", "--bind", server.root, place], check=True)
    try:
        for directory, code in (
            # Names that the kernel has to ask for.
            (server.root / "never/looked/up", "NOT_FOUND"),
            (server.root, "INVALID_ARGUMENT"),
            (server.mount, "INVALID_ARGUMENT"),
            (server.mount.parent, "INVALID_ARGUMENT"),
            (place / "never", "NOT_FOUND"),
            (place, "INVALID_ARGUMENT"),
        ):
            answer = server.ctl("mounts", "add", "local/x", str(directory))
            assert answer.get("error_code") == code, answer
        missing = str(server.root / "no/such.pem")
        words = ("backends", "add", "t", "--endpoint", "https://127.0.0.1:1", "--ca-file", missing)
        assert server.ctl(*words)["error_code"] == "CONFIG_INVALID"
        server.ctl("credentials", "add", "key", "--access-key", "a", "--secret-key-env", "HOME")
        words = ("credentials", "test", "key", "--endpoint", "https://127.0.0.1:1")
        assert server.ctl(*words, "--ca-file", missing)["error_code"] == "CONFIG_INVALID"
    finally:
        subprocess.run(["umount", place], check=True)
    assert server.ctl("explain", "/local/x")["error_code"] == "NOT_FOUND"
