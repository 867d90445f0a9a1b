"""The daemon itself: version, status, explain, the access log."""

from typing import Annotated

import unifs
from unifs.control.daemon_protocol import Answer, Daemon, Explanation, StatusReport
from unifs.control.registry import Emit, Param, operation


class Version(Answer):
    """What runs."""

    version: str
    python: str
    kernel: str
    profile: str


class AccessLine(Answer):
    """One request of the kernel. ``error`` is null for success, else the errno's name."""

    time_s: float
    operation: str
    ino: int
    name: str
    offset: int
    size: int
    pid: int
    uid: int
    error: str | None
    elapsed_us: float


@operation("version")
async def version(daemon: Daemon) -> Version:
    """Tell which unifs runs.

    The version of the mounted daemon, which may be another one than that of this command
    (`unifs --version`).
    """
    import platform

    return Version(
        version=unifs.__version__,
        python=platform.python_version(),
        kernel=platform.release(),
        profile=daemon.settings.profile,
    )


@operation("status")
async def status(daemon: Daemon) -> StatusReport:
    """Tell whether the daemon is well: mounts, storage, what is not synced, warnings."""
    return await daemon.status()


@operation("explain")
async def explain(
    daemon: Daemon,
    path: Annotated[str, Param("a path below the mount point, or like /mfs/a", place="tree")],
) -> Explanation:
    """Tell what holds for one path.

    Which mount answers, which version it shows, where the bytes come from, what fsync means there
    and what has not reached the backend yet.
    """
    return await daemon.explain(path)


@operation("log.access", scope="admin", live=True)
async def access(
    daemon: Daemon,
    emit: Emit[AccessLine],
    errors: Annotated[bool, Param("only requests that failed", short="-e")] = False,
) -> None:
    """Follow the requests of the kernel as they are answered, until interrupted.

    Costs the file system nothing while nobody reads. A reader that is too slow loses the oldest
    lines.
    """
    import errno

    with daemon.access_log.reading() as reader:
        async for each in reader:
            if errors and not each.errno:
                continue
            await emit(
                AccessLine(
                    time_s=each.at_ns / 1e9,
                    operation=each.operation,
                    ino=each.ino,
                    name=each.name.decode("utf-8", "surrogateescape"),
                    offset=each.offset,
                    size=each.size,
                    pid=each.pid,
                    uid=each.uid,
                    error=errno.errorcode.get(each.errno) if each.errno else None,
                    elapsed_us=each.elapsed_ns / 1e3,
                )
            )
