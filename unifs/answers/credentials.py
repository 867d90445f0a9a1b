"""``unifs ctl credentials``: the store of secrets. What goes out has none in it."""

from __future__ import annotations

import base64
import binascii
import time
from typing import TYPE_CHECKING

import msgspec
import trio

from unifs.answers.s3check import check
from unifs.backends import s3_options
from unifs.config_mounts import S3Settings
from unifs.config_table import MistakeError
from unifs.control.daemon_protocol import CredentialInfo, CredentialTest
from unifs.errors import Busy, InvalidArgument
from unifs.mounts.s3.credentials import StoredCredentials
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

    async def test(self, name: str, endpoint: str, region: str, ca_file: str) -> CredentialTest:
        """Whether a service takes them; raises what is wrong, in one sentence."""
        self._store.get(name)
        found = await StoredCredentials(self._store, name).current()
        settings = self._service(name, endpoint.rstrip("/"))
        told = {"endpoint": endpoint, "region": region, "ca_file": ca_file}
        given = {key: value for key, value in told.items() if value}
        settings = _checked(msgspec.structs.replace(settings, **given))
        # AWS's files are read for the region.
        options = await trio.to_thread.run_sync(s3_options, settings, self._store)
        listed = await check(options, found)
        return CredentialTest(
            name=name,
            endpoint=settings.source(),
            buckets=[settings.bucket] if settings.bucket else listed,
        )

    def _service(self, name: str, endpoint: str) -> S3Settings:
        """What is asked where nothing is told: as a backend asks it that uses the entry.

        Of another backend at that endpoint, what holds for the whole service.
        """
        shown = [each.settings for each in self._remotes]
        services = [each for each in shown if isinstance(each, S3Settings)]
        users = [each for each in services if each.credentials == name]
        if endpoint:
            services, users = _at(endpoint, services), _at(endpoint, users)
        if len({each.endpoint.rstrip("/") for each in users}) > 1:
            places = ", ".join(sorted({each.endpoint or "Amazon's own" for each in users}))
            raise InvalidArgument(f"{name} is used at {places}: name one as the endpoint")
        if users:
            # What is encrypted, and how, is not asked for.
            return msgspec.structs.replace(users[0], encryption="", encryption_key="")
        if endpoint and services:
            return S3Settings(region=services[0].region, ca_file=services[0].ca_file)
        return S3Settings()

    async def list(self) -> list[CredentialInfo]:
        """All entries, by name."""
        return [self._info(name) for name in self._store.names()]


def _at(endpoint: str, services: list[S3Settings]) -> list[S3Settings]:
    """Those of one service; first those that say whom they trust."""
    found = [each for each in services if each.endpoint.rstrip("/") == endpoint]
    return sorted(found, key=lambda each: not each.ca_file)


def _checked(settings: S3Settings) -> S3Settings:
    try:
        settings.check("")
    except MistakeError as mistake:
        raise InvalidArgument(str(mistake).removeprefix(".")) from mistake.__cause__
    return settings


def _check_key(text: str) -> None:
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidArgument("an encryption key has to be 32 bytes in base64") from None
    if size != KEY_BYTES:
        raise InvalidArgument(f"an encryption key has to be 32 bytes in base64, not {size}")
