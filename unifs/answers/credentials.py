"""``unifs ctl credentials``: the store of secrets. What goes out has none in it."""

from __future__ import annotations

import base64
import binascii
import time
from typing import TYPE_CHECKING

from unifs.answers.s3check import check
from unifs.config_mounts import S3Settings
from unifs.control.daemon_protocol import CredentialInfo, CredentialTest
from unifs.errors import Busy, InvalidArgument
from unifs.mounts.s3.credentials import StoredCredentials
from unifs.mounts.s3.options import S3Options
from unifs.state.credentials import Entry

if TYPE_CHECKING:
    from unifs.control.daemon_protocol import Secret
    from unifs.remotes import Remote, Remotes
    from unifs.state.credentials import CredentialStore

#: SSE-C takes AES-256 keys.
KEY_BYTES = 32


class CredentialsAnswer:
    """The credentials store, for control operations."""

    def __init__(self, store: CredentialStore, remotes: Remotes) -> None:
        self._store = store
        self._remotes = remotes

    def _info(self, name: str) -> CredentialInfo:
        entry = self._store.get(name)
        return CredentialInfo(
            name=name,
            kind="key" if entry.is_key else "s3",
            access_key=entry.access_key,
            has_session_token=bool(entry.session_token),
            added_s=entry.added_s,
        )

    async def add(self, name: str, secret: Secret, replace: bool) -> CredentialInfo:
        """Keep an identity, or without an access key a key of 32 bytes in base64."""
        if not secret.access_key:
            _check_key(secret.secret_key)
        entry = Entry(secret.access_key, secret.secret_key, secret.session_token, time.time())
        await self._store.add(name, entry, replace)
        for remote in self._users(name):
            # What was refused to the former key may be granted to this one.
            for waiting in remote.volume.status.quarantined():
                remote.volume.writeback.retry(waiting.ino)
        return self._info(name)

    def _users(self, name: str) -> list[Remote]:
        return [
            remote
            for remote in self._remotes
            if isinstance(remote.settings, S3Settings)
            and name in (remote.settings.credentials, remote.settings.encryption_key)
        ]

    async def remove(self, name: str) -> None:
        """Busy while a mount uses it; NotFound."""
        self._store.get(name)
        users = [remote.name for remote in self._users(name)]
        if users:
            raise Busy(f"{name} is used by {', '.join(users)}")
        await self._store.remove(name)

    async def test(self, name: str, endpoint: str, region: str) -> CredentialTest:
        """Whether a service takes them; raises what is wrong, in one sentence."""
        self._store.get(name)
        settings = S3Settings(endpoint=endpoint, region=region)
        found = await StoredCredentials(self._store, name).current()
        options = S3Options(endpoint=endpoint.rstrip("/"), region=region)
        return CredentialTest(
            name=name, endpoint=settings.source(), buckets=await check(options, found)
        )

    async def list(self) -> list[CredentialInfo]:
        """All entries, by name."""
        return [self._info(name) for name in self._store.names()]


def _check_key(text: str) -> None:
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidArgument("an encryption key has to be 32 bytes in base64") from None
    if size != KEY_BYTES:
        raise InvalidArgument(f"an encryption key has to be 32 bytes in base64, not {size}")
