"""What one mount can be told: the keys below ``[mounts.NAME]``, their checks and their words.

``config.py`` reads them from the settings file; ``unifs ctl backends add`` gives the same keys at
run time. Nothing here reads anything. A key of a secret is never a setting: settings name an entry
of the credentials store.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from unifs.config_table import MistakeError

if TYPE_CHECKING:
    from collections.abc import Mapping

Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86_400)]

#: Names of buckets: Amazon's rules of today and of before 2018, and of those who copy them.
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
#: What stands in a signature, and in the name of Amazon's hosts.
REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
STORAGE_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class MountBase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every mount can be told."""

    enabled: Annotated[bool, Meta(description="false leaves this mount out of the tree")] = True
    read_only: Annotated[bool, Meta(description="refuse every change below this mount")] = False


class RemoteBase(MountBase, frozen=True, kw_only=True):
    """What every mount can be told whose truth lies at a backend that others change too."""

    fresh_s: Annotated[
        Seconds, Meta(description="how long names and attributes are believed without asking again")
    ] = 30.0
    conflicts: Annotated[
        Literal["keep-both", "ours", "theirs"],
        Meta(description="what becomes of a change whose object somebody else changed too"),
    ] = "keep-both"
    durability: Annotated[
        Literal["local", "backend"],
        Meta(description="what fsync waits for: this machine's disk, or the backend too"),
    ] = "local"
    parallel_max: Annotated[
        int, Meta(ge=1, le=256, description="requests to the service at the same time")
    ] = 64

    def source(self) -> str:
        """What is shown, in the words of the settings; the same words are the same objects."""
        raise NotImplementedError

    def place(self, path: str) -> str:
        """Where the backend has a path of the mount, for people."""
        raise NotImplementedError

    def check(self, where: str) -> None:
        """MistakeError where keys do not fit each other."""


class S3Settings(RemoteBase, frozen=True, kw_only=True, tag="s3"):
    """A service that speaks S3: its buckets are directories, its keys are paths."""

    endpoint: Annotated[
        str, Meta(description="http(s)://host[:port] of the service; empty: Amazon's own")
    ] = ""
    region: Annotated[
        str, Meta(description="region of the service; empty: the profile's, else us-east-1")
    ] = ""
    profile: Annotated[
        str, Meta(description="profile of the AWS configuration files; empty: AWS's own rules")
    ] = ""
    credentials: Annotated[
        str, Meta(description="entry of `unifs ctl credentials`; empty: AWS's own rules")
    ] = ""
    ca_file: Annotated[
        str, Meta(description="PEM file of the authorities to trust; empty: the system's")
    ] = ""
    anonymous: Annotated[bool, Meta(description="sign nothing: public buckets")] = False
    bucket: Annotated[str, Meta(description="show only this bucket, as the mount's root")] = ""
    prefix: Annotated[str, Meta(description="show only keys below this: a/b/")] = ""
    addressing: Annotated[
        Literal["auto", "path", "virtual"],
        Meta(description="bucket names in the path or in the host name; auto: what fits"),
    ] = "auto"
    requester_pays: Annotated[bool, Meta(description="pay for requests to others' buckets")] = False
    storage_class: Annotated[
        str, Meta(description="storage class of what is written; empty: the bucket's")
    ] = ""
    encryption: Annotated[
        Literal["", "s3", "kms", "c"],
        Meta(description="encryption at the service: its own keys, KMS, or a key of yours (c)"),
    ] = ""
    encryption_key: Annotated[
        str, Meta(description="kms: name of the key; c: its entry in `unifs ctl credentials`")
    ] = ""
    checksum: Annotated[
        Literal["none", "crc32c", "sha256"],
        Meta(description="checksum sent with uploads and kept by the service"),
    ] = "none"
    keep_attributes: Annotated[
        bool, Meta(description="keep modes, owners, times and symlinks in object metadata")
    ] = False
    keep_cid: Annotated[
        bool, Meta(description="tell the CID of what is written in object metadata")
    ] = False

    def source(self) -> str:
        place = self.endpoint.rstrip("/") or "s3://"
        return "/".join(part for part in (place, self.bucket, self.prefix.strip("/")) if part)

    def place(self, path: str) -> str:
        bucket, key = self.bucket, self.prefix + path
        if not bucket:
            bucket, _, key = path.partition("/")
        if not bucket:
            return f"the buckets of {self.source()}"
        return f"bucket {bucket}, key {key}" if key else f"bucket {bucket}"

    def check(self, where: str) -> None:
        if self.endpoint:
            _check_endpoint(self.endpoint, f"{where}.endpoint")
        if self.region and not REGION.fullmatch(self.region):
            raise MistakeError(f"{where}.region: {self.region!r} has to be like eu-central-1")
        if self.storage_class and not STORAGE_CLASS.fullmatch(self.storage_class):
            raise MistakeError(
                f"{where}.storage_class: {self.storage_class!r} has to be like STANDARD_IA"
            )
        if self.bucket and not BUCKET.fullmatch(self.bucket):
            raise MistakeError(f"{where}.bucket: {self.bucket!r} cannot be a bucket's name")
        if self.prefix and not self.bucket:
            raise MistakeError(f"{where}.prefix needs {where}.bucket: which bucket's keys?")
        if self.prefix and not (self.prefix.endswith("/") and not self.prefix.startswith("/")):
            raise MistakeError(f"{where}.prefix: {self.prefix!r} has to be like a/b/")
        ways = {"anonymous": self.anonymous, "credentials": self.credentials}
        given = [name for name, value in (ways | {"profile": self.profile}).items() if value]
        if len(given) > 1:
            raise MistakeError(f"{where}: {' and '.join(given)} cannot be given together")
        if self.encryption == "c" and not self.encryption_key:
            raise MistakeError(f"{where}.encryption = 'c' needs {where}.encryption_key")
        if self.encryption_key and self.encryption not in ("kms", "c"):
            raise MistakeError(f"{where}.encryption_key needs {where}.encryption: kms or c")


def _check_endpoint(endpoint: str, place: str) -> None:
    """What is wrong is said without the text: it may hold a password."""
    form = "has to be like https://s3.example.com or http://127.0.0.1:8333"
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        raise MistakeError(f"{place} {form}") from None
    if "@" in endpoint:
        raise MistakeError(f"{place}: a user or password has no place in it; use `credentials`")
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise MistakeError(f"{place} {form}")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise MistakeError(f"{place} {form}; a bucket stands in the key bucket")


#: Kinds of mounts of which there may be several, under any name.
REMOTE_KINDS: Mapping[str, type[RemoteBase]] = {"s3": S3Settings}
