"""A process that makes system calls as somebody.

``python -m tests.posix.caller DIRECTORY UID GROUPS`` starts as root, goes to DIRECTORY and becomes
that user; from then on each request on standard input, a pickled ``(call, arguments)``, is answered
on standard output by ``(errno, value)``. Paths are relative, because an ordinary user may not
search what lies above DIRECTORY.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.posix.calls import CALLS

#: In the place of an errno: the call itself is wrong, the value says how.
BUG = -1
REPOSITORY = Path(__file__).parents[2]


class Caller:
    """One user, as a process of its own. ``groups``: the first is the primary one."""

    def __init__(self, name: str, directory: Path, uid: int, groups: tuple[int, ...]) -> None:
        self.name, self.uid, self.gid = name, uid, groups[0]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.posix.caller", directory, str(uid), repr(groups)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def ask(self, call: str, *arguments: Any) -> tuple[int, Any]:
        """Make one call; (errno, value)."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump((call, arguments), process.stdin)
        process.stdin.flush()
        answer: tuple[int, Any] = pickle.load(process.stdout)
        assert answer[0] != BUG, answer[1]
        return answer

    def do(self, call: str, *arguments: Any) -> Any:
        """Make a call that has to succeed; its value."""
        number, value = self.ask(call, *arguments)
        if number:
            raise OSError(number, f"{call} {arguments} as {self.name}: {os.strerror(number)}")
        return value

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=10)


def main() -> None:
    directory, uid, groups = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    os.chdir(directory)
    os.umask(0)
    os.setgroups(groups)
    os.setresgid(groups[0], groups[0], groups[0])
    os.setresuid(uid, uid, uid)
    while True:
        try:
            call, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = 0, CALLS[call](*arguments)
        except OSError as error:
            answer = error.errno or BUG, None
        except Exception:
            answer = BUG, traceback.format_exc()
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
