"""Every contract test runs once for each mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import SUBJECTS, Subject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=sorted(SUBJECTS))
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def writable(subject: Subject) -> Subject:
    if not subject.mount.supports("put"):
        pytest.skip(f"{subject.mount.kind} is read-only")
    return subject
