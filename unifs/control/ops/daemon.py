"""What the daemon is: its version."""

import msgspec

import unifs
from unifs.control.daemon_protocol import Daemon
from unifs.control.registry import operation


class Version(msgspec.Struct, frozen=True):
    """What runs."""

    version: str
    python: str
    kernel: str
    profile: str


@operation("version")
async def version(daemon: Daemon) -> Version:
    """Which unifs runs.

    The version of the mounted daemon, which may be another one than that of this command
    (``unifs --version``).
    """
    import platform

    return Version(
        version=unifs.__version__,
        python=platform.python_version(),
        kernel=platform.release(),
        profile=daemon.settings.profile,
    )
