"""The commands that settle a tree on this machine, and the one that mount(8) calls.

``cli.py`` hangs them into the command line when one is used. They parse and print; ``units.py`` and
``mounthelper.py`` do the work.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from unifs import config
from unifs.control.given import GivenPath
from unifs.driver.mountinfo import mounted_at, resolved
from unifs.errors import InvalidArgument, MountFailed

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY = GivenPath()
_SCOPE = click.option(
    "--system/--user",
    "is_system",
    default=None,
    help="Of the machine, or of your login. Default: of the machine for root.",
)


def _is_system(asked: bool | None) -> bool:
    return os.geteuid() == 0 if asked is None else asked


@click.command("install-service")
@click.argument("directory", type=_DIRECTORY)
@_SCOPE
@click.option("--now", "is_now", is_flag=True, help="Mount now too, by the service.")
@click.option("--state", type=_DIRECTORY, help="Keep everything in this directory.")
@click.option("--config", "file", type=_DIRECTORY, help="Read the settings from this file.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, help="Let other users see the tree.")
def install_service(directory: Path, is_system: bool | None, is_now: bool, **mount: Any) -> None:
    """Let systemd mount the tree at DIRECTORY: at boot, or when you log in.

    It is mounted again after a crash; `unifs umount` and `systemctl stop` end it.
    """
    from unifs.driver import doctor
    from unifs.machine import units
    from unifs.machine.program import program

    settings = config.load(
        mount["state"], mount["file"], {"allow_other": mount["allow_other"] or None}
    )
    place = resolved(directory)
    if mounted_at(place) is None and not os.path.isdir(place):
        raise InvalidArgument(f"{place} is no directory: make it first")
    for finding in doctor.needed(settings.allow_other):
        if finding.is_needed and not finding.is_ok:
            raise MountFailed(f"{finding.message} ({finding.remedy})")
    words = [program(), "mount", "--foreground", "--state", str(settings.state_directory)]
    if settings.config_file is not None:
        words += ["--config", str(settings.config_file)]
    words += [f"--{name}" for name in ("read-only", "allow-other") if mount[name.replace("-", "_")]]
    unit = units.Unit(
        place, (*words, "--", place), str(settings.state_directory), _is_system(is_system)
    )
    _tell(units.install(unit, is_now))


@click.command("uninstall-service")
@click.argument("directory", type=_DIRECTORY)
@_SCOPE
def uninstall_service(directory: Path, is_system: bool | None) -> None:
    """Unmount DIRECTORY's service and remove it; what the tree holds stays.

    The next `unifs mount` has it all.
    """
    from unifs.machine import units

    _tell(units.uninstall(resolved(directory), _is_system(is_system)))


@click.command("install-mount-helper")
@click.option("--remove", "is_removal", is_flag=True, help="Remove it.")
def install_mount_helper(is_removal: bool) -> None:
    """Let mount(8) and /etc/fstab mount trees of type fuse.unifs.

    Writes /sbin/mount.fuse.unifs.
    """
    from unifs.machine import mounthelper
    from unifs.machine.program import program

    if is_removal:
        _tell(mounthelper.remove(mounthelper.PATH))
    else:
        _tell(mounthelper.install(program(), mounthelper.PATH))


def _tell(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)


_RAW = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.command("mount-helper", hidden=True, context_settings=_RAW)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def mount_helper(words: tuple[str, ...]) -> int:
    """What /sbin/mount.fuse.unifs runs: mount SOURCE at DIR, with mount(8)'s arguments."""
    from unifs.machine import mounthelper

    return mounthelper.mount(words)


COMMANDS: dict[str, click.Command] = {
    command.name or "": command
    for command in (
        install_service,
        uninstall_service,
        install_mount_helper,
        mount_helper,
    )
}
