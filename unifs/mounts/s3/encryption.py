"""The customer's key (SSE-C) as the headers of requests that touch an object's bytes.

The key goes to the service with every such request and is kept nowhere there; over plain HTTP that
would hand it to anybody, so it is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from unifs.errors import ConfigInvalid

if TYPE_CHECKING:
    from unifs.mounts.s3.options import S3Options

KEY_BYTES = 32


def key_headers(options: S3Options) -> dict[str, str]:
    """Headers for reading, HEAD, PUT and parts; empty without a customer's key."""
    return _headers(options, "x-amz-server-side-encryption-customer-")


def source_key_headers(options: S3Options) -> dict[str, str]:
    """Headers for the source of a copy."""
    return _headers(options, "x-amz-copy-source-server-side-encryption-customer-")


def _headers(options: S3Options, start: str) -> dict[str, str]:
    if options.encryption != "c":
        return {}
    if options.endpoint.startswith("http://"):
        raise ConfigInvalid('encryption = "c" sends its key with every request: use https')
    try:
        key = base64.b64decode(options.encryption_key, validate=True)
    except binascii.Error as error:
        raise ConfigInvalid("encryption_key is not base64") from error
    if len(key) != KEY_BYTES:
        raise ConfigInvalid(f"encryption_key has {len(key)} bytes, not {KEY_BYTES}")
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    return {
        f"{start}algorithm": "AES256",
        f"{start}key": base64.b64encode(key).decode(),
        f"{start}key-md5": base64.b64encode(digest).decode(),
    }
