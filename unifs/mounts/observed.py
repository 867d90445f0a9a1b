"""A mount as it is seen from outside: how its backend answers, counted and remembered.

``remotes`` puts one around each remote mount, so that ``status``, ``explain`` and ``/metrics`` can
say why a backend does not work, whatever its kind. It passes every call on as it is, and every
answer and error back: no retry, no cache. A mount whose ``serve`` has not begun or has failed is
Unreachable here, with the reason.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import trio

from unifs.errors import (
    Corrupt,
    DeadlineExceeded,
    NoSpace,
    PermissionDenied,
    RateLimited,
    UnifsError,
    Unreachable,
)
from unifs.mounts.base import Mount, attributes_of, cid_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from unifs.mounts.base import ContentReader, LocalReader
    from unifs.types import Change, Node, Page, SetAttributes, Version

log = logging.getLogger(__name__)

#: What says something of the backend; other errors are its answers.
FAULTS: Final = (
    Unreachable,
    DeadlineExceeded,
    RateLimited,
    PermissionDenied,
    Corrupt,
    NoSpace,
)
#: A call that its caller gave up after so long was not answered in time.
SLOW_S: Final = 3.0
#: A fault is logged once, and again after so long.
LOG_S: Final = 60.0


class Health:
    """How one backend has answered."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: Why the last call failed; "" after one that did not.
        self.problem = ""
        self.problem_since_s = 0.0
        #: Calls by method, and failures by error code.
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        #: Bytes that went to the backend and came from it.
        self.sent_bytes = 0
        self.received_bytes = 0
        self._logged_at = float("-inf")

    def failed(self, error: UnifsError) -> None:
        """A call, or the mount itself, failed."""
        self.failures[error.code] += 1
        text = str(error)
        if not self.problem:
            self.problem_since_s = time.time()
        if text != self.problem or not self.problem:
            self.problem = text
            now = time.monotonic()
            if now - self._logged_at > LOG_S:
                self._logged_at = now
                log.warning("backend fails: mount=%s error=%s", self._name, text)

    def answered(self) -> None:
        """A call was answered."""
        if self.problem:
            log.info("backend answers again: mount=%s", self._name)
            self.problem, self._logged_at = "", float("-inf")

    @contextmanager
    def watching(self, call: str) -> Iterator[None]:
        """What one call says of the backend."""
        self.calls[call] += 1
        began = trio.current_time()
        try:
            yield
        except FAULTS as error:
            self.failed(error)
            raise
        except UnifsError as error:
            if type(error) is UnifsError:
                self.failed(error)
            else:
                self.answered()
            raise
        except trio.Cancelled:
            waited_s = trio.current_time() - began
            if waited_s > SLOW_S:
                self.failed(DeadlineExceeded(f"no answer to {call} within {waited_s:.0f} s"))
            raise
        else:
            self.answered()


class _Counted:
    """A content whose reading counts as sending."""

    def __init__(self, content: ContentReader, health: Health) -> None:
        self._content = content
        self._health = health
        self.size_bytes = content.size_bytes
        self.cid = cid_of(content)
        self.attributes = attributes_of(content)

    async def read(self, offset: int, size: int) -> bytes:
        data = await self._content.read(offset, size)
        self._health.sent_bytes += len(data)
        return data


class Observed(Mount):
    """``mount``, observed."""

    def __init__(self, name: str, mount: Mount) -> None:
        self.mount = mount
        self.health = Health(name)
        self._name = name
        self._is_served = False

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.mount.kind

    @property
    def is_immutable(self) -> bool:  # type: ignore[override]
        return self.mount.is_immutable

    @property
    def is_conditional(self) -> bool:  # type: ignore[override]
        return self.mount.is_conditional

    @property
    def is_rename_conditional(self) -> bool:  # type: ignore[override]
        return self.mount.is_rename_conditional

    @property
    def has_containers(self) -> bool:  # type: ignore[override]
        return self.mount.has_containers

    @property
    def batched(self) -> frozenset[str] | None:  # type: ignore[override]
        return self.mount.batched

    def supports(self, capability: str) -> bool:
        return self.mount.supports(capability)

    @contextmanager
    def _calling(self, call: str) -> Iterator[Mount]:
        if not self._is_served:
            raise Unreachable(f"{self._name} is not served: {self.health.problem or 'it begins'}")
        with self.health.watching(call):
            yield self.mount

    # --- reading --------------------------------------------------------------------------------

    async def stat(self, path: str) -> Node:
        with self._calling("stat") as mount:
            return await mount.stat(path)

    async def scan(self, path: str, after: str | None) -> Page:
        with self._calling("scan") as mount:
            return await mount.scan(path, after)

    async def read(self, path: str, version: Version, offset: int, size: int) -> bytes:
        with self._calling("read") as mount:
            data = await mount.read(path, version, offset, size)
        self.health.received_bytes += len(data)
        return data

    async def read_into(
        self,
        path: str,
        version: Version,
        offset: int,
        buffers: Sequence[memoryview],
        filled: Callable[[], None],
    ) -> None:
        with self._calling("read") as mount:
            await mount.read_into(path, version, offset, buffers, filled)
        self.health.received_bytes += sum(map(len, buffers))

    def open_nowait(self, path: str, version: Version) -> LocalReader:
        return self.mount.open_nowait(path, version)

    async def epoch(self) -> str:
        with self._calling("epoch") as mount:
            return await mount.epoch()

    # --- writing --------------------------------------------------------------------------------

    async def put(
        self, path: str, content: ContentReader, base: Version | None, token: str
    ) -> Node:
        with self._calling("put") as mount:
            return await mount.put(path, _Counted(content, self.health), base, token)

    def check_name(self, above: str | None, name: bytes, kind: int) -> None:
        self.mount.check_name(above, name, kind)

    async def make(self, path: str, node: Node, token: str) -> Node:
        with self._calling("make") as mount:
            return await mount.make(path, node, token)

    async def remove(self, path: str, base: Version | None, token: str) -> None:
        with self._calling("remove") as mount:
            await mount.remove(path, base, token)

    async def rename(
        self, path: str, new_path: str, token: str, base: Version | None = None
    ) -> None:
        with self._calling("rename") as mount:
            await mount.rename(path, new_path, token, base)

    async def has_begun(self, new_path: str, token: str) -> bool:
        with self._calling("has_begun") as mount:
            return await mount.has_begun(new_path, token)

    def moved(self, path: str) -> int | None:
        return self.mount.moved(path)

    def sent(self, path: str) -> int | None:
        return self.mount.sent(path)

    async def set_attributes(self, path: str, changes: SetAttributes, token: str) -> None:
        with self._calling("set_attributes") as mount:
            await mount.set_attributes(path, changes, token)

    async def commit(
        self, changes: Sequence[tuple[Change, ContentReader | None]]
    ) -> list[Node | UnifsError | None]:
        if not self.mount.supports("commit"):
            return await super().commit(changes)
        counted = [
            (change, None if content is None else _Counted(content, self.health))
            for change, content in changes
        ]
        with self._calling("commit") as mount:
            outcomes = await mount.commit(counted)
        for outcome in outcomes:
            # The calls behind it are the mount's own affair; what failed is told one by one.
            if isinstance(outcome, FAULTS):
                self.health.failed(outcome)
        return outcomes

    # --- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async with self.mount.serve():
            self._is_served = True
            try:
                yield
            finally:
                self._is_served = False
