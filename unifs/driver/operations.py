"""The kernel's requests, decoded, answered by the vfs, encoded.

One handler per request, all made by one function around one guard. A handler calls the vfs's plain
function; that is the whole hot path: two clock readings, one list increment, one look at the
access log. Everything else happens in ``except``: waiting, errors, bugs.

pyfuse3 turns only ``FUSEError`` into an errno; any other exception would leave the handler, the
nursery and the mount. So the guard lets nothing else out but cancellation: ``UnifsError`` and
``OSError`` become their errno, anything else is logged with its traceback, counted and answered
with EIO, and the mount lives on.

Called by pyfuse3 on the event loop. It must never cache, retry or look at a path, and never use
the tree that it serves.
"""

# mypy: disable-error-code="method-assign"
# Handlers are closures, assigned per object: a method would look five attributes up per request.

from __future__ import annotations

import errno
import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyfuse3
import trio

from unifs.driver.access import line
from unifs.driver.latereads import LateReads
from unifs.errors import DeadlineExceeded, NotFound, UnifsError
from unifs.telemetry import REQUEST_BUGS, REQUEST_DURATION, REQUEST_ERRORS
from unifs.types import SetAttributes
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.driver.served import OpenFile, Served
    from unifs.driver.waits import Deadlines, Waits
    from unifs.telemetry import AccessLog, Counter, Metrics
    from unifs.types import Attributes, Space

log = logging.getLogger(__name__)

_FUSEError = pyfuse3.FUSEError

PERMISSIONS: Final = 0o7777
#: Refused before anything else. coreutils then asks once per device instead of once per file
#: (`ls -l` of 10,000: 20,003 requests → 2), and the kernel's question before each write is cheap.
REFUSED_XATTRS: Final = (b"security.", b"system.")
#: What they take, by the histogram's rule: under 1,024 ns; reading the clock would take as long.
REFUSED_BUCKET: Final = 10


@dataclass(frozen=True, slots=True)
class _Request:
    """What the guard knows of one kind of request."""

    verb: str
    call: Callable[..., Any]
    deadline_s: float
    counts: list[int]
    #: Counters of failures by errno, made as they come.
    errors: dict[int, Counter]
    #: The vfs's answer in the shape that pyfuse3 sends, where that differs.
    encode: Callable[[Any], Any] | None = None
    #: The answer to a failure that is none for the kernel, or None.
    recover: Callable[[Exception], Any] | None = None
    #: Of reads: those that the kernel asks for twice.
    late: LateReads | None = None


class Operations(pyfuse3.Operations):
    """The handlers of one session."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        served: Served,
        waits: Waits,
        metrics: Metrics,
        access_log: AccessLog,
        deadlines: Deadlines,
    ) -> None:
        super().__init__()
        #: Set when the kernel has said hello; limits can be raised from then on.
        self.is_initialized = trio.Event()
        self._served = served
        self._waits = waits
        self._metrics = metrics
        self._access_log = access_log
        self._inode_of = served.inode_of
        self._bugs: dict[str, int] = {}
        self._serve_inodes(served, deadlines)
        self._serve_names(served, deadlines)
        self._serve_files(served, deadlines)
        self._serve_directories(served, deadlines)
        self._serve_xattrs(served, deadlines)

    def init(self) -> None:
        """The kernel's first request; called by libfuse, must not raise."""
        self.is_initialized.set()

    # --- the table: request, the vfs's function, deadline ----------------------------------------

    def _serve_inodes(self, served: Served, limits: Deadlines) -> None:
        self.lookup = self._handler(
            "lookup", served.lookup, limits.lookup_s, recover=_negative_entry
        )
        self.getattr = self._handler(
            "getattr", lambda ino, _caller: served.getattr(ino), limits.lookup_s
        )
        self.setattr = self._handler(
            "setattr",
            lambda ino, attributes, fields, fh, caller: served.setattr(
                ino, _changes(attributes, fields), fh, caller
            ),
            limits.other_s,
        )
        self.readlink = self._handler(
            "readlink", lambda ino, _caller: served.readlink(ino), limits.lookup_s
        )
        self.statfs = self._handler(
            "statfs", lambda _caller: served.statfs(), limits.lookup_s, encode=_statvfs
        )

    def _serve_names(self, served: Served, limits: Deadlines) -> None:
        for verb in ("mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename"):
            setattr(self, verb, self._handler(verb, getattr(served, verb), limits.other_s))

    def _serve_files(self, served: Served, limits: Deadlines) -> None:
        self.open = self._handler("open", served.open, limits.lookup_s, encode=_file_info)
        self.create = self._handler("create", served.create, limits.other_s, encode=_created)
        self.read = self._handler("read", served.read, limits.read_s)
        self.write = self._handler("write", served.write, limits.write_s)
        self.flush = self._handler("flush", served.flush, limits.close_s)
        self.release = self._handler("release", served.release, limits.close_s)
        self.fsync = self._handler("fsync", served.fsync, limits.fsync_s)

    def _serve_directories(self, served: Served, limits: Deadlines) -> None:
        reply, partial = pyfuse3.readdir_reply, functools.partial
        self.opendir = self._handler("opendir", served.opendir, limits.lookup_s)
        self.readdir = self._handler(
            "readdir",
            lambda fh, offset, token: served.readdir(fh, offset, partial(reply, token)),
            limits.lookup_s,
        )
        self.releasedir = self._handler("releasedir", served.releasedir, limits.close_s)
        self.fsyncdir = self._handler("fsyncdir", served.fsyncdir, limits.fsync_s)

    def _serve_xattrs(self, served: Served, limits: Deadlines) -> None:
        kept = self._handler(
            "getxattr", lambda ino, name, _caller: served.getxattr(ino, name), limits.other_s
        )
        refused = self._metrics.histogram(REQUEST_DURATION, "getxattr").counts

        async def getxattr(inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
            if name.startswith(REFUSED_XATTRS):
                refused[REFUSED_BUCKET] += 1
                raise _FUSEError(errno.EOPNOTSUPP)
            value: bytes = await kept(inode, name, ctx)
            return value

        self.getxattr = getxattr
        self.setxattr = self._handler(
            "setxattr",
            lambda ino, name, value, _caller: served.setxattr(ino, name, value),
            limits.other_s,
        )
        self.listxattr = self._handler(
            "listxattr", lambda ino, _caller: served.listxattr(ino), limits.other_s
        )
        self.removexattr = self._handler(
            "removexattr", lambda ino, name, _caller: served.removexattr(ino, name), limits.other_s
        )

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel gives look-ups back. It waits for no answer, so a failure is only logged."""
        try:
            self._served.forget(inode_list)
        except Exception as error:
            # pyfuse3 ends the mount on anything that leaves a handler.
            self._errno_of("forget", error)

    # --- the guard -------------------------------------------------------------------------------

    def _handler(
        self,
        verb: str,
        call: Callable[..., Any],
        deadline_s: float,
        encode: Callable[[Any], Any] | None = None,
        recover: Callable[[Exception], Any] | None = None,
    ) -> Callable[..., Any]:
        """The handler of one kind of request: a coroutine function in pyfuse3's shape."""
        counts = self._metrics.histogram(REQUEST_DURATION, verb).counts
        late = LateReads() if verb == "read" else None
        request = _Request(verb, call, deadline_s, counts, {}, encode, recover, late)
        access_log = self._access_log
        clock_ns = time.perf_counter_ns
        inode_of = self._inode_of
        wait = self._wait
        refuse = self._refuse

        async def handle(*args: Any) -> Any:
            started_ns = clock_ns()
            try:
                answer = call(*args)
                if encode is not None:
                    answer = encode(answer)
            except WouldBlock as block:
                return await wait(request, started_ns, block, args)
            except Exception as error:
                # The guard: named failures become their errno, bugs EIO and a traceback.
                return refuse(request, started_ns, error, args)
            elapsed_ns = clock_ns() - started_ns
            counts[elapsed_ns.bit_length()] += 1
            if access_log.is_read:
                access_log.record(line(verb, args, 0, elapsed_ns, inode_of))
            return answer

        return handle

    async def _wait(
        self, request: _Request, started_ns: int, block: WouldBlock, args: tuple[Any, ...]
    ) -> Any:
        """Answer a request that has to wait. No checkpoint between the vfs's answer and ours."""
        try:
            if request.late is not None:
                request.late.refuse_second(*args)
            answer = await self._finish(request, block, args)
            if request.encode is not None:
                answer = request.encode(answer)
        except Exception as error:
            # The guard, as in ``handle``.
            return self._refuse(request, started_ns, error, args)
        self._record(request, started_ns, args, 0)
        return answer

    async def _finish(self, request: _Request, block: WouldBlock, args: tuple[Any, ...]) -> Any:
        try:
            return await self._waits.finish(block, request.deadline_s, request.call, args)
        except DeadlineExceeded:
            if request.late is not None:
                request.late.note(*args)
            raise

    def _refuse(
        self, request: _Request, started_ns: int, error: Exception, args: tuple[Any, ...]
    ) -> Any:
        """Raise the FUSEError of a failure, or return the answer that it is to the kernel."""
        if request.recover is not None and (answer := request.recover(error)) is not None:
            self._record(request, started_ns, args, 0)
            return answer
        number = self._errno_of(request.verb, error)
        self._record(request, started_ns, args, number)
        if (counter := request.errors.get(number)) is None:
            name = errno.errorcode.get(number, str(number))
            counter = self._metrics.counter(REQUEST_ERRORS, request.verb, name)
            request.errors[number] = counter
        counter.value += 1
        # A new instance each time: a shared one would keep the frames, and with them the buffers,
        # of its last request alive, for the 0.06 µs that it saves.
        raise _FUSEError(number)

    def _record(
        self, request: _Request, started_ns: int, args: tuple[Any, ...], number: int
    ) -> None:
        elapsed_ns = time.perf_counter_ns() - started_ns
        request.counts[elapsed_ns.bit_length()] += 1
        if self._access_log.is_read:
            self._access_log.record(line(request.verb, args, number, elapsed_ns, self._inode_of))

    def _errno_of(self, verb: str, error: BaseException) -> int:
        """The errno that the caller sees. What has none is a bug: logged, counted, EIO."""
        if isinstance(error, UnifsError) and type(error) is not UnifsError:
            return error.errno
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            return self._errno_of(verb, error.exceptions[0])
        if isinstance(error, MemoryError):
            return errno.ENOMEM
        self._metrics.counter(REQUEST_BUGS, verb).value += 1
        name = f"{verb}:{type(error).__name__}"
        count = self._bugs[name] = self._bugs.get(name, 0) + 1
        # The 1st, 2nd, 4th, 8th … of each kind: a loop that meets a bug must not fill the disk.
        if count & (count - 1) == 0:
            log.error("request=%s failed, answered=EIO times=%d", verb, count, exc_info=error)
        return errno.EIO


# --- decoding and encoding ----------------------------------------------------------------------


def _changes(attributes: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> SetAttributes:
    """What one setattr changes. UTIME_NOW has been resolved by pyfuse3; ctime is the vfs's own."""
    return SetAttributes(
        attributes.st_mode & PERMISSIONS if fields.update_mode else None,
        attributes.st_uid if fields.update_uid else None,
        attributes.st_gid if fields.update_gid else None,
        attributes.st_size if fields.update_size else None,
        attributes.st_atime_ns if fields.update_atime else None,
        attributes.st_mtime_ns if fields.update_mtime else None,
    )


def _file_info(file: OpenFile) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(file.fh, file.direct_io, file.keep_cache)


def _created(answer: tuple[OpenFile, Attributes]) -> tuple[pyfuse3.FileInfo, Attributes]:
    return _file_info(answer[0]), answer[1]


def _negative_entry(error: Exception) -> pyfuse3.EntryAttributes | None:
    """Proven absence that the kernel may remember: an entry without an inode."""
    if not isinstance(error, NotFound):
        return None
    timeout_s = error.context.get("negative_timeout_s", 0)
    if not isinstance(timeout_s, int | float) or timeout_s <= 0:
        return None
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = timeout_s
    return entry


def _statvfs(space: Space) -> pyfuse3.StatvfsData:
    block = space.block_bytes
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = block
    data.f_blocks = space.total_bytes // block
    data.f_bfree = space.free_bytes // block
    data.f_bavail = space.available_bytes // block
    data.f_files = space.files
    data.f_ffree = data.f_favail = space.files_free
    data.f_namemax = space.name_max_bytes
    return data
