"""What `unifs doctor` says of systemd and mount(8) on this machine. Changes nothing."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from unifs import config
from unifs.driver.doctor import Finding
from unifs.machine import mounthelper, units

if TYPE_CHECKING:
    from pathlib import Path


def examine() -> list[Finding]:
    """Whether a service can be installed, and whether what is installed can still be started."""
    return [systemd(), *installed()]


def systemd() -> Finding:
    """Whether systemd would mount a tree."""
    if units.BOOTED.is_dir():
        return Finding("systemd", True, "runs here: `unifs install-service DIR` mounts for good")
    return Finding("systemd", True, "does not run here: no service can be started")


def installed() -> list[Finding]:
    """Services and mount helper of ours whose program is not there any more."""
    found = [
        _still_starts("service", path, r"^ExecStart=\"?([^\" ]+)", "unifs install-service DIR")
        for directory in (config.units_directory(), units.SYSTEM_UNITS)
        for path in sorted(directory.glob("unifs-*.service"))
    ]
    path = mounthelper.PATH
    if path.exists():
        command = "as root: unifs install-mount-helper"
        found.append(_still_starts("mount helper", path, r"^exec '([^']+)'", command))
    return found


def _still_starts(name: str, path: Path, pattern: str, remedy: str) -> Finding:
    try:
        match = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
    except OSError as error:
        return Finding(name, False, f"{path} cannot be read: {error.strerror}")
    if match is None or not os.access(match[1], os.X_OK):
        program = "nothing" if match is None else match[1]
        return Finding(name, False, f"{path} starts {program}, which is not there", remedy)
    return Finding(name, True, f"{path} can be started")
