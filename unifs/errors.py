"""One tree of failures: what went wrong, and what each surface says about it.

Every error that leaves a layer of unifs is one of these classes. A class fixes, in one place, the
errno a system call sees, the ``error_code`` of the control plane, the HTTP status, the exit code of
the command line, whether trying again may help, and a hint for the person who reads it.

Only the driver turns these into ``FUSEError`` and only the control server into a status code.
Mounts map what their SDK raises at their edge; nothing else catches broadly.

Exit codes: 0 success, 1 a bug or an unnamed failure, 2 wrong usage, 3 unreachable or timed out,
4 not found, 5 refused (permission, read-only, busy, exists, conflict), 6 damaged data,
7 not supported, 8 no space, 9 no daemon.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar


class UnifsError(Exception):
    """A failure with a name. The message is one sentence for a person."""

    errno: ClassVar[int] = _errno.EIO
    code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    is_transient: ClassVar[bool] = False
    hint: ClassVar[str] = "this is a bug in unifs; the log has the traceback"

    #: The first sentence of the class's docstring: what is said where nobody says more.
    default_message: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        cls.default_message = (cls.__doc__ or cls.code).split(".")[0]

    def __init__(self, message: str = "", **context: object) -> None:
        super().__init__(message or self.default_message)
        self.context = context

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.context))


def _rebuild(cls: type[UnifsError], message: str, context: dict[str, object]) -> UnifsError:
    return cls(message, **context)


# --- what a path is or is not -------------------------------------------------------------------


class NotFound(UnifsError):
    """No such file or directory."""

    errno, code, http_status, exit_code = _errno.ENOENT, "NOT_FOUND", 404, 4
    hint = "check the spelling"


class Exists(UnifsError):
    """The name is already taken."""

    errno, code, http_status, exit_code = _errno.EEXIST, "EXISTS", 409, 5
    hint = "remove it first or choose another name"


class NotADirectory(UnifsError):
    """A component of the path is not a directory."""

    errno, code, http_status, exit_code = _errno.ENOTDIR, "NOT_A_DIRECTORY", 400, 5
    hint = ""


class IsADirectory(UnifsError):
    """It is a directory."""

    errno, code, http_status, exit_code = _errno.EISDIR, "IS_A_DIRECTORY", 400, 5
    hint = ""


class NotEmpty(UnifsError):
    """The directory is not empty."""

    errno, code, http_status, exit_code = _errno.ENOTEMPTY, "NOT_EMPTY", 409, 5
    hint = ""


class NameTooLong(UnifsError):
    """A name is longer than 255 bytes."""

    errno, code, http_status, exit_code = _errno.ENAMETOOLONG, "NAME_TOO_LONG", 400, 2
    hint = "shorten the name to 255 bytes"


class InvalidArgument(UnifsError):
    """An argument is not valid."""

    errno, code, http_status, exit_code = _errno.EINVAL, "INVALID_ARGUMENT", 400, 2
    hint = ""


class InvalidCid(InvalidArgument):
    """The string is not a CID."""

    code = "INVALID_CID"
    hint = "a CID looks like bafy…, bafk… or Qm…; a path of the tree begins with /"


class TooLarge(UnifsError):
    """It is larger than the limit."""

    errno, code, http_status, exit_code = _errno.EFBIG, "TOO_LARGE", 413, 2
    hint = ""


class TooManyLinks(UnifsError):
    """The file has as many links as it can have."""

    errno, code, http_status, exit_code = _errno.EMLINK, "TOO_MANY_LINKS", 409, 5
    hint = ""


class BadHandle(UnifsError):
    """The handle is not open for that."""

    errno, code, http_status, exit_code = _errno.EBADF, "BAD_HANDLE", 400, 2
    hint = ""


class TooManyHandles(UnifsError):
    """Too many files are open."""

    errno, code, http_status, exit_code = _errno.EMFILE, "TOO_MANY_HANDLES", 503, 5
    is_transient = True
    hint = "close some files or raise the descriptor limit; `unifs doctor` shows it"


class CrossMount(UnifsError):
    """The two paths lie in different mounts."""

    errno, code, http_status, exit_code = _errno.EXDEV, "CROSS_MOUNT", 400, 5
    hint = "copy, then remove"


# --- extended attributes ------------------------------------------------------------------------


class NoAttribute(UnifsError):
    """There is no such attribute."""

    errno, code, http_status, exit_code = _errno.ENODATA, "NO_ATTRIBUTE", 404, 4
    hint = ""


class AttributeNamespace(UnifsError):
    """That namespace of attributes is not kept here."""

    errno, code, http_status, exit_code = _errno.EOPNOTSUPP, "ATTRIBUTE_NAMESPACE", 501, 7
    hint = "user.* attributes are kept"


# --- refusals -----------------------------------------------------------------------------------


class PermissionDenied(UnifsError):
    """Permission denied."""

    errno, code, http_status, exit_code = _errno.EACCES, "PERMISSION_DENIED", 403, 5
    hint = ""


class NotPermitted(UnifsError):
    """The operation is not permitted on this object."""

    errno, code, http_status, exit_code = _errno.EPERM, "NOT_PERMITTED", 403, 5
    hint = ""


class ReadOnly(UnifsError):
    """This part of the tree is read-only."""

    errno, code, http_status, exit_code = _errno.EROFS, "READ_ONLY", 403, 5
    hint = "write to a mount that is not: `unifs ctl mounts list`"


class JournalFailed(ReadOnly):
    """The journal could not be made durable; the tree is read-only until a restart."""

    code, http_status = "JOURNAL_FAILED", 503
    hint = "look at the disk (dmesg), then unmount and mount again"


class Busy(UnifsError):
    """It is in use."""

    errno, code, http_status, exit_code = _errno.EBUSY, "BUSY", 409, 5
    hint = ""


class Unsynced(Busy):
    """There are changes that have not reached the backend."""

    code = "UNSYNCED"
    hint = "`unifs ctl journal sync` waits for them"


class Conflict(UnifsError):
    """The backend's object changed since it was read."""

    errno, code, http_status, exit_code = _errno.EBUSY, "CONFLICT", 409, 5
    hint = "both versions are kept; look for a name with .conflict- in it"


class Stale(UnifsError):
    """That version of the object can no longer be had."""

    errno, code, http_status, exit_code = _errno.ESTALE, "STALE", 410, 4
    hint = "open it again"


class Unsupported(UnifsError):
    """That cannot be done here."""

    errno, code, http_status, exit_code = _errno.EOPNOTSUPP, "UNSUPPORTED", 501, 7
    hint = ""


class NoSpace(UnifsError):
    """There is no space left."""

    errno, code, http_status, exit_code = _errno.ENOSPC, "NO_SPACE", 507, 8
    hint = "delete something (that works on a full disk), or move the state directory"


# --- other machines -----------------------------------------------------------------------------


class Unreachable(UnifsError):
    """The backend cannot be reached; that says nothing about whether the object exists."""

    errno, code, http_status, exit_code = _errno.EHOSTUNREACH, "UNREACHABLE", 503, 3
    is_transient = True
    hint = "check the network and the backend's address"


class NotAvailableOffline(Unreachable):
    """The content is not on this machine."""

    code, is_transient = "NOT_AVAILABLE_OFFLINE", False
    hint = "import it (`unifs ctl dag import FILE.car`): no network to fetch from is configured"


class DeadlineExceeded(UnifsError):
    """The backend did not answer in time."""

    errno, code, http_status, exit_code = _errno.ETIMEDOUT, "TIMEOUT", 504, 3
    is_transient = True
    hint = "try again; `unifs explain PATH` says who is slow"


class RateLimited(UnifsError):
    """The backend asks for fewer requests."""

    errno, code, http_status, exit_code = _errno.EAGAIN, "RATE_LIMITED", 429, 3
    is_transient = True
    hint = "wait and try again"


class TryAgain(UnifsError):
    """The answer is not ready yet."""

    errno, code, http_status, exit_code = _errno.EAGAIN, "TRY_AGAIN", 503, 3
    is_transient = True
    hint = "try again in a moment"


# --- damage -------------------------------------------------------------------------------------


class Corrupt(UnifsError):
    """The bytes do not match their hash or checksum, or do not parse."""

    errno, code, http_status, exit_code = _errno.EIO, "CORRUPT", 502, 6
    hint = "`unifs ctl repo verify` lists what is damaged"


class ArchiveCorrupt(Corrupt):
    """The archive is cut off, or does not parse, or holds a wrong block."""

    code, http_status = "ARCHIVE_CORRUPT", 400
    hint = "make or fetch the archive again; what is stored here is not what is damaged"


class Inconsistent(Corrupt):
    """Rows, records and contents do not agree."""

    code = "INCONSISTENT"
    hint = "unmount the tree, then `unifs fsck --repair` mends it"


class DiskFailed(UnifsError):
    """The disk refused a read or a write."""

    errno, code, http_status, exit_code = _errno.EIO, "DISK_FAILED", 500, 6
    hint = "look at the disk (dmesg)"


# --- the state directory and the daemon -----------------------------------------------------------


class StateInUse(Busy):
    """Another unifs uses this state directory."""

    code = "STATE_IN_USE"
    hint = "unmount the other one, or give another --state"


class StateNewer(UnifsError):
    """The state directory was written by a newer unifs."""

    errno, code, http_status, exit_code = _errno.EINVAL, "STATE_NEWER", 500, 5
    hint = "update unifs, or give another --state"


class StateUnusable(UnifsError):
    """The state directory cannot be used."""

    errno, code, http_status, exit_code = _errno.EIO, "STATE_UNUSABLE", 500, 5
    hint = "check that it exists, is yours and is writable"


class MountFailed(UnifsError):
    """The tree could not be mounted."""

    errno, code, http_status, exit_code = _errno.EIO, "MOUNT_FAILED", 500, 5
    hint = "`unifs doctor` looks for the cause"


class UnknownOperation(InvalidArgument):
    """There is no such operation."""

    code, http_status = "UNKNOWN_OPERATION", 404
    hint = "`unifs ctl --help` lists them; so does /openapi.json"


class MethodNotAllowed(InvalidArgument):
    """That path is asked for with another HTTP method."""

    code, http_status = "METHOD_NOT_ALLOWED", 405
    hint = "operations are POST; /openapi.json, /tools.json, /health and /metrics are GET"


class NoDaemon(UnifsError):
    """No unifs daemon answers there."""

    errno, code, http_status, exit_code = _errno.ECONNREFUSED, "NO_DAEMON", 503, 9
    hint = "`unifs mount DIR` starts one"


class ConfigInvalid(UnifsError):
    """The settings are not valid."""

    errno, code, http_status, exit_code = _errno.EINVAL, "CONFIG_INVALID", 400, 2
    hint = "`unifs config show` lists every setting"


#: OS errors that unifs names itself; any other errno passes through as it is.
OS_ERRORS: dict[int, type[UnifsError]] = {
    _errno.ENOSPC: NoSpace,
    _errno.EDQUOT: NoSpace,
    _errno.EMFILE: TooManyHandles,
    _errno.ENFILE: TooManyHandles,
    _errno.EIO: DiskFailed,
    _errno.ENOENT: NotFound,
    _errno.EEXIST: Exists,
    _errno.ENOTDIR: NotADirectory,
    _errno.EISDIR: IsADirectory,
    _errno.ENOTEMPTY: NotEmpty,
    _errno.EACCES: PermissionDenied,
    _errno.EPERM: NotPermitted,
    _errno.EROFS: ReadOnly,
    _errno.EXDEV: CrossMount,
    _errno.ENAMETOOLONG: NameTooLong,
    _errno.EINVAL: InvalidArgument,
    _errno.ENODATA: NoAttribute,
    _errno.EFBIG: TooLarge,
    _errno.EMLINK: TooManyLinks,
    _errno.ESTALE: Stale,
    _errno.ETIMEDOUT: DeadlineExceeded,
    _errno.EHOSTUNREACH: Unreachable,
    _errno.EOPNOTSUPP: Unsupported,
    _errno.EBUSY: Busy,
}


def from_os_error(error: OSError) -> UnifsError | OSError:
    """The named failure for an ``OSError``, or the error itself where unifs has no name for it."""
    cls = OS_ERRORS.get(error.errno or 0)
    if cls is None:
        return error
    return cls(error.strerror or str(error))
