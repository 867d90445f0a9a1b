"""Fixtures for tests in every folder, and what holds before anything of a test is removed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers.fixtures import moto_of_session, moto_server, s3_server, weed_of_session
from unifs.driver.mountinfo import MNT_DETACH, mounts, umount

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["moto_of_session", "moto_server", "s3_server", "weed_of_session"]


def pytest_configure() -> None:
    """What tests start takes SIGINT as it comes from a terminal.

    A shell ignores it for what it starts in the background, and that is inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def detach_below(directory: Path) -> list[str]:
    """Take away what is still mounted at or below ``directory``; the mount points.

    Removing a directory that a tree is mounted in would remove what the tree holds: a host
    directory, a bucket.
    """
    found = [each.mount_point for each in mounts()]
    left = [each for each in found if Path(each).is_relative_to(directory)]
    # The last one mounted lies on top.
    for mount_point in reversed(left):
        umount(mount_point, MNT_DETACH)
    return left


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """pytest's own, which is removed when the test has passed: with nothing mounted in it."""
    yield tmp_path
    left = detach_below(tmp_path)
    assert not left, f"left mounted: {left}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Before the rest is removed, which belongs to whole modules."""
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    if left := detach_below(factory.getbasetemp()):
        print(f"\nleft mounted: {left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
