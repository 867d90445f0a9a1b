"""What one S3 mount is told: where the service is, how it is spoken to, and as whom.

The composition root fills these in from settings and the credentials store; the mount reads them.
No secret has a ``repr``: options and credentials may appear in logs and errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Credentials:
    """One identity at a service, as botocore or the credentials store knows it."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


class CredentialSource(Protocol):
    """Where a mount's identity comes from. Answers from memory except when it has expired."""

    async def current(self) -> Credentials | None:
        """The identity to sign with now; None: anonymous.

        PermissionDenied, saying what was looked for, if none is to be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class S3Options:
    """One service, seen by one identity."""

    #: ``http(s)://host[:port]``; "" is Amazon's own for ``region``.
    endpoint: str = ""
    region: str = "us-east-1"
    #: PEM file of the authorities whose certificates are believed; "": the system's.
    ca_file: str = ""
    #: Bucket names in the path or in the host name; auto: path style for any endpoint of one's own.
    addressing: Literal["auto", "path", "virtual"] = "auto"
    #: Show only this bucket, and only keys below ``prefix`` ("a/b/"), as the mount's root.
    bucket: str = ""
    prefix: str = ""
    requester_pays: bool = False
    storage_class: str = ""
    #: Encryption at the service; the key is KMS's name for it or, for "c", 32 bytes in base64.
    encryption: Literal["", "s3", "kms", "c"] = ""
    encryption_key: str = field(default="", repr=False)
    #: The checksum sent with uploads, beside the signed sha256 of the body.
    checksum: Literal["none", "crc32c", "sha256"] = "none"
    #: Keep modes, owners, times and symlinks in object metadata as rclone and s3fs do.
    keeps_attributes: bool = False
    #: Tell the CID of what is written in object metadata, where it is known.
    keeps_cid: bool = False
    #: Requests to the service at a time.
    parallel_max: int = 64
