"""The README is executed: every command of it, in order, as a new user on a real mount.

Lines of a ``console`` block that begin with ``$ `` are commands; the lines below one are its
output, in which ``…`` stands for anything, and alone on a line for any number of lines. A command
without lines below it prints nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()

COMMAND_LIMIT_S = 120


def narrow(text: str) -> str:
    """The text with single spaces: the width of a column follows its content."""
    return re.sub(" +", " ", text)


@dataclass(frozen=True)
class Command:
    """One command of the README and the output that it shows."""

    line: str
    output: tuple[str, ...]

    def matches(self, printed: str) -> bool:
        """Whether what was printed is what the README shows."""
        pattern = "".join(
            r"(?:.*\n)*" if line == "…" else re.escape(narrow(line)).replace("…", ".*") + r"\n"
            for line in self.output
        )
        return re.fullmatch(pattern, narrow(printed)) is not None


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[Command]:
    """Every command of the console blocks, in order."""
    found: list[Command] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], ()))
        else:
            found[-1] = Command(found[-1].line, (*found[-1].output, line))
    return found


class Shell:
    """A bash that keeps its variables from one command to the next, in the checkout."""

    def __init__(self, environment: dict[str, str], stderr: Path) -> None:
        self._stderr = stderr.open("w+")
        self._bash = subprocess.Popen(
            ["bash", "-o", "pipefail"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def run(self, line: str) -> tuple[str, int]:
        """What the command prints to stdout, and its exit code."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        # A NUL ends the command's output: no command of a README prints one.
        self._bash.stdin.write(f"{{ {line}\n}} </dev/null\nprintf '\\0%d\\n' $?\n")
        self._bash.stdin.flush()
        out_of_time = threading.Timer(COMMAND_LIMIT_S, self._bash.kill)
        out_of_time.start()
        printed = ""
        while "\0" not in printed and (more := self._bash.stdout.readline()):
            printed += more
        out_of_time.cancel()
        output, _, code = printed.partition("\0")
        return output, int(code or -1)

    def complaints(self) -> str:
        """Everything printed to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def close(self) -> None:
        """End the shell."""
        self._bash.communicate()
        self._stderr.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """The shell of somebody who has just cloned: an empty HOME, scripts/ on PATH."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": f"{os.environ['PATH']}:{ROOT / 'scripts'}",
        "TMPDIR": tempfile.gettempdir(),
        "LC_ALL": "C.UTF-8",
    }
    shell = Shell(environment, tmp_path / "stderr")
    yield shell
    shell.close()
    if os.path.ismount(home / "ipfs"):
        umount = [ROOT / "scripts/unifs", "umount", home / "ipfs"]
        subprocess.run(umount, env=environment, check=True)


@pytest.mark.fuse
def test_every_command_does_what_the_readme_says(shell: Shell) -> None:
    assert len(commands()) > 15
    for command in commands():
        printed, code = shell.run(command.line)
        told = f"$ {command.line}\n{printed}exit code {code}\n{shell.complaints()}"
        assert code == 0, told
        assert command.matches(printed), told


def test_scripts_of_the_readme_exist() -> None:
    named = set(re.findall(r"\bscripts/[\w.]+", TEXT))
    assert {"scripts/unifs", "scripts/test", "scripts/check"} <= named
    assert not [name for name in named if not os.access(ROOT / name, os.X_OK)]


def test_the_map_names_every_part() -> None:
    parts = {
        f"unifs/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "unifs").iterdir()
        if not path.name.startswith("_")
    }
    named = set(re.findall(r"`(unifs/\w+(?:\.py|/))`", TEXT))
    assert named == parts


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.parametrize(
    ("output", "printed", "is_match"),
    [
        (("a",), "a\n", True),
        (("a",), "b\n", False),
        ((), "anything\n", False),
        (("a…",), "a, and more\n", True),
        (("a…",), "a\nb\n", False),
        (("a b",), "a     b\n", True),
        (("…",), "many\nlines\n", True),
        (("…", "end"), "many\nlines\n", False),
    ],
)
def test_output_is_compared(output: tuple[str, ...], printed: str, is_match: bool) -> None:
    assert Command("", output).matches(printed) is is_match
