"""systemd units that mount a tree: their text, and where they are written.

The command line calls ``install`` and ``uninstall``. A unit does what `unifs mount` with the same
arguments does now, with every path absolute; it never carries a default that the command does not
have. What cannot be done is said before anything is written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unifs import config
from unifs.driver.mountinfo import mounted_at
from unifs.driver.replacing import is_dead
from unifs.errors import Busy, MountFailed, NotFound, Unsupported, from_os_error
from unifs.machine.program import check_ours

SYSTEM_UNITS: Final = Path("/etc/systemd/system")
#: sd_booted(3).
BOOTED: Final = Path("/run/systemd/system")
#: The first line of every unit of ours; what lacks it is somebody else's and is left alone.
MARK: Final = "# Written by `unifs install-service`; `unifs uninstall-service` removes it."
#: Opening a large state after a power cut is not given up; a loop that stands this long is.
WATCHDOG_S: Final = 120
#: After it the daemon is killed, which loses nothing: what was closed is in the journal.
STOP_S: Final = 120
SYSTEMCTL_S: Final = 300.0

TEMPLATE: Final = """\
{mark}
[Unit]
Description=unifs at {mount_point}
Documentation=man:systemd.service(5)
{after}# One that cannot be mounted is tried again five times, then left for somebody to look at.
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
ExecStart={command}
# SIGTERM unmounts, and leaves what is not at its backend in the journal. There is no ExecStop:
# systemd runs it after a crash too, where it would unmount the dead tree, and a mirror job would
# see an empty directory until the restart.
KillMode=mixed
Restart=on-failure
RestartSec=200ms
# Wrong usage, wrong settings: nothing that trying again could change.
RestartPreventExitStatus=2
TimeoutStartSec=infinity
TimeoutStopSec={stop_s}
WatchdogSec={watchdog_s}
# A worker process that the kernel ends for want of memory does not end the tree.
OOMPolicy=continue
LimitNOFILE=65536:524288
# No PrivateTmp=, ProtectSystem= and the like: in a mount namespace of its own nobody would see the
# tree. No NoNewPrivileges=: fusermount3 is set-uid.

[Install]
WantedBy={target}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """One service: ``command`` mounts at ``mount_point``, both absolute."""

    mount_point: str
    command: tuple[str, ...]
    state: str
    is_system: bool

    @property
    def name(self) -> str:
        """One for each mount point: ``unifs-home-ann-ipfs.service``."""
        return unit_name(self.mount_point)

    @property
    def path(self) -> Path:
        """Where systemd looks for it."""
        return _directory(self.is_system) / self.name

    def text(self) -> str:
        """The unit's file."""
        parents = (os.path.dirname(self.state), os.path.dirname(self.mount_point))
        places = " ".join(map(_quoted, dict.fromkeys(parents)))
        return TEMPLATE.format(
            mark=MARK,
            mount_point=_plain(self.mount_point),
            # A user's manager mounts nothing; what it needs is there before somebody logs in.
            after=f"RequiresMountsFor={places}\n" if self.is_system else "",
            command=" ".join(_quoted(word.replace("$", "$$")) for word in self.command),
            stop_s=STOP_S,
            watchdog_s=WATCHDOG_S,
            target="multi-user.target" if self.is_system else "default.target",
        )


def unit_name(mount_point: str) -> str:
    """The service of a mount point, escaped as systemd-escape(1) --path does."""
    return f"unifs-{_escaped(mount_point)}.service"


def install(unit: Unit, is_now: bool) -> list[str]:
    """Write and enable ``unit``, start or restart it if ``is_now``; what a person should know.

    Raises Exists where a unit of that name is not ours, Busy where the tree is mounted by hand,
    Unsupported where it is to be started and systemd does not run, MountFailed with what systemd
    says.
    """
    check_ours(unit.path, MARK)
    is_booted = _is_booted()
    if is_now:
        _check_startable(unit, is_booted)
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
        unit.path.write_bytes(unit.text().encode(errors="surrogateescape"))
    except OSError as error:
        raise from_os_error(error) from error
    told = [f"wrote {unit.path}"]
    scope = "" if unit.is_system else " --user"
    if not is_booted:
        enabling = f"`systemctl{scope} enable {unit.name}` lets it start where it does"
        return [*told, f"systemd does not run here: {enabling}"]
    _systemctl(unit.is_system, "daemon-reload")
    _systemctl(unit.is_system, "enable", unit.name)
    if is_now:
        _systemctl(unit.is_system, "restart", unit.name)
        told.append(f"{unit.mount_point} is mounted")
    else:
        told.append(f"`systemctl{scope} start {unit.name}` mounts it now")
    if not unit.is_system:
        told.append("mounted while you are logged in; `loginctl enable-linger`: from boot on")
    return told


def uninstall(mount_point: str, is_system: bool) -> list[str]:
    """Stop, disable and remove the service of ``mount_point``; its state directory stays.

    Raises NotFound where there is none, Exists where it is not ours.
    """
    name = unit_name(mount_point)
    path = _directory(is_system) / name
    if not path.exists():
        raise NotFound(f"there is no {path}")
    check_ours(path, MARK)
    if _is_booted():
        _systemctl(is_system, "disable", "--now", name)
    try:
        path.unlink()
    except OSError as error:
        raise from_os_error(error) from error
    if _is_booted():
        _systemctl(is_system, "daemon-reload")
    return [f"removed {path}"]


def _directory(is_system: bool) -> Path:
    return SYSTEM_UNITS if is_system else config.units_directory()


def _check_startable(unit: Unit, is_booted: bool) -> None:
    if not is_booted:
        raise Unsupported("systemd does not run here: there is nothing to start the service")
    found = mounted_at(unit.mount_point)
    if found is None or is_dead(unit.mount_point):
        return
    if _asked(unit.is_system, "is-active", "--quiet", unit.name).returncode:
        raise Busy(
            f"{unit.mount_point} is mounted, and not by this service:"
            f" `unifs umount {unit.mount_point}` first"
        )


# --- systemctl ----------------------------------------------------------------------------------


def _is_booted() -> bool:
    return BOOTED.is_dir() and shutil.which("systemctl") is not None


def _asked(is_system: bool, *words: str) -> subprocess.CompletedProcess[str]:
    scope = [] if is_system else ["--user"]
    try:
        return subprocess.run(
            ["systemctl", *scope, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SYSTEMCTL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MountFailed(f"systemctl {' '.join(words)} does not end") from error


def _systemctl(is_system: bool, *words: str) -> None:
    result = _asked(is_system, *words)
    if result.returncode:
        said = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise MountFailed(f"systemctl {' '.join(words)}: {said}")


# --- what a unit file needs escaped -------------------------------------------------------------


def _escaped(path: str) -> str:
    plain = re.sub(rb"/+", b"/", os.fsencode(path)).strip(b"/")
    escaped = "".join(
        "-" if byte == ord("/") else chr(byte) if _is_plain(byte) else f"\\x{byte:02x}"
        for byte in plain
    )
    if escaped.startswith("."):
        escaped = "\\x2e" + escaped[1:]
    return escaped or "-"


def _is_plain(byte: int) -> bool:
    return chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in ":_.")


def _quoted(word: str) -> str:
    """One word of a unit's list (systemd.syntax(7), "Quoting"); ``%`` begins a specifier."""
    safe = re.fullmatch(r"[\w./@=:,+-]+", word, re.ASCII)
    if safe:
        return word
    inside = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f'"{inside.replace("%", "%%")}"'


def _plain(text: str) -> str:
    """For a person: no specifier, nothing that ends the line."""
    return re.sub(r"[^\x20-\x7e]", "?", text).replace("%", "%%")
