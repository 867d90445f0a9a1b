"""The subject whose files lie at an S3 service: a remote volume in this process, a real server.

Writeback runs while the machine works, so that operations meet changes on their way. ``end``
brings everything to the bucket first, and compares what a stranger's mount of the bucket shows.
"""

from __future__ import annotations

import shutil
import stat
from typing import TYPE_CHECKING, Any

import trio

from tests.model.process import InProcess
from tests.mounts.s3.identities import Fixed
from tests.remote.system import RemoteSystem
from unifs.journal.writeback_due import WritebackLimits
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3 import S3Server

#: So soon that a change is often on its way when the next one comes. Nothing comes late here.
LIMITS = WritebackLimits(delay_s=0.02, age_max_s=0.2, late_s=0.5)
SYNC_S = 120.0


class OnS3(InProcess):
    """A fresh bucket of ``server``, mounted in this process."""

    def __init__(self, directory: Path, server: S3Server) -> None:
        self._server = server
        self._bucket = server.bucket()
        super().__init__(directory)

    def _mount(self) -> S3Mount:
        server = self._server
        options = S3Options(endpoint=server.endpoint, bucket=self._bucket)
        return S3Mount("s3", options, Fixed(Credentials(server.access_key, server.secret_key)))

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._has_ended = trio.Event()
        mount = self._mount()
        system = RemoteSystem(self._directory, mount, limits=LIMITS)
        async with mount.serve(), system as self._fs:
            self._started()
            self._is_up.set()
            await self._has_ended.wait()

    def end(self) -> None:
        """As ``InProcess``; AssertionError where a stranger would see something else."""
        try:
            self._run(self._judge)
        finally:
            super().end()

    async def _judge(self) -> None:
        system = self._fs
        assert isinstance(system, RemoteSystem)
        with trio.fail_after(SYNC_S):
            await system.volume.writeback.sync()
        assert not system.volume.status.quarantined()
        ours = _kept(await system.tree())
        mount = self._mount()
        strange = RemoteSystem(self._directory.with_name(f"{self._directory.name}-strange"), mount)
        async with mount.serve(), strange:
            theirs = _kept(await strange.tree())
        shutil.rmtree(strange.path)
        for path, (links, data) in ours.items():
            # A file with several names has one of them at the service.
            assert path in theirs or links > 1, f"{path!r} is not in the bucket"
            assert theirs.get(path, (0, data))[1] == data, f"{path!r} has other bytes there"
        assert theirs.keys() <= ours.keys(), f"only there: {theirs.keys() - ours.keys()}"


def _kept(tree: dict[bytes, tuple[Any, ...]]) -> dict[bytes, tuple[int, bytes | None]]:
    """What a service can keep: directories (None) and files; path -> links and bytes."""
    found: dict[bytes, tuple[int, bytes | None]] = {}
    for path, (mode, links, *_, data) in tree.items():
        if stat.S_ISDIR(mode):
            found[path] = (1, None)
        elif stat.S_ISREG(mode):
            found[path] = (links, data)
    return found
