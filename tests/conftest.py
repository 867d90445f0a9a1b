"""Fixtures for tests in every folder, and what holds before anything of a test is removed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.fixtures import moto_of_session, moto_server, s3_server, weed_of_session
from unifs.driver.mountinfo import MNT_DETACH, mounts, umount

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["moto_of_session", "moto_server", "s3_server", "weed_of_session"]


def pytest_configure(config: pytest.Config) -> None:
    """What tests start takes SIGINT as it comes from a terminal.

    A shell ignores it for what it starts in the background, and that is inherited.
    """
    config.pluginmanager.register(Leavings())
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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a worker that begins one last keeps all others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class Leavings:
    """What tests left mounted is told by each worker to the process that started them."""

    def __init__(self) -> None:
        self.left: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.left += getattr(node, "workeroutput", {}).get("left", [])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Before the rest is removed, which belongs to whole modules."""
        factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        self.left += detach_below(factory.getbasetemp())
        told = getattr(session.config, "workeroutput", None)
        if told is not None:
            told["left"] = self.left
        elif self.left:
            print(f"\nleft mounted: {self.left}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
