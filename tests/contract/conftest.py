"""Every contract test runs once for each mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import READ_ONLY, SUBJECTS, Subject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of reading run for every mount, those that ask for ``writable`` where one can."""
    if "subject" in metafunc.fixturenames:
        names = sorted(SUBJECTS)
        if "writable" in metafunc.fixturenames:
            names = [name for name in names if name not in READ_ONLY]
        metafunc.parametrize("subject", names, indirect=True)


@pytest.fixture
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def writable(subject: Subject) -> Subject:
    assert subject.mount.supports("put")
    return subject
