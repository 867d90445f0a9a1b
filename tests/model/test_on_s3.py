"""The model against /s3 on a real SeaweedFS, with writeback beside it, remounts and kill -9."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.crash import CrashMachine
from tests.model.machine import profile
from tests.model.s3 import OnS3

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server

#: ``scripts/campaign model --s3`` plays more.
EXAMPLES = 6
STEPS = 40


@pytest.mark.slow
def test_s3_does_what_the_model_does_and_a_stranger_sees_it(
    s3_server: S3Server, tmp_path: Path
) -> None:
    numbers = itertools.count()

    class OnSeaweed(CrashMachine):
        make_subject = staticmethod(lambda: OnS3(tmp_path / f"s3-{next(numbers)}", s3_server))

    # Writeback keeps its own time: no failure is the same twice, and none can be made shorter.
    chosen = settings(profile(EXAMPLES, STEPS), phases=[Phase.generate])
    run_state_machine_as_test(OnSeaweed, settings=chosen)
    assert next(numbers) >= EXAMPLES
