"""What a mount can be asked for, an observed one passes on."""

from __future__ import annotations

from unifs.mounts.base import Mount
from unifs.mounts.observed import Observed


def test_every_call_is_passed_on() -> None:
    calls = {name for name, held in vars(Mount).items() if callable(held) and name[0] != "_"}
    assert {"stat", "put", "has_begun"} <= calls
    assert calls <= vars(Observed).keys()
