"""A signal while there is no tree yet, or none any more, leaves a clean state."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.crash.daemon import Daemon, repository_environment
from tests.fuse.conftest import PATIENCE_S, until
from tests.fuse.signalled import POINTS
from unifs.driver.earlysignals import EarlySignals
from unifs.driver.mountinfo import mounted_at
from unifs.fsck.offline import CLEAN, examine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EARLY = [point for point in POINTS if point != "it is unmounted"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Not started; its state has a file in it."""
    made = Daemon(tmp_path)
    made.start()
    (made.root / "file").write_bytes(b"data")
    made.stop()
    yield made
    made.close()


def signalled(daemon: Daemon, point: str, number: int, *options: str) -> list[str]:
    words = ["mount", *options, "--state", str(daemon.state), str(daemon.mount)]
    return [sys.executable, "-m", "tests.fuse.signalled", point, str(number), *words]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=repository_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def check_clean(daemon: Daemon) -> None:
    """Nothing to recover for fsck, nor for the next start."""
    assert mounted_at(str(daemon.mount)) is None
    outcome = examine(daemon.state)
    assert (outcome.exit_code, outcome.needs_recovery) == (CLEAN, False)
    assert not list((daemon.state / "lost+found").iterdir())
    daemon.start()
    assert (daemon.root / "file").read_bytes() == b"data"
    daemon.stop()
    assert "recovered" not in daemon.log.read_text()


@pytest.mark.parametrize("point", EARLY)
def test_a_signal_before_the_tree_answers(daemon: Daemon, point: str) -> None:
    """It dies of it, as it would have without any handler, but only once all is closed.

    Once it is mounted the kernel may have had an answer: then it was unmounted, as by any signal.
    """
    done = run(signalled(daemon, point, signal.SIGTERM, "--foreground"))
    assert f"reached: {point}" in done.stderr
    codes = [-signal.SIGTERM, *([0] if point == "it is mounted" else [])]
    assert done.returncode in codes
    check_clean(daemon)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_before_the_tree_answers(daemon: Daemon, number: int) -> None:
    done = run(signalled(daemon, EARLY[0], number, "--foreground"))
    assert done.returncode == (130 if number == signal.SIGINT else -number)
    check_clean(daemon)


def test_a_daemon_in_the_background_says_where_to_look(daemon: Daemon) -> None:
    done = run(signalled(daemon, EARLY[0], signal.SIGTERM))
    assert done.returncode == 5
    assert "the daemon ended before the tree answered: see " in done.stderr
    until(lambda: examine(daemon.state).exit_code == CLEAN, "its state is closed")
    assert "signal=SIGTERM" in (daemon.state / "unifs.log").read_text()
    check_clean(daemon)


def test_a_signal_while_it_is_closed_does_not_stop_that(daemon: Daemon) -> None:
    daemon.command = signalled(daemon, "it is unmounted", signal.SIGTERM, "--foreground")
    daemon.start()
    (daemon.root / "file").write_bytes(b"data")
    daemon.stop()
    assert "reached: it is unmounted" in daemon.log.read_text()
    check_clean(daemon)


def test_a_second_signal_has_its_own_effect() -> None:
    with EarlySignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.has_come()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.pass_on()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
