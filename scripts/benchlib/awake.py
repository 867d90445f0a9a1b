"""Keeps the processors from halting during a run, so that rows judge software, not a hypervisor.

A request through FUSE is two wake-ups. Waking a virtual processor that has halted takes 50 µs and
more, and whether it had halted depends on microseconds: a handler slightly slower than the other
side's pays that twice, and the same row comes out between 1.7 and 6.8 times the other side's. A
latency bound of zero (the kernel's PM QoS, ``/dev/cpu_dma_latency``) makes idle processors poll, as
booting with ``idle=poll`` does, for both sides alike and until the descriptor is closed. A spinning
process of lowest priority is no substitute: ``sched_yield`` then gives it whole slices.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LATENCY_BOUND = Path("/dev/cpu_dma_latency")
IDLE_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_ZERO_US = struct.pack("i", 0)


@contextlib.contextmanager
def awake(is_wanted: bool) -> Iterator[str]:
    """Hold the bound while the body runs, where wanted and possible; yields what is so, in words.

    Without a driver for idle states the kernel halts whatever the bound is; setting it takes root.
    """
    if not is_wanted:
        yield "processors may halt"
        return
    try:
        if IDLE_DRIVER.read_text().strip() == "none":
            raise OSError("no cpuidle driver")
        descriptor = os.open(LATENCY_BOUND, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        yield f"processors may halt ({error})"
        return
    try:
        os.write(descriptor, _ZERO_US)
        yield "processors kept awake"
    finally:
        os.close(descriptor)
