"""Fixtures that hold real servers, one of a kind a session; ``tests/conftest.py`` publishes them.

A server starts when the first test asks for it. A test may stop, kill or freeze it: the fixture
brings it back afterwards. Isolation is by bucket: take a fresh one with ``s3_server.bucket()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers.s3 import Moto, S3Server, Weed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def weed_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with Weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def s3_server(weed_of_session: Weed) -> Iterator[S3Server]:
    """SeaweedFS."""
    weed_of_session.recover()
    yield weed_of_session
    weed_of_session.recover()


@pytest.fixture
def moto_server(moto_of_session: Moto) -> Iterator[S3Server]:
    moto_of_session.recover()
    yield moto_of_session
    moto_of_session.recover()
