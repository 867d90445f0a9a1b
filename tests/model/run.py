"""A long run of the model test on a real mount.

    python -m tests.model.run --examples 2000 [--steps 100] [--seed N] [--dir DIR]

With --dir the subject is that directory instead of a fresh unifs, with --below-fuse the vfs in this
process, which is also killed while files are open, with --s3 such a vfs whose files lie on a real
SeaweedFS.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.crash.daemon import Daemon
from tests.model.crash import CrashMachine
from tests.model.machine import FileSystemMachine, profile
from tests.model.operations import Directory
from tests.model.process import InProcess
from tests.model.s3 import OnS3
from tests.servers.s3 import Weed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.s3 import S3Server


def compare(
    root: Path,
    renew: Callable[[], None] | None,
    options: argparse.Namespace,
    server: S3Server | None = None,
) -> None:
    """Run the machine on directories below ``root``; AssertionError names the first difference."""
    numbers = itertools.count()

    def make() -> Any:
        directory = root / f"example-{next(numbers)}"
        if server is not None:
            return OnS3(directory, server)
        if options.below_fuse:
            return InProcess(directory)
        directory.mkdir()
        return Directory(os.fsencode(directory), renew)

    is_killed = options.below_fuse or server is not None

    class Machine(CrashMachine if is_killed else FileSystemMachine):  # type: ignore[misc]
        make_subject = staticmethod(make)

    chosen = settings(profile(options.examples, options.steps), derandomize=False)
    if server is not None:
        # Writeback keeps its own time: no failure is the same twice.
        chosen = settings(chosen, phases=[Phase.generate])
    run_state_machine_as_test(seeded(options.seed)(Machine), settings=chosen)


def main() -> int:
    """Run from the command line; a difference ends it with a traceback and the shortest history."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--below-fuse", action="store_true")
    parser.add_argument("--s3", action="store_true")
    options = parser.parse_args()
    os.umask(0o022)
    if options.dir:
        with tempfile.TemporaryDirectory(dir=options.dir) as name:
            compare(Path(name), None, options)
        return 0
    with tempfile.TemporaryDirectory(prefix="unifs-model-") as name:
        if options.s3:
            with Weed(Path(name)) as server:
                compare(Path(name), None, options, server)
            return 0
        if options.below_fuse:
            compare(Path(name), None, options)
            return 0
        daemon = Daemon(Path(name))

        def renew() -> None:
            daemon.stop()
            daemon.start()

        try:
            daemon.start()
            compare(daemon.root, renew, options)
            daemon.stop()
        finally:
            daemon.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
