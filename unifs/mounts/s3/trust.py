"""Whom a mount believes that it speaks to the right service: the system's authorities, or its own.

The data path, boto3, ``backends test`` and ``credentials test`` ask here, so that what one of them
trusts the others do.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from unifs.errors import ConfigInvalid

if TYPE_CHECKING:
    from unifs.mounts.s3.options import S3Options


def context_of(options: S3Options) -> ssl.SSLContext | None:
    """The context for a mount with authorities of its own; None: the system's, read when needed.

    ConfigInvalid where the file cannot be read or has no certificate.
    """
    if not options.ca_file:
        return None
    try:
        return ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(f"ca_file {options.ca_file}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigInvalid(f"ca_file {options.ca_file!r} is no path") from error


def bundle_of(options: S3Options) -> str | bool:
    """What boto3 calls ``verify``: a file of authorities; True: those that it brings along."""
    return options.ca_file or ssl.get_default_verify_paths().cafile or True
