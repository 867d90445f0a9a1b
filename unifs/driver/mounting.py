"""The mount command: look before mounting, run in the background, return when the tree answers.

Called by the command line. The daemon itself is a function that the caller hands over
(``unifs.daemon.run``); this module gives it a process of its own and tells the person at the
terminal how it went. It forks before there is an event loop or a thread, and touches the mounted
tree only from the parent, which does not serve it.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import pickle
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn

from unifs import config
from unifs.driver import doctor, supervised
from unifs.driver.mountinfo import MOUNTINFO, mounted_at, mounts, resolved
from unifs.driver.replacing import is_dead, look_in_time
from unifs.errors import (
    Busy,
    InvalidArgument,
    MountFailed,
    NotADirectory,
    NotFound,
    PermissionDenied,
    StateUnusable,
    UnifsError,
    from_os_error,
)
from unifs.state.directory import holder, refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import TextIOWrapper
    from pathlib import Path

    from unifs.config import Settings

log = logging.getLogger(__name__)

#: How long a daemon that was unmounted may take to close its state before the next one gives up.
CLOSE_S: Final = 30.0
CLOSE_POLL_S: Final = 0.02
LOG_BYTES_MAX: Final = 10 << 20
LOG_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
#: What the child sends first: its process id, so that Ctrl-C reaches it.
_PID: Final = struct.Struct("=i")
_READY: Final = b"ready"

if TYPE_CHECKING:
    #: Serve (settings, mount point, ready) until unmounted; the exit code.
    Run = Callable[[Settings, str, Callable[[], None]], int]


def mount_command(settings: Settings, mount_point: Path, foreground: bool, run: Run) -> int:
    """Mount at ``mount_point`` and return the exit code.

    In the background: 0 when the tree answers. In the foreground: what ``run`` returns when it has
    been unmounted. Raises UnifsError with the reason where it cannot be mounted; nothing is left
    running then. A dead mount point of an earlier unifs is replaced.
    """
    if foreground:
        supervised.log_to_stderr(LOG_FORMAT, settings.log_level)
    place = check_mount_point(mount_point, settings)
    for finding in doctor.needed(settings.allow_other):
        if finding.is_needed and not finding.is_ok:
            raise MountFailed(f"{finding.message} ({finding.remedy})")
    _make_state_directory(settings.state_directory)
    _wait_while_closing(settings.state_directory)
    # The kernel has applied the caller's umask to every mode that it sends; a second one, ours,
    # would take bits away from files made on the host. What is private has its mode given.
    os.umask(0)
    if foreground:
        return _run_in_foreground(settings, place, run)
    config.leave_supervisor()
    return _run_in_background(settings, place, run)


def _run_in_foreground(settings: Settings, place: str, run: Run) -> int:
    supervised.tell(f"STATUS=opening {settings.state_directory}")

    def ready() -> None:
        log.info("mounted mount_point=%s", place)
        supervised.tell("READY=1", f"STATUS=serving {place}")

    try:
        return run(settings, place, ready)
    except UnifsError as error:
        supervised.tell(f"STATUS={error}", f"ERRNO={error.errno}")
        raise


def check_mount_point(mount_point: Path, settings: Settings) -> str:
    """The absolute, resolved path to mount at, or the reason why not as UnifsError."""
    place = resolved(mount_point)
    found = mounted_at(place)
    if found is not None and not found.is_unifs:
        raise Busy(f"{place} is a mount point already ({found.fs_type})")
    if found is not None:
        if not is_dead(place):
            raise Busy(f"a unifs is mounted at {place} already (`unifs umount {place}` ends it)")
        log.warning("unifs: %s is left over from a unifs that died; it is replaced", place)
    else:
        _check_directory(place)
    state = os.path.realpath(settings.state_directory)
    if state == place or state.startswith(f"{place}/"):
        raise InvalidArgument(f"the state directory {state} lies below the mount point {place}")
    return place


# --- checks -------------------------------------------------------------------------------------


def _check_directory(place: str) -> None:
    try:
        os.listdir(place)
    except FileNotFoundError:
        raise NotFound(f"{place} does not exist: make the directory first") from None
    except NotADirectoryError:
        raise NotADirectory(f"{place} is not a directory") from None
    except PermissionError:
        raise PermissionDenied(f"{place} cannot be read") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ESTALE):
            raise MountFailed(f"{place} lies in a mount that is dead: {error.strerror}") from error
        raise from_os_error(error) from error
    if not os.access(place, os.W_OK):
        # fusermount3 demands it, and says so less clearly.
        raise PermissionDenied(f"{place} cannot be written: mount at a directory of your own")


def _make_state_directory(state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise StateUnusable(f"the state directory {state} cannot be made: {reason}") from error
    refuse_foreign(state)


def _wait_while_closing(state: Path) -> None:
    """Give the daemon of ``state`` time to end where it serves no tree any more.

    umount(8) returns before it has closed its state. One that still serves, or does not end, is
    named when the state directory is opened.
    """
    pid = holder(state)
    if pid is None or _serves(pid, state):
        return
    log.info("state=%s waits until pid=%d has closed it", state, pid)
    deadline = time.monotonic() + CLOSE_S
    while holder(state) == pid and time.monotonic() < deadline:
        time.sleep(CLOSE_POLL_S)


def _serves(pid: int, state: Path) -> bool:
    """Whether the tree of ``state`` is mounted where the process ``pid`` lives."""
    try:
        seen = mounts(MOUNTINFO.parents[1] / str(pid) / "mountinfo")
    except OSError:
        return False
    sources = [each.source.partition(":")[2] for each in seen if each.is_unifs]
    return os.path.realpath(state) in map(os.path.realpath, sources)


# --- the background -----------------------------------------------------------------------------


def _run_in_background(settings: Settings, place: str, run: Run) -> int:
    log_path = config.log_path(settings.state_directory)
    try:
        log_descriptor = os.open(log_path, LOG_FLAGS, 0o600)
    except OSError as error:
        raise StateUnusable(f"{log_path} cannot be written: {error.strerror}") from error
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ctrl-C waits until the daemon's pid is known: it ends the daemon too.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(reading)
        _become_daemon(settings, place, run, writing, log_descriptor)
    os.close(writing)
    os.close(log_descriptor)
    os.waitpid(child, 0)
    try:
        outcome = _outcome(reading, mask)
    finally:
        os.close(reading)
    if isinstance(outcome, UnifsError):
        raise outcome
    if not outcome:
        raise MountFailed(f"the daemon ended before the tree answered: see {log_path}")
    try:
        look_in_time(place)
    except OSError as error:
        raise MountFailed(f"{place} is mounted, but fails: {error.strerror}") from error
    return 0


def _outcome(reading: int, mask: set[signal.Signals | int]) -> UnifsError | bool:
    """What the daemon says: its failure, or whether it is ready. Ctrl-C ends it as well.

    SIGINT is blocked until the daemon's pid has come; ``mask`` is what held before.
    """
    head = _read_all(reading, _PID.size)
    if len(head) < _PID.size:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return False
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        rest = _read_all(reading)
    except KeyboardInterrupt:
        os.kill(_PID.unpack(head)[0], signal.SIGTERM)
        raise
    if rest == _READY:
        return True
    failure = pickle.loads(rest) if rest else False
    assert isinstance(failure, UnifsError | bool)
    return failure


def _read_all(descriptor: int, size: int = -1) -> bytes:
    parts = b""
    while size < 0 or len(parts) < size:
        part = os.read(descriptor, size - len(parts) if size > 0 else 65_536)
        if not part:
            break
        parts += part
    return parts


def _become_daemon(
    settings: Settings, place: str, run: Run, writing: int, log_descriptor: int
) -> NoReturn:
    """In the child: leave the terminal, serve, exit. Never returns into the caller's frames."""
    code = 1
    try:
        os.setsid()
        # A session leader could be given a terminal again; its child cannot.
        if os.fork() != 0:
            os._exit(0)
        os.write(writing, _PID.pack(os.getpid()))
        _leave_terminal(writing, log_descriptor)
        _log_to(config.log_path(settings.state_directory), settings.log_level)
        code = _serve(settings, place, run, writing)
    except BaseException:
        # Whatever it is: nothing may leave this frame, which is a copy of the caller's.
        log.exception("the daemon failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _serve(settings: Settings, place: str, run: Run, writing: int) -> int:
    has_told = False

    def tell(outcome: bytes) -> None:
        nonlocal has_told
        if not has_told:
            has_told = True
            # Whoever waited may be gone (SIGPIPE is ignored by Python): the tree is served anyway.
            try:
                os.write(writing, outcome)
            except BrokenPipeError:
                log.info("nobody waits for the mount any more")
            os.close(writing)

    try:
        return run(settings, place, lambda: tell(_READY))
    except UnifsError as error:
        log.error("mount_point=%s code=%s reason=%r", place, error.code, str(error))
        log.debug("mount_point=%s", place, exc_info=error)
        tell(pickle.dumps(error))
        return error.exit_code


def _leave_terminal(writing: int, log_descriptor: int) -> None:
    """Hold nothing of the caller: no directory, no terminal, no pipe that it waits on."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_descriptor, 1)
    os.dup2(log_descriptor, 2)
    os.closerange(3, writing)
    os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that only its user may read, whatever the umask is: it names files."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, LOG_FLAGS, 0o600)
        return open(descriptor, "a", encoding=self.encoding)


def _log_to(path: Path, level: str) -> None:
    handler = PrivateLog(path, maxBytes=LOG_BYTES_MAX, backupCount=1)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
