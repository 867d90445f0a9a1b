"""Every contract test runs once for each mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import GAPS, READ_ONLY, SERVERS, SUBJECTS, Subject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers.s3 import S3Server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of reading run for every mount, those that ask for ``writable`` where one can."""
    if "subject" in metafunc.fixturenames:
        names = sorted(SUBJECTS)
        if "writable" in metafunc.fixturenames:
            names = [name for name in names if name not in READ_ONLY]
        metafunc.parametrize("subject", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            told = item.callspec.params
            gap = GAPS.get((item.originalname, told.get("subject"), told.get("name")))
            if gap is not None:
                item.add_marker(pytest.mark.xfail(reason=gap, strict=True))


@pytest.fixture
def server(request: pytest.FixtureRequest) -> S3Server | None:
    """The server that the subject's mount speaks to, where it needs one."""
    name = request.node.callspec.params["subject"]
    return request.getfixturevalue(SERVERS[name]) if name in SERVERS else None


@pytest.fixture
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path, server: S3Server | None
) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param](tmp_path, server) as opened:
        yield opened


@pytest.fixture
def writable(subject: Subject) -> Subject:
    assert subject.mount.supports("put")
    return subject
