"""From the settings of a remote mount to the mount: one function per kind.

The composition root calls ``make``. Whatever can be wrong outside this machine is found at the
first use, not here, so a service that is down stops no other mount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.config_mounts import S3Settings
from unifs.errors import ConfigInvalid
from unifs.mounts.blocking import Blocking
from unifs.mounts.s3.credentials import (
    Anonymous,
    AwsCredentials,
    StoredCredentials,
    region_of,
)
from unifs.mounts.s3.options import S3Options

if TYPE_CHECKING:
    from unifs.config_mounts import RemoteBase
    from unifs.mounts.base import Mount
    from unifs.mounts.s3.options import CredentialSource
    from unifs.state.credentials import CredentialStore

#: Threads in which credentials are looked for, of one mount.
THREADS_MAX = 2
DEFAULT_REGION = "us-east-1"


def make(name: str, settings: RemoteBase, store: CredentialStore) -> Mount:
    """The mount that ``[mounts.NAME]`` asks for. ConfigInvalid, NotFound or PermissionDenied where
    it names what the credentials store does not have.
    """
    if isinstance(settings, S3Settings):
        from unifs.mounts.s3.mount import S3Mount

        return S3Mount(name, s3_options(settings, store), credentials_of(settings, store))
    raise AssertionError(f"no such kind: {settings!r}")


def credentials_of(settings: S3Settings, store: CredentialStore) -> CredentialSource:
    """Where the identity comes from."""
    if settings.anonymous:
        return Anonymous()
    if settings.credentials:
        return StoredCredentials(store, settings.credentials)
    return AwsCredentials(settings.profile, Blocking(THREADS_MAX))


def s3_options(settings: S3Settings, store: CredentialStore) -> S3Options:
    """What the mount is told."""
    region = settings.region
    if not region and not settings.endpoint:
        region = region_of(settings.profile)
    key = settings.encryption_key
    if settings.encryption == "c":
        entry = store.get(key)
        if not entry.is_key:
            raise ConfigInvalid(f"{key!r} in the credentials store is no encryption key")
        key = entry.secret_key
    return S3Options(
        endpoint=settings.endpoint.rstrip("/"),
        ca_file=settings.ca_file,
        region=region or DEFAULT_REGION,
        addressing=settings.addressing,
        bucket=settings.bucket,
        prefix=settings.prefix,
        requester_pays=settings.requester_pays,
        storage_class=settings.storage_class,
        encryption=settings.encryption,
        encryption_key=key,
        checksum=settings.checksum,
        keeps_attributes=settings.keep_attributes,
        keeps_cid=settings.keep_cid,
        parallel_max=settings.parallel_max,
    )
