"""The command line without a daemon: help, completion, settings, exit codes, start-up."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unifs
from unifs import cli, config
from unifs.control.commands import ControlGroup
from unifs.control.ops import operations
from unifs.errors import UnifsError

#: Not needed to ask a daemon something; each would cost tens of milliseconds.
HEAVY = {"trio", "rich", "pyfuse3", "apsw", "prometheus_client", "httpx", "http.client", "tarfile"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("UNIFS_CONFIG", "UNIFS_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unifs.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(unifs.__file__).parent.parent)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def every_command() -> list[list[str]]:
    plain = [["install-service"], ["uninstall-service"], ["install-mount-helper"]]
    plain += [
        ["mount"],
        ["umount"],
        ["doctor"],
        ["status"],
        ["explain"],
        ["completion"],
        ["config"],
    ]
    config_verbs = [["config", each] for each in ("show", "path", "check")]
    words = [each.words for each in operations()]
    nouns = sorted({tuple(each[:depth]) for each in words for depth in range(1, len(each))})
    return [
        [],
        *plain,
        *config_verbs,
        ["ctl"],
        *(["ctl", *each] for each in [*nouns, *words]),
    ]


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_that_reads_well(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, out, err = run(capsys, *words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: unifs")
    first = out.split("\n\n")[1].strip()
    assert first.endswith(".")
    assert first[0].isupper()
    assert max(map(len, out.splitlines())) <= 100


def test_the_groups_list_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "ctl", "--help")
    for each in operations():
        assert f"\n  {each.words[0]} " in out
        for depth in range(1, len(each.words)):
            _, words, _ = run(capsys, "ctl", *each.words[:depth], "--help")
            assert f"\n  {each.words[depth]} " in words


def test_help_cuts_nothing_off_and_keeps_what_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["ctl"], ["config"], ["ctl", "s3"]):
        _, out, _ = run(capsys, *words, "--help")
        assert "..." not in out.partition("Commands:")[2]
    for words in (["status"], ["explain"]):
        _, out, _ = run(capsys, *words, "--help")
        assert "--state" in out
        assert "--mount" in out
    _, out, _ = run(capsys, "ctl", "backends", "add", "--help")
    assert " http(s)://host" in out
    assert " kms: name" in out
    for words in (["get"], ["dag", "export"], ["block", "get"]):
        _, out, _ = run(capsys, "ctl", *words, "--help")
        assert "-o, --output" in out


def test_nothing_and_nonsense_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "Usage: unifs" in err
    code, _, err = run(capsys, "ctl", "pins", "add")
    assert code == 2
    assert err == "unifs: Missing argument 'CID'\n  `unifs ctl pins add --help` shows how\n"
    code, _, err = run(capsys, "ctl", "pins", "ls", "--mode", "sideways")
    assert code == 2
    assert "'recursive', 'direct'" in err
    code, _, err = run(capsys, "ctl", "--state", "a", "--mount", "b", "version")
    assert (code, err.splitlines()[0]) == (2, "unifs: give either --state or --mount")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No such option '--json'"),
        (["--sideways"], "No such option '--sideways'"),
        (["mont"], "No such command 'mont'"),
        (["doctor", "--confi", "x"], "No such option '--confi'"),
        (["doctor", "a", "b"], "Got unexpected extra argument (b)"),
        (["ctl", "pins"], "No such option '--json'"),
        (["ctl", "pin", "ls"], "No such command 'pin'"),
        (["ctl", "pins", "ad"], "No such command 'ad'"),
        (["ctl", "pins", "add"], "Missing argument 'CID'"),
        (["ctl", "pins", "ls", "--mode", "sideways"], "Invalid value for '--mode'"),
        (["ctl", "journal", "list", "--limit", "many"], "Invalid value for '--limit'"),
        (["ctl", "version", "--mont", "x"], "No such option '--mont'"),
        (["ctl", "--state", "a", "--mount", "b", "version"], "give either --state or --mount"),
        (["ctl", "stat", "."], ". lies in no tree that is mounted here"),
        (["ctl", "cat", "../x"], "../x lies in no tree that is mounted here"),
        (["status", "extra"], "Got unexpected extra argument (extra)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_an_error_like_others_for_programs(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    code, out, err = run(capsys, *words, "--json")
    answer = json.loads(out)
    assert (code, out.count("\n")) == (2, 1)
    assert out.startswith('{"status":"error","error":'), "as compact as any other answer"
    assert answer.pop("error").startswith(sentence)
    assert answer.pop("hint") in err
    assert answer == {"status": "error", "error_code": "INVALID_ARGUMENT", "context": {}}
    assert err


@pytest.mark.parametrize(
    "words",
    [
        ["mount", ""],
        ["mount", "--state", "", "a"],
        ["umount", ""],
        ["status", "--state", ""],
        ["ctl", "--mount", "", "status"],
        ["install-service", ""],
        ["ctl", "add", ""],
        ["ctl", "mounts", "add", "local/x", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_directory_that_the_user_is_in(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out, "the path is empty" in err) == (2, "", True)


@pytest.mark.parametrize("words", [["mount"], ["ctl", "add"]], ids=" ".join)
def test_a_path_that_may_not_be_read_is_refused_and_no_wrong_usage(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    words: list[str],
) -> None:
    """Root may read everything: only who asks beforehand hears a no."""
    (home / "a").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode, **_: False)
    code, _, err = run(capsys, *words, str(home / "a"))
    assert (code != 2, "Invalid value" in err) == (True, False), (code, err)


def test_no_daemon_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    code, out, err = run(capsys, "status")
    socket = home / ".local/state/unifs/control.sock"
    assert (code, out) == (9, "")
    assert err == f"unifs: no unifs daemon answers at {socket}\n  `unifs mount DIR` starts one\n"
    code, _, err = run(capsys, "ctl", "--state", "elsewhere", "pins", "ls")
    assert (code, f"{home}/elsewhere/control.sock" in err) == (9, True)
    code, _, err = run(capsys, "ctl", "version", "--mount", str(home))
    assert (code, err.splitlines()[0]) == (9, f"unifs: no unifs is mounted at {home}")


def test_a_bug_says_where_the_traceback_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def broken(*_: object) -> None:
        raise UnifsError("version failed: RuntimeError")

    monkeypatch.setattr("unifs.control.client.Client.call", broken)
    code, _, err = run(capsys, "ctl", "version")
    assert code == 1
    assert err.splitlines()[0] == "unifs: version failed: RuntimeError"
    assert str(home / ".local/state/unifs/unifs.log") in err


def test_version_and_paths(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run(capsys, "--version") == (0, f"unifs {unifs.__version__}\n", "")
    _, out, _ = run(capsys, "config", "path", "--state", "s")
    assert dict(line.split(maxsplit=1) for line in out.splitlines()) == {
        "settings": str(home / ".config/unifs/config.toml"),
        "state": str(home / "s"),
        "socket": str(home / "s/control.sock"),
        "log": str(home / "s/unifs.log"),
    }


def test_settings_are_shown_as_a_file_that_says_the_same(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    file = home / "a.toml"
    file.write_text(
        'offline = true\n[cache]\nmemory_bytes = "32 MiB"\n'
        '[mounts.local.directories]\n"a b" = "/"\n'
    )
    code, out, _ = run(capsys, "config", "show", "--config", str(file))
    assert code == 0
    shown = config.parse(tomllib.loads(out))
    settings = config.load(file=file)
    assert all(getattr(shown, name) == getattr(settings, name) for name in shown.__struct_fields__)
    uncommented = re.sub(r"^# ([a-z_]+ = )", r"\1", out, flags=re.MULTILINE)
    assert config.parse(tomllib.loads(uncommented)) == shown
    assert "\noffline = true\n" in out
    assert "\n# read_only = false\n" in out


def test_a_settings_file_is_checked(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "good.toml").write_text("offline = true")
    (home / "bad.toml").write_text("ofline = true")
    assert run(capsys, "config", "check", "good.toml") == (0, f"{home}/good.toml: ok\n", "")
    code, out, err = run(capsys, "config", "check", "bad.toml")
    assert (code, out) == (2, "")
    assert err.startswith("unifs: ofline is not a setting; did you mean offline?")
    assert run(capsys, "config", "check")[1] == "no settings file: ok\n"


def test_doctor_says_each_thing_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    findings = [json.loads(line) for line in out.splitlines()]
    assert len(findings) > 5
    needed = [each["is_ok"] for each in findings if each["is_needed"]]
    assert code == (0 if all(needed) else 5)
    _, text, _ = run(capsys, "doctor")
    for each in findings:
        assert each["name"] in text


def test_mounting_nowhere_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    code, _, err = run(capsys, "mount", "missing")
    assert code in (4, 5)
    assert err.startswith("unifs: ")
    code, _, err = run(capsys, "mount", "--node", "kubo", str(home))
    assert (code, err.splitlines()[0]) == (
        2,
        "unifs: node: 'kubo' is not one of embedded (in the command line)",
    )
    code, _, err = run(capsys, "umount", str(home))
    assert (code, err.splitlines()[0]) == (4, f"unifs: nothing is mounted at {home}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert (code, "_UNIFS_COMPLETE" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ctl", "files", "ls"], "A directory of the tree. [/mfs]"),
        (["ctl", "s3", "tags", "put"], "PATH TAGS..."),
        (["ctl"], "6 damaged data"),
        (["ctl", "verify"], "CORRUPT (6)"),
    ],
)
def test_help_tells_defaults_lists_and_exit_codes(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, out, _ = run(capsys, *words, "--help")
    assert (code, said in " ".join(out.split())) == (0, True), out


def test_fish_shows_sentences_behind_their_first_comma(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "completion", "fish")
    splits = [line for line in out.splitlines() if "string split" in line]
    assert splits
    assert all("string split --max 1 " in line for line in splits)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("unifs c", {"completion", "config", "ctl"}),
        ("unifs install-", {"install-service", "install-mount-helper"}),
        ("unifs install-service --s", {"--system", "--state"}),
        # What mount(8) runs is for nobody else.
        ("unifs mount", {"mount"}),
        ("unifs ctl pi", {"pins"}),
        ("unifs ctl pins ", {"add", "ls", "rm", "verify"}),
        ("unifs ctl pins ls --mo", {"--mode"}),
        ("unifs ctl pins ls --mode ", {"recursive", "direct"}),
        ("unifs ctl add --profile unixfs-v1", {"unixfs-v1-2025"}),
        # The shell's own files: also where a path of the mounted tree is asked for.
        ("unifs explain ~/ipfs/m", {"~/ipfs/m"}),
        ("unifs ctl pins add ./do", {"./do"}),
        ("unifs ctl add do", {"do"}),
    ],
)
def test_a_shell_completes_nouns_verbs_options_and_choices(words: str, expected: set[str]) -> None:
    found = process(
        _UNIFS_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
    )
    completions = {line.partition(",")[2] for line in found.stdout.splitlines()}
    assert completions == expected


def printed(code: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(unifs.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def test_asking_a_daemon_imports_nothing_heavy() -> None:
    code = (
        "import sys; from unifs import cli; code = cli.run(['ctl', 'version']);"
        "print(code, *sorted(sys.modules))"
    )
    number, *modules = printed(code)
    assert number == "9"
    assert not HEAVY & set(modules)
    others = {f"unifs.control.ops.{name}" for name in ("content", "files", "pins", "repo")}
    assert not others & set(modules)


def test_describing_any_operation_imports_nothing_heavy() -> None:
    code = (
        "import importlib, pkgutil, sys; import unifs.control.ops as ops;"
        "found = [m.name for m in pkgutil.iter_modules(ops.__path__, ops.__name__ + '.')];"
        "[importlib.import_module(name) for name in found];"
        "print(len(found), *sorted(sys.modules))"
    )
    number, *modules = printed(code)
    assert int(number) > 10
    assert not {"trio", "apsw", "pyfuse3", "httpx"} & set(modules)


def test_output_that_nobody_reads_is_no_failure() -> None:
    code = "from unifs import cli; import sys; sys.exit(cli.run(['config', 'show']))"
    command = f'{sys.executable} -c "{code}" | head -c 1'
    found = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=os.environ | {"PYTHONPATH": str(Path(unifs.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as closed:
        gone = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(Path(unifs.__file__).parent.parent)},
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (gone.returncode, gone.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("config path >&-", 1, "unifs: Bad file descriptor"),
        ("config path > /dev/full", 8, "unifs: No space left on device"),
        ("config path 2>&-", 0, ""),
        ("config path <&-", 0, ""),
        ("doctor --json >&-", 1, "unifs: Bad file descriptor"),
        ("config check /nonexistent/file 2>&-", 2, ""),
        ("ctl add - <&-", 1, "unifs: Bad file descriptor"),
        ("ctl credentials add a <&-", 1, "unifs: Bad file descriptor"),
        ("ctl add /nonexistent/file", 4, "unifs: /nonexistent/file: No such file or directory"),
    ],
)
def test_closed_streams_and_full_disks_are_told_in_a_line(
    home: Path, line: str, code: int, said: str
) -> None:
    # A socket that somebody listens at: what is asked of it does not come so far.
    with socket.socket(socket.AF_UNIX) as listening:
        (home / "state").mkdir(mode=0o700)
        listening.bind(str(home / "state" / "control.sock"))
        listening.listen()
        found = subprocess.run(
            ["bash", "-c", f"exec {sys.executable} -m unifs {line}"],
            env=os.environ
            | {"PYTHONPATH": str(Path(unifs.__file__).parent.parent)}
            | {"UNIFS_HOME": str(home / "state")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (found.returncode, found.stderr.strip()) == (code, said)


def test_the_group_has_no_verb_for_an_unknown_noun() -> None:
    import click

    group = ControlGroup("ctl")
    assert group.get_command(click.Context(group), "nothing") is None


def test_a_failure_is_json_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json stdout has one object, also where there is no daemon to answer."""
    code, out, err = run(capsys, "ctl", "--state", str(tmp_path / "none"), "version", "--json")
    answer = json.loads(out)
    assert (code, answer["status"], answer["error_code"]) == (9, "error", "NO_DAEMON")
    assert err.startswith("unifs: ")
